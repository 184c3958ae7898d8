"""A function over many items, several at a time, in order and within a bound.

`concurrent.futures.Executor.map` takes all its items at once; this takes a few, so that items may come from a listing without
end and memory stays the same.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

__all__ = ["bounded_map"]

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
    with ThreadPoolExecutor(max_parallel, thread_name_prefix="forebay-parallel") as pool:
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
            for future in pending:
                future.cancel()
