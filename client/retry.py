"""Deadlines and retries: how long one call may take, and how it waits between attempts.

Retrying is safe because every write carries an id that the other side remembers. Backoff doubles with full jitter
(Brooker, "Exponential Backoff and Jitter"), and begins where a node names a time, before which it is not asked.
"""

from __future__ import annotations

import math
import random
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from client.errors import StoreError

__all__ = ["NEVER", "Backoff", "Deadline", "retrying"]

T = TypeVar("T")
_MAX_DOUBLINGS = 30  # Every backoff has reached its maximum by then, and the power stays a sensible number.


class Deadline:
    """A moment after which a call has failed."""

    def __init__(self, timeout_s: float, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._end_s = clock() + timeout_s

    def remaining_s(self) -> float:
        """Seconds left, 0 once it has passed."""
        return max(0.0, self._end_s - self._clock())

    # An attempt (`client.attempt`) can end early, so whoever works until a deadline tells it what it does.

    def check(self) -> None:
        """Raise if whoever works until this deadline is to stop at once."""

    def took(self, num_bytes: int) -> None:
        """Note that more bytes have come."""

    def waits_on(self, sock: socket.socket | None) -> None:
        """Note on which connection this thread waits from now on."""


NEVER = Deadline(math.inf)
"""The deadline of what may take as long as it takes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Backoff:
    """Waits between attempts; sleep and randomness come from outside so that tests own them."""

    base_s: float
    max_s: float
    sleep: Callable[[float], object] = time.sleep
    uniform: Callable[[float, float], float] = random.uniform

    def wait(self, attempt: int, *, error: StoreError, deadline: Deadline) -> bool:
        """Wait before attempt number ``attempt + 1``; False, without waiting, if the deadline comes first."""
        pause_s = self.uniform(0.0, min(self.max_s, self.base_s * 2 ** min(attempt, _MAX_DOUBLINGS)))
        # On top: those who were refused at one moment must not come back at one moment.
        pause_s += error.retry_after_s or 0.0
        if pause_s >= deadline.remaining_s():
            return False
        self.sleep(pause_s)
        return True


def _is_retryable(error: StoreError) -> bool:
    return error.retryable


def retrying(
    call: Callable[[], T],
    *,
    backoff: Backoff,
    deadline: Deadline,
    again: Callable[[StoreError], bool] = _is_retryable,
) -> T:
    """Call until it succeeds, fails for good, or the deadline comes before the next attempt; then its last error is raised.

    Parameters
    ----------
    call : callable
        One attempt. The first is made in any case; how long one takes is for `call` itself to bound.
    again : callable
        Whether an error is worth another attempt; by default, whether it says so itself.
    """
    attempt = 0
    while True:
        try:
            return call()
        except StoreError as error:
            if not again(error) or not backoff.wait(attempt, error=error, deadline=deadline):
                raise
        attempt += 1
