"""The queue between the thread that makes stages and the training loop: short, closed by either side, overtaken by errors."""

from __future__ import annotations

import threading
from collections import deque
from typing import Generic, TypeVar

__all__ = ["HandOff", "StreamClosed"]

T = TypeVar("T")


class StreamClosed(Exception):
    """The stream was closed while somebody waited for it."""


class HandOff(Generic[T]):
    """A queue of at most `limit` items."""

    def __init__(self, *, limit: int) -> None:
        self._limit = limit
        self._items: deque[T] = deque()
        self._error: BaseException | None = None
        self._changed = threading.Condition()
        self._closed = False

    @property
    def is_empty(self) -> bool:
        """Whether whoever gets next has to wait."""
        return not self._items

    def put(self, item: T) -> None:
        """Wait for room; raises `StreamClosed`."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or len(self._items) < self._limit)
            if self._closed:
                raise StreamClosed
            self._items.append(item)
            self._changed.notify_all()

    def fail(self, error: BaseException) -> None:
        """Have `get` raise `error` from now on, whatever is ready."""
        with self._changed:
            # The first error is the cause; what follows it are mostly its consequences.
            self._error = self._error or error
            self._changed.notify_all()

    def get(self) -> T:
        """Wait for the next item; raises `StreamClosed`, or the error."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._error is not None or bool(self._items))
            if self._closed:
                raise StreamClosed
            if self._error is not None:
                raise self._error
            item = self._items.popleft()
            self._changed.notify_all()
            return item

    def close(self) -> None:
        """Drop what is ready, and wake up both sides."""
        with self._changed:
            self._closed = True
            self._items.clear()
            self._changed.notify_all()
