"""The connections that are open to a node: no more than so many, and none on which nothing moves.

A connection costs a descriptor, and as long as its client takes nothing, what has been written to it. So one whose client
neither takes what was written nor asks for anything is cut off, even if the request was answered long ago as far as its route
knows, and when there are too many, the one that has been idle for longest makes room for the next.

It belongs to the event loop, and knows nothing of HTTP.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Protocol

__all__ = ["Connections", "Line"]

_LOOKS = 4  # In the time after which a connection is cut off, so that it is late by a quarter at most.


class Line(Protocol):
    """A connection.

    Attributes
    ----------
    moved_s : float
        When its client last took or asked something, as far as is known.
    """

    moved_s: float

    def num_unsent_bytes(self) -> int:
        """What was written and is still here."""

    def is_idle(self) -> bool:
        """Whether it is the client's turn to ask."""

    def cut_off(self) -> None:
        """Close it at once, whatever was not sent yet."""


def _later(seconds: float, call: Callable[[], None]) -> object:
    return asyncio.get_running_loop().call_later(seconds, call)


class Connections:
    """All open connections.

    Parameters
    ----------
    limit : int
        Most that are open.
    patience_s : float
        How long a client may take and ask nothing.
    refusal : bytes
        What a connection is told for which there is no room.
    clock : callable
        Monotonic seconds.
    later : callable
        Given seconds and what is to be called after them.
    """

    def __init__(
        self,
        *,
        limit: int,
        patience_s: float,
        refusal: bytes,
        clock: Callable[[], float] = time.monotonic,
        later: Callable[[float, Callable[[], None]], object] = _later,
    ) -> None:
        self.refusal = refusal
        self._limit = limit
        self._patience_s = patience_s
        self._clock = clock
        self._later = later
        self._unsent: dict[Line, int] = {}  # As seen at the last look.
        self._is_looking = False

    def opened(self, line: Line) -> bool:
        """Note a new connection; False if there is no room for it."""
        if len(self._unsent) >= self._limit:
            idle = [other for other in self._unsent if other.is_idle() and not other.num_unsent_bytes()]
            if not idle:
                return False
            longest = min(idle, key=lambda other: other.moved_s)
            self.closed(longest)
            longest.cut_off()
        line.moved_s = self._clock()
        self._unsent[line] = 0
        if not self._is_looking:
            self._is_looking = True
            self._later(self._patience_s / _LOOKS, self._look)
        return True

    def closed(self, line: Line) -> None:
        """Note that a connection is no more."""
        self._unsent.pop(line, None)

    def _look(self) -> None:
        """Cut off the connections on which nothing moves."""
        now_s = self._clock()
        for line, before in list(self._unsent.items()):
            unsent = line.num_unsent_bytes()
            if unsent != before:
                self._unsent[line], line.moved_s = unsent, now_s
            if (unsent or line.is_idle()) and now_s - line.moved_s >= self._patience_s:
                self.closed(line)
                line.cut_off()
        self._is_looking = bool(self._unsent)
        if self._is_looking:
            self._later(self._patience_s / _LOOKS, self._look)
