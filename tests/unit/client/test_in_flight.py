"""Work in threads: order, bounds, and that nothing is under way once the caller has gone on."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import Future

import pytest

from client.in_flight import ThreadPool, in_order, settle

WAIT_S = 10.0


@pytest.fixture
def pool() -> Iterator[ThreadPool]:
    with ThreadPool(4, name="test") as made:
        yield made


def test_results_come_in_order_however_calls_end(pool: ThreadPool) -> None:
    second_done = threading.Event()

    def call(number: int) -> int:
        if number == 0:
            assert second_done.wait(WAIT_S)  # The first ends last.
        if number == 1:
            second_done.set()
        return number * number

    assert list(in_order(pool, call, range(6), max_in_flight=3)) == [0, 1, 4, 9, 16, 25]


def test_no_more_items_are_taken_than_may_be_under_way(pool: ThreadPool) -> None:
    taken: list[int] = []

    def items() -> Iterator[int]:
        for number in range(100):
            taken.append(number)
            yield number

    results = in_order(pool, int, items(), max_in_flight=3)
    assert next(results) == 0
    assert len(taken) == 4  # Three under way, and the one that found no room.
    results.close()


def test_an_error_is_raised_only_after_what_was_under_way_has_ended(pool: ThreadPool) -> None:
    release, ended = threading.Event(), threading.Event()
    started = threading.Barrier(2)

    def call(number: int) -> None:
        started.wait(WAIT_S)
        if number == 0:
            release.set()
            raise ValueError("broken")
        assert release.wait(WAIT_S)
        ended.set()

    with pytest.raises(ValueError, match="broken"):
        list(in_order(pool, call, range(2), max_in_flight=2))
    assert ended.is_set()


def test_closing_early_waits_for_what_runs_and_drops_the_rest() -> None:
    ran: list[int] = []
    with ThreadPool(1, name="test") as pool:
        results = in_order(pool, ran.append, range(100), max_in_flight=5)
        next(results)
        results.close()
        num_ran = len(ran)
        pool.submit(int).result()  # Whatever was still queued would have run before this.
        assert len(ran) == num_ran < 100


def test_an_error_of_the_items_themselves_passes_through(pool: ThreadPool) -> None:
    def items() -> Iterator[int]:
        yield 1
        raise KeyError("no more")

    with pytest.raises(KeyError, match="no more"):
        list(in_order(pool, int, items(), max_in_flight=2))


def test_settling_swallows_what_comes_of_it(pool: ThreadPool) -> None:
    def fail() -> None:
        raise ValueError("nobody wants to know")

    futures: list[Future[None]] = [pool.submit(fail) for _ in range(3)]
    settle(futures)
    assert all(future.done() for future in futures)
