"""Forebay: a dataset written by `ShardWriter` into three nodes, `ShardedDataset`; warm, with a cache directory."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from benchmarks.loader.sets import Blobs, Columns
from benchmarks.loader.sides.base import Place
from loader import ShardedDataset, ShardWriter
from loader.stream import DEFAULT_PREFETCH_BYTES

__all__ = ["BUCKET", "Forebay", "ForebayNarrow", "ForebayViews", "url_of"]

BUCKET = "bench"


class _Stream:
    def __init__(self, url: str, place: Place, **options: Any) -> None:
        self._dataset = ShardedDataset(url, shuffle=True, cache_dir=None if place.cold else place.cache, **options)
        len(self._dataset)  # Opens it: peers open theirs when they are made.

    def epoch(self) -> Iterator[Any]:
        return iter(self._dataset)

    def state(self, batches: int) -> object:
        self._dataset.set_epoch(0)
        return self._dataset.state_at(batches=batches)

    def resume(self, state: Any) -> None:
        self._dataset.load_state_dict(state)

    def close(self) -> None:
        self._dataset.close()


class Forebay:
    """See `base.Side`."""

    packages = ("forebay", "torch", "numpy", "zstandard")
    fills_cache = True
    suffix = ""
    num_lanes: int | None = None
    block_size_bytes: int | None = None
    prefetch_bytes = DEFAULT_PREFETCH_BYTES
    zero_copy = False

    def write(self, columns: Columns, place: Place) -> None:
        types = {name: _type_of(column) for name, column in columns.items()}
        have = len(next(iter(columns.values())))
        url = url_of(place, self.suffix)
        with ShardWriter(url, columns=types, num_lanes=self.num_lanes, block_size_bytes=self.block_size_bytes) as writer:
            for start in range(0, place.chosen.rows, have):
                rows = range(min(have, place.chosen.rows - start))
                writer.write_batch({name: _values(column, rows) for name, column in columns.items()})

    def open(self, place: Place, *, batch_size: int | None) -> _Stream:
        options = {"prefetch_bytes": self.prefetch_bytes, "zero_copy": self.zero_copy}
        return _Stream(url_of(place, self.suffix), place, batch_size=batch_size, **options)


class ForebayViews(Forebay):
    """With values that are views of the cache's files."""

    suffix = "-views"
    zero_copy = True


class ForebayNarrow(Forebay):
    """With few lanes of small blocks, so that the memory for them is all in use with little data already."""

    suffix = "-narrow"
    num_lanes = 64
    block_size_bytes = 256 * 1024
    prefetch_bytes = 16 * 1024 * 1024


def url_of(place: Place, suffix: str = "") -> str:
    """Of the dataset that a set is."""
    return f"forebay://{BUCKET}/{place.chosen.name.replace(' ', '-')}{suffix}"


def _values(column: Any, rows: range) -> Any:
    return [column[row] for row in rows] if isinstance(column, Blobs) else np.asarray(column[rows.start : rows.stop])


def _type_of(column: Any) -> str:
    if isinstance(column, Blobs):
        return "bytes"
    return f"{column.dtype}{list(column.shape[1:]) or ''}".replace(" ", "")
