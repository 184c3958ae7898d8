"""Datasets in memory: their bytes, made by the real codecs, and a store that holds them and fails when told to.

`MemoryDataset` is a `ShardedDataset` over such bytes. It pickles, so that DataLoader workers of any start method can have it.
"""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

import pytest
from typing_extensions import Buffer

from client.errors import ObjectNotFound
from client.objects import ObjectStore
from client.record import Content, ObjectInfo, ObjectRecord
from client.replica import ReadTotals, UnderWay
from loader.block import BlockBuilder, BlockTableBuilder, new_compressor
from loader.columns import Schema
from loader.dataset import ShardedDataset
from loader.index import DatasetIndex
from loader.lane import LaneEntry
from loader.lanes import LaneDealer
from loader.opened import OpenStream
from loader.reader import DatasetReader

__all__ = ["MemoryDataset", "MemoryStore", "dataset_bytes", "open_reader"]

URL = "forebay://data/set"

# multiprocessing keeps the shared memory that it once took, and its file descriptors, for the next one who asks. Taken here,
# enough for all tests, it does not look like a leak of the first test that makes a dataset.
multiprocessing.RawArray("b", 1 << 20)


def dataset_bytes(
    columns: Mapping[str, str],
    values: Mapping[str, Any],
    *,
    num_lanes: int = 4,
    block_size_bytes: int = 1024,
    compression: str = "zstd:1",
) -> bytes:
    """The object that holds these rows, one array or list of values for each column."""
    schema = Schema.of(columns)
    compressor = new_compressor(compression)
    blocks: list[bytearray] = [bytearray() for _ in range(num_lanes)]
    tables = [BlockTableBuilder(num_columns=len(schema)) for _ in range(num_lanes)]

    def emit(lane: int, block: BlockBuilder) -> None:
        encoded = block.encode(compressor)
        tables[lane].append(encoded)
        for part in encoded.parts:
            blocks[lane] += part.data

    dealer = LaneDealer(schema, num_lanes=num_lanes, block_size_bytes=block_size_bytes, emit=emit)
    dealer.deal(schema.check_batch(values))
    dealer.finish()
    content, encoded_tables, lanes = bytearray(), b"", []
    for lane_blocks, builder in zip(blocks, tables, strict=True):
        table = builder.build()
        encoded = table.encode()
        lanes.append(LaneEntry.of(table, encoded_table=encoded, offset=len(content)))
        content += lane_blocks
        encoded_tables += encoded
    index = DatasetIndex.of(schema, block_size_bytes=block_size_bytes, compression=compression, lanes=tuple(lanes))
    return bytes(content + encoded_tables + index.encode())


class MemoryContent:
    """Stands for `client.reader.ContentReader`."""

    def __init__(self, store: MemoryStore, data: bytes) -> None:
        self._store = store
        self._data = data

    def read_into(self, buffer: Buffer, *, start: int = 0) -> int:
        view = memoryview(buffer).cast("B")
        with self._store.lock:
            self._store.reads.append((start, start + len(view)))
            self._store.counted.bytes_remote += len(view)
        self._store.before_read(start, start + len(view))
        assert start + len(view) <= len(self._data)
        view[:] = self._data[start : start + len(view)]
        return len(view)

    def read_parts(self, parts: Iterable[tuple[Buffer, int]]) -> None:
        for buffer, start in parts:
            self.read_into(buffer, start=start)


class MemoryStore(ObjectStore):
    """Stands for `client.client.Client`, with one object.

    Parameters
    ----------
    versions : mapping of int to bytes
        The object's content by version; the last one is the current.

    Attributes
    ----------
    reads : list of (start, end)
        Ranges that were read.
    before_read : callable
        Is told the range, and may wait or raise as a store would.
    counted : ReadTotals
        What the store's reader says of itself.
    waiting : list of UnderWay
        The reads that it says are being made.
    num_closed : int
        How often it was closed.
    """

    def __init__(self, versions: Mapping[int, bytes]) -> None:
        self.versions = dict(versions)
        self.lock = threading.Lock()
        self.reads: list[tuple[int, int]] = []
        self.before_read: Callable[[int, int], None] = lambda start, end: None
        self.counted = ReadTotals()
        self.waiting: list[UnderWay] = []
        self.num_closed = 0
        self.replica_reader = self  # type: ignore[assignment]

    def stat(
        self,
        bucket: str,
        key: str,
        *,
        version: int | None = None,
        snapshot: str | None = None,
        consistency: str = "strong",
    ) -> ObjectInfo:
        number = max(self.versions, default=0) if version is None else version
        if number not in self.versions:
            raise ObjectNotFound(f"no object {bucket}/{key}", key=f"{bucket}/{key}")
        content = Content(size=len(self.versions[number]), digest="")
        return ObjectInfo(bucket=bucket, key=key, version=number, record=ObjectRecord(write_id="w", content=content))

    def totals(self) -> ReadTotals:
        return replace(self.counted)

    def under_way(self) -> list[UnderWay]:
        return self.waiting

    def reader(self, info: ObjectInfo) -> Any:
        return MemoryContent(self, self.versions[info.version])

    def close(self) -> None:
        self.num_closed += 1


def keep_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have blocks be fetched in each epoch, as if there were too many to be kept from one to the next."""
    monkeypatch.setattr(OpenStream, "reuse", lambda self, visit: False)


def nothing_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the system say that it would have to wait for the disk, whatever is read."""
    preadv = os.preadv

    def on_disk(file: int, buffers: list[memoryview], start: int, flags: int = 0) -> int:
        if flags & os.RWF_NOWAIT:
            raise BlockingIOError
        return preadv(file, buffers, start, flags)

    monkeypatch.setattr(os, "preadv", on_disk)


def open_reader(content: bytes) -> tuple[DatasetReader, MemoryStore]:
    """A reader of a dataset in memory, and its store."""
    store = MemoryStore({1: content})
    return DatasetReader(store, "data", "set"), store


class MemoryDataset(ShardedDataset):
    """A dataset in memory.

    Parameters
    ----------
    versions : bytes or mapping of int to bytes
        The dataset's bytes, or those of several versions.
    options
        As `ShardedDataset` takes them.

    Attributes
    ----------
    store : MemoryStore or None
        The one that this process has opened last.
    """

    def __init__(self, versions: bytes | Mapping[int, bytes], **options: Any) -> None:
        super().__init__(URL, **options)
        self.versions = {1: versions} if isinstance(versions, bytes) else dict(versions)
        self.before_read: Callable[[int, int], None] | None = None
        self.store: MemoryStore | None = None

    def _connect(self) -> MemoryStore:
        self.store = MemoryStore(self.versions)
        if self.before_read is not None:
            self.store.before_read = self.before_read
        return self.store

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "store": None}
