"""A rate that background work keeps to, however many threads do it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

__all__ = ["Pace"]


class Pace:
    """Lets through so many bytes a second, after one another. Thread-safe.

    Parameters
    ----------
    rate_bytes_per_s : float
        How fast.
    clock : callable
        Monotonic seconds.
    wait : callable, optional
        Sleeps; by default until `stop`.
    """

    def __init__(
        self,
        rate_bytes_per_s: float,
        *,
        clock: Callable[[], float] = time.monotonic,
        wait: Callable[[float], object] | None = None,
    ) -> None:
        self._rate_bytes_per_s = rate_bytes_per_s
        self._clock = clock
        self._stopped = threading.Event()
        self._wait = wait or self._stopped.wait
        self._lock = threading.Lock()
        self._free_s = clock()

    def take(self, size_bytes: int) -> None:
        """Wait until what was taken before is paid for."""
        with self._lock:
            now_s = self._clock()
            begin_s = max(now_s, self._free_s)
            # Idle time is not saved up: a rate is kept for the sake of others, who would feel the burst.
            self._free_s = begin_s + size_bytes / self._rate_bytes_per_s
        if begin_s > now_s:
            self._wait(begin_s - now_s)

    def stop(self) -> None:
        """Let everything through, because what waits is about to end."""
        self._stopped.set()
