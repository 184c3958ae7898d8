"""A map that takes no more items than it needs."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from client.parallel import bounded_map


def test_results_come_in_order_whatever_ends_first() -> None:
    second_done = threading.Event()

    def run(number: int) -> int:
        if number == 0:
            assert second_done.wait(10)
        if number == 1:
            second_done.set()
        return number * number

    assert list(bounded_map(run, range(20), max_parallel=2)) == [number * number for number in range(20)]


def test_items_are_taken_as_they_are_needed() -> None:
    taken: list[int] = []

    def items() -> Iterator[int]:
        for number in range(1000):
            taken.append(number)
            yield number

    results = bounded_map(lambda number: number, items(), max_parallel=3)
    for expected in range(10):
        assert next(results) == expected
        assert len(taken) <= expected + 2 * 3 + 1
    results.close()


def test_an_error_comes_in_its_place_and_stops_the_rest() -> None:
    stop = threading.Event()
    ran: list[int] = []

    def run(number: int) -> int:
        ran.append(number)
        if number == 3:
            raise ValueError("three")
        return number

    results = bounded_map(run, range(1000), max_parallel=2, stop=stop)
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ValueError, match="three"):
        next(results)
    assert stop.is_set()
    assert len(ran) < 20
