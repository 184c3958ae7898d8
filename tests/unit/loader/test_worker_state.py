"""What a StatefulDataLoader's state says of the stream: exactly what was consumed, or an error."""

from __future__ import annotations

from typing import Any

import pytest

from loader.errors import StateInvalid, StateUnavailable
from loader.state import LoaderState
from loader.worker_state import WorkerState, state_of_loader

BEGIN = LoaderState(dataset_digest="0f" * 32, dataset_version=1, seed=0, epoch=2, samples_consumed=100, shuffle=True)


def worker(number: int, batches: int, *, count: int = 2, samples: int = 0, begin: LoaderState = BEGIN) -> dict[str, Any]:
    return WorkerState(
        begin=begin,
        num_rows=1000,
        global_batch_size=8,
        worker=number,
        num_workers=count,
        batches=batches,
        samples=samples,
    ).to_json()


def loader_state(*workers: dict[str, Any], steps: int, since: int = 0) -> dict[str, Any]:
    return {
        "_snapshot": {
            "_snapshot_step": steps,
            "_worker_snapshots": {f"worker_{number}": {"dataset_state": state} for number, state in enumerate(workers)},
        },
        "_steps_since_snapshot": since,
        "_iterator_finished": False,
    }


def test_worker_state_round_trips() -> None:
    state = worker(1, 5, samples=3)
    assert WorkerState.from_json(state).to_json() == state


@pytest.mark.parametrize(
    ("batches", "consumed"), [((0, 0), 100), ((1, 0), 108), ((1, 1), 116), ((4, 3), 156), ((60, 60), 1000)]
)
def test_first_batches_of_the_stream_are_counted(batches: tuple[int, int], consumed: int) -> None:
    state = state_of_loader(loader_state(worker(0, batches[0]), worker(1, batches[1]), steps=sum(batches)))
    assert (state.samples_consumed, state.epoch, state.seed) == (consumed, 2, 0)


@pytest.mark.parametrize("batches", [(0, 1), (2, 0), (3, 1), (1, 2)])
def test_batches_that_are_not_the_first_are_refused(batches: tuple[int, int]) -> None:
    with pytest.raises(StateUnavailable, match="not the beginning of the stream"):
        state_of_loader(loader_state(worker(0, batches[0]), worker(1, batches[1]), steps=3))


def test_samples_of_an_unfinished_batch_are_refused() -> None:
    with pytest.raises(StateUnavailable, match=r"\[0, 3\] samples of further ones"):
        state_of_loader(loader_state(worker(0, 1), worker(1, 0, samples=3), steps=4))


def test_steps_after_a_snapshot_count_if_each_is_a_batch() -> None:
    state = state_of_loader(loader_state(worker(0, 2), worker(1, 2), steps=4, since=3))
    assert state.samples_consumed == 100 + 7 * 8
    for steps, batches in ((0, 0), (2, 2)):
        with pytest.raises(StateUnavailable, match="use snapshot_every_n_steps=1"):
            state_of_loader(loader_state(worker(0, batches), worker(1, batches), steps=steps, since=1))


def test_state_without_workers_is_the_datasets_own() -> None:
    assert state_of_loader({"dataset_state": BEGIN.to_json(), "_num_yielded": 5}) == BEGIN


@pytest.mark.parametrize(
    "state",
    [
        {},
        None,
        {"dataset_state": None},
        loader_state(steps=0),
        loader_state(worker(0, 0), steps=0),
        loader_state(worker(1, 0), worker(0, 0, count=3), steps=0),
        loader_state(worker(0, 0), worker(0, 0), steps=0),
        loader_state(worker(0, 0), {**worker(1, 0), "num_rows": 999}, steps=0),
        loader_state(worker(0, 0), {**worker(1, 0), "batches": -1}, steps=0),
        loader_state(worker(0, 0), {**worker(1, 0), "batches": True}, steps=0),
        loader_state(worker(0, 0), {**worker(1, 0), "more": 1}, steps=0),
        loader_state(worker(0, 0), BEGIN.to_json(), steps=0),
        {**loader_state(worker(0, 0), worker(1, 0), steps=0), "_steps_since_snapshot": None},
    ],
)
def test_what_is_no_such_state_is_refused(state: Any) -> None:
    with pytest.raises(StateInvalid):
        state_of_loader(state)


def test_state_of_another_kind_of_dataset_is_refused() -> None:
    with pytest.raises(StateInvalid):
        state_of_loader(loader_state({"position": 5}, {"position": 6}, steps=11))
