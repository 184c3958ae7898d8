"""What becomes of a gathered stage before it is handed over: jobs, whose pieces any threads do, delivered in order.

A job takes its place in the queue before it begins, so what is delivered has the order in which jobs were given, however long
each takes, and no more jobs are under way than the queue has places. This module does not know what jobs make.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Generic, TypeVar

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
    initializer : callable
        Run in each thread first.
    """

    def __init__(self, queue: HandOff[T], *, num_threads: int, initializer: Callable[[], None]) -> None:
        self._queue = queue
        self._threads = ThreadPoolExecutor(num_threads, thread_name_prefix="forebay-make", initializer=initializer)

    def run(self, job: Job[T]) -> None:
        """Begin a job, once the queue has a place for it; raises `StreamClosed`."""
        place = self._queue.reserve()
        if not job.pieces:
            self._queue.fill(place, job.finish())
            return
        running = _Running(job, place, self._queue)
        for piece in job.pieces:
            try:
                self._threads.submit(running.do, piece)
            except RuntimeError as exc:  # The pool is shut down, by whoever closed the queue.
                raise StreamClosed from exc

    def close(self, *, wait: bool) -> None:
        """End the threads; a piece that is under way ends first."""
        self._threads.shutdown(wait=wait, cancel_futures=True)


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
            self._queue.fail(error)
