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
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import accumulate

from typing_extensions import Buffer

from client.checksum import blake3_id, xxh3
from client.errors import MetadataCorrupt
from client.placement import partition_of

__all__ = ["MAX_ENTRIES", "REF_BYTES", "Entry", "Manifest", "Ref", "make_ref"]

# A leaf covers 8 GiB of content in chunks of 8 MiB, and costs a reader who jumps about 57 kB.
MAX_ENTRIES = 1024
_REF = struct.Struct("<II32sQ")
REF_BYTES = _REF.size
_ENTRY = struct.Struct("<II32sQQ")
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
        try:
            partition, size, chunk_id, check = _REF.unpack(data)
        except struct.error as exc:
            raise MetadataCorrupt(f"a chunk reference has {REF_BYTES} bytes, found {memoryview(data).nbytes}") from exc
        return cls(partition=partition, id=chunk_id, size=size, check=check)


def make_ref(payload: Buffer, *, partitions: int, group: str | None = None) -> Ref:
    """The reference of a new chunk: hashed, and placed by `group` or, without one, by its id."""
    chunk_id = blake3_id(payload)
    partition = partition_of(chunk_id if group is None else group.encode(), partitions=partitions)
    return Ref(partition=partition, id=chunk_id, size=memoryview(payload).nbytes, check=xxh3(payload))


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
    _ends: tuple[int, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_ends", tuple(accumulate(entry.content_bytes for entry in self.entries)))

    @property
    def content_bytes(self) -> int:
        """Bytes of content below this manifest."""
        return self._ends[-1] if self._ends else 0

    def covering(self, start: int, end: int) -> Iterator[tuple[int, Entry]]:
        """Entries that overlap content bytes ``[start, end)``, in order, each with the offset at which it begins."""
        for index in range(bisect_right(self._ends, start), len(self.entries)):
            entry = self.entries[index]
            begin = self._ends[index] - entry.content_bytes
            if max(begin, start) >= end:
                return
            if entry.content_bytes:
                yield begin, entry

    def encode(self) -> bytes:
        """The manifest as the bytes of a chunk."""
        head = _HEADER.pack(_MAGIC, self.level, 0, len(self.entries))
        refs = ((entry.ref, entry.content_bytes) for entry in self.entries)
        body = b"".join(_ENTRY.pack(ref.partition, ref.size, ref.id, ref.check, below) for ref, below in refs)
        return head + body + _U64.pack(xxh3(head + body))

    @classmethod
    def decode(cls, data: bytes) -> Manifest:
        """The inverse of `encode`; raises `MetadataCorrupt` for anything that `encode` would not have written."""
        if len(data) < _HEADER.size + _U64.size:
            raise MetadataCorrupt(f"a manifest has at least {_HEADER.size + _U64.size} bytes, found {len(data)}")
        magic, level, zero, count = _HEADER.unpack_from(data)
        if magic != _MAGIC or zero:
            raise MetadataCorrupt(f"a manifest begins with {_MAGIC!r}, found {magic!r}")
        if len(data) != _HEADER.size + count * _ENTRY.size + _U64.size:
            raise MetadataCorrupt(f"a manifest of {count} entries does not have {len(data)} bytes")
        if _U64.unpack_from(data, len(data) - _U64.size)[0] != xxh3(memoryview(data)[: -_U64.size]):
            raise MetadataCorrupt("the checksum of a manifest does not match its bytes")
        entries = tuple(
            Entry(ref=Ref(partition=partition, id=chunk_id, size=size, check=check), content_bytes=content_bytes)
            for partition, size, chunk_id, check, content_bytes in _ENTRY.iter_unpack(
                memoryview(data)[_HEADER.size : -_U64.size]
            )
        )
        if level == 0 and any(entry.content_bytes != entry.ref.size for entry in entries):
            raise MetadataCorrupt("a manifest of data chunks disagrees with their sizes")
        return cls(level=level, entries=entries)
