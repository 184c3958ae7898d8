"""The dataset in one process: where it is, where it goes on, and what it hands out."""

from __future__ import annotations

import gc
import multiprocessing
import os
import subprocess
import sys
import threading
import weakref
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from client.errors import EndpointUnreachable
from loader.arena import _SlotBuffers
from loader.daemon_pool import DaemonPool
from loader.errors import (
    BlockCorrupt,
    ColumnError,
    DatasetNotFound,
    InvalidOption,
    IteratorStopped,
)
from loader.value_room import LARGE_VALUE_BYTES
from tests.golden.tiny import NUM_ROWS, tiny_dataset, tiny_row
from tests.support.memory_store import MemoryDataset, dataset_bytes, keep_nothing, open_reader

ROWS = 50
CONTENT = dataset_bytes({"row": "int64", "data": "uint8[100]"}, {"row": np.arange(ROWS), "data": np.zeros((ROWS, 100), "u1")})
OTHER = dataset_bytes({"row": "int64", "data": "uint8[100]"}, {"row": np.arange(ROWS), "data": np.ones((ROWS, 100), "u1")})


def dataset(content: Any = CONTENT, **options: Any) -> MemoryDataset:
    return MemoryDataset(content, **{"batch_size": 4, "num_threads": 1, **options})


def rows(batches: Iterable[Any]) -> list[Any]:
    return [batch["row"].tolist() for batch in batches]


def take(source: Any, count: int) -> list[Any]:
    return rows(batch for _, batch in zip(range(count), source, strict=False))


def own_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("forebay-")]


# What it hands out


@pytest.mark.parametrize("compression", ["none", "zstd:3"])
def test_every_column_type_becomes_what_training_needs(compression: str) -> None:
    source = MemoryDataset(tiny_dataset(compression), batch_size=5, shuffle=True, with_index=True)
    seen = []
    for batch in source:
        for place, number in enumerate(batch["_index"].tolist()):
            expected = tiny_row(number)
            for name in ("label", "seen", "pixels", "half", "phase", "tokens", "boxes"):
                assert isinstance(batch[name][place], torch.Tensor)
                assert np.array_equal(batch[name][place].numpy(), expected[name]), name
            for name in ("blob", "text", "meta", "photo", "icon"):
                assert batch[name][place] == expected[name]
            seen.append(number)
    assert sorted(seen) == list(range(NUM_ROWS))
    kinds = {name: batch[name].dtype for name in ("seen", "half", "phase", "pixels")}
    assert kinds == {"seen": torch.bool, "half": torch.float16, "phase": torch.complex64, "pixels": torch.float32}


@pytest.mark.parametrize("name", ["uint16", "uint32", "uint64", "int8", "float64", "complex128"])
def test_unusual_dtypes_become_tensors(name: str) -> None:
    values = np.arange(6).astype(name)
    (batch,) = dataset(dataset_bytes({"v": name}, {"v": values}, num_lanes=1), batch_size=6)
    assert batch["v"].dtype == getattr(torch, name)
    assert np.array_equal(batch["v"].numpy(), values)


def test_single_samples_and_indexing_agree() -> None:
    source = MemoryDataset(tiny_dataset("none"), with_index=True)
    for number, sample in enumerate(source):
        assert type(sample) is dict
        by_index = source[number]
        assert list(by_index) == list(sample)
        for name, value in sample.items():
            same = torch.equal(value, by_index[name]) if isinstance(value, torch.Tensor) else value == by_index[name]
            assert same, name
            assert type(value) is type(by_index[name])
    assert source[-1]["_index"].item() == NUM_ROWS - 1
    with pytest.raises(IndexError):
        source[NUM_ROWS]


def bytes_read(source: MemoryDataset) -> int:
    """Bytes that were read after the index, some of them for the next epoch once more."""
    assert source.store is not None
    return sum(end - start for start, end in set(source.store.reads[1:]))


def test_blocks_that_fit_into_memory_are_read_twice_at_most_and_epochs_stay_what_they_are(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    options: dict[str, Any] = {"batch_size": 5, "shuffle": True, "with_index": True, "prefetch_bytes": 1 << 24}
    source, epochs = MemoryDataset(tiny_dataset("zstd:3"), **options), 6
    kept_epochs, kept = [], 0
    for _ in range(epochs):
        kept_epochs.append([{name: plain(column) for name, column in batch.items()} for batch in source])
        receipt = source.receipt()
        assert receipt["blocks"] + receipt["blocks_kept"] == source.reader.num_blocks
        kept += receipt["blocks_kept"]
    assert source.store is not None
    # Once, or once more beside the epoch before, which still needed its own; and what follows the last epoch.
    assert kept >= (epochs - 2) * source.reader.num_blocks
    assert len(source.store.reads) <= 2 + 2 * source.reader.num_blocks
    keep_nothing(monkeypatch)
    source = MemoryDataset(tiny_dataset("zstd:3"), **options)
    for epoch in kept_epochs:
        assert [{name: plain(column) for name, column in batch.items()} for batch in source] == epoch
        assert source.receipt()["blocks_kept"] == 0


def plain(column: Any) -> Any:
    values = list(column)
    return [value.tolist() if isinstance(value, torch.Tensor) else value for value in values]


def test_only_asked_columns_are_there_and_fetched() -> None:
    values = {"row": np.arange(ROWS), "data": np.zeros((ROWS, 100), "u1"), "text": ["x" * 10] * ROWS}
    content = dataset_bytes({"row": "int64", "data": "uint8[100]", "text": "str"}, values, compression="none")
    source = dataset(content, columns=["text", "row"])
    assert [list(batch) for batch in source] == [["row", "text"]] * 13
    num_blocks = source.receipt()["blocks"]
    # The column between them lies so close that leaving it out would cost a second request for each block.
    tables_bytes = sum(lane.table_bytes for lane in source.reader.index.lanes)
    assert bytes_read(source) == ROWS * (8 + 100 + 10) + 8 * (ROWS + num_blocks) + tables_bytes
    source = dataset(content, columns=["row"])
    list(source)
    assert bytes_read(source) == ROWS * 8 + tables_bytes
    with pytest.raises(ColumnError, match="'nothing'"):
        len(dataset(columns=["nothing"]))


def test_damage_to_columns_that_nobody_asked_for_is_not_even_seen() -> None:
    values = {
        "row": np.arange(ROWS),
        "photo": [b"\xff\xd8\xff" + bytes([row] * 200) for row in range(ROWS)],
        "text": ["x"] * ROWS,
    }
    content = bytearray(dataset_bytes({"row": "int64", "photo": "jpeg", "text": "str"}, values, block_size_bytes=4096))
    reader, _ = open_reader(bytes(content))
    for lane, entry in enumerate(reader.index.lanes):
        table = reader.table(lane)
        for start, size in zip(table.offsets[:, 1].tolist(), table.stored_size[:, 1].tolist(), strict=True):
            content[entry.offset + start : entry.offset + start + size] = bytes(size)
    wanted = dataset(bytes(content), columns=["text", "row"])
    assert sorted(row for batch in wanted for row in batch["row"].tolist()) == list(range(ROWS))
    with pytest.raises(BlockCorrupt, match="column 'photo'"):
        list(dataset(bytes(content)))
    with pytest.raises(ColumnError, match="'label': expected one of the columns row, photo, text, found no such column"):
        list(dataset(bytes(content), columns=["label"]))


def test_transform_makes_the_items() -> None:
    assert list(dataset(transform=lambda batch: int(batch["row"].sum()), batch_size=25)) == [300, 925]
    assert list(dataset(transform=lambda sample: int(sample["row"]), batch_size=None)) == list(range(ROWS))
    assert dataset(transform=lambda sample: int(sample["row"]))[7] == 7


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, 13),
        ({"batch_size": None}, 50),
        ({"yield_samples": True}, 50),
        ({"tail": "drop"}, 12),
        ({"tail": "drop", "yield_samples": True}, 48),
        ({"rank": 2, "world_size": 3}, 5),
        ({"rank": 2, "world_size": 3, "yield_samples": True}, 17),
        ({"rank": 2, "world_size": 3, "batch_size": None}, 17),
        ({"rank": 2, "world_size": 3, "batch_size": None, "tail": "uneven"}, 16),
        ({"rank": 50, "world_size": 60, "tail": "uneven"}, 0),
        ({"rank": 50, "world_size": 60, "tail": "uneven", "yield_samples": True}, 0),
        ({"rank": 50, "world_size": 60}, 1),
    ],
)
def test_length_counts_the_items_of_an_epoch(options: dict[str, Any], expected: int) -> None:
    source = dataset(**options)
    assert len(source) == expected
    assert len(list(source)) == expected


def test_empty_dataset_has_no_items_and_goes_through_epochs() -> None:
    source = dataset(dataset_bytes({"row": "int64"}, {"row": np.empty(0, int)}))
    assert (len(source), list(source), list(source), source.epoch) == (0, [], [], 2)


def test_batches_that_are_kept_stay_as_they_are() -> None:
    source = dataset(shuffle=True)
    kept = [batch for _ in range(4) for batch in source]
    assert sorted(sum(rows(kept), [])) == sorted(list(range(ROWS)) * 4)  # noqa: RUF017


# Epochs


def test_epoch_advances_at_the_end_and_each_is_shuffled_anew() -> None:
    source = dataset(shuffle=True)
    epochs = [rows(source) for _ in range(3)]
    assert source.epoch == 3
    assert epochs[0] != epochs[1] != epochs[2]
    assert {row for batch in epochs[1] for row in batch} == set(range(ROWS))
    source.set_epoch(1)
    assert rows(source) == epochs[1]
    assert rows(source) == epochs[2]


def test_set_epoch_goes_on_with_the_epoch_that_is_under_way() -> None:
    source = dataset(shuffle=True)
    whole = rows(dataset(shuffle=True))
    assert take(source, 3) == whole[:3]
    source.set_epoch(0)
    assert rows(source) == whole[3:]


def test_set_epoch_does_not_disturb_what_is_under_way_and_holds_at_its_end() -> None:
    source = dataset(shuffle=True)
    stream = iter(source)
    first = take(stream, 3)
    source.set_epoch(7)
    assert source.state_dict()["epoch"] == 7
    assert first + rows(stream) == rows(dataset(shuffle=True))
    assert source.epoch == 7
    assert source.state_dict()["samples_consumed"] == 0


def test_negative_epoch_is_refused() -> None:
    with pytest.raises(InvalidOption, match="epoch=-1"):
        dataset().set_epoch(-1)


# Opening


def test_store_that_can_not_be_opened_is_closed_again() -> None:
    with pytest.raises(DatasetNotFound, match="there is no dataset forebay://data/set"):
        len(source := dataset({}))
    source = dataset({})
    with pytest.raises(DatasetNotFound):
        next(iter(source))
    assert source.store is not None
    assert source.store.num_closed == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size=0"),
        ({"batch_size": None, "yield_samples": True}, "yield_samples=True needs a batch_size"),
        ({"tail": "cut"}, "tail='cut'"),
        ({"seed": -1}, "seed=-1"),
        ({"seed": 1 << 64}, "seed="),
        ({"prefetch_bytes": -1}, "prefetch_bytes=-1"),
        ({"cache_limit_bytes": -1}, "cache_limit_bytes=-1"),
        ({"rank": 1}, "give both, or neither"),
        ({"rank": 2, "world_size": 2}, "rank=2 of world_size=2"),
        ({"columns": "row"}, "give a list of names"),
        ({"num_threads": 0}, "num_threads=0"),
    ],
)
def test_wrong_options_are_refused_before_anything_is_contacted(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidOption, match=message):
        dataset(**options)


def test_nothing_is_contacted_before_the_dataset_is_used() -> None:
    source = dataset()
    source.set_epoch(3)
    stream = iter(source)
    assert source.store is None
    assert source.receipt() == {}
    next(stream)
    assert source.store is not None


# Cost


def test_cache_serves_later_epochs_and_the_receipt_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keep_nothing(monkeypatch)
    source = dataset(cache_dir=tmp_path, shuffle=True)
    assert rows(source) == rows(dataset(shuffle=True))
    cold = source.receipt()
    assert (cold["rank"], cold["epoch"], cold["samples"], cold["bytes_cache"]) == (0, 0, ROWS, 0)
    assert cold["bytes_remote"] > 0
    rows(source)
    warm = source.receipt()
    assert (warm["epoch"], warm["bytes_remote"], warm["blocks"]) == (1, 0, cold["blocks"])
    assert warm["bytes_cache"] == ROWS * 108
    assert warm["read_amplification"] == 1.0
    assert warm["wall_s"] >= warm["stall_s"] >= 0
    assert source.receipt() == warm


@pytest.mark.parametrize("limit_bytes", [0, 2000])
def test_cache_that_is_too_small_changes_no_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit_bytes: int) -> None:
    keep_nothing(monkeypatch)
    source = dataset(cache_dir=tmp_path, cache_limit_bytes=limit_bytes, shuffle=True)
    plain = dataset(shuffle=True)
    for _ in range(3):
        assert [sorted(batch) for batch in rows(source)] == [sorted(batch) for batch in rows(plain)]
    assert sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file()) <= limit_bytes


def test_receipt_counts_failovers_and_the_samples_that_were_handed_out() -> None:
    source = dataset()
    len(source)
    assert source.store is not None
    source.store.counted.failovers = 5
    stream = iter(source)
    take(stream, 3)
    source.store.counted.failovers = 7
    assert (source.receipt()["samples"], source.receipt()["failovers"]) == (12, 2)
    del stream


def test_closing_gives_the_memory_back_without_the_garbage_collector(monkeypatch: pytest.MonkeyPatch) -> None:
    values = [bytes([row]) * LARGE_VALUE_BYTES for row in range(40)]
    content = dataset_bytes({"blob": "bytes"}, {"blob": values}, num_lanes=4, block_size_bytes=4 * LARGE_VALUE_BYTES)
    buffers: list[Any] = []
    made, close, asked, closed = _SlotBuffers.__init__, DaemonPool.close, threading.Event(), threading.Event()

    def noted(self: _SlotBuffers) -> None:
        made(self)
        buffers.append(weakref.ref(self))

    def closing(self: DaemonPool) -> None:
        close(self)
        closed.set()

    def hold(start: int, end: int) -> None:
        asked.set()
        assert closed.wait(20.0)

    monkeypatch.setattr(_SlotBuffers, "__init__", noted)
    monkeypatch.setattr(DaemonPool, "close", closing)
    gc.disable()
    try:
        source = MemoryDataset(content, batch_size=2, num_threads=1)
        assert len(list(source)) == 20
        assert source.store is not None
        source.store.before_read = hold
        source.set_epoch(5)

        def take_in_vain() -> None:
            with suppress(IteratorStopped):
                next(iter(source))

        closed.clear()
        thread = threading.Thread(target=take_in_vain)
        thread.start()
        # One fetch is under way when it is closed, and others wait for their turn.
        assert asked.wait(20.0)
        source.close()
        thread.join()
        assert [buffer() for buffer in buffers] == [None]
    finally:
        gc.enable()


# Other processes


def test_forked_process_reads_by_itself_and_moves_nothing_here() -> None:
    source = dataset()
    stream = iter(source)
    found = take(stream, 3)

    def read() -> None:
        assert take(source, 2) == rows(dataset())[3:5]
        source.set_epoch(9)
        assert source.epoch == 9
        source.close()
        os._exit(0)

    child = multiprocessing.get_context("fork").Process(target=read)
    child.start()
    child.join()
    assert child.exitcode == 0
    child.close()
    assert found + rows(stream) == rows(dataset())
    assert source.epoch == 1


def test_without_torch_the_error_names_the_extra() -> None:
    code = """
import sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "torch":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Blocker())
from loader import ShardWriter
try:
    from loader import ShardedDataset
except ImportError as error:
    print(error)
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "pip install 'forebay[loader]'" in run.stdout


def test_endpoint_that_does_not_answer_is_named() -> None:
    from loader import ShardedDataset

    source = ShardedDataset("forebay://data/set", endpoints="http://127.0.0.1:9")
    with pytest.raises(EndpointUnreachable, match=r"127\.0\.0\.1:9"):
        len(source)


def test_nothing_keeps_the_memory_of_blocks_after_closing() -> None:
    source = dataset(shuffle=True)
    assert len(rows(source)) > 1
    arena = weakref.ref(source._open().arena)
    source.close()
    gc.collect()  # Mostly it is gone before.
    assert arena() is None
    assert source.receipt()["samples"] == ROWS
