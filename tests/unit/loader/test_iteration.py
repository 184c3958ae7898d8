"""Iterating over a dataset: broken off, replaced, dropped, failing or interrupted, it loses nothing and leaves no thread."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest

from client.errors import AllReplicasFailed
from loader.errors import IteratorStopped
from tests.support.memory_store import MemoryDataset, dataset_bytes

ROWS = 50
CONTENT = dataset_bytes({"row": "int64", "data": "uint8[100]"}, {"row": np.arange(ROWS), "data": np.zeros((ROWS, 100), "u1")})


def dataset(content: Any = CONTENT, **options: Any) -> MemoryDataset:
    return MemoryDataset(content, **{"batch_size": 4, "num_threads": 1, **options})


def rows(batches: Iterable[Any]) -> list[Any]:
    return [batch["row"].tolist() for batch in batches]


def take(source: Any, count: int) -> list[Any]:
    return rows(batch for _, batch in zip(range(count), source, strict=False))


def own_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("forebay-")]


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
    source.close()
    assert own_threads() == []


def test_iterator_that_never_began_can_be_replaced() -> None:
    source = dataset()
    first = iter(source)
    assert rows(source) == rows(dataset())
    receipt = source.receipt()
    with pytest.raises(IteratorStopped):
        next(first)
    assert source.receipt() == receipt


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
