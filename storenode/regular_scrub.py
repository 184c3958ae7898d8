"""Scrubs that begin by themselves: what goes bad or is lost on a disk that nobody reads is found all the same.

When the last one began, its job's record says, so that restarts change nothing. Before there was one, time counts from the
first look.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable

from storenode.jobs import Jobs
from storenode.worker import Worker

__all__ = ["RegularScrub"]

_KIND = "scrub"
_MAX_SLEEP_S = 3600.0


class RegularScrub:
    """Begins a scrub of this node when the last one is long enough ago, in a thread.

    Parameters
    ----------
    jobs : Jobs
        Runs it, and remembers the last ones.
    node_id : str
        This node.
    interval_s : float
        From the begin of one to the begin of the next; 0: never.
    wall_clock : callable
        Seconds since 1970.
    """

    def __init__(self, jobs: Jobs, *, node_id: str, interval_s: float, wall_clock: Callable[[], float] = time.time) -> None:
        self._jobs = jobs
        self._node_id = node_id
        self._interval_s = interval_s
        self._wall_clock = wall_clock
        self._first_look_s = math.inf
        self._worker = Worker("regular scrub", self.step, base_s=1.0, max_s=60.0)

    def start(self) -> None:
        """Begin."""
        self._worker.start()

    def stop(self) -> None:
        """End."""
        self._worker.stop()

    def step(self) -> float | None:
        """Begin a scrub if it is time; returns the seconds until the next look."""
        if not self._interval_s:
            return None
        now_s = self._wall_clock()
        self._first_look_s = min(now_s, self._first_look_s)
        begun = [job.started_s for job in self._jobs.ls() if (job.kind, job.node_id) == (_KIND, self._node_id)]
        # What began in the future, by a clock that was set back since, tells nothing.
        last_s = max((started_s for started_s in begun if started_s <= now_s), default=self._first_look_s)
        left_s = last_s + self._interval_s - now_s
        if left_s <= 0:
            self._jobs.start(_KIND)
            left_s = self._interval_s
        return min(left_s, _MAX_SLEEP_S)
