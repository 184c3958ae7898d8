"""The dataset under a real DataLoader and StatefulDataLoader, with worker processes of every start method."""

from __future__ import annotations

import json
import pickle
import threading
from collections.abc import Iterable
from itertools import chain
from multiprocessing import get_context
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch.utils.data import DataLoader
from torchdata.stateful_dataloader import StatefulDataLoader

from client.errors import AllReplicasFailed
from loader.errors import InvalidOption, LoaderError, StateInvalid, StateUnavailable
from loader.ranks import Worker
from loader.transforms import RowGenerators, row_generator
from tests.support.memory_store import MemoryDataset, dataset_bytes

pytestmark = [
    pytest.mark.filterwarnings("ignore:This DataLoader will create"),
    # torchdata 0.11 calls it in every StatefulDataLoader.
    pytest.mark.filterwarnings("ignore:'set_vital' is deprecated"),
]

NUM_ROWS = 103
CONTENT = dataset_bytes(
    {"row": "int64", "text": "str"},
    {"row": np.arange(NUM_ROWS), "text": [f"row {row}" for row in range(NUM_ROWS)]},
    num_lanes=8,
)


def dataset(**options: Any) -> MemoryDataset:
    return MemoryDataset(CONTENT, **{"batch_size": 4, "shuffle": True, "seed": 3, "num_threads": 1, **options})


def loader(source: MemoryDataset, *, num_workers: int = 2, context: str = "fork", **options: Any) -> DataLoader[Any]:
    workers: dict[str, Any] = {"num_workers": num_workers, "multiprocessing_context": context if num_workers else None}
    return DataLoader(source, **{"batch_size": None, **workers, **options})


def stateful(source: MemoryDataset, *, num_workers: int, **options: Any) -> StatefulDataLoader[Any]:
    workers: dict[str, Any] = {"num_workers": num_workers, "multiprocessing_context": "fork" if num_workers else None}
    return StatefulDataLoader(source, **{"batch_size": None, **workers, **options})


def rows(batches: Iterable[Any]) -> list[list[int]]:
    return [batch["row"].tolist() for batch in batches]


def flat(batches: list[list[int]]) -> list[int]:
    return sorted(chain.from_iterable(batches))


EPOCHS = [rows(epoch) for source in [dataset()] for epoch in (source, source, source)]


def jitter(batch: Any, rngs: RowGenerators) -> Any:
    return batch | {"draws": [rng.random() for rng in rngs], "thread": threading.current_thread().name}


# Starting a process that imports torch anew takes seconds: there is one such worker fewer.
@pytest.mark.parametrize(("context", "num_workers"), [("fork", 2), ("spawn", 2), ("forkserver", 1)])
def test_workers_of_every_start_method_make_the_same_batches(context: str, num_workers: int) -> None:
    source = dataset(with_index=True, transform=jitter)
    batches = list(loader(source, context=context, num_workers=num_workers))
    assert rows(batches) == EPOCHS[0]
    draws = [[row_generator(seed=3, epoch=0, row=row).random() for row in batch] for batch in EPOCHS[0]]
    assert [batch["draws"] for batch in batches] == draws
    assert all(batch["thread"].startswith("forebay-make") for batch in batches)
    assert all(batch["text"] == [f"row {row}" for row in batch["_index"].tolist()] for batch in batches)
    assert source.epoch == 1


def test_epoch_advances_when_all_workers_have_read_it() -> None:
    source = dataset()
    for expected in EPOCHS:
        assert rows(loader(source)) == expected
    assert source.epoch == 3


def test_set_epoch_reaches_persistent_workers() -> None:
    source = dataset()
    batches = loader(source, persistent_workers=True)
    for epoch in (0, 1, 2, 1, 1, 2, 0):
        if epoch != source.epoch:
            source.set_epoch(epoch)
        assert rows(batches) == EPOCHS[epoch]
    # Pinned again, it is read again.
    source.set_epoch(0)
    source.set_epoch(0)
    assert rows(batches) == EPOCHS[0]


@pytest.mark.parametrize("persistent", [False, True])
def test_iteration_after_a_break_begins_again_in_all_workers(persistent: bool) -> None:
    source = dataset()
    batches = loader(source, persistent_workers=persistent)
    for _ in range(3):
        for number, batch in enumerate(batches):
            assert batch["row"].tolist() == EPOCHS[0][number]
            if number == 2:
                break
    assert rows(batches) == EPOCHS[0]
    assert rows(batches) == EPOCHS[1]


def test_workers_go_on_inside_a_batch_that_the_main_process_broke_off() -> None:
    source = dataset(yield_samples=True)
    whole = [row for batch in EPOCHS[0] for row in batch]
    found = [int(sample["row"]) for _, sample in zip(range(6), source, strict=False)]
    assert found == whole[:6]
    for _ in range(2):
        rest = [int(sample["row"]) for sample in loader(source)]
        if found:
            assert rest[:2] == [whole[6], whole[8]]  # One of each worker in turn.
        assert sorted(found + rest) == list(range(NUM_ROWS))
        found = []


@pytest.mark.parametrize(("num_workers", "resumed_workers"), [(0, 2), (2, 0), (2, 1)])
def test_state_at_goes_on_exactly_with_other_workers(num_workers: int, resumed_workers: int) -> None:
    source = dataset()
    stream = iter(loader(source, num_workers=num_workers))
    for batches in range(len(EPOCHS[0]) + 1):
        # The workers are at their ends long before the training loop is.
        state = source.state_at(batches=batches)
        if batches in (0, 1, 7, 25, 26):
            resumed = dataset()
            resumed.load_state_dict(state)
            assert rows(loader(resumed, num_workers=resumed_workers)) == EPOCHS[0][batches:]
            assert rows(resumed) == EPOCHS[1]
        assert next(stream, {"row": torch.tensor([-1])})["row"].tolist() == [*EPOCHS[0], [-1]][batches]
    assert source.state_at(batches=26) == state
    with pytest.raises(InvalidOption, match="batches=27: this iteration has 26"):
        source.state_at(batches=27)


def test_state_dict_never_guesses_what_workers_delivered() -> None:
    source = dataset()
    fresh = source.state_dict()
    stream = iter(loader(source))
    next(stream)
    with pytest.raises(StateUnavailable, match=r"state_at\(batches=k\)"):
        source.state_dict()
    assert rows(stream) == EPOCHS[0][1:]
    with pytest.raises(StateUnavailable):
        source.state_dict()
    # The caller knows, and says it.
    source.set_epoch(1)
    assert source.state_dict() == {**fresh, "epoch": 1}
    assert rows(source) == EPOCHS[1]
    assert source.state_dict() == {**fresh, "epoch": 2}


@pytest.mark.parametrize(("num_workers", "resumed_workers"), [(0, 2), (2, 0), (3, 2)])
def test_state_from_a_stateful_loader_goes_on_exactly(num_workers: int, resumed_workers: int) -> None:
    source = dataset()
    batches = stateful(source, num_workers=num_workers)
    states = [batches.state_dict()]
    for number, batch in enumerate(batches):
        assert batch["row"].tolist() == EPOCHS[0][number]
        states.append(batches.state_dict())
    states.append(batches.state_dict())
    for number in (0, 1, 5, 25, 26, 27):
        resumed = dataset(batch_size=2)
        resumed.load_state_dict(resumed.state_from(states[number]))
        found = rows(stateful(resumed, num_workers=resumed_workers))
        if number == 27 and num_workers == 0:
            assert flat(found) == list(range(NUM_ROWS))  # The epoch was over, and this is the next.
        else:
            assert flat(found) == flat(EPOCHS[0][number:])


def test_stateful_loader_without_workers_takes_its_own_state_up() -> None:
    batches = stateful(dataset(), num_workers=0)
    found = [batch["row"].tolist() for _, batch in zip(range(5), batches, strict=False)]
    state = batches.state_dict()
    resumed = stateful(dataset(), num_workers=0)
    resumed.load_state_dict(state)
    assert found + rows(resumed) == EPOCHS[0]
    assert rows(resumed) == EPOCHS[1]


def test_stateful_loader_with_workers_says_how_to_take_its_state_up() -> None:
    # In a worker: a loader whose workers refuse to start takes torchdata half a minute to clean up.
    source = dataset()
    state = source.state_dict()
    with (
        patch("loader.stream.worker_of", lambda: Worker(number=0, num_workers=2, base_seed=1)),
        pytest.raises(StateUnavailable, match=r"dataset\.load_state_dict\(dataset\.state_from"),
    ):
        source.load_state_dict(state)


def test_state_from_between_snapshots_counts_steps_or_refuses() -> None:
    source = dataset()
    batches = stateful(source, num_workers=2, snapshot_every_n_steps=4)
    stream, states = iter(batches), []
    for _ in range(7):
        next(stream)
        states.append(batches.state_dict())
    with pytest.raises(StateUnavailable, match="snapshot_every_n_steps=1"):
        source.state_from(states[2])
    assert [source.state_from(states[number])["samples_consumed"] for number in (3, 4, 6)] == [16, 20, 28]
    del stream


def test_state_from_refuses_what_is_not_the_beginning_of_the_stream() -> None:
    source = dataset(batch_size=None)
    batches = stateful(source, num_workers=2, batch_size=3)
    stream = iter(batches)
    next(stream)
    with pytest.raises(StateUnavailable, match="not the beginning of the stream"):
        source.state_from(batches.state_dict())
    next(stream)
    assert source.state_from(batches.state_dict())["samples_consumed"] == 6
    for other in ({}, {"_snapshot": 5, "_steps_since_snapshot": 0}, {"dataset_state": None}, 5):
        with pytest.raises(StateInvalid):
            source.state_from(other)  # type: ignore[arg-type]
    del stream


def test_batching_whole_batches_again_is_refused() -> None:
    with pytest.raises(InvalidOption, match=r"DataLoader\(dataset, batch_size=None\)"):
        next(iter(loader(dataset(), num_workers=0, batch_size=32)))


@pytest.mark.parametrize("options", [{"batch_size": None}, {"batch_size": 8, "yield_samples": True}])
def test_single_samples_are_batched_by_the_loader(options: dict[str, Any]) -> None:
    source = dataset(**options)
    found = [batch["row"] for batch in loader(source, batch_size=8)]
    assert sorted(torch.cat(found).tolist()) == list(range(NUM_ROWS))
    assert {len(batch) for batch in found} <= {8, 7, 4, 3, 1}
    assert source.epoch == 1


def fail_at_the_start(start: int, end: int) -> None:
    if start < 200:
        raise AllReplicasFailed("chunk 17 can't be read from any of 2 replicas", key="17", retry_after_s=1.5)


def test_error_in_a_worker_reaches_the_training_loop_with_its_type() -> None:
    source = dataset()
    source.before_read = fail_at_the_start
    with pytest.raises(AllReplicasFailed, match="chunk 17 can't be read"):
        list(loader(source, num_workers=1))


def test_pickled_copy_goes_on_from_the_same_place_with_a_life_of_its_own() -> None:
    source = dataset()
    stream = iter(source)
    found = [next(stream)["row"].tolist() for _ in range(3)]
    clone = pickle.loads(pickle.dumps(source))
    assert found + rows(clone) == EPOCHS[0]
    assert (clone.epoch, source.epoch) == (1, 0)
    assert found + rows(stream) == EPOCHS[0]


def test_workers_read_the_version_that_was_opened_first() -> None:
    newer = dataset_bytes({"row": "int64", "text": "str"}, {"row": [1, 2], "text": ["", ""]})
    source = dataset()
    assert rows(loader(source)) == EPOCHS[0]
    source.versions[2] = newer
    assert rows(loader(source)) == EPOCHS[1]
    del source.versions[1]
    with pytest.raises(LoaderError, match="version 1 of the dataset forebay://data/set is gone"):
        list(loader(source))


def test_ranks_of_a_process_group_share_the_epoch(tmp_path: Path) -> None:
    def train(rank: int) -> None:
        dist.init_process_group("gloo", init_method=f"file://{tmp_path}/group", rank=rank, world_size=2)
        source = dataset()
        states: list[Any] = [None, None]
        batches = rows(source)
        dist.all_gather_object(states, source.state_dict())
        assert states[0] == states[1]
        (tmp_path / str(rank)).write_text(json.dumps(batches))
        dist.destroy_process_group()

    ranks = [get_context("fork").Process(target=train, args=(rank,)) for rank in range(2)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join()
        assert process.exitcode == 0
        process.close()
    found = [json.loads((tmp_path / str(rank)).read_text()) for rank in range(2)]
    # The last batch has 7 rows for 2 ranks, so one of them is repeated.
    assert len(flat(found[0] + found[1])) == NUM_ROWS + 1
    assert set(flat(found[0] + found[1])) == set(range(NUM_ROWS))
    assert [sorted(first + second) for first, second in zip(*found, strict=True)][:12] == [
        sorted(EPOCHS[0][2 * number] + EPOCHS[0][2 * number + 1]) for number in range(12)
    ]
