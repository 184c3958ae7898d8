"""A function over many items, such as the objects of a listing: several at a time, in threads of its own, and given up early.

`client.in_flight` keeps chunks in flight and waits for them; here each call may be a whole file, which is told to stop first.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future
from typing import TypeVar

from client.in_flight import ThreadPool, settle

__all__ = ["bounded_map", "usable_cores"]

T = TypeVar("T")
R = TypeVar("R")


def bounded_map(
    function: Callable[[T], R], items: Iterable[T], *, max_parallel: int, stop: threading.Event | None = None
) -> Generator[R, None, None]:
    """Yield the results of `function` in the order of `items`.

    At most ``max_parallel`` calls run, and as many more items wait or have results that wait. The first error is raised in its
    place. When it is, or the generator is closed, items that wait are dropped and calls that run are waited for.

    Parameters
    ----------
    stop : threading.Event, optional
        Set when the calls that run should give up, because nobody wants their results any more.
    """
    pending: deque[Future[R]] = deque()
    with ThreadPool(max_parallel, name="forebay-parallel") as pool:
        try:
            for item in items:
                if len(pending) >= 2 * max_parallel:
                    yield pending.popleft().result()
                pending.append(pool.submit(function, item))
            while pending:
                yield pending.popleft().result()
        finally:
            if stop is not None:
                stop.set()
            settle(pending)


def usable_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
