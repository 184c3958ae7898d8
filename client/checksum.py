"""The two hashes of the store, and what each is for.

BLAKE3-256 is a chunk's identity: equal ids mean equal bytes, so it names, dedups and is taken by each node that stores a
chunk. xxh3_64 is the check on every read: some five times faster, and enough against bit rot and broken hardware.

A chunk file also carries one xxh3_64 per 64 KiB segment, so that a range can be checked without reading the whole chunk.

Buffers here are of bytes; whoever has others casts them.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

import blake3
import xxhash
from typing_extensions import Buffer

__all__ = [
    "ID_BYTES",
    "SEGMENT_BYTES",
    "Announced",
    "ReadCheck",
    "blake3_id",
    "content_digest",
    "num_segments",
    "segment_checks",
    "xxh3",
]

SEGMENT_BYTES = 64 * 1024
ID_BYTES = 32


def xxh3(data: Buffer) -> int:
    """xxh3_64 of `data`, as an unsigned 64-bit integer."""
    return xxhash.xxh3_64_intdigest(data)


def blake3_id(data: Buffer) -> bytes:
    """BLAKE3-256 of `data`: 32 bytes."""
    return blake3.blake3(data).digest()


def num_segments(size_bytes: int) -> int:
    """How many segments `size_bytes` fill; the last one may be short."""
    return -(-size_bytes // SEGMENT_BYTES)


def segment_checks(data: Buffer) -> bytes:
    """One little-endian xxh3_64 per 64 KiB segment of `data`, the last one over what is left."""
    view = memoryview(data)
    return b"".join(
        struct.pack("<Q", xxh3(view[start : start + SEGMENT_BYTES])) for start in range(0, len(view), SEGMENT_BYTES)
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Announced:
    """What a node says of a chunk beside a part of its bytes.

    Attributes
    ----------
    check : int, optional
        xxh3_64 of the whole chunk; None if it said nothing that could be read.
    segment_checks : bytes
        Of the segments that were asked for.
    """

    check: int | None = None
    segment_checks: bytes = b""


class ReadCheck:
    """Whether bytes that are read from a chunk are the right ones; they may come in pieces, while they are in the CPU's cache.

    The whole chunk is checked against its reference. A part is checked against the segment checks that the node announces,
    and the node's idea of the whole chunk against the reference.

    Parameters
    ----------
    whole : bool
        Whether it is the whole chunk that is read. Otherwise it is whole segments.
    """

    def __init__(self, *, whole: bool) -> None:
        self._whole = xxhash.xxh3_64() if whole else None
        self._segments: list[bytes] = []

    def update(self, piece: Buffer) -> None:
        """Take the next bytes: all that are left, or a number of whole segments."""
        if self._whole is not None:
            self._whole.update(piece)
        else:
            self._segments.append(segment_checks(piece))

    def matches(self, check: int, announced: Announced) -> bool:
        """Whether all that was taken belongs to the chunk whose reference has `check`."""
        if self._whole is not None:
            return self._whole.intdigest() == check
        return announced.check == check and announced.segment_checks == b"".join(self._segments)


def content_digest(chunk_ids: list[bytes]) -> str:
    """Digest of an object's content: BLAKE3-256 over its chunk ids in order, in hex.

    It is a hash tree of depth one, so it needs no second pass over the bytes. Two objects cut into the same chunks have
    equal digests exactly if their bytes are equal.
    """
    return blake3.blake3(b"".join(chunk_ids)).hexdigest()
