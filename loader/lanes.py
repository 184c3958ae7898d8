"""How the rows of a dataset become blocks while it is written: row i goes to lane σ[i mod L].

Theory of operation
-------------------
`RowBuffer` gathers rows, handed over singly or in batches, until there are enough to deal at once. `LaneDealer` holds one open
block per lane and deals a batch by strides: the rows of one lane are every L-th, so a fixed column is sliced once per lane and
not per row. A block that is full is handed on, and a new one is opened.

Invariants: which rows share a block follows from the rows, L and the block size alone, not from how they were handed over;
so does L where it is chosen here. Memory is at most L blocks and `DEAL_BYTES`.

This module does no I/O. It does not know how blocks are compressed or stored.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import numpy as np

from loader.block import BlockBuilder, check_block_size
from loader.block_codec import OFFSET_BYTES
from loader.columns import EncodedColumn, Schema
from loader.errors import InvalidOption
from loader.order import lane_permutation

__all__ = [
    "DEAL_BYTES",
    "DECIDE_BYTES",
    "DEFAULT_MAX_LANES",
    "LANE_BYTES",
    "MAX_WRITER_LANES",
    "LaneDealer",
    "RowBuffer",
    "check_num_lanes",
    "choose_num_lanes",
    "encoded_bytes",
    "least_bytes",
    "sharing_warning",
]

Batch = tuple[EncodedColumn, ...]

LANE_BYTES: Final = 128 << 10
"""Decoded bytes for which small data gets one lane more."""
DEFAULT_MAX_LANES: Final = 256
MAX_WRITER_LANES: Final = 1024
DECIDE_BYTES: Final = DEFAULT_MAX_LANES * LANE_BYTES
"""After so many decoded bytes the number of lanes does not depend on what follows."""
DEAL_BYTES: Final = 8 << 20
"""Rows are dealt when this many bytes have gathered: dealing costs some microseconds per lane, however few the rows."""


def choose_num_lanes(num_rows: int, *, decoded_bytes: int) -> int:
    """The number of lanes for a dataset of this size: a power of two, one per 128 KiB, 1 to 256, at most one per row."""
    wanted = max(1, min(decoded_bytes // LANE_BYTES, DEFAULT_MAX_LANES, num_rows))
    return 1 << (int(wanted).bit_length() - 1)


def check_num_lanes(num_lanes: int) -> int:
    """`num_lanes` if a writer may be asked for it, else `InvalidOption`."""
    if not 1 <= num_lanes <= MAX_WRITER_LANES:
        raise InvalidOption(f"num_lanes={num_lanes}: expected 1 to {MAX_WRITER_LANES}, or None to let the writer choose")
    return num_lanes


def sharing_warning(num_lanes: int, *, world_size: int) -> str | None:
    """What a user should know whose ranks are more than there are lanes; None for others."""
    if world_size <= num_lanes:
        return None
    return (
        f"{world_size} ranks share {num_lanes} lanes: each block is fetched by about {world_size / num_lanes:.1f} ranks. "
        f"Ranks of one host should share a cache_dir, or build it with more lanes (--num-lanes, up to {MAX_WRITER_LANES})"
    )


def encoded_bytes(batch: Batch) -> int:
    """Decoded bytes that the rows of a checked batch take in blocks, offsets included."""
    return sum(
        sum(map(len, column)) + OFFSET_BYTES * len(column) if isinstance(column, list) else column.nbytes for column in batch
    )


def least_bytes(batch: Batch) -> int:
    """Bytes of the fixed columns: a bound from below that costs nothing."""
    return sum(column.nbytes for column in batch if not isinstance(column, list))


class RowBuffer:
    """Rows that wait to be dealt, as the columns of a batch. Copies what it is given.

    Attributes
    ----------
    num_rows : int
        Rows in the buffer.
    num_bytes : int
        Their decoded bytes, as `encoded_bytes` counts.
    """

    def __init__(self, schema: Schema) -> None:
        self._schema = schema
        self._reset()

    def append(self, sample: Sequence[bytes]) -> None:
        """Add one row that `Schema.check_sample` has checked."""
        for column, value in zip(self._columns, sample, strict=True):
            if isinstance(column, list):
                column.append(value)
                self.num_bytes += OFFSET_BYTES
            else:
                column += value
            self.num_bytes += len(value)
        self.num_rows += 1

    def extend(self, batch: Batch) -> None:
        """Add the rows of a batch that `Schema.check_batch` has checked."""
        for column, values in zip(self._columns, batch, strict=True):
            if isinstance(column, list):
                assert isinstance(values, list)
                column.extend(values)
            else:
                column += np.ascontiguousarray(values).data.cast("B") if len(values) else b""
        self.num_rows += len(batch[0])
        self.num_bytes += encoded_bytes(batch)

    def take(self) -> Batch:
        """All rows as one batch; the buffer is empty afterwards."""
        batch: list[EncodedColumn] = []
        for column, column_type in zip(self._columns, self._schema.types, strict=True):
            if isinstance(column, list):
                batch.append(column)
            else:
                batch.append(np.frombuffer(column, column_type.dtype).reshape(self.num_rows, *column_type.shape))
        self._reset()
        return tuple(batch)

    def _reset(self) -> None:
        self._columns: list[bytearray | list[bytes]] = [bytearray() if kind.is_fixed else [] for kind in self._schema.types]
        self.num_rows = 0
        self.num_bytes = 0


class LaneDealer:
    """Deals rows to the open blocks of the lanes.

    Parameters
    ----------
    num_lanes : int
        L.
    block_size_bytes : int
        Decoded size of a block.
    emit : callable
        Takes the lane's number and its next block, full or last, each lane's in order.
    first_row : int
        Number of the first row that will be dealt.
    rows_done : sequence of int
        Rows of each lane that are in blocks already, at least those before `first_row`. Those after it are passed over.

    Attributes
    ----------
    num_rows : int
        Rows dealt so far.
    """

    def __init__(
        self,
        schema: Schema,
        *,
        num_lanes: int,
        block_size_bytes: int,
        emit: Callable[[int, BlockBuilder], None],
        first_row: int = 0,
        rows_done: Sequence[int] = (),
    ) -> None:
        self._schema = schema
        self._block_size_bytes = check_block_size(block_size_bytes)
        self._emit = emit
        self._lanes: list[int] = lane_permutation(num_lanes).tolist()
        self._open = [self._new_block() for _ in range(num_lanes)]
        self._pass_over = [0] * num_lanes
        for place, lane in enumerate(self._lanes if rows_done else []):
            before = first_row // num_lanes + (place < first_row % num_lanes)
            assert rows_done[lane] >= before
            self._pass_over[lane] = rows_done[lane] - before
        self.num_rows = first_row

    def deal(self, batch: Batch) -> None:
        """Append the rows of a checked batch. Keeps no reference to it."""
        num_rows, num_lanes = len(batch[0]), len(self._lanes)
        for first in range(min(num_rows, num_lanes)):
            lane = self._lanes[(self.num_rows + first) % num_lanes]
            passed_over = min(self._pass_over[lane], len(range(first, num_rows, num_lanes)))
            self._pass_over[lane] -= passed_over
            row = first + num_lanes * passed_over
            while row < num_rows:
                row += num_lanes * self._open[lane].extend(batch, start=row, step=num_lanes)
                if row < num_rows:
                    self._close_block(lane)
        self.num_rows += num_rows

    def finish(self) -> None:
        """Hand on the blocks that are not full."""
        for lane, block in enumerate(self._open):
            if block.rows:
                self._close_block(lane)

    def _close_block(self, lane: int) -> None:
        full, self._open[lane] = self._open[lane], self._new_block()
        self._emit(lane, full)

    def _new_block(self) -> BlockBuilder:
        return BlockBuilder(self._schema, block_size_bytes=self._block_size_bytes)
