"""Work in threads: bounded, its results in order, and none of it in flight once its caller has gone on.

The last is what lets a buffer be received into or sent from without a copy: when a call has returned or raised, no thread of
ours touches what it was given.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Generator, Iterable
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from typing import Any, ParamSpec, TypeVar

from client.process import HomeProcess

__all__ = ["ThreadPool", "in_order", "settle"]

A = TypeVar("A")
P = ParamSpec("P")
T = TypeVar("T")


class ThreadPool(ThreadPoolExecutor):
    """Threads that start when there is work, and an error instead of a hang in a forked process."""

    def __init__(self, num_threads: int, *, name: str) -> None:
        super().__init__(num_threads, thread_name_prefix=name)
        self._home = HomeProcess()

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """See `Executor.submit`. Raises `Misconfigured` in a fork."""
        self._home.check()
        return super().submit(fn, *args, **kwargs)


def in_order(executor: Executor, call: Callable[[A], T], items: Iterable[A], *, max_in_flight: int) -> Generator[T, None, None]:
    """Results of `call` for each of `items`, in their order; at most `max_in_flight` are under way or wait to be taken.

    An error ends it. However it ends, also by being closed early, no call is under way afterwards.
    """
    pending: deque[Future[T]] = deque()
    try:
        for item in items:
            if len(pending) >= max_in_flight:
                yield pending.popleft().result()
            pending.append(executor.submit(call, item))
        while pending:
            yield pending.popleft().result()
    finally:
        settle(pending)


def settle(futures: Collection[Future[Any]]) -> None:
    """Cancel what has not begun and wait for the rest, whatever comes of it."""
    for future in futures:
        future.cancel()
    for future in futures:
        if not future.cancelled():
            future.exception()
