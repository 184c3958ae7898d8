"""The bodies in which many small things travel at once. Pure: bytes in, values out; little-endian throughout.

Chunks on their way to a node (``POST /v1/chunks:batchPut``):

    8 bytes   magic ``FBCHBAT1``, whose last digit is the version
    u32       number of chunks
    per chunk u32 partition, u32 size, 32 bytes id
    payloads  one behind the other, in the same order

Which chunks are wanted (``POST /v1/chunks:batchGet``), as many and as large as such a batch may be:

    8 bytes   magic ``FBCHREF1``
    refs      48 bytes each (`client.manifest`), to the end

Objects on their way from a node (the answer to ``POST /v1/objects:batchGet``), or chunks (to ``chunks:batchGet``):

    8 bytes   magic ``FBOBJBA1``
    frames    one for each object or chunk that was asked for, in that order, and nothing behind the last

    u32       kind
    u32       bytes that follow in this frame

    kind 1    the object is one small chunk, and here it is: its reference, its payload, which the node has not verified
    kind 2    the object's info as JSON, for whoever reads it chunk by chunk; never for a chunk
    kind 3    a problem document, JSON: why this object or chunk can't be had

A length is never believed before it is compared with what came, so a hostile one costs nothing.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from typing import Any

from typing_extensions import Buffer

from client.checksum import SEGMENT_BYTES
from client.errors import InvalidRequest, ProtocolMismatch
from client.manifest import REF_BYTES, Ref
from client.wire import encode_json

__all__ = [
    "CHUNK",
    "INFO",
    "MAX_BATCH_BYTES",
    "MAX_ITEMS",
    "MAX_REFS_BYTES",
    "MAX_SMALL_BYTES",
    "OBJECTS_MAGIC",
    "PROBLEM",
    "chunk_head",
    "decode_chunks",
    "decode_refs",
    "document_frame",
    "encode_chunks",
    "encode_refs",
    "frames",
    "table_bytes",
]

MAX_ITEMS = 1024
# A chunk of one segment: its trailer follows from its reference, and its one checksum covers any range of it.
MAX_SMALL_BYTES = SEGMENT_BYTES
MAX_BATCH_BYTES = 8 * 1024 * 1024  # Payloads of one batch of chunks.
OBJECTS_MAGIC = b"FBOBJBA1"
CHUNK, INFO, PROBLEM = 1, 2, 3
_CHUNKS_MAGIC = b"FBCHBAT1"
_REFS_MAGIC = b"FBCHREF1"
MAX_REFS_BYTES = len(_REFS_MAGIC) + MAX_ITEMS * REF_BYTES  # A request for chunks.
_CHUNKS = struct.Struct("<8sI")
_CHUNK = struct.Struct("<II32s")
_FRAME = struct.Struct("<II")
_CHUNK_FRAME = struct.Struct("<IIII32sQ")  # Head and reference at once.


def table_bytes(num_chunks: int) -> int:
    """What a batch of chunks has before its payloads."""
    return _CHUNKS.size + num_chunks * _CHUNK.size


def encode_chunks(chunks: Sequence[tuple[Ref, Buffer]]) -> bytes:
    """A batch of chunks, whose bounds are the caller's to keep."""
    head = _CHUNKS.pack(_CHUNKS_MAGIC, len(chunks))
    table = b"".join(_CHUNK.pack(ref.partition, ref.size, ref.id) for ref, _ in chunks)
    return b"".join((head, table, *(payload for _, payload in chunks)))


def decode_chunks(body: Buffer) -> list[tuple[int, bytes, memoryview]]:
    """(partition, id, payload) of each chunk of a batch; the payloads are views of `body`.

    Raises
    ------
    InvalidRequest
        For anything that `encode_chunks` would not have made within the bounds.
    """
    view = memoryview(body).cast("B")
    if len(view) < _CHUNKS.size:
        raise InvalidRequest(f"a batch of chunks has at least {_CHUNKS.size} bytes, found {len(view)}")
    magic, count = _CHUNKS.unpack_from(view)
    if magic != _CHUNKS_MAGIC or not 0 < count <= MAX_ITEMS:
        raise InvalidRequest(f"expected {_CHUNKS_MAGIC!r} and 1 to {MAX_ITEMS} chunks, found {magic!r} and {count}")
    place = table_bytes(count)
    if len(view) < place:
        raise InvalidRequest(f"a batch of {count} chunks has a table of {place} bytes, found {len(view)}")
    chunks = []
    for partition, size, chunk_id in _CHUNK.iter_unpack(view[_CHUNKS.size : place]):
        if not 0 < size <= MAX_SMALL_BYTES:
            raise InvalidRequest(f"a chunk of {size} bytes in a batch, which takes 1 to {MAX_SMALL_BYTES}")
        chunks.append((partition, chunk_id, view[place : place + size]))
        place += size
    if place != len(view):
        raise InvalidRequest(f"the chunks of a batch should take {place} bytes, found {len(view)}")
    return chunks


def encode_refs(refs: Sequence[Ref]) -> bytes:
    """Which chunks are wanted, within bounds that are the caller's to keep."""
    return _REFS_MAGIC + b"".join(ref.pack() for ref in refs)


def decode_refs(body: Buffer) -> list[Ref]:
    """The inverse of `encode_refs`.

    Raises
    ------
    InvalidRequest
        For anything that `encode_refs` would not have made within the bounds of a batch.
    """
    view = memoryview(body).cast("B")
    magic, rest = bytes(view[: len(_REFS_MAGIC)]), view[len(_REFS_MAGIC) :]
    if magic != _REFS_MAGIC or not rest or len(rest) % REF_BYTES or len(rest) > MAX_ITEMS * REF_BYTES:
        expected = f"{_REFS_MAGIC!r} and 1 to {MAX_ITEMS} references of {REF_BYTES} bytes"
        raise InvalidRequest(f"expected {expected}, found {magic!r} and {len(rest)} bytes")
    refs = [Ref.unpack(rest[place : place + REF_BYTES]) for place in range(0, len(rest), REF_BYTES)]
    sizes = [ref.size for ref in refs]
    if min(sizes) == 0 or max(sizes) > MAX_SMALL_BYTES or sum(sizes) > MAX_BATCH_BYTES:
        found = f"{min(sizes)} to {max(sizes)}, {sum(sizes)} together"
        raise InvalidRequest(f"chunks in a batch have 1 to {MAX_SMALL_BYTES} bytes, {MAX_BATCH_BYTES} together, found {found}")
    return refs


def chunk_head(ref: Ref) -> bytes:
    """What stands before a payload in a frame of kind `CHUNK`."""
    return _CHUNK_FRAME.pack(CHUNK, REF_BYTES + ref.size, ref.partition, ref.size, ref.id, ref.check)


def document_frame(kind: int, document: dict[str, Any]) -> bytes:
    """A whole frame of kind `INFO` or `PROBLEM`."""
    encoded = encode_json(document)
    return _FRAME.pack(kind, len(encoded)) + encoded


def frames(body: Buffer, *, count: int) -> Iterator[tuple[int, memoryview]]:
    """(kind, what follows) of each of the `count` frames in an answer; views of `body`.

    Raises
    ------
    ProtocolMismatch
        For other magic, an unknown kind, a frame that is cut short, or fewer or more frames. In the middle, perhaps.
    """
    view = memoryview(body).cast("B")
    if view[: len(OBJECTS_MAGIC)] != OBJECTS_MAGIC:
        raise ProtocolMismatch(f"frames of objects begin with {OBJECTS_MAGIC!r}, found {bytes(view[:8])!r}")
    place, size_bytes = len(OBJECTS_MAGIC), len(view)
    for index in range(count):
        start = place + _FRAME.size
        if start > size_bytes:
            raise ProtocolMismatch(f"{index} frames of objects came, expected {count}")
        kind, length = _FRAME.unpack_from(view, place)
        place = start + length
        if not CHUNK <= kind <= PROBLEM or place > size_bytes or (kind == CHUNK and length < REF_BYTES):
            raise ProtocolMismatch(f"a frame of kind {kind} and {length} bytes, of which {size_bytes - start} came")
        yield kind, view[start:place]
    if place != size_bytes:
        raise ProtocolMismatch(f"{size_bytes - place} bytes behind the last of {count} frames")
