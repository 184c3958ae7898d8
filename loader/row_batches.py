"""The rows of a dataset in written order, as columns of many rows: what an export writes.

Neighbours in written order lie in different lanes, so each lane has a block decoded and its rows are taken as they are due;
lanes are read by threads. Values are as they lie in blocks: arrays for fixed columns, the bytes of each value for the others.

Memory is L blocks and two batches.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Final

import numpy as np

from client.parallel import bounded_map
from loader.block import fixed_view, variable_view
from loader.columns import EncodedColumn
from loader.order import lane_permutation
from loader.reader import DatasetReader

__all__ = ["BATCH_BYTES", "row_batches"]

BATCH_BYTES: Final = 32 << 20
"""About the decoded bytes of a batch; it has at least a row of each lane."""
_MAX_PARALLEL: Final = 8


def row_batches(reader: DatasetReader) -> Iterator[tuple[EncodedColumn, ...]]:
    """All rows in written order, in batches."""
    index = reader.index
    order = lane_permutation(index.num_lanes).tolist()
    lanes = [_Lane(reader, lane) for lane in order]
    row_bytes = max(1, reader.mean_block_bytes * max(1, reader.num_blocks) // max(1, index.num_rows))
    step = max(1, BATCH_BYTES // (row_bytes * index.num_lanes)) * index.num_lanes
    for start in range(0, index.num_rows, step):
        num_rows = min(step, index.num_rows - start)
        shares = [len(range(place, num_rows, index.num_lanes)) for place in range(index.num_lanes)]
        taken = bounded_map(lambda due: due[0].take(due[1]), zip(lanes, shares, strict=True), max_parallel=_MAX_PARALLEL)
        yield _interleaved(list(taken), num_rows=num_rows)


class _Lane:
    """Rows of one lane, in order. For one thread at a time."""

    def __init__(self, reader: DatasetReader, lane: int) -> None:
        self._reader = reader
        self._lane = lane
        self._block = 0
        self._columns: tuple[EncodedColumn, ...] = ()
        self._place = self._num_rows = 0

    def take(self, num_rows: int) -> list[EncodedColumn]:
        """The next rows, column by column."""
        runs: list[list[EncodedColumn]] = [[] for _ in self._reader.schema.names]
        while num_rows:
            if self._place == self._num_rows:
                self._open()
            stop = min(self._num_rows, self._place + num_rows)
            for run, column in zip(runs, self._columns, strict=True):
                run.append(column[self._place : stop])
            num_rows -= stop - self._place
            self._place = stop
        return [_joined(run) for run in runs]

    def _open(self) -> None:
        """Read the next block."""
        table, schema = self._reader.table(self._lane), self._reader.schema
        buffers = [bytearray(size) for size in table.raw_size[self._block].tolist()]
        self._reader.read_block_into(self._lane, self._block, range(len(schema)), [memoryview(buffer) for buffer in buffers])
        self._place, self._num_rows = 0, int(table.rows[self._block])
        columns: list[EncodedColumn] = []
        for buffer, column_type in zip(buffers, schema.types, strict=True):
            if column_type.is_fixed:
                columns.append(fixed_view(buffer, column_type, self._num_rows))
                continue
            offsets, data = variable_view(buffer, self._num_rows)
            ends = offsets.tolist()
            columns.append([bytes(data[start:end]) for start, end in pairwise(ends)])
        self._columns = tuple(columns)
        self._block += 1


def _joined(run: list[EncodedColumn]) -> EncodedColumn:
    if len(run) == 1:
        return run[0]
    values: list[bytes] = []
    arrays = []
    for column in run:
        if isinstance(column, list):
            values.extend(column)
        else:
            arrays.append(column)
    return np.concatenate(arrays) if arrays else values


def _interleaved(lanes: list[list[EncodedColumn]], *, num_rows: int) -> tuple[EncodedColumn, ...]:
    """The rows of all lanes, one of each in turn."""
    columns: list[EncodedColumn] = []
    for number, first in enumerate(lanes[0]):
        if isinstance(first, list):
            values: list[bytes] = [b""] * num_rows
            for place, lane in enumerate(lanes):
                values[place :: len(lanes)] = lane[number]
            columns.append(values)
        else:
            array = np.empty((num_rows, *first.shape[1:]), first.dtype)
            for place, lane in enumerate(lanes):
                if len(lane[number]):
                    array[place :: len(lanes)] = lane[number]
            columns.append(array)
    return tuple(columns)
