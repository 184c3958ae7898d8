"""Deadlines and backoff, on a clock of the test's own."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from client.errors import Busy, DeadlineExceeded, EndpointUnreachable, ObjectNotFound, StoreError
from client.retry import Backoff, Deadline, retrying
from tests.support.fake_cluster import Clock


def longest(low: float, high: float) -> float:
    return high


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def backoff(clock: Clock) -> Backoff:
    return Backoff(base_s=1.0, max_s=8.0, sleep=clock.sleep, uniform=longest)


def failing(*errors: StoreError, then: str = "done") -> Callable[[], str]:
    left = list(errors)

    def call() -> str:
        if left:
            raise left.pop(0)
        return then

    return call


def unreachable() -> EndpointUnreachable:
    return EndpointUnreachable("gone")


def test_time_left_never_falls_below_zero(clock: Clock) -> None:
    deadline = Deadline(10.0, clock=clock)
    assert deadline.remaining_s() == 10.0
    clock.sleep(4.0)
    assert deadline.remaining_s() == 6.0
    clock.sleep(40.0)
    assert deadline.remaining_s() == 0.0


def test_a_success_waits_for_nothing(clock: Clock, backoff: Backoff) -> None:
    assert retrying(failing(), backoff=backoff, deadline=Deadline(10.0, clock=clock)) == "done"
    assert clock.slept_s == []


def test_pauses_double_up_to_the_longest(clock: Clock, backoff: Backoff) -> None:
    call = failing(*(unreachable() for _ in range(6)))
    assert retrying(call, backoff=backoff, deadline=Deadline(1000.0, clock=clock)) == "done"
    assert clock.slept_s == [1.0, 2.0, 4.0, 8.0, 8.0, 8.0]


def test_pauses_are_drawn_from_zero(clock: Clock) -> None:
    bounds: list[tuple[float, float]] = []

    def uniform(low: float, high: float) -> float:
        bounds.append((low, high))
        return high / 2

    backoff = Backoff(base_s=1.0, max_s=8.0, sleep=clock.sleep, uniform=uniform)
    retrying(failing(unreachable(), unreachable()), backoff=backoff, deadline=Deadline(100.0, clock=clock))
    assert bounds == [(0.0, 1.0), (0.0, 2.0)]
    assert clock.slept_s == [0.5, 1.0]


def test_a_node_that_names_a_time_is_not_asked_before_it_nor_by_all_at_once(clock: Clock, backoff: Backoff) -> None:
    errors = [Busy("full", retry_after_s=30.0), Busy("full", retry_after_s=10.0)]
    retrying(failing(*errors), backoff=backoff, deadline=Deadline(100.0, clock=clock))
    assert clock.slept_s == [30.0 + 1.0, 10.0 + 2.0]  # Of the jitter this test draws the longest.


def test_an_error_for_good_is_raised_at_once(clock: Clock, backoff: Backoff) -> None:
    with pytest.raises(ObjectNotFound):
        retrying(failing(ObjectNotFound("none")), backoff=backoff, deadline=Deadline(100.0, clock=clock))
    assert clock.slept_s == []


def test_no_attempt_begins_after_the_deadline(clock: Clock, backoff: Backoff) -> None:
    errors = [unreachable() for _ in range(20)]
    began = clock.now_s
    with pytest.raises(EndpointUnreachable) as caught:
        retrying(failing(*errors), backoff=backoff, deadline=Deadline(10.0, clock=clock))
    assert clock.slept_s == [1.0, 2.0, 4.0]
    assert clock.now_s - began < 10.0
    assert caught.value is errors[3]


def test_a_pause_beyond_the_deadline_is_not_waited_for(clock: Clock, backoff: Backoff) -> None:
    with pytest.raises(Busy):
        retrying(failing(Busy("full", retry_after_s=11.0)), backoff=backoff, deadline=Deadline(10.0, clock=clock))
    assert clock.slept_s == []


def test_without_any_time_there_is_one_attempt(clock: Clock, backoff: Backoff) -> None:
    assert retrying(failing(), backoff=backoff, deadline=Deadline(0.0, clock=clock)) == "done"
    with pytest.raises(EndpointUnreachable):
        retrying(failing(unreachable()), backoff=backoff, deadline=Deadline(0.0, clock=clock))


def test_a_node_that_says_at_once_that_its_deadline_passed_is_not_asked_in_a_tight_loop(clock: Clock, backoff: Backoff) -> None:
    retrying(failing(DeadlineExceeded("504"), DeadlineExceeded("504")), backoff=backoff, deadline=Deadline(100.0, clock=clock))
    assert clock.slept_s == [1.0, 2.0]


def test_the_caller_may_say_what_is_worth_another_attempt(clock: Clock, backoff: Backoff) -> None:
    deadline = Deadline(100.0, clock=clock)
    with pytest.raises(EndpointUnreachable):
        retrying(failing(unreachable()), backoff=backoff, deadline=deadline, again=lambda error: False)
    call = failing(ObjectNotFound("not yet"))
    assert retrying(call, backoff=backoff, deadline=deadline, again=lambda error: True) == "done"


def test_the_thousandth_attempt_is_a_number_like_the_others(clock: Clock, backoff: Backoff) -> None:
    assert backoff.wait(5000, error=unreachable(), deadline=Deadline(100.0, clock=clock))
    assert clock.slept_s == [8.0]


def test_an_interrupted_sleep_only_ends_the_pause(clock: Clock) -> None:
    # A stop event's wait returns early; whether to go on is for the call to find out.
    backoff = Backoff(base_s=1.0, max_s=8.0, sleep=lambda seconds: True, uniform=longest)
    assert retrying(failing(unreachable()), backoff=backoff, deadline=Deadline(10.0, clock=clock)) == "done"
