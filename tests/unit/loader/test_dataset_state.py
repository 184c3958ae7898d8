"""The state of a dataset's stream: what it says, where it goes on, and what it refuses."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest

from loader.errors import InvalidOption, IteratorStopped, StateInvalid, StateMismatch, StateUnavailable
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
    # What is refused for another reason leaves the version as it is.
    other = dataset({1: CONTENT, 2: OTHER}, seed=1)
    with pytest.raises(StateMismatch, match="seed"):
        other.load_state_dict(state)
    assert next(iter(other))["data"].max() == 1
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
