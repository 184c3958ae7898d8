"""The decoded blocks that a stream is reading from, and the gather of rows out of them.

Each fixed column has one array over all cells (see `loader.plan`), so that rows of any blocks become a batch by one
`np.take`, without the GIL and without a Python step per row. Columns whose values vary in length keep a buffer per slot, and
where in it the value of each cell lies; or, where views of values are wanted, whatever memory the block lies in.

The arrays are as large as all slots together, but memory is only taken for slots that were filled once, and the planner
prefers those. What was brought into a slot stays there until the slot is given to another block. An arena serves one stream
at a time; the next one takes it over, with its memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from loader.block import decode_value, variable_view
from loader.buffers import BufferPool, keep_freed_memory
from loader.column_type import ColumnType
from loader.errors import BlockCorrupt
from loader.plan import Plan, Visit
from loader.ragged import Ragged
from loader.value_room import ValueRoom, has_large_values
from loader.view_room import ViewRoom, can_be_viewed

__all__ = ["Arena", "Column"]

Int64s = npt.NDArray[np.int64]
Column = npt.NDArray[Any] | Ragged | list[Any]
"""Gathered rows: an array [rows, *shape] of a fixed column, a `Ragged`, or a list of values."""

_MAX_IDLE_BUFFERS = 4
_NO_BUFFER = np.empty(0, np.uint8)
_NOTHING = memoryview(b"")


class _FixedColumn:
    def __init__(self, kind: ColumnType, *, max_rows: int) -> None:
        assert kind.dtype is not None
        self._kind = kind
        self._max_rows = max_rows
        self._rows = np.empty((0, *kind.shape), kind.dtype)
        self._pool = BufferPool(kind.dtype, kind.shape, max_idle=_MAX_IDLE_BUFFERS)

    def grow(self, num_slots: int) -> None:
        rows = np.empty((num_slots * self._max_rows, *self._kind.shape), self._kind.dtype)
        rows[: len(self._rows)] = self._rows
        self._rows = rows

    def holds(self, slot: int) -> bool:
        return True

    def release(self, slot: int) -> None:
        pass

    def taken_bytes(self, raw_size: int, rows: int) -> int:
        return raw_size

    def room(self, slot: int, raw_size: int, rows: int) -> memoryview:
        first = slot * self._max_rows
        return self._rows[first : first + rows].reshape(-1).view(np.uint8).data

    def gather(self, rows: Int64s) -> Column:
        out = self._pool.take(len(rows))
        # "clip" lets numpy write straight into `out`; the plan is in range by construction.
        np.take(self._rows, rows, axis=0, out=out, mode="clip")
        return out


class _SlotBuffers:
    """Of each slot a buffer, which the next block uses again. Rooms refer to this, and so must it not refer to them."""

    def __init__(self) -> None:
        self._buffers: list[npt.NDArray[np.uint8]] = []
        self._fresh: dict[int, tuple[int, int]] = {}  # Size and rows of what was brought in and not looked at.

    def grow(self, num_slots: int) -> None:
        self._buffers.extend([_NO_BUFFER] * (num_slots - len(self._buffers)))

    def take(self, slot: int, raw_size: int, rows: int) -> memoryview:
        """Memory for a block of so many decoded bytes."""
        # Memory that is in use already costs a fraction of new memory, so there is room for blocks that are somewhat larger; it
        # is taken when it is used. But one very large block must not hold its memory for ever.
        if not raw_size <= len(self._buffers[slot]) <= 3 * raw_size:
            self._buffers[slot] = np.empty(raw_size + raw_size // 2, np.uint8)
        self._fresh[slot] = raw_size, rows
        return self._buffers[slot][:raw_size].data

    def look(self, slot: int) -> tuple[memoryview, int] | None:
        """The block that was brought in since the last look, and its rows."""
        if slot not in self._fresh:
            return None
        size, rows = self._fresh.pop(slot)
        return self._buffers[slot][:size].data, rows

    def drop(self, slot: int) -> None:
        """Give the memory of a slot back."""
        self._buffers[slot] = _NO_BUFFER


class _VariableColumn:
    def __init__(self, kind: ColumnType, *, max_rows: int) -> None:
        self._kind = kind
        self._max_rows = max_rows
        self._buffers = _SlotBuffers()
        # Of each slot: the bytes of its values, once rows of it were gathered. Or the room that knows where its values are.
        self._bytes: list[memoryview] = []
        self._rooms: dict[int, ValueRoom] = {}
        # Of each cell: where in its slot's bytes the value of the row begins and ends.
        self._starts = self._ends = np.empty(0, np.int64)
        keep_freed_memory()

    def grow(self, num_slots: int) -> None:
        self._buffers.grow(num_slots)
        self._bytes.extend([_NOTHING] * (num_slots - len(self._bytes)))
        size = num_slots * self._max_rows
        self._starts, self._ends = _grown(self._starts, size), _grown(self._ends, size)

    def holds(self, slot: int) -> bool:
        room = self._rooms.get(slot)
        return room is None or room.stored is None or room.stored.is_live

    def release(self, slot: int) -> None:
        pass

    def taken_bytes(self, raw_size: int, rows: int) -> int:
        return 0 if has_large_values(self._kind, raw_size=raw_size, rows=rows) else raw_size

    def room(self, slot: int, raw_size: int, rows: int) -> memoryview | ValueRoom:
        if has_large_values(self._kind, raw_size=raw_size, rows=rows):
            self._rooms[slot] = room = ValueRoom(raw_size, rows=rows, buffer=partial(self._buffers.take, slot, raw_size, rows))
            return room
        self._rooms.pop(slot, None)
        return self._buffers.take(slot, raw_size, rows)

    def gather(self, rows: Int64s) -> Column:
        slots, places = (each.tolist() for each in np.divmod(rows, self._max_rows))
        stored = {slot: room.stored for slot in set(slots) if (room := self._rooms.get(slot)) and room.stored}
        for slot in set(slots):
            if slot not in stored:
                self._load(slot)
            elif self._bytes[slot]:  # Of the time before all blocks were in the cache.
                self._buffers.drop(slot)
                self._bytes[slot] = _NOTHING
        starts, ends, data = self._starts.take(rows), self._ends.take(rows), self._bytes
        values: list[bytes | memoryview] = [
            stored[slot].read(place) if slot in stored else data[slot][start:end]
            for slot, place, start, end in zip(slots, places, starts.tolist(), ends.tolist(), strict=True)
        ]
        return self._collect(values, ends - starts)

    def _load(self, slot: int) -> None:
        if (brought := self._buffers.look(slot)) is not None:
            data, rows = brought
            offsets, self._bytes[slot] = variable_view(data, rows)
            cells = slice(slot * self._max_rows, slot * self._max_rows + rows)
            self._starts[cells], self._ends[cells] = offsets[:-1], offsets[1:]

    def _collect(self, values: list[bytes | memoryview], sizes_bytes: Int64s) -> Column:
        return [decode_value(self._kind, value) for value in values]


class _ViewColumn:
    def __init__(self, *, max_rows: int) -> None:
        self._max_rows = max_rows
        self._rooms: dict[int, ViewRoom] = {}
        keep_freed_memory()

    def grow(self, num_slots: int) -> None:
        pass

    def holds(self, slot: int) -> bool:
        return slot in self._rooms and self._rooms[slot].is_live

    def release(self, slot: int) -> None:
        # What is mapped takes no memory of this process, so there may be very many of them.
        if not self._rooms[slot].is_live:
            del self._rooms[slot]

    def taken_bytes(self, raw_size: int, rows: int) -> int:
        return 0

    def room(self, slot: int, raw_size: int, rows: int) -> ViewRoom:
        self._rooms[slot] = room = ViewRoom(raw_size, rows=rows)
        return room

    def gather(self, rows: Int64s) -> Column:
        slots, places = (each.tolist() for each in np.divmod(rows, self._max_rows))
        blocks = {slot: self._rooms[slot].values() for slot in set(slots)}
        values: list[memoryview] = []
        for slot, place in zip(slots, places, strict=True):
            offsets, data = blocks[slot]
            values.append(data[offsets[place] : offsets[place + 1]])
        return values


class _RaggedColumn(_VariableColumn):
    def __init__(self, kind: ColumnType, *, max_rows: int) -> None:
        super().__init__(kind, max_rows=max_rows)
        assert kind.dtype is not None
        self._pool = BufferPool(kind.dtype, kind.shape, max_idle=_MAX_IDLE_BUFFERS)

    def _collect(self, values: list[bytes | memoryview], sizes_bytes: Int64s) -> Column:
        lengths, rest = np.divmod(sizes_bytes, self._kind.item_bytes)
        if rest.any():
            raise BlockCorrupt(f"{sizes_bytes[rest > 0][0]} bytes are no value of {self._kind}")
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        gathered = self._pool.take(int(offsets[-1]))
        out, end = gathered.reshape(-1).view(np.uint8).data, 0
        for value in values:
            start, end = end, end + len(value)
            out[start:end] = value
        return Ragged(values=gathered, offsets=offsets)


class Arena:
    """Slots for decoded blocks of some columns.

    Parameters
    ----------
    kinds : sequence of ColumnType
        The columns that are read, in the order of the numbers given to the reader.
    max_block_rows : int
        As for the planner.
    zero_copy : bool
        Whether to give views of values that need not be made of what lies in their blocks.

    Attributes
    ----------
    num_slots : int
        Slots there are; none at first.
    """

    def __init__(self, kinds: Sequence[ColumnType], *, max_block_rows: int, zero_copy: bool = False) -> None:
        self._max_rows = max_block_rows
        self._columns = [_column(kind, max_rows=max_block_rows, zero_copy=zero_copy) for kind in kinds]
        # Of each cell: the row of the arena that is at this place of the visit. Of each slot: what makes such a row an index
        # in its lane.
        self._rows = np.empty(0, np.int64)
        self._shifts = np.empty(0, np.int64)
        self.num_slots = 0

    def grow(self, num_slots: int) -> None:
        """Have at least `num_slots` slots; keeps what is in them. Nothing may be under way meanwhile."""
        if num_slots > self.num_slots:
            self._rows = _grown(self._rows, num_slots * self._max_rows)
            self._shifts = _grown(self._shifts, num_slots)
            for column in self._columns:
                column.grow(num_slots)
            self.num_slots = num_slots

    def taken_bytes(self, raw_sizes: Sequence[int], *, rows: int) -> int:
        """Of a cached block of so many decoded bytes of each column, those that are copied when it is brought in."""
        return sum(column.taken_bytes(size, rows) for column, size in zip(self._columns, raw_sizes, strict=True))

    def rooms(self, visit: Visit, raw_sizes: Sequence[int]) -> list[memoryview | ValueRoom | ViewRoom]:
        """Buffers or rooms, of exactly the decoded sizes, that the columns of the visit's block are to be decoded into."""
        num_rows = self.arrange(visit)
        return [column.room(visit.slot, size, num_rows) for column, size in zip(self._columns, raw_sizes, strict=True)]

    def holds(self, slot: int) -> bool:
        """Whether what was brought into a slot last is still good; values in a file that has to go are not."""
        return all(column.holds(slot) for column in self._columns)

    def release(self, slots: Sequence[int]) -> None:
        """Let go of memory that is of no use in slots that are free now."""
        for column in self._columns:
            for slot in slots:
                column.release(slot)

    def arrange(self, visit: Visit) -> int:
        """Have the rows of the visit's block come in its order; how many there are."""
        first, order = visit.slot * self._max_rows, visit.order
        rows = order.rows_of_visit(visit.number)
        np.add(rows, first, out=self._rows[first : first + len(rows)])
        self._shifts[visit.slot] = order.block_start(int(order.visits[visit.number])) - first
        return len(rows)

    def gather(self, plan: Plan) -> list[Column]:
        """The rows of `plan`, column by column; each array over a buffer that is reused once nothing refers to it."""
        rows = self._rows.take(plan.cells)
        return [column.gather(rows) for column in self._columns]

    def indexes(self, plan: Plan) -> Int64s:
        """The index of each row of `plan` in its lane."""
        rows = self._rows.take(plan.cells)
        return rows + self._shifts[rows // self._max_rows]


def _column(kind: ColumnType, *, max_rows: int, zero_copy: bool) -> _FixedColumn | _VariableColumn | _ViewColumn:
    if kind.is_fixed:
        return _FixedColumn(kind, max_rows=max_rows)
    if zero_copy and can_be_viewed(kind):
        return _ViewColumn(max_rows=max_rows)
    return (_RaggedColumn if kind.kind == "ragged" else _VariableColumn)(kind, max_rows=max_rows)


def _grown(array: Int64s, size: int) -> Int64s:
    grown = np.empty(size, np.int64)
    grown[: len(array)] = array
    return grown
