"""The connections of a client: kept alive, bounded for each endpoint, and none to a node that has asked to be left alone.

A node at its limit says when to come back (``Retry-After``). Until then every request to it fails here, with the node's words
and without a packet: readers move on to other replicas at once, and who has no other node waits as its backoff says. So all
that a client does honours the node's wish, whichever of its threads was told.

It knows nothing of requests.
"""

from __future__ import annotations

import copy
import threading
import time
from collections import Counter
from collections.abc import Callable

from client.errors import Busy, StoreError
from client.http1 import Connection
from client.wire import parse_endpoint

__all__ = ["Connections"]


class Connections:
    """Lends connections, each for one exchange. Thread-safe.

    Parameters
    ----------
    max_open : int
        Lent at once for one endpoint.
    max_idle : int
        Kept for one endpoint.
    clock : callable
        Monotonic seconds.
    """

    def __init__(self, *, max_open: int, max_idle: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._max_open = max_open
        self._max_idle = max_idle
        self._clock = clock
        self._lock = threading.Lock()
        self._idle: dict[str, list[Connection]] = {}
        self._num_lent: Counter[str] = Counter()
        self._resting: dict[str, tuple[float, StoreError]] = {}
        self._closed = False

    def borrow(self, url: str) -> tuple[Connection, bool]:
        """A connection to `url`, and whether it was used before; to be given back.

        Raises
        ------
        Busy
            If too many are lent.
        StoreError
            What the node said when it asked to be left alone for a while.
        """
        if self._resting:
            self._check_rested(url)
        with self._lock:
            # Not waited for: a thread that holds one may itself wait for the thread that wants one, on another node.
            if self._num_lent[url] >= self._max_open:
                raise Busy(f"this client has {self._max_open} requests to {url} under way, its max_connections")
            self._num_lent[url] += 1
        try:
            while (connection := self._take_idle(url)) is not None:
                if not connection.can_be_read():
                    return connection, True
                connection.close()
            return self.connect(url), False
        except BaseException:
            with self._lock:
                self._num_lent[url] -= 1
            raise

    def connect(self, url: str) -> Connection:
        """A connection that is not open yet, in place of a borrowed one."""
        host, port = parse_endpoint(url)
        return Connection(host, port)

    def give_back(self, url: str, connection: Connection, *, reusable: bool) -> None:
        """Keep a borrowed connection, or its successor, for the next exchange, or close it."""
        with self._lock:
            self._num_lent[url] -= 1
            if reusable and not self._closed:
                pool = self._idle.setdefault(url, [])
                if len(pool) < self._max_idle:
                    pool.append(connection)
                    return
        connection.close()

    def leave_alone(self, url: str, error: StoreError) -> None:
        """Lend no connection to `url` for as long as `error`, its answer, asks for."""
        self._resting[url] = (self._clock() + (error.retry_after_s or 0.0), error)

    def close(self) -> None:
        """Close the idle connections; those that are lent are closed when they are given back."""
        with self._lock:
            self._closed = True
            idle = [connection for pool in self._idle.values() for connection in pool]
            self._idle.clear()
        for connection in idle:
            connection.close()

    def _take_idle(self, url: str) -> Connection | None:
        with self._lock:
            idle = self._idle.get(url)
            return idle.pop() if idle else None

    def _check_rested(self, url: str) -> None:
        until_s, error = self._resting.get(url, (0.0, None))
        if error is None:
            return
        rest_s = until_s - self._clock()
        if rest_s <= 0:
            self._resting.pop(url, None)
            return
        # Each thread raises an error of its own: a traceback belongs to one thread.
        again = copy.copy(error)
        again.retry_after_s = rest_s
        raise again
