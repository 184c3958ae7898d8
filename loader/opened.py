"""What a process holds open of a dataset that it streams: connections, the reader with its cache, and the memory for blocks."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from client.objects import ObjectStore
from client.record import ObjectInfo
from loader.arena import Arena
from loader.cache import DiskCache
from loader.reader import DatasetReader

__all__ = ["CacheSpec", "OpenDataset"]


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheSpec:
    """Where decoded blocks are kept, and how many bytes of them."""

    root: Path
    limit_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenDataset:
    """One version of a dataset, opened by one process for some of its columns.

    Attributes
    ----------
    pid : int
        The process; what it holds must not be used after a fork.
    store : ObjectStore
        Closed by whoever made it.
    reader : DatasetReader
        With its cache, if there is one.
    columns : tuple of int
        Numbers of the columns.
    arena : Arena
        For these columns. It goes from one iteration to the next, with its memory.
    """

    pid: int
    store: ObjectStore
    reader: DatasetReader
    columns: tuple[int, ...]
    arena: Arena

    @classmethod
    def of(
        cls,
        store: ObjectStore,
        *,
        bucket: str,
        key: str,
        version: int | None = None,
        info: ObjectInfo | None = None,
        columns: Sequence[str] | None,
        cache: CacheSpec | None,
    ) -> OpenDataset:
        """Open a dataset; raises what `DatasetReader` does, and `ColumnError` for an unknown column."""
        reader = DatasetReader(store, bucket, key, version=version, info=info)
        if cache is not None:
            reader.cache = DiskCache(cache.root, digest=reader.index.digest, limit_bytes=cache.limit_bytes)
        numbers = reader.select(columns)
        arena = Arena([reader.schema.types[number] for number in numbers], max_block_rows=reader.max_block_rows)
        return cls(pid=os.getpid(), store=store, reader=reader, columns=numbers, arena=arena)

    @property
    def is_mine(self) -> bool:
        """Whether this process opened it."""
        return self.pid == os.getpid()

    @property
    def names(self) -> list[str]:
        """Names of the columns."""
        return [self.reader.schema.names[number] for number in self.columns]
