"""Deadlines and retries: how long one call may take, and how it waits between attempts.

Retrying is safe because every write carries an id that the other side remembers. Backoff doubles with full jitter
(Brooker, "Exponential Backoff and Jitter"), and a node that names a time is not asked before it.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from client.errors import DeadlineExceeded, StoreError

__all__ = ["Backoff", "Deadline", "retrying"]

T = TypeVar("T")


class Deadline:
    """A moment after which a call has failed."""

    def __init__(self, timeout_s: float, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._end_s = clock() + timeout_s

    def remaining_s(self) -> float:
        """Seconds left, 0 once it has passed."""
        return max(0.0, self._end_s - self._clock())


@dataclass(frozen=True, slots=True, kw_only=True)
class Backoff:
    """Waits between attempts; clock, sleep and randomness come from outside so that tests own them."""

    base_s: float
    max_s: float
    sleep: Callable[[float], None] = time.sleep
    uniform: Callable[[float, float], float] = random.uniform

    def wait(self, attempt: int, *, error: StoreError, deadline: Deadline) -> bool:
        """Wait before attempt number ``attempt + 1``; False, without waiting, if the deadline comes first."""
        pause_s = self.uniform(0.0, min(self.max_s, self.base_s * 2**attempt))
        pause_s = max(pause_s, error.retry_after_s or 0.0)
        if pause_s >= deadline.remaining_s():
            return False
        self.sleep(pause_s)
        return True


def retrying(call: Callable[[], T], *, backoff: Backoff, deadline: Deadline) -> T:
    """Call until it succeeds, fails for good, or the deadline passes; then its last error is raised.

    Raises
    ------
    DeadlineExceeded
        If the deadline passed before the first attempt ended; chained to what it was doing.
    """
    attempt = 0
    while True:
        try:
            return call()
        except DeadlineExceeded:
            if deadline.remaining_s() == 0:
                raise
            attempt += 1
        except StoreError as error:
            if not error.retryable or not backoff.wait(attempt, error=error, deadline=deadline):
                raise
            attempt += 1
