"""Bytes that say what they should be: whoever reads them knows which write they are of, and that each one is right. Pure."""

from __future__ import annotations

import random

__all__ = ["SHARED", "WrongBytes", "read", "shared", "size_of", "value"]

MAGIC = b"forebay-soak"
# Bodies that several writes have in common, so that chunks are shared and come back. They tell nothing of their write.
SHARED = "shared-"
NUM_SHARED = 4
KIB = 1024


class WrongBytes(AssertionError):
    """What was read is not what was written."""


def value(name: str, size_bytes: int) -> bytes:
    """The bytes of this name and size; there is one such for each. A name without spaces."""
    head = b"%s %s %d\n" % (MAGIC, name.encode(), size_bytes)
    return (head + random.Random(f"{name} {size_bytes}").randbytes(max(0, size_bytes - len(head))))[:size_bytes]


def read(data: bytes) -> str | None:
    """The name in these bytes, all of which are right; None for no bytes, which say nothing. Raises `WrongBytes`."""
    if not data:
        return None
    try:
        magic, name, size = data[: data.index(b"\n")].split(b" ")
        expected = value(name.decode(), int(size)) if magic == MAGIC else b""
    except ValueError as exc:
        raise WrongBytes(f"{len(data)} bytes that nobody wrote: {data[:80]!r}") from exc
    if data != expected:
        place = next((n for n, (a, b) in enumerate(zip(data, expected, strict=False)) if a != b), min(len(data), len(expected)))
        raise WrongBytes(f"{len(data)} of {len(expected)} bytes of {name.decode()}, wrong from byte {place} on")
    return name.decode()


def shared(rng: random.Random) -> bytes:
    """One of the bodies that many writes have."""
    number = rng.randrange(NUM_SHARED)
    return value(f"{SHARED}{number}", 40 * KIB * (number + 1))


def size_of(rng: random.Random, *, chunk_bytes: int) -> int:
    """A size: most are small, some are nothing, some several chunks, a few so many that they have a manifest."""
    kind = rng.random()
    if kind < 0.04:
        return 0
    if kind < 0.70:
        return rng.randrange(200, 4 * KIB)
    if kind < 0.92:
        return rng.randrange(4 * KIB, chunk_bytes)
    if kind < 0.98:
        return rng.randrange(chunk_bytes, 3 * chunk_bytes)
    return rng.randrange(9 * chunk_bytes, 11 * chunk_bytes)
