"""Hugging Face datasets: an Arrow table, mapped, in torch format, shuffled whole by a `DataLoader`; cold, Parquet streamed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import datasets
import pyarrow as pa
from pyarrow import parquet
from torch.utils.data import DataLoader

from benchmarks.loader.sets import Columns
from benchmarks.loader.sides.arrow import arrow_column
from benchmarks.loader.sides.base import Place

__all__ = ["HuggingFace"]

_SHUFFLE = 1000
_SHARDS = 8


class _Stream:
    def __init__(self, place: Place, *, batch_size: int | None) -> None:
        self._place, self._batch_size, self._epoch = place, batch_size, 0
        if place.cold:
            shards = [f"{place.url}/{path.name}" for path in sorted(place.data.glob("*.parquet"))]
            streamed = datasets.load_dataset("parquet", data_files=shards, split="train", streaming=True)
            self._dataset = streamed.shuffle(seed=0, buffer_size=_SHUFFLE).with_format("torch")
        else:
            self._dataset = datasets.load_from_disk(str(place.data)).with_format("torch")

    def epoch(self) -> Iterator[Any]:
        if self._place.cold:
            return iter(DataLoader(self._dataset, batch_size=self._batch_size))
        if self._batch_size is None:
            self._epoch += 1
            return iter(self._dataset.shuffle(seed=self._epoch))
        return iter(DataLoader(self._dataset, batch_size=self._batch_size, shuffle=True))

    def state(self, batches: int) -> object:
        return None

    def resume(self, state: object) -> None:
        raise NotImplementedError("a table in random order has no state")

    def close(self) -> None:
        pass


class HuggingFace:
    """See `base.Side`."""

    packages = ("datasets", "pyarrow")
    fills_cache = False

    def write(self, columns: Columns, place: Place) -> None:
        place.data.mkdir(parents=True, exist_ok=True)
        rows = place.chosen.rows
        table = pa.table({name: arrow_column(column, 0, rows) for name, column in columns.items()})
        if place.compressed:
            for number in range(_SHARDS):
                part = table.slice(number * rows // _SHARDS, (number + 1) * rows // _SHARDS - number * rows // _SHARDS)
                parquet.write_table(part, place.data / f"{number}.parquet", compression="zstd")
        else:
            datasets.Dataset(datasets.table.InMemoryTable(table)).save_to_disk(place.data)

    def open(self, place: Place, *, batch_size: int | None) -> _Stream:
        return _Stream(place, batch_size=batch_size)
