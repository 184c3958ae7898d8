"""Large values that are read from a cached block one by one: verified one by one, and from elsewhere if they are damaged."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from client.errors import AllReplicasFailed
from loader import lane_file
from loader.cache import DiskCache
from loader.plan import Visit
from loader.reader import DatasetReader
from loader.value_room import LARGE_VALUE_BYTES, ValueRoom
from tests.support.memory_store import MemoryDataset, dataset_bytes, keep_nothing, nothing_in_memory, open_reader
from tests.unit.loader.test_arena import MAX_ROWS, filled, plan_of

VALUES = [bytes([1 + row]) * (LARGE_VALUE_BYTES + 100 * row) for row in range(8)]


@pytest.fixture
def reader(tmp_path: Path) -> Iterator[DatasetReader]:
    reader, _ = open_reader(dataset_bytes({"blob": "bytes"}, {"blob": VALUES}, num_lanes=1, block_size_bytes=1 << 20))
    reader.cache = cache = DiskCache(tmp_path, digest=reader.index.digest, limit_bytes=1 << 22)
    yield reader
    cache.close()


def brought(reader: DatasetReader) -> tuple[int, ValueRoom]:
    """How many bytes of the block come from the cache, and its room."""
    size, rows = int(reader.table(0).raw_size[0, 0]), int(reader.table(0).rows[0])
    room = ValueRoom(size, rows=rows, buffer=lambda: memoryview(bytearray(size)))
    return reader.read_block_into(0, 0, [0], [room]), room


def read(room: ValueRoom) -> list[bytes]:
    assert room.stored is not None
    return [room.stored.read(row) for row in range(room.rows)]


def test_values_are_left_in_the_cache_until_they_are_read(reader: DatasetReader) -> None:
    cached, room = brought(reader)
    assert (cached, room.stored) == (0, None)
    cached, room = brought(reader)
    assert cached == len(room)
    assert read(room) == VALUES[: room.rows]
    assert reader.row(1) == {"blob": VALUES[1]}


@pytest.mark.parametrize("what", ["offset", "value", "sum", "seal"])
@pytest.mark.parametrize("is_begun", [False, True])
def test_what_is_damaged_is_read_from_elsewhere(reader: DatasetReader, tmp_path: Path, what: str, is_begun: bool) -> None:
    _, room = brought(reader)
    (path,) = (path for path in tmp_path.rglob("0") if path.is_file())
    start = path.read_bytes().index(VALUES[0]) - 8 * (room.rows + 1)
    end = start + len(room)
    place = {"offset": start + 8, "value": end - 1, "sum": end, "seal": end + 8 * room.rows}[what]
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    if is_begun:
        _, room = brought(reader)
    path.write_bytes(data)
    if not is_begun:
        _, room = brought(reader)
    if room.stored is not None:
        assert read(room) == VALUES[: room.rows]
    # What was found to be damaged is written anew, so that the next one reads it from here.
    brought(reader)
    cached, room = brought(reader)
    assert cached == len(room)
    assert read(room) == VALUES[: room.rows]


def test_what_is_not_in_memory_is_read_when_it_is_wanted(reader: DatasetReader, monkeypatch: pytest.MonkeyPatch) -> None:
    brought(reader)
    nothing_in_memory(monkeypatch)
    cached, room = brought(reader)
    assert cached == len(room)
    assert read(room) == VALUES[: room.rows]


def test_a_file_that_goes_in_the_middle_costs_nothing(reader: DatasetReader, tmp_path: Path) -> None:
    brought(reader)
    _, room = brought(reader)
    assert room.stored is not None
    values = [room.stored.read(0)]
    (path,) = (path for path in tmp_path.rglob("0") if path.is_file())
    with path.open("r+b") as file:
        file.truncate(0)
    values += [room.stored.read(row) for row in range(1, room.rows)]
    assert values == VALUES[: room.rows]


def test_arena_gathers_values_where_they_are(reader: DatasetReader) -> None:
    arena, order = filled(["bytes"], [b""], num_slots=3)
    rows = len(order.rows_of_visit(0))
    brought(reader)
    visit = Visit(lane=1, number=0, slot=1, order=order)
    for from_cache in (True, False):
        (room,) = arena.rooms(visit, [LARGE_VALUE_BYTES * rows + 1000])
        assert isinstance(room, ValueRoom)
        values = VALUES
        if from_cache:
            room.stored = brought(reader)[1].stored
        else:
            values = [b"x" * LARGE_VALUE_BYTES + bytes([row]) for row in range(rows)]
            offsets = [sum(map(len, values[:row])) for row in range(rows + 1)]
            data = b"".join(offset.to_bytes(8, "little") for offset in offsets) + b"".join(values)
            (room,) = arena.rooms(visit, [len(data)])
            assert isinstance(room, ValueRoom)
            room.buffer()[:] = data
        assert arena.gather(plan_of([MAX_ROWS, MAX_ROWS + 1], [1, 1])) == [[values[row] for row in order.rows_of_visit(0)[:2]]]


def test_values_in_a_file_that_has_to_go_are_not_held(
    reader: DatasetReader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arena, order = filled(["bytes"], [b""], num_slots=3)
    brought(reader)
    (room,) = arena.rooms(Visit(lane=1, number=0, slot=1, order=order), [LARGE_VALUE_BYTES * MAX_ROWS])
    assert isinstance(room, ValueRoom)
    assert arena.holds(1)
    room.stored = brought(reader)[1].stored
    monkeypatch.setattr(lane_file, "_LOOK_AGAIN_S", 0.0)
    assert arena.holds(1)
    (path,) = (path for path in tmp_path.rglob("0") if path.is_file())
    lane_file.remove(str(path))
    assert not arena.holds(1)


@pytest.mark.parametrize(
    "options",
    [
        {"batch_size": 3},
        {"batch_size": None},
        {"batch_size": 3, "yield_samples": True},
        {"batch_size": 3, "transform": dict},
        {"batch_size": None, "transform": dict},
        {"batch_size": 3, "collate": {"blob": list}},
    ],
)
@pytest.mark.parametrize("is_kept", [False, True])
def test_items_are_the_same_however_they_are_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], is_kept: bool
) -> None:
    if not is_kept:
        keep_nothing(monkeypatch)
    content = dataset_bytes(
        {"row": "int64", "blob": "bytes"}, {"row": np.arange(8), "blob": VALUES}, num_lanes=2, block_size_bytes=1 << 17
    )
    dataset = MemoryDataset(content, cache_dir=tmp_path, **options)
    kept = cached = 0
    for _ in range(3):
        rows = 0
        for item in dataset:
            numbers, blobs = item["row"].reshape(-1).tolist(), item["blob"]
            assert (blobs if isinstance(blobs, list) else [blobs]) == [VALUES[number] for number in numbers]
            rows += len(numbers)
        assert rows == len(VALUES)
        receipt = dataset.receipt()
        kept, cached = kept + receipt["blocks_kept"], cached + receipt["bytes_cache"]
    # Whether the second epoch is brought in beside the first one, or kept from it, is a matter of time.
    assert kept > 0 if is_kept else (kept == 0 and cached > 0)


def test_value_that_nobody_has_any_more_ends_the_stream(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keep_nothing(monkeypatch)
    content = dataset_bytes({"blob": "bytes"}, {"blob": VALUES}, num_lanes=1, block_size_bytes=1 << 20)
    dataset = MemoryDataset(content, cache_dir=tmp_path, batch_size=1)
    list(dataset)
    (path,) = (path for path in tmp_path.rglob("0") if path.is_file())
    data = bytearray(path.read_bytes())
    data[data.index(VALUES[3])] ^= 1
    path.write_bytes(data)

    def refuse(start: int, size: int) -> None:
        raise AllReplicasFailed("all nodes are gone")

    assert dataset.store is not None
    dataset.store.before_read = refuse
    seen: list[list[bytes]] = []
    with pytest.raises(AllReplicasFailed, match=r"lane 0, block 0: .* all nodes are gone"):
        seen.extend(batch["blob"] for batch in dataset)
    assert len(seen) <= 3 and seen == [[value] for value in VALUES[: len(seen)]]
