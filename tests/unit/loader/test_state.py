"""The state of a stream: small, validated, and refused by any other stream."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from loader.errors import FormatUnsupported, StateInvalid, StateMismatch
from loader.mixture import MIXTURE_ALGORITHM
from loader.order import ORDER_ALGORITHM
from loader.state import ComponentState, LoaderState

STATE = LoaderState(
    dataset_digest="0f" * 32, dataset_version=12, seed=2**64 - 1, epoch=3, samples_consumed=1000, shuffle=True, lane_map="fixed"
)
STREAM: dict[str, Any] = {"dataset_digest": "0f" * 32, "num_rows": 1000, "seed": 2**64 - 1, "shuffle": True}


def test_state_round_trips_through_json_within_a_kilobyte() -> None:
    largest = LoaderState(
        dataset_digest="0f" * 32,
        dataset_version=2**63 - 1,
        seed=2**64 - 1,
        epoch=2**63 - 1,
        samples_consumed=1 << 48,
        shuffle=False,
        order_algorithm="x" * 64,
    )
    for state in (STATE, largest):
        text = json.dumps(state.to_json())
        assert len(text) < 1024
        assert LoaderState.from_json(json.loads(text)) == state
    assert STATE.to_json()["order_algorithm"] == ORDER_ALGORITHM


@pytest.mark.parametrize("name", sorted(STATE.to_json()))
def test_malformed_state_is_refused(name: str) -> None:
    values: list[Any] = [None, -1, 1.5, "", "X", [], {}, 2**64, 1 if name == "shuffle" else True, "rotate\n"]
    for value in values:
        with pytest.raises((StateInvalid, FormatUnsupported), match="state"):
            LoaderState.from_json(STATE.to_json() | {name: value})
    missing = STATE.to_json()
    del missing[name]
    with pytest.raises(StateInvalid):
        LoaderState.from_json(missing)


@pytest.mark.parametrize("value", [None, 5, [], "state", {}, {"format": 1}])
def test_what_is_no_state_is_refused(value: object) -> None:
    with pytest.raises(StateInvalid):
        LoaderState.from_json(value)


def test_unknown_field_and_newer_format_are_refused() -> None:
    with pytest.raises(StateInvalid, match="extra"):
        LoaderState.from_json(STATE.to_json() | {"extra": 1})
    with pytest.raises(FormatUnsupported, match=r"format 2.*upgrade"):
        LoaderState.from_json(STATE.to_json() | {"format": 2, "extra": 1})


def test_state_fits_its_own_stream() -> None:
    STATE.check_against(**STREAM)


@pytest.mark.parametrize(("name", "value"), [("dataset_digest", "f0" * 32), ("seed", 5), ("shuffle", False), ("num_rows", 999)])
def test_state_of_another_stream_is_refused_with_both_values(name: str, value: Any) -> None:
    with pytest.raises(StateMismatch) as caught:
        STATE.check_against(**STREAM | {name: value})
    saved = STATE.samples_consumed if name == "num_rows" else STATE.to_json()[name]
    assert (caught.value.saved, caught.value.current) == (saved, value)
    assert str(saved) in str(caught.value)
    assert str(value) in str(caught.value)


def test_state_of_another_algorithm_is_refused() -> None:
    other = LoaderState.from_json(STATE.to_json() | {"order_algorithm": "lane-philox-2"})
    with pytest.raises(StateMismatch, match=r"lane-philox-2.*lane-philox-1"):
        other.check_against(**STREAM)


MIXED = replace(
    STATE,
    dataset_version=0,
    order_algorithm=MIXTURE_ALGORITHM,
    components=(
        ComponentState(digest="0a" * 32, version=3, weight=4000),
        ComponentState(digest="0b" * 32, version=1, weight=96),
    ),
    epoch_samples=5000,
)


def test_state_of_a_mixture_names_its_datasets() -> None:
    text = json.dumps(MIXED.to_json())
    assert len(text) < 1024
    assert LoaderState.from_json(json.loads(text)) == MIXED
    assert not {"components", "epoch_samples"} & STATE.to_json().keys()
    MIXED.check_components([4000, 96])
    MIXED.check_against(**STREAM, order_algorithm=MIXTURE_ALGORITHM, epoch_samples=5000)
    for weights in ([96, 4000], [4000], []):
        with pytest.raises(StateMismatch, match=r"weighted \[4000, 96\]"):
            MIXED.check_components(weights)
    with pytest.raises(StateMismatch, match="order_algorithm"):
        MIXED.check_against(**STREAM)


@pytest.mark.parametrize("name", ["components", "epoch_samples"])
def test_malformed_mixture_is_refused(name: str) -> None:
    values: list[Any] = [None, -1, [], {}, [5], [{}], [{"digest": "0a", "version": 1, "weight": 1}], 1 << 60]
    for value in values:
        with pytest.raises(StateInvalid, match="state"):
            LoaderState.from_json(MIXED.to_json() | {name: value})
    alone = MIXED.to_json()
    del alone[name]
    with pytest.raises(StateInvalid):
        LoaderState.from_json(alone)
