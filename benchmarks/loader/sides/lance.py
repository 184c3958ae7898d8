"""LanceDB: a table, read by its `StreamingDataset` with `StreamingDataLoader`; a transform makes tensors of Arrow batches."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import lancedb
import pyarrow as pa
import torch
from lancedb.streaming import StreamingDataLoader, StreamingDataset

from benchmarks.loader.sets import Columns
from benchmarks.loader.sides.arrow import arrow_column
from benchmarks.loader.sides.base import Place

__all__ = ["Lance"]

_WRITE_ROWS = 4096


class _Stream:
    def __init__(self, place: Place, *, batch_size: int | None) -> None:
        self._table = lancedb.connect(place.data).open_table("samples")
        self._batch_size, self._epoch, self._state = batch_size, 0, None

    def epoch(self) -> Iterator[Any]:
        dataset = StreamingDataset(self._table, epoch=self._epoch, transform=_tensors)
        if self._state is not None:
            dataset.load_state_dict(self._state)
            self._state = None
        self._epoch += 1
        if self._batch_size is None:
            return iter(dataset)
        return iter(StreamingDataLoader(dataset, batch_size=self._batch_size, num_workers=0))

    def state(self, batches: int) -> object:
        return None

    def resume(self, state: object) -> None:
        raise NotImplementedError("not measured")

    def close(self) -> None:
        pass


def _tensors(batch: pa.RecordBatch) -> list[dict[str, Any]]:
    columns = {}
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        if pa.types.is_fixed_size_list(column.type):
            rows = column.flatten().to_numpy(zero_copy_only=False).reshape(len(column), -1)
            columns[name] = torch.from_numpy(rows.copy()).unbind(0)
        else:
            columns[name] = column.to_pylist()
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


class Lance:
    """See `base.Side`."""

    packages = ("lancedb", "pylance")
    fills_cache = False

    def write(self, columns: Columns, place: Place) -> None:
        table, rows = None, len(next(iter(columns.values())))
        for start in range(0, rows, _WRITE_ROWS):
            stop = min(rows, start + _WRITE_ROWS)
            part = pa.table({name: arrow_column(column, start, stop) for name, column in columns.items()})
            if table is None:
                table = lancedb.connect(place.data).create_table("samples", part, mode="overwrite")
            else:
                table.add(part)

    def open(self, place: Place, *, batch_size: int | None) -> _Stream:
        return _Stream(place, batch_size=batch_size)
