"""What becomes of a gathered stage before it is handed over: jobs, whose pieces any threads do, delivered in order.

A job takes its place in the queue before it begins, so what is delivered has the order in which jobs were given, however long
each takes, and no more jobs are under way than the queue has places. An error is delivered there, too: what comes before it
can still be had, and one of the next epoch's jobs does not end this epoch. This module does not know what jobs make.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from loader.daemon_pool import DaemonPool
from loader.handoff import HandOff, Place, StreamClosed

__all__ = ["Job", "JobRunner"]

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Job(Generic[T_co]):
    """Something to make.

    Attributes
    ----------
    pieces : sequence of callable
        Work that threads share; none if there is none to share.
    finish : callable
        Makes what is delivered, after all pieces; in the thread that did the last one, or, if there are none, in the thread
        that runs the jobs.
    """

    pieces: Sequence[Callable[[], None]]
    finish: Callable[[], T_co]


class JobRunner(Generic[T]):
    """Runs jobs.

    Parameters
    ----------
    queue : HandOff
        Where results go, and errors.
    num_threads : int
        Threads for pieces; there are none before there is a piece.

    Attributes
    ----------
    threads : DaemonPool
        Closed by whoever made the runner, after the queue.
    """

    def __init__(self, queue: HandOff[T], *, num_threads: int) -> None:
        self._queue = queue
        self.threads = DaemonPool(num_threads, name="forebay-make")

    def run(self, job: Job[T]) -> None:
        """Begin a job, once the queue has a place for it; raises `StreamClosed`."""
        place = self._queue.reserve()
        if not job.pieces:
            self._queue.fill(place, job.finish())
            return
        running = _Running(job, place, self._queue)
        for piece in job.pieces:
            if self.threads.submit(running.do, piece).cancelled():
                raise StreamClosed


class _Running(Generic[T]):
    def __init__(self, job: Job[T], place: Place[T], queue: HandOff[T]) -> None:
        self._job = job
        self._place = place
        self._queue = queue
        self._left = len(job.pieces)
        self._lock = threading.Lock()

    def do(self, piece: Callable[[], None]) -> None:
        try:
            piece()
            with self._lock:
                self._left -= 1
                last = self._left == 0
            if last:
                self._queue.fill(self._place, self._job.finish())
        except BaseException as error:  # Whatever it is belongs to the training loop, or it would wait for ever.
            self._queue.fail_at(self._place, error)
