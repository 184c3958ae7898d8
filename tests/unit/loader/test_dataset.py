"""The dataset in one process: where it is, where it goes on, and what it hands out."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from client.errors import AllReplicasFailed, EndpointUnreachable
from loader.errors import (
    ColumnError,
    DatasetNotFound,
    InvalidOption,
    IteratorStopped,
    StateInvalid,
    StateMismatch,
    StateUnavailable,
)
from tests.golden.tiny import NUM_ROWS, tiny_dataset, tiny_row
from tests.support.memory_store import MemoryDataset, dataset_bytes

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


def test_only_asked_columns_are_there_and_fetched() -> None:
    values = {"row": np.arange(ROWS), "data": np.zeros((ROWS, 100), "u1"), "text": ["x" * 10] * ROWS}
    content = dataset_bytes({"row": "int64", "data": "uint8[100]", "text": "str"}, values, compression="none")
    source = dataset(content, columns=["text", "row"])
    assert [list(batch) for batch in source] == [["row", "text"]] * 13
    num_blocks = source.receipt()["blocks"]
    # The column between them lies so close that leaving it out would cost a second request for each block.
    assert source.receipt()["bytes_remote"] == ROWS * (8 + 100 + 10) + 8 * (ROWS + num_blocks)
    source = dataset(content, columns=["row"])
    list(source)
    assert source.receipt()["bytes_remote"] == ROWS * 8
    with pytest.raises(ColumnError, match="'nothing'"):
        len(dataset(columns=["nothing"]))


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


# Breaking off, and other iterators


@pytest.mark.parametrize("yield_samples", [False, True])
def test_break_ends_the_threads_and_the_next_iteration_goes_on(yield_samples: bool) -> None:
    source = dataset(shuffle=True, yield_samples=yield_samples)
    whole = rows(dataset(shuffle=True, yield_samples=yield_samples))
    found = []
    for count in (1, 5, 2):
        found += take(source, count)
        assert own_threads() == []
    assert found + rows(source) == whole
    assert source.epoch == 1


def test_second_iterator_takes_over_and_the_first_one_says_so() -> None:
    source = dataset()
    first = iter(source)
    found = take(first, 2)
    second = iter(source)
    found += take(second, 2)
    with pytest.raises(IteratorStopped, match="another iterator of this dataset was made, and goes on from here"):
        next(first)
    assert found + rows(second) == rows(dataset())
    assert own_threads() == []


def test_iterator_that_never_began_can_be_replaced() -> None:
    source = dataset()
    first = iter(source)
    assert rows(source) == rows(dataset())
    with pytest.raises(IteratorStopped):
        next(first)


def test_dropped_iterator_ends_its_threads() -> None:
    source = dataset()
    stream = iter(source)
    next(stream)
    assert own_threads() != []
    del stream
    assert own_threads() == []


def test_close_ends_everything_and_the_dataset_opens_again() -> None:
    source = dataset()
    with source:
        stream = iter(source)
        found = take(stream, 2)
        store = source.store
    assert own_threads() == []
    assert store is not None
    assert store.num_closed == 1
    with pytest.raises(IteratorStopped, match="the dataset was closed"):
        next(stream)
    source.close()
    assert found + rows(source) == rows(dataset())


# Errors


def test_error_of_the_store_reaches_the_training_loop_and_nothing_is_lost() -> None:
    source = dataset(prefetch_bytes=0)
    found = take(source, 3)
    assert source.store is not None

    def fail(start: int, end: int) -> None:
        raise AllReplicasFailed("chunk 5 can't be read", key="5")

    source.store.before_read = fail
    with pytest.raises(AllReplicasFailed, match="chunk 5"):
        for batch in source:
            found += rows([batch])
    assert own_threads() == []
    source.store.before_read = lambda start, end: None
    assert found + rows(source) == rows(dataset())


@pytest.mark.parametrize("options", [{}, {"yield_samples": True}, {"batch_size": None}])
def test_item_whose_transform_failed_is_not_consumed(options: dict[str, Any]) -> None:
    failing = [True]

    def transform(item: Any) -> Any:
        if failing[0] and 10 in item["row"].reshape(-1).tolist():
            raise ZeroDivisionError
        return item

    source, found = dataset(transform=transform, **options), []
    with pytest.raises(ZeroDivisionError):
        for item in source:
            found += rows([item])
    failing[0] = False
    assert found + rows(source) == rows(dataset(**options))


def test_interrupt_while_waiting_for_data_ends_the_iteration() -> None:
    source = dataset()
    expected = rows(dataset())
    len(source)
    assert source.store is not None
    interrupted = threading.Event()

    def interrupt(start: int, end: int) -> None:
        if not interrupted.is_set():
            interrupted.set()
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    source.store.before_read = interrupt
    found = []
    with pytest.raises(KeyboardInterrupt):
        for batch in source:
            found += rows([batch])
    assert own_threads() == []
    assert found + rows(source) == expected


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


# State


def test_state_is_small_plain_and_the_same_on_all_ranks() -> None:
    states = []
    for rank in range(3):
        source = dataset(rank=rank, world_size=3, shuffle=True, seed=9)
        take(source, 2)
        states.append(source.state_dict())
    assert states[0] == states[1] == states[2]
    assert states[0]["samples_consumed"] == 24
    assert len(json.dumps(states[0])) < 1024


def test_state_goes_on_in_another_geometry() -> None:
    source = dataset(shuffle=True, seed=9)
    found = {row for batch in take(source, 4) for row in batch}
    state = json.loads(json.dumps(source.state_dict()))
    rest: list[int] = []
    for rank in range(2):
        resumed = dataset(shuffle=True, seed=9, batch_size=3, rank=rank, world_size=2)
        resumed.load_state_dict(state)
        rest += [row for batch in rows(resumed) for row in batch]
        assert resumed.epoch == 1
    assert sorted(rest) == sorted(set(range(ROWS)) - found)


def test_state_at_the_end_of_an_epoch_has_an_empty_rest() -> None:
    source = dataset()
    stream = iter(source)
    take(stream, 13)
    state = source.state_dict()
    assert (state["epoch"], state["samples_consumed"]) == (0, ROWS)
    assert list(stream) == []
    assert (source.state_dict()["epoch"], source.state_dict()["samples_consumed"]) == (1, 0)
    resumed = dataset()
    resumed.load_state_dict(state)
    resumed.set_epoch(0)  # As a training loop does that numbers epochs by itself.
    assert (rows(resumed), resumed.epoch) == ([], 1)
    assert len(rows(resumed)) == 13


def test_state_at_counts_from_where_the_iteration_began() -> None:
    source = dataset()
    take(source, 2)
    stream = iter(source)
    for batches in range(3):
        state = source.state_at(batches=batches)
        assert state == source.state_dict()
        assert state["samples_consumed"] == 8 + 4 * batches
        next(stream)
    rows(stream)
    # The last iteration's, until something else is said.
    assert source.state_at(batches=11)["epoch"] == 0
    assert source.state_at(batches=11)["samples_consumed"] == ROWS
    source.set_epoch(5)
    assert source.state_at(batches=1)["epoch"] == 5
    for batches in (-1, 14):
        with pytest.raises(InvalidOption, match=f"batches={batches}: this iteration has 13"):
            source.state_at(batches=batches)


def test_state_inside_a_batch_is_refused() -> None:
    source = dataset(yield_samples=True)
    stream = iter(source)
    take(stream, 4)
    assert source.state_dict()["samples_consumed"] == 4
    next(stream)
    with pytest.raises(StateUnavailable, match="1 samples into a batch"):
        source.state_dict()


def test_loading_a_state_stops_the_iterator_that_is_under_way() -> None:
    source = dataset()
    state = source.state_dict()
    stream = iter(source)
    next(stream)
    source.load_state_dict(state)
    with pytest.raises(IteratorStopped, match="a state was loaded"):
        next(stream)
    assert rows(source) == rows(dataset())


@pytest.mark.parametrize(
    ("options", "field", "saved", "current"),
    [
        ({"seed": 4}, "seed", 3, 4),
        ({"shuffle": False}, "shuffle", True, False),
        ({"content": OTHER}, "dataset_digest", None, None),
    ],
)
def test_state_of_another_stream_is_refused_and_names_both_values(
    options: dict[str, Any], field: str, saved: Any, current: Any
) -> None:
    state = dataset(seed=3, shuffle=True).state_dict()
    other = dataset(**{"seed": 3, "shuffle": True, **options})
    other.set_epoch(2)
    with pytest.raises(StateMismatch) as caught:
        other.load_state_dict(state)
    assert caught.value.field == field
    assert caught.value.saved == (saved or state["dataset_digest"])
    assert caught.value.current == (other.digest if field == "dataset_digest" else current)
    for value in (caught.value.saved, caught.value.current):
        assert repr(value) in str(caught.value)
    assert other.epoch == 2


def test_state_that_is_none_is_refused() -> None:
    with pytest.raises(StateInvalid):
        dataset().load_state_dict({"epoch": 1})


def test_state_of_an_older_version_reopens_it() -> None:
    state = dataset().state_dict()
    newer = dataset({1: CONTENT, 2: OTHER})
    assert next(iter(newer))["data"].max() == 1
    newer.load_state_dict(state)
    assert {int(batch["data"].max()) for batch in newer} == {0}
    assert newer.digest == state["dataset_digest"]
    gone = dataset({2: OTHER})
    with pytest.raises(StateMismatch, match="dataset_digest"):
        gone.load_state_dict(state)
    assert next(iter(gone))["data"].max() == 1


def test_version_that_was_opened_stays() -> None:
    source = dataset()
    digest = source.digest
    source.versions[2] = OTHER
    source.close()
    del source.versions[1]
    source.versions[1] = CONTENT
    assert source.digest == digest


# Cost


def test_cache_serves_later_epochs_and_the_receipt_says_so(tmp_path: Path) -> None:
    source = dataset(cache_dir=tmp_path, shuffle=True)
    assert rows(source) == rows(dataset(shuffle=True))
    cold = source.receipt()
    assert (cold["rank"], cold["epoch"], cold["samples"], cold["bytes_cache"]) == (0, 0, ROWS, 0)
    assert cold["bytes_remote"] > 0
    rows(source)
    warm = source.receipt()
    assert (warm["epoch"], warm["bytes_remote"], warm["blocks"]) == (1, 0, cold["blocks"])
    assert warm["bytes_cache"] == ROWS * 108
    assert warm["wall_s"] >= warm["stall_s"] >= 0
    assert source.receipt() == warm


@pytest.mark.parametrize("limit_bytes", [0, 2000])
def test_cache_that_is_too_small_changes_no_row(tmp_path: Path, limit_bytes: int) -> None:
    source = dataset(cache_dir=tmp_path, cache_limit_bytes=limit_bytes, shuffle=True)
    plain = dataset(shuffle=True)
    for _ in range(3):
        assert [sorted(batch) for batch in rows(source)] == [sorted(batch) for batch in rows(plain)]
    assert sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file()) <= limit_bytes


def test_receipt_counts_failovers_and_the_samples_that_were_handed_out() -> None:
    source = dataset()
    len(source)
    assert source.store is not None
    source.store.failovers = 5
    stream = iter(source)
    take(stream, 3)
    source.store.failovers = 7
    assert (source.receipt()["samples"], source.receipt()["failovers"]) == (12, 2)
    del stream


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
