"""A thread that does one step after another until it is stopped, and outlives every error that a step raises."""

from __future__ import annotations

import logging
import random
import threading
from collections.abc import Callable

from client.errors import StoreError
from storenode.outage import Outages

__all__ = ["Worker"]

log = logging.getLogger(__name__)


class Worker:
    """Background work of a node.

    Parameters
    ----------
    name : str
        Of the thread, and of the work in the log.
    step : callable
        Does a bounded piece of work and returns the seconds until the next one, None to sleep until `wake`.
    base_s, max_s : float
        First and longest pause after steps that raised; it doubles, and half of it is drawn at random.
    uniform : callable
        Draws from ``[low, high]``.
    """

    def __init__(
        self,
        name: str,
        step: Callable[[], float | None],
        *,
        base_s: float,
        max_s: float,
        uniform: Callable[[float, float], float] = random.uniform,
    ) -> None:
        self._name = name
        self._step = step
        self._base_s = base_s
        self._max_s = max_s
        self._uniform = uniform
        self._failures = 0
        self._wake = threading.Event()
        self._stopping = threading.Event()
        self._outages = Outages(log)
        self._thread = threading.Thread(target=self._run, name=f"forebay-{name}", daemon=True)

    @property
    def stopping(self) -> bool:
        """Whether `stop` was called; long steps look at it."""
        return self._stopping.is_set()

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def wake(self) -> None:
        """Begin the next step now, or right after the one in progress."""
        self._wake.set()

    def stop(self) -> None:
        """End after the step in progress, and wait for that."""
        self._stopping.set()
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        while not self._stopping.is_set():
            pause_s = self.guarded_step()
            self._wake.wait(pause_s)
            # Cleared before the step: what comes during the step sets it again and is seen by the next one.
            self._wake.clear()

    def guarded_step(self) -> float | None:
        """Do one step, whatever it raises; returns the seconds until the next one."""
        try:
            pause_s = self._step()
        except StoreError as error:
            self._outages.failed(self._name, error)
            return self._backoff_s()
        except Exception:
            # A defect. Without this work copies would stay missing unnoticed, so the thread goes on and says what happened.
            log.exception("a step of %s failed; it goes on", self._name)
            return self._backoff_s()
        self._outages.succeeded(self._name)
        self._failures = 0
        return pause_s

    def _backoff_s(self) -> float:
        ceiling_s: float = min(self._max_s, self._base_s * 2 ** min(self._failures, 32))
        self._failures += 1
        return ceiling_s / 2 + self._uniform(0.0, ceiling_s / 2)
