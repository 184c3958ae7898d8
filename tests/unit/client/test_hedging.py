"""The policy of hedged reads: when one is late, who is slow and for how long, and how much may be wasted."""

from __future__ import annotations

import pytest

from client.hedging import Paces, WasteBudget, kind_of
from tests.support.fake_cluster import Clock

LEAST_S, AGAIN_S = 0.01, 5.0
KIND = kind_of(500_000, on_this_host=False)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def paces(clock: Clock) -> Paces:
    return Paces(least_s=LEAST_S, again_s=AGAIN_S, clock=clock)


def answer(paces: Paces, node_id: str, *took_s: float) -> None:
    for seconds in took_s:
        paces.begin(node_id)
        paces.answered(node_id, KIND, seconds)


def beat(paces: Paces, node_id: str) -> None:
    paces.begin(node_id)
    paces.beaten(node_id)


# --- when a read is late


def test_a_read_is_late_by_what_its_node_needed_lately(paces: Paces) -> None:
    answer(paces, "a", *[0.02] * 30, 0.5, 0.5)
    assert paces.patience_s("a", KIND, other="other") == 2 * 0.02  # Two of 32 are beyond the 95th percentile.
    answer(paces, "a", *[0.5] * 4)
    assert paces.patience_s("a", KIND, other="other") == 2 * 0.5


def test_what_was_long_ago_does_not_count(paces: Paces) -> None:
    answer(paces, "a", *[3.0] * 40, *[0.02] * 40)
    assert paces.patience_s("a", KIND, other="other") == 2 * 0.02


def test_no_read_is_late_before_the_least_time(paces: Paces) -> None:
    answer(paces, "a", *[0.0001] * 40)
    assert paces.patience_s("a", KIND, other="other") == LEAST_S


def test_a_node_of_which_little_is_known_is_measured_by_all(paces: Paces) -> None:
    unknown_s = paces.patience_s("a", KIND, other="other")
    assert unknown_s > LEAST_S
    answer(paces, "b", *[0.03] * 7)
    assert paces.patience_s("a", KIND, other="other") == unknown_s
    answer(paces, "b", 0.03)
    assert paces.patience_s("a", KIND, other="other") == paces.patience_s("b", KIND, other="other") == 2 * 0.03


def test_a_slow_node_is_asked_only_if_another_takes_much_longer(paces: Paces) -> None:
    answer(paces, "a", *[0.02] * 30)
    for _ in range(5):
        beat(paces, "b")
    assert paces.patience_s("a", KIND, other="b") == 8 * 2 * 0.02
    for _ in range(9):
        beat(paces, "a")
    assert paces.patience_s("a", KIND, other="b") == 2 * 0.02
    found = paces.slow(["a", "b"])
    assert found["a"] > found["b"]  # Of slow ones the less slow one goes first.


def test_reads_are_compared_with_their_kind(paces: Paces) -> None:
    answer(paces, "a", *[0.03] * 8)
    others = [kind_of(500_000, on_this_host=True), kind_of(50_000, on_this_host=False)]
    assert [paces.patience_s("a", kind, other="other") for kind in others] == [0.1, 0.1]
    assert kind_of(400_000, on_this_host=False) == KIND


# --- who is slow


def test_ordinary_nodes_are_not_slow_whatever_an_answer_costs_now_and_then(paces: Paces) -> None:
    for _ in range(20):
        answer(paces, "a", *[0.02] * 9, 0.3)
        answer(paces, "b", *[0.025] * 10)
        assert list(paces.slow(["a", "b"])) == []


def test_four_reads_that_others_had_to_finish_make_a_node_slow(paces: Paces) -> None:
    for _ in range(4):
        assert list(paces.slow(["b", "a"])) == []
        beat(paces, "a")
    assert list(paces.slow(["b", "a"])) == ["a"]


def test_answers_that_take_much_longer_than_those_of_others_make_a_node_slow(paces: Paces) -> None:
    answer(paces, "b", *[0.02] * 20)
    answer(paces, "a", *[0.5] * 4)
    assert list(paces.slow(["b", "a"])) == ["a"]


def test_nodes_are_not_slow_together_when_all_of_them_become_slower(paces: Paces) -> None:
    answer(paces, "a", *[0.02] * 10)
    answer(paces, "b", *[0.02] * 10)
    for _ in range(40):
        answer(paces, "a", 0.5)
        answer(paces, "b", 0.5)
    assert list(paces.slow(["a", "b"])) == []


def test_nobody_is_slow_whose_reads_take_less_than_the_least_time(paces: Paces) -> None:
    answer(paces, "b", *[0.0001] * 20)
    answer(paces, "a", *[0.9 * LEAST_S] * 20)
    assert list(paces.slow(["b", "a"])) == []


def test_one_read_goes_to_a_slow_node_now_and_then_and_a_good_answer_ends_it(paces: Paces, clock: Clock) -> None:
    answer(paces, "b", *[0.02] * 20)
    for _ in range(5):
        beat(paces, "a")
    clock.sleep(AGAIN_S)
    assert list(paces.slow(["b", "a"])) == ["a"]  # It would not be asked first anyway, so that nothing would be learned.
    assert list(paces.slow(["a", "b"])) == []
    assert list(paces.slow(["a", "b"])) == ["a"]
    # Such a read is late by the measure of the others.
    assert paces.patience_s("a", KIND, other="other") == 2 * 0.02
    clock.sleep(AGAIN_S)
    assert list(paces.slow(["a", "b"])) == []
    answer(paces, "a", 0.02, 0.02)
    assert list(paces.slow(["a", "b"])) == []
    assert list(paces.slow(["a", "b"])) == []


def test_the_pauses_between_such_reads_grow_to_the_longest(paces: Paces, clock: Clock) -> None:
    for _ in range(5):
        beat(paces, "a")
    pauses = []
    for _ in range(7):
        began_s = clock()
        while paces.slow(["a", "b"]):
            clock.sleep(AGAIN_S / 64)
        pauses.append((clock() - began_s) / AGAIN_S)
        beat(paces, "a")
    assert pauses == pytest.approx([1 / 16, 1 / 8, 1 / 4, 1 / 2, 1, 1, 1], abs=1 / 32)


def test_load_counts_in_steps_what_is_under_way(paces: Paces) -> None:
    loads = [paces.load("a")]
    for _ in range(4):
        paces.begin("a")
        loads.append(paces.load("a"))
    assert loads == [0, 0, 0, 0, 1]
    paces.untold("a")
    assert (paces.load("a"), paces.load("b")) == (0, 0)


def test_what_is_kept_is_bounded(paces: Paces) -> None:
    for number in range(6000):
        answer(paces, f"n{number}", 0.02)
    assert len(paces._standings) == 1024
    assert len(paces._measures) == 4096


# --- what may be wasted


def test_waste_is_a_share_of_what_is_read_and_a_burst() -> None:
    budget, read, taken = WasteBudget(share=0.1, burst_bytes=5000), 0, 0
    for _ in range(1000):
        budget.earn(1000)
        read += 1000
        taken += 1000 * budget.take(1000)
    assert 0.09 * read <= taken <= 0.1 * read + 5000


def test_what_was_not_wasted_comes_back_but_never_more_than_the_burst() -> None:
    budget = WasteBudget(share=0.1, burst_bytes=2000)
    assert [budget.take(1000) for _ in range(3)] == [True, True, False]
    budget.give_back(900)
    assert not budget.take(1000)
    budget.give_back(10_000)
    budget.earn(1_000_000)
    assert [budget.take(1000) for _ in range(3)] == [True, True, False]


def test_more_than_the_burst_may_be_read_twice_when_nothing_was_wasted_lately() -> None:
    budget = WasteBudget(share=0.1, burst_bytes=1000)
    assert budget.take(5000)
    budget.earn(40_000)
    assert not budget.take(1)
    budget.earn(10_000)
    assert budget.take(5000)


def test_a_share_of_nothing_allows_nothing() -> None:
    budget = WasteBudget(share=0.0, burst_bytes=1000)
    budget.earn(1_000_000)
    assert not budget.take(1)
