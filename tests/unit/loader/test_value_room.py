"""Rooms for large values: filled from a file or from decoded bytes, and from nothing that its check does not fit."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import xxhash

from loader.cache import DiskCache
from loader.errors import BlockCorrupt
from loader.plan import Visit
from loader.value_room import LARGE_VALUE_BYTES, ValueRoom
from tests.support.memory_store import dataset_bytes, open_reader
from tests.unit.loader.test_arena import MAX_ROWS, filled, plan_of

VALUES = [b"a" * 100, b"", b"b" * 7, b"c" * 1000]


def encoded(values: list[bytes]) -> bytes:
    return np.concatenate([[0], np.cumsum([len(value) for value in values])]).astype("<u8").tobytes() + b"".join(values)


BLOCK = encoded(VALUES)
CHECK = xxhash.xxh3_64_intdigest(BLOCK)


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Callable[[bytes], int]]:
    files: list[int] = []

    def open_file(data: bytes) -> int:
        path = tmp_path / str(len(files))
        path.write_bytes(data)
        files.append(os.open(path, os.O_RDONLY))
        return files[-1]

    yield open_file
    for file in files:
        os.close(file)


def test_values_come_from_a_file_and_from_decoded_bytes(opened: Callable[[bytes], int]) -> None:
    room = ValueRoom(len(BLOCK), rows=4)
    room.read_from(opened(BLOCK), check=CHECK, where="here")
    assert (len(room), room.values) == (len(BLOCK), VALUES)
    other = ValueRoom(len(BLOCK), rows=4)
    other.take(memoryview(BLOCK))
    assert other.values == VALUES


@pytest.mark.parametrize("place", range(0, len(BLOCK), 13))
def test_no_flipped_bit_gets_through(opened: Callable[[bytes], int], place: int) -> None:
    damaged = bytearray(BLOCK)
    damaged[place] ^= 1 << place % 8
    room = ValueRoom(len(BLOCK), rows=4)
    with pytest.raises(BlockCorrupt, match="here: "):
        room.read_from(opened(bytes(damaged)), check=CHECK, where="here")
    assert room.values == []


def test_offsets_that_leave_bytes_out_or_read_some_twice_are_refused(opened: Callable[[bytes], int]) -> None:
    for offsets in ([0, 100, 100, 107, 1100], [1, 100, 100, 107, 1107], [0, 100, 107, 100, 1107], [0, -1, 100, 107, 1107]):
        damaged = np.array(offsets).astype("<i8").tobytes() + BLOCK[40:]
        with pytest.raises(BlockCorrupt):
            ValueRoom(len(BLOCK), rows=4).read_from(opened(damaged), check=CHECK, where="here")
        # Even with a check that is made to fit.
        with pytest.raises(BlockCorrupt):
            check = xxhash.xxh3_64_intdigest(damaged)
            ValueRoom(len(BLOCK), rows=4).read_from(opened(damaged), check=check, where="here")


def test_a_file_that_was_cut_short_is_refused(opened: Callable[[bytes], int]) -> None:
    for size in (0, 39, 40, 500, len(BLOCK) - 1):
        with pytest.raises(BlockCorrupt, match="cut short"):
            ValueRoom(len(BLOCK), rows=4).read_from(opened(BLOCK[:size]), check=CHECK, where="here")


def test_a_damaged_block_of_values_is_dropped_from_the_cache_and_fetched_again(tmp_path: Path) -> None:
    values = [bytes([row]) * LARGE_VALUE_BYTES * 2 for row in range(8)]
    reader, _ = open_reader(dataset_bytes({"blob": "bytes"}, {"blob": values}, num_lanes=1))
    reader.cache = cache = DiskCache(tmp_path, digest=reader.index.digest, limit_bytes=1 << 22)
    size = int(reader.table(0).raw_size[0, 0])

    def read() -> tuple[int, list[bytes]]:
        room = ValueRoom(size, rows=int(reader.table(0).rows[0]))
        return reader.read_block_into(0, 0, [0], [room]), room.values

    cached = [(hit > 0, found == values[: len(found)] and bool(found)) for hit, found in (read(), read())]
    assert cached == [(False, True), (True, True)]
    path = next(path for path in tmp_path.rglob("0-0-0"))
    with path.open("r+b") as file:
        file.seek(size - 1)
        file.write(b"\xff")
    assert read()[0] == 0
    assert read()[0] == size
    assert cache is reader.cache


def test_arena_gathers_large_values_as_the_objects_that_were_read() -> None:
    large = [bytes([row]) * LARGE_VALUE_BYTES for row in range(4)]
    arena, order = filled(["bytes"], [b""], num_slots=3)
    rows = len(order.rows_of_visit(0))
    (room,) = arena.rooms(Visit(lane=1, number=0, slot=1, order=order), order, [len(encoded(large[:rows]))])
    assert isinstance(room, ValueRoom)
    room.take(memoryview(encoded(large[:rows])))
    (column,) = arena.gather(plan_of([MAX_ROWS, MAX_ROWS + 1], [1, 1]))
    assert isinstance(column, list)
    expected = [room.values[row] for row in order.rows_of_visit(0)[:2]]
    assert all(found is value for found, value in zip(column, expected, strict=True))
