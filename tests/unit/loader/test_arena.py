"""The arena: rows of many blocks, of any column type, gathered in the order that a plan asks for."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from loader.arena import Arena
from loader.assignment import Share
from loader.block import variable_view
from loader.column_type import DTYPES, parse_column_type
from loader.errors import BlockCorrupt
from loader.order import LaneOrder
from loader.plan import Plan, Visit
from loader.ragged import Ragged

MAX_ROWS = 4
NUM_LANES = 2


def lane_order(lane: int, *, shuffle: bool = True) -> LaneOrder:
    return LaneOrder(digest="11" * 32, seed=1, epoch=0, lane=lane, block_rows=[4, 3], shuffle=shuffle)


def plan_of(cells: list[int], lanes: list[int]) -> Plan:
    rows = np.zeros(len(cells), np.int64)
    pad, ends = rows.astype(np.bool_), np.array([len(cells)])
    share = Share(lanes=np.array(lanes), steps=rows, pad=pad, ends=ends, num_lanes=NUM_LANES)
    return Plan(share=share, cells=np.array(cells), opened=[], closed=[])


def filled(kinds: list[str], values: list[Any], *, num_slots: int = 3) -> tuple[Arena, LaneOrder]:
    """An arena whose slot 2 holds lane 1's first visit; `values` are the columns of that visit's block."""
    arena = Arena([parse_column_type(kind) for kind in kinds], max_block_rows=MAX_ROWS)
    arena.grow(num_slots)
    order = lane_order(1)
    raw = [value if isinstance(value, bytes) else value.tobytes() for value in values]
    rooms = arena.rooms(Visit(lane=1, number=0, slot=2, order=order), [len(data) for data in raw])
    for room, data in zip(rooms, raw, strict=True):
        assert isinstance(room, memoryview)
        room[:] = data
    return arena, order


def block_values(shape: tuple[int, ...], dtype: Any, rows: int) -> np.ndarray[Any, Any]:
    size = int(np.prod((rows, *shape)))
    return (np.arange(size) % 2 if dtype == np.bool_ else np.arange(size)).astype(dtype).reshape(rows, *shape)


@pytest.mark.parametrize("name", sorted(DTYPES))
def test_fixed_rows_come_in_the_order_of_the_visit(name: str) -> None:
    rows = len(lane_order(1).rows_of_visit(0))
    values = block_values((2, 3), DTYPES[name], rows)
    arena, order = filled([f"{name}[2,3]"], [values])
    places = [rows - 1, 0, 0, 1]
    (column,) = arena.gather(plan_of([2 * MAX_ROWS + place for place in places], [1] * 4))
    assert isinstance(column, np.ndarray)
    assert column.dtype == DTYPES[name]
    assert np.array_equal(column, values[order.rows_of_visit(0)[places]])


def test_values_of_varying_length_come_in_the_order_of_the_visit() -> None:
    rows = len(lane_order(1).rows_of_visit(0))
    texts = [f"row {row}" * row for row in range(rows)]
    offsets = np.cumsum([0, *map(len, texts)]).astype("<u8")
    raw = offsets.tobytes() + "".join(texts).encode()
    arena, order = filled(["str", "bytes"], [raw, raw])
    text, data = arena.gather(plan_of([2 * MAX_ROWS + place for place in range(rows)], [1] * rows))
    assert text == [texts[row] for row in order.rows_of_visit(0)]
    assert data == [texts[row].encode() for row in order.rows_of_visit(0)]
    assert len(variable_view(bytearray(raw), rows)[0]) == rows + 1


@pytest.mark.parametrize("name", sorted(DTYPES))
def test_ragged_rows_come_in_one_array(name: str) -> None:
    rows = len(lane_order(1).rows_of_visit(0))
    values = [block_values((2,), DTYPES[name], row % 3) for row in range(rows)]
    offsets = np.cumsum([0, *(value.nbytes for value in values)]).astype("<u8")
    arena, order = filled([f"{name}[*,2]"], [offsets.tobytes() + b"".join(value.tobytes() for value in values)])
    places = [rows - 1, 0, 0, 1]
    (column,) = arena.gather(plan_of([2 * MAX_ROWS + place for place in places], [1] * 4))
    assert isinstance(column, Ragged)
    expected = [values[row] for row in order.rows_of_visit(0)[places]]
    assert column.values.dtype == DTYPES[name]
    assert np.array_equal(column.values, np.concatenate(expected))
    assert column.lengths.tolist() == [len(value) for value in expected]


def test_ragged_rows_of_no_whole_number_of_steps_are_refused() -> None:
    rows = len(lane_order(1).rows_of_visit(0))
    offsets = (np.arange(rows + 1) * 3).astype("<u8")
    arena, _ = filled(["int16[*]"], [offsets.tobytes() + bytes(3 * rows)])
    with pytest.raises(BlockCorrupt, match=r"3 bytes are no value of int16\[\*\]"):
        arena.gather(plan_of([2 * MAX_ROWS], [1]))


def test_indexes_are_those_of_the_lane() -> None:
    order = lane_order(1)
    rows = len(order.rows_of_visit(0))
    arena, _ = filled(["uint8"], [block_values((), "u1", rows)])
    indexes = arena.indexes(plan_of([2 * MAX_ROWS + place for place in range(rows)], [1] * rows))
    start = order.block_start(int(order.visits[0]))
    assert indexes.tolist() == [start + row for row in order.rows_of_visit(0)]


def test_growing_keeps_what_is_there() -> None:
    rows = len(lane_order(1).rows_of_visit(0))
    values = block_values((), "<i4", rows)
    texts = np.arange(rows + 1).astype("<u8").tobytes() + b"x" * rows
    arena, order = filled(["int32", "bytes"], [values, texts])
    plan = plan_of([2 * MAX_ROWS + place for place in range(rows)], [1] * rows)
    arena.grow(9)
    arena.grow(5)
    assert arena.num_slots == 9
    numbers, data = arena.gather(plan)
    assert isinstance(numbers, np.ndarray)
    assert np.array_equal(numbers, values[order.rows_of_visit(0)])
    assert data == [b"x"] * rows
    assert len(arena.rooms(Visit(lane=0, number=0, slot=8, order=lane_order(0)), [16, 40])) == 2


def test_gathered_arrays_stay_while_later_ones_are_made() -> None:
    rows = len(lane_order(1).rows_of_visit(0))
    arena, order = filled(["int64"], [block_values((), "<i8", rows)])
    plan = plan_of([2 * MAX_ROWS], [1])
    kept: list[Any] = [arena.gather(plan)[0] for _ in range(10)]
    (room,) = arena.rooms(Visit(lane=1, number=0, slot=2, order=order), [8 * rows])
    assert isinstance(room, memoryview)
    room[:] = bytes(8 * rows)
    (again,) = arena.gather(plan)
    assert isinstance(again, np.ndarray)
    assert again[0] == 0
    assert {int(values[0]) for values in kept} == {int(order.rows_of_visit(0)[0])}


def test_buffer_of_values_is_used_again_but_not_kept_for_far_smaller_blocks() -> None:
    arena = Arena([parse_column_type("str")], max_block_rows=MAX_ROWS)
    arena.grow(1)
    order = lane_order(1)
    visit = Visit(lane=1, number=0, slot=0, order=order)

    def address(size: int) -> int:
        (room,) = arena.rooms(visit, [size])
        assert isinstance(room, memoryview)
        assert len(room) == size
        return np.frombuffer(room, np.uint8).ctypes.data

    first = address(1 << 20)
    assert [address(size) for size in (1 << 20, 5 << 18, 1 << 19)] == [first] * 3
    assert address(1 << 18) != first
