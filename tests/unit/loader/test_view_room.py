"""Values that are handed out as views: of the cache's files where the block is there, and never copied or changed."""

from __future__ import annotations

import io
import mmap
import os
from collections.abc import Iterator
from contextlib import closing
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from loader import lane_file
from loader.arena import Arena
from loader.cache import DiskCache
from loader.column_type import parse_column_type
from loader.errors import InvalidOption
from loader.mixed import MixedDataset
from loader.reader import DatasetReader
from loader.view_room import ViewRoom
from tests.support.memory_store import MemoryDataset, dataset_bytes, nothing_in_memory, open_reader
from tests.unit.loader.test_arena import MAX_ROWS, lane_order, plan_of

ROWS = 24
VALUES = [bytes([1 + row]) * (3000 + 100 * row) for row in range(ROWS)]
NAMES = [f"row {row}" for row in range(ROWS)]


def content(**more: str) -> bytes:
    values = {"row": np.arange(ROWS), "blob": VALUES, "name": NAMES}
    kinds = {"row": "int64", "blob": "bytes", **more}
    return dataset_bytes(kinds, {name: values[name] for name in kinds}, num_lanes=4, block_size_bytes=1 << 13)


@pytest.fixture
def reader(tmp_path: Path) -> Iterator[DatasetReader]:
    reader, _ = open_reader(dataset_bytes({"blob": "bytes"}, {"blob": VALUES}, num_lanes=1, block_size_bytes=1 << 14))
    reader.cache = cache = DiskCache(tmp_path, digest=reader.index.digest, limit_bytes=1 << 22)
    with closing(cache):
        yield reader


def room_of(reader: DatasetReader, block: int = 0) -> ViewRoom:
    table = reader.table(0)
    return ViewRoom(int(table.raw_size[block, 0]), rows=int(table.rows[block]))


def brought(reader: DatasetReader) -> tuple[int, ViewRoom]:
    """How many bytes of the first block come from the cache, and its room."""
    room = room_of(reader)
    return reader.read_block_into(0, 0, [0], [room]), room


def views(room: ViewRoom) -> list[memoryview]:
    offsets, data = room.values()
    return [data[start:end] for start, end in pairwise(offsets)]


def cached_file(root: Path) -> Path:
    (path,) = (path for path in root.rglob("0") if path.is_file())
    return path


def test_fetched_block_has_memory_of_its_own_and_a_cached_one_is_mapped(reader: DatasetReader) -> None:
    for from_cache in (False, True, True):
        cached, room = brought(reader)
        assert cached == (len(room) if from_cache else 0)
        assert room.is_live == from_cache
        found = views(room)
        assert found == VALUES[: len(found)]
        assert all(view.readonly for view in found)
    assert reader.read_cached_into(0, 0, [0], [room_of(reader)])


@pytest.mark.parametrize("waits", [False, True])
def test_damaged_block_is_fetched_and_written_anew(reader: DatasetReader, tmp_path: Path, waits: bool) -> None:
    brought(reader)
    data = bytearray((path := cached_file(tmp_path)).read_bytes())
    data[data.index(VALUES[1])] ^= 1
    path.write_bytes(data)
    if not waits:
        assert not reader.read_cached_into(0, 0, [0], [room_of(reader)])
    cached, room = brought(reader)
    assert (cached, room.is_live) == (0, False)
    assert views(room)[1] == VALUES[1]
    assert brought(reader)[1].is_live


def test_block_that_is_only_on_disk_is_read_by_whoever_may_wait(reader: DatasetReader, monkeypatch: pytest.MonkeyPatch) -> None:
    brought(reader)
    nothing_in_memory(monkeypatch)
    assert not reader.read_cached_into(0, 0, [0], [room_of(reader)])
    _, room = brought(reader)
    assert room.is_live and views(room)[0] == VALUES[0]


def test_disk_that_cannot_read_is_an_error_and_the_block_is_fetched(
    reader: DatasetReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    brought(reader)
    size, preadv = len(room_of(reader)), os.preadv

    def broken(file: int, buffers: list[memoryview], start: int, flags: int) -> int:
        if len(buffers[0]) == size:
            raise OSError(5, "Input/output error")
        return preadv(file, buffers, start, flags)

    monkeypatch.setattr(os, "preadv", broken)
    cached, room = brought(reader)
    assert (cached, room.is_live) == (0, False)
    assert views(room)[0] == VALUES[0]


def test_views_outlive_their_file_and_the_cache(reader: DatasetReader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    brought(reader)
    _, room = brought(reader)
    found = views(room)
    monkeypatch.setattr(lane_file, "_LOOK_AGAIN_S", 0.0)
    lane_file.remove(str(cached_file(tmp_path)))
    assert not room.is_live
    assert isinstance(reader.cache, DiskCache)
    reader.cache.close()
    del room
    assert found == VALUES[: len(found)]


def test_file_that_was_cut_short_is_not_mapped(reader: DatasetReader, tmp_path: Path) -> None:
    brought(reader)
    brought(reader)
    path = cached_file(tmp_path)
    os.truncate(path, path.stat().st_size - 1)
    cached, room = brought(reader)
    assert (cached, room.is_live) == (0, False)
    assert views(room)[0] == VALUES[0]


@pytest.mark.parametrize("call", ["open", "mmap"])
def test_shortage_of_files_costs_no_block_that_is_there(
    reader: DatasetReader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, call: str
) -> None:
    brought(reader)
    with monkeypatch.context() as patched:

        def refuse(*args: Any, **options: Any) -> Any:
            raise OSError(24, "Too many open files")

        patched.setattr(os if call == "open" else mmap, call, refuse)
        for _ in range(2):
            assert brought(reader)[0] == 0
    assert [record.levelname for record in caplog.records if "Too many open files" in record.message][:1] == ["WARNING"]
    assert cached_file(tmp_path).exists()
    assert brought(reader)[1].is_live


def test_arena_keeps_what_is_mapped_and_nothing_else(reader: DatasetReader) -> None:
    arena = Arena([parse_column_type("bytes")], max_block_rows=MAX_ROWS, zero_copy=True)
    arena.grow(3)
    order = lane_order(1)
    rows = order.rows_of_visit(0)
    for from_cache in (False, True):
        _, room = brought(reader)
        assert room.is_live == from_cache
        (column,) = arena._columns
        column._rooms[1] = room  # type: ignore[union-attr, assignment]
        arena._rows[MAX_ROWS : MAX_ROWS + len(rows)] = MAX_ROWS + rows
        gathered = arena.gather(plan_of([MAX_ROWS, MAX_ROWS + 2], [1, 1]))
        assert gathered == [[VALUES[rows[0]], VALUES[rows[2]]]]
        arena.release([1])
        assert arena.holds(1) == from_cache


OPTIONS: list[dict[str, Any]] = [
    {"batch_size": 3},
    {"batch_size": None},
    {"batch_size": 3, "yield_samples": True},
    {"batch_size": 3, "transform": dict},
    {"batch_size": None, "transform": dict},
    {"batch_size": 3, "collate": {"blob": list}},
]


def blobs(item: Any) -> list[tuple[int, Any]]:
    numbers, found = item["row"].reshape(-1).tolist(), item["blob"]
    return list(zip(numbers, found if isinstance(found, list) else [found], strict=True))


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("more", [{}, {"name": "str"}])
@pytest.mark.parametrize("is_cached", [True, False])
def test_views_are_what_copies_would_be_for_as_long_as_they_are_held(
    tmp_path: Path, options: dict[str, Any], more: dict[str, str], is_cached: bool
) -> None:
    held: list[tuple[int, Any]] = []
    cache_dir = tmp_path if is_cached else None
    with MemoryDataset(content(**more), shuffle=True, cache_dir=cache_dir, zero_copy=True, **options) as dataset:
        for _ in range(4):
            found = [blob for item in dataset for blob in blobs(item)]
            assert sorted(row for row, _ in found) == list(range(ROWS))
            held += found
        assert not is_cached or dataset.receipt()["blocks_kept"]
    for row, value in held:
        assert type(value) is memoryview and value.readonly
        assert value == VALUES[row]


def test_little_memory_changes_nothing(tmp_path: Path) -> None:
    with MemoryDataset(content(), batch_size=5, cache_dir=tmp_path, zero_copy=True, prefetch_bytes=0) as dataset:
        for _ in range(3):
            assert sorted(blob for batch in dataset for blob in blobs(batch)) == list(enumerate(VALUES))


def test_one_row_is_a_view_too() -> None:
    with MemoryDataset(content(name="str"), zero_copy=True) as dataset:
        sample = dataset[3]
    assert type(sample["blob"]) is memoryview
    assert sample["blob"] == VALUES[3]
    assert sample["name"] == NAMES[3]


def test_mixture_gives_views(tmp_path: Path) -> None:
    parts = [MemoryDataset(content(), cache_dir=tmp_path / str(number)) for number in range(2)]
    with MixedDataset(parts, weights=[1, 1], batch_size=4, zero_copy=True) as dataset:
        for _ in range(3):
            for batch in dataset:
                assert [(type(value), value) for _, value in blobs(batch)] == [
                    (memoryview, VALUES[row]) for row in batch["row"].tolist()
                ]


def test_images_are_decoded_from_views(tmp_path: Path) -> None:
    images = []
    for kind in ("JPEG", "PNG"):
        file = io.BytesIO()
        Image.fromarray(np.full((8, 8, 3), 128, np.uint8)).save(file, kind)
        images.append(file.getvalue())
    packed = dataset_bytes({"photo": "bytes"}, {"photo": images}, num_lanes=1)
    options: dict[str, Any] = {"batch_size": 2, "decode": {"photo": "uint8[3,8,8]"}}
    with (
        MemoryDataset(packed, **options) as copies,
        MemoryDataset(packed, zero_copy=True, cache_dir=tmp_path, **options) as views,
    ):
        (expected,) = copies
        for _ in range(2):
            (found,) = views
            assert torch.equal(found["photo"], expected["photo"])


def test_workers_cannot_send_views() -> None:
    with MemoryDataset(content(), batch_size=3, zero_copy=True) as dataset:
        batches = DataLoader(dataset, batch_size=None, num_workers=1, multiprocessing_context="fork")
        with pytest.raises(InvalidOption, match=r"zero_copy=True: .*num_workers=0"):
            next(iter(batches))
