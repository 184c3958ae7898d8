"""References to chunks, and the tree of manifests that lists the chunks of a large object.

A reference says everything a reader needs to find and check a chunk: ``{partition, id, size, xxh3_64}``, packed into 48
bytes. A manifest is a chunk like any other, content-addressed and replicated. It lists entries in content order, each a
reference with the number of content bytes below it: of data chunks at level 0, of manifests of the level below elsewhere.
So a record stays small whatever the object's size, and a reader of a range fetches only the manifests that cover it.

Layout of an encoded manifest, little-endian: magic ``FBMANIF1``, u16 level, u16 zero, u32 entries; per entry the 48 bytes
of a reference and u64 content bytes; xxh3_64 of all before it. docs/FORMAT.md is the specification.
"""

from __future__ import annotations

import struct
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from typing_extensions import Buffer

from client.checksum import blake3_id, xxh3
from client.errors import MetadataCorrupt
from client.placement import partition_of

__all__ = ["MAX_ENTRIES", "REF_BYTES", "Entry", "Manifest", "Ref", "make_ref"]

MAX_ENTRIES = 8192
_REF = struct.Struct("<II32sQ")
REF_BYTES = _REF.size
_HEADER = struct.Struct("<8sHHI")
_U64 = struct.Struct("<Q")
_MAGIC = b"FBMANIF1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Ref:
    """A reference to one chunk.

    Attributes
    ----------
    partition : int
        Decides the replicas, together with the layout.
    id : bytes
        BLAKE3-256 of the chunk, 32 bytes.
    size : int
        Bytes.
    check : int
        xxh3_64 of the chunk.
    """

    partition: int
    id: bytes
    size: int
    check: int

    @property
    def hex(self) -> str:
        """The id as 64 hex digits."""
        return self.id.hex()

    def __str__(self) -> str:
        return f"{self.partition}/{self.hex}"

    def pack(self) -> bytes:
        """The reference as 48 bytes."""
        return _REF.pack(self.partition, self.size, self.id, self.check)

    @classmethod
    def unpack(cls, data: Buffer) -> Ref:
        """The inverse of `pack`; raises `MetadataCorrupt` on another length."""
        if len(memoryview(data)) != REF_BYTES:
            raise MetadataCorrupt(f"a chunk reference has {REF_BYTES} bytes, found {len(memoryview(data))}")
        partition, size, chunk_id, check = _REF.unpack(data)
        return cls(partition=partition, id=chunk_id, size=size, check=check)


def make_ref(payload: Buffer, *, partitions: int, group: str | None = None) -> Ref:
    """The reference of a new chunk: hashed, and placed by `group` or, without one, by its id."""
    chunk_id = blake3_id(payload)
    partition = partition_of(chunk_id if group is None else group.encode(), partitions=partitions)
    return Ref(partition=partition, id=chunk_id, size=len(memoryview(payload)), check=xxh3(payload))


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One child of a manifest, and how many bytes of content lie below it."""

    ref: Ref
    content_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """A node of the tree: `entries` in content order; `level` 0 lists data chunks."""

    level: int
    entries: tuple[Entry, ...]

    def covering(self, start: int, end: int) -> list[tuple[int, Entry]]:
        """Entries that overlap content bytes ``[start, end)``, each with the offset at which it begins."""
        return covering(self.entries, start, end)

    def encode(self) -> bytes:
        """The manifest as the bytes of a chunk."""
        head = _HEADER.pack(_MAGIC, self.level, 0, len(self.entries))
        body = b"".join(entry.ref.pack() + _U64.pack(entry.content_bytes) for entry in self.entries)
        return head + body + _U64.pack(xxh3(head + body))

    @classmethod
    def decode(cls, data: bytes) -> Manifest:
        """The inverse of `encode`; raises `MetadataCorrupt` for anything that `encode` would not have written."""
        stride = REF_BYTES + _U64.size
        if len(data) < _HEADER.size + _U64.size:
            raise MetadataCorrupt(f"a manifest has at least {_HEADER.size + _U64.size} bytes, found {len(data)}")
        magic, level, zero, count = _HEADER.unpack_from(data)
        if magic != _MAGIC or zero:
            raise MetadataCorrupt(f"a manifest begins with {_MAGIC!r}, found {magic!r}")
        if len(data) != _HEADER.size + count * stride + _U64.size:
            raise MetadataCorrupt(f"a manifest of {count} entries does not have {len(data)} bytes")
        if _U64.unpack_from(data, len(data) - _U64.size)[0] != xxh3(memoryview(data)[: -_U64.size]):
            raise MetadataCorrupt("the checksum of a manifest does not match its bytes")
        entries = []
        for offset in range(_HEADER.size, _HEADER.size + count * stride, stride):
            ref = Ref.unpack(data[offset : offset + REF_BYTES])
            entries.append(Entry(ref=ref, content_bytes=_U64.unpack_from(data, offset + REF_BYTES)[0]))
        return cls(level=level, entries=tuple(entries))


def covering(entries: Sequence[Entry], start: int, end: int) -> list[tuple[int, Entry]]:
    """Of `entries` in content order, those that overlap ``[start, end)``, each with its own start offset."""
    ends = list(accumulate(entry.content_bytes for entry in entries))
    found = []
    for index in range(bisect_right(ends, start), len(entries)):
        begin = ends[index] - entries[index].content_bytes
        if begin >= end:
            break
        if entries[index].content_bytes:
            found.append((begin, entries[index]))
    return found
