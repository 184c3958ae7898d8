"""The two hashes of the store, and what each is for.

BLAKE3-256 is a chunk's identity: equal ids mean equal bytes, so it names, dedups and is taken by each node that stores a
chunk. xxh3_64 is the check on every read: some five times faster, and enough against bit rot and broken hardware.

A chunk file also carries one xxh3_64 per 64 KiB segment, so that a range can be checked without reading the whole chunk.

Buffers here are of bytes; whoever has others casts them.
"""

from __future__ import annotations

import struct

import blake3
import xxhash
from typing_extensions import Buffer

__all__ = ["ID_BYTES", "SEGMENT_BYTES", "Xxh3", "blake3_id", "content_digest", "num_segments", "segment_checks", "xxh3"]

SEGMENT_BYTES = 64 * 1024
ID_BYTES = 32
# xxh3_64 over parts that come one after another: `update`, then `intdigest`.
Xxh3 = xxhash.xxh3_64


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


def content_digest(chunk_ids: list[bytes]) -> str:
    """Digest of an object's content: BLAKE3-256 over its chunk ids in order, in hex.

    It is a hash tree of depth one, so it needs no second pass over the bytes. Two objects cut into the same chunks have
    equal digests exactly if their bytes are equal.
    """
    return blake3.blake3(b"".join(chunk_ids)).hexdigest()
