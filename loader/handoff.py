"""The queue between the threads that make items and the training loop: short, closed by either side, overtaken by errors.

A place in it may be taken before what belongs there is ready, so that several threads may make what is handed over in order.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

__all__ = ["HandOff", "Place", "StillWaiting", "StreamClosed"]

T = TypeVar("T")


class StreamClosed(Exception):
    """The stream was closed while somebody waited for it."""


class StillWaiting(Exception):
    """There was nothing to get for a while."""


class Place(Generic[T]):
    """A place in the queue, with what is in it, or why there is nothing, once `filled`."""

    __slots__ = ("error", "filled", "item")

    def __init__(self) -> None:
        self.filled = False
        self.item: T
        self.error: BaseException | None = None


class HandOff(Generic[T]):
    """A queue of at most `limit` items."""

    def __init__(self, *, limit: int) -> None:
        self._limit = limit
        self._places: deque[Place[T]] = deque()
        self._error: BaseException | None = None
        self._changed = threading.Condition()
        self._closed = False

    @property
    def is_empty(self) -> bool:
        """Whether whoever gets next has to wait."""
        return not (self._places and self._places[0].filled)

    def put(self, item: T) -> None:
        """Wait for room; raises `StreamClosed`."""
        self.fill(self.reserve(), item)

    def reserve(self) -> Place[T]:
        """Wait for room, and take the next place; raises `StreamClosed`."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or len(self._places) < self._limit)
            if self._closed:
                raise StreamClosed
            place: Place[T] = Place()
            self._places.append(place)
            return place

    def fill(self, place: Place[T], item: T) -> None:
        """Hand over what belongs into a place."""
        with self._changed:
            place.item, place.filled = item, True
            self._changed.notify_all()

    def fail_at(self, place: Place[T], error: BaseException) -> None:
        """Have `get` raise `error` once it comes to a place, and from then on."""
        with self._changed:
            place.error, place.filled = place.error or error, True
            self._changed.notify_all()

    def fail(self, error: BaseException) -> None:
        """Have `get` raise `error` from now on, whatever is ready."""
        with self._changed:
            # The first error is the cause; what follows it are mostly its consequences.
            self._error = self._error or error
            self._changed.notify_all()

    def get(self, *, patience_s: float | None = None) -> T:
        """Wait for the next item; raises `StreamClosed`, the error, or, after `patience_s`, `StillWaiting`."""
        with self._changed:
            if not self._changed.wait_for(lambda: self._closed or self._error is not None or not self.is_empty, patience_s):
                raise StillWaiting
            if self._closed:
                raise StreamClosed
            if self._error is not None:
                raise self._error
            place = self._places.popleft()
            self._changed.notify_all()
            if place.error is not None:
                self._error = place.error
                raise place.error
            return place.item

    def wait_for(self, condition: Callable[[], bool]) -> None:
        """Wait until something is true that `wake` tells of; raises `StreamClosed`."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or condition())
            if self._closed:
                raise StreamClosed

    def wake(self) -> None:
        """Have those that wait look again."""
        with self._changed:
            self._changed.notify_all()

    def close(self) -> None:
        """Drop what is ready, and wake up both sides."""
        with self._changed:
            self._closed = True
            self._places.clear()
            self._changed.notify_all()
