"""Fetching what a disk lacks: small chunks in groups, large ones alone, each told of by itself, never too much at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future
from typing import Any

import pytest

from client.errors import AllReplicasFailed, StoreError
from client.frames import MAX_SMALL_BYTES
from client.manifest import Ref
from storenode.chunkgroup import MAX_MEMBERS
from storenode.fetching import Fetching


def ref(number: int, *, size: int = 10) -> Ref:
    return Ref(partition=number, id=bytes(32), size=size, check=0)


class FakeCopies:
    """Remembers what it was asked for; chunks of odd partitions can't be had."""

    def __init__(self) -> None:
        self.groups: list[list[tuple[Ref, int]]] = []
        self.alone: list[Ref] = []

    def restore(self, ref: Ref, *, replicas: int) -> None:
        self.alone.append(ref)
        if (error := self.error(ref)) is not None:
            raise error

    def restore_small(self, wanted: Sequence[tuple[Ref, int]]) -> list[StoreError | None]:
        self.groups.append(list(wanted))
        return [self.error(ref) for ref, _ in wanted]

    def error(self, ref: Ref) -> StoreError | None:
        return AllReplicasFailed(f"no {ref.partition}") if ref.partition % 2 else None


class Later(Executor):
    """Runs what it is given when somebody waits for it, and counts what was not waited for."""

    def __init__(self) -> None:
        self.waiting = 0
        self.most = 0

    def submit(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        self.waiting += 1
        self.most = max(self.most, self.waiting)
        later = self

        class Lazy(Future[Any]):
            def result(self, timeout: float | None = None) -> Any:
                later.waiting -= 1
                return function(*args, **kwargs)

        return Lazy()


@pytest.fixture
def copies() -> FakeCopies:
    return FakeCopies()


def fetch(copies: FakeCopies, refs: Sequence[Ref], *, max_in_flight: int = 3) -> tuple[list[tuple[Ref, str]], Later]:
    """What was told of each chunk: the error's message, or nothing."""
    told: list[tuple[Ref, str]] = []
    executor = Later()
    fetching = Fetching(copies, executor, max_in_flight=max_in_flight)  # type: ignore[arg-type]
    for each in refs:
        fetching.add(each, replicas=2, then=lambda ref, error: told.append((ref, error.message if error else "")))
    fetching.finish()
    return told, executor


def test_each_is_told_of_by_itself(copies: FakeCopies) -> None:
    told, _ = fetch(copies, [ref(0), ref(1), ref(2, size=MAX_SMALL_BYTES + 1), ref(3, size=MAX_SMALL_BYTES + 1), ref(4)])
    assert sorted(told, key=lambda item: item[0].partition) == [
        (ref(0), ""),
        (ref(1), "no 1"),
        (ref(2, size=MAX_SMALL_BYTES + 1), ""),
        (ref(3, size=MAX_SMALL_BYTES + 1), "no 3"),
        (ref(4), ""),
    ]
    assert copies.groups == [[(ref(0), 2), (ref(1), 2), (ref(4), 2)]]
    assert [each.partition for each in copies.alone] == [2, 3]


def test_groups_have_bounded_numbers_and_bytes(copies: FakeCopies) -> None:
    fetch(copies, [ref(number) for number in range(2 * MAX_MEMBERS + 1)])
    assert [len(group) for group in copies.groups] == [MAX_MEMBERS, MAX_MEMBERS, 1]
    copies.groups.clear()
    fetch(copies, [ref(number, size=MAX_SMALL_BYTES) for number in range(100)])
    assert [len(group) for group in copies.groups] == [64, 36]


def test_a_chunk_that_two_want_is_fetched_once_and_counts_once_unless_it_is_missing(copies: FakeCopies) -> None:
    told, _ = fetch(copies, [ref(0), ref(1), ref(1), ref(0)])
    assert [len(group) for group in copies.groups] == [2]
    assert [(each.partition, message) for each, message in told] == [(0, ""), (1, "no 1"), (1, "no 1")]


def test_no_more_are_under_way_than_is_allowed(copies: FakeCopies) -> None:
    refs = [ref(number, size=MAX_SMALL_BYTES + number % 2) for number in range(1000)]
    told, executor = fetch(copies, refs)
    assert len(told) == 1000
    assert executor.most == 3 and executor.waiting == 0


def test_nothing_is_asked_for_nothing(copies: FakeCopies) -> None:
    assert fetch(copies, [])[1].most == 0
