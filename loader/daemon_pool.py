"""A few daemon threads that take calls in the order in which they were handed in.

The threads of a ThreadPoolExecutor do all that was handed in before the interpreter may exit, and a stream has always handed in
what the next epoch begins with. Whoever makes such a pool closes it at the exit, and then nothing more is begun.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

__all__ = ["DaemonPool"]

T = TypeVar("T")


class DaemonPool:
    """At most `num_threads` threads, begun when there is something to do.

    Attributes
    ----------
    is_closed : bool
        Whether nothing more is begun.
    """

    def __init__(self, num_threads: int, *, name: str) -> None:
        self._name = name
        self._num_threads = num_threads
        self._calls: deque[tuple[Future[Any], Callable[[], Any]]] = deque()
        self._changed = threading.Condition()
        self._num_idle = 0
        self.is_closed = False
        self._threads: list[threading.Thread] = []

    def submit(self, call: Callable[..., T], *args: Any) -> Future[T]:
        """Have ``call(*args)`` called; once the pool is closed the future is cancelled."""
        future: Future[T] = Future()
        with self._changed:
            if self.is_closed:
                future.cancel()
                return future
            self._calls.append((future, lambda: call(*args)))
            if len(self._calls) > self._num_idle and len(self._threads) < self._num_threads:
                self._threads.append(threading.Thread(target=self._work, name=self._name, daemon=True))
                self._threads[-1].start()
            self._changed.notify()
        return future

    def close(self) -> None:
        """Cancel what has not begun."""
        with self._changed:
            self.is_closed = True
            while self._calls:
                self._calls.pop()[0].cancel()
            self._changed.notify_all()

    def join(self) -> None:
        """Wait for the threads, after `close`: a call that is under way ends first."""
        for thread in self._threads:
            thread.join()

    def is_own(self, ident: int) -> bool:
        """Whether this is the id of one of the threads."""
        return any(thread.ident == ident for thread in self._threads)

    def _work(self) -> None:
        while True:
            with self._changed:
                self._num_idle += 1
                self._changed.wait_for(lambda: self.is_closed or bool(self._calls))
                self._num_idle -= 1
                if self.is_closed:
                    return
                future, call = self._calls.popleft()
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(call())
                except BaseException as error:  # The future's owner raises it again.
                    future.set_exception(error)
            del future, call
