"""Where the stream of a dataset is, shared by all copies of the dataset: the main process's and its DataLoader workers'.

Theory of operation
-------------------
``set_epoch`` in the main process must reach persistent workers, workers must all begin at the same place, and the epoch must
advance once all of them have read it. So a few numbers live in anonymous shared memory, inherited on fork, handed over on
spawn, and gone with the last process: there is no name, and no lock that a killed process could leave behind.

The epoch and the position in it are written by the main process only, each time under a new *turn*. Workers don't write them:
each writes one number of its own, its *mark*, when it begins a turn and when it has finished it. Whoever asks where the stream
is, derives it from the marks: once those of all workers say that the same iteration has finished the newest turn, the stream
is at the start of the next epoch, which is the next turn. A worker that starts late, or finishes what nobody wants any more,
so can't move the others.

This module knows no datasets, and does not know what a worker has delivered.
"""

from __future__ import annotations

import multiprocessing
import multiprocessing.context
import os
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from loader.errors import InvalidOption

__all__ = ["MAX_WORKERS", "Position", "SharedEpoch", "WorkerTurn"]

MAX_WORKERS: Final = 505
_TURN, _EPOCH, _START, _WITHIN, _VERSION, _WORKERS, _MARKS = range(7)
_ITERATION_BITS: Final = 32


class Position(NamedTuple):
    """A place in the stream.

    Attributes
    ----------
    turn : int
        Number of the iteration that begins there.
    epoch, start : int
        The epoch, and how many of its samples are consumed.
    within : int
        Samples of the next batch that were yielded already, where samples are yielded singly.
    """

    turn: int
    epoch: int
    start: int
    within: int


class WorkerTurn:
    """One worker's part of a turn."""

    def __init__(self, cells: Any, worker: int, position: Position, *, iteration: int) -> None:
        self.position = position
        self._cells = cells
        self._cell = _MARKS + worker
        self._mark = position.turn << (_ITERATION_BITS + 1) | iteration << 1
        cells[self._cell] = self._mark

    def finish(self) -> None:
        """Say that this worker has yielded all that it had to."""
        self._cells[self._cell] = self._mark | 1


class SharedEpoch:
    """The position of a dataset's stream, the same in all its copies on one host.

    Attributes
    ----------
    num_begun : int
        Iterations that this process has begun as a worker.
    """

    def __init__(self) -> None:
        self._cells = _shared([0] * _MARKS)
        self._owner_pid = os.getpid()
        self.num_begun = 0

    @property
    def next(self) -> Position:
        """Where the next iteration begins, or the present one goes on."""
        turn, finished = self._newest()
        return self._position(turn + finished)

    @property
    def current(self) -> Position:
        """Where the workers' iteration that is under way, or was the last, began."""
        return self._position(self._newest()[0])

    @property
    def read_by_workers(self) -> bool:
        """Whether workers have read since the main process last said where the stream is: only they know how far it is."""
        return bool(self._cells[_WORKERS])

    @property
    def finished_by_workers(self) -> bool:
        """Whether the newest iteration was one of workers, and all of them have finished it."""
        return self._newest()[1]

    @property
    def version(self) -> int:
        """The version of the dataset that all copies read; 0 before one was opened."""
        return int(self._cells[_VERSION])

    @version.setter
    def version(self, version: int) -> None:
        self._cells[_VERSION] = version

    def move(self, epoch: int, *, start: int = 0, within: int = 0) -> Position:
        """Say where the stream is. In the main process; what is under way anywhere goes on, but moves nothing any more."""
        if os.getpid() != self._owner_pid:
            # A process that was forked for some other purpose than DataLoader's has a stream of its own.
            self._cells, self._owner_pid = _shared(self._cells[:_MARKS]), os.getpid()
        turn = self._newest()[0] + 1
        self._cells[_WORKERS] = 0
        self._cells[_TURN : _WITHIN + 1] = turn, epoch, start, within
        return Position(turn, epoch, start, within)

    def begin(self) -> Position:
        """Begin an iteration in the main process, where the stream is."""
        _, epoch, start, within = self.next
        return self.move(epoch, start=start, within=within)

    def advance(self, turn: int, *, start: int, within: int = 0) -> None:
        """Say how far the main process's iteration `turn` has come, unless the stream was moved meanwhile."""
        if self._cells[_TURN] == turn:
            self._cells[_START], self._cells[_WITHIN] = start, within

    def finish(self, turn: int) -> None:
        """Go on to the next epoch after the main process's iteration `turn`, unless the stream was moved meanwhile."""
        if self._cells[_TURN] == turn:
            self.move(self._cells[_EPOCH] + 1)

    def begin_worker(self, worker: int, *, num_workers: int, base_seed: int) -> WorkerTurn:
        """Begin an iteration as one of several workers.

        Parameters
        ----------
        base_seed : int
            The same in all workers of one DataLoader iterator, and another in the next.
        """
        if num_workers > MAX_WORKERS:
            raise InvalidOption(f"num_workers={num_workers}: expected up to {MAX_WORKERS}")
        position = self.next
        # Persistent workers keep their base seed, but all of them have begun equally often.
        self.num_begun += 1
        iteration = (base_seed + self.num_begun * 0x9E3779B1) % (1 << _ITERATION_BITS)
        turn = WorkerTurn(self._cells, worker, position, iteration=iteration)
        self._cells[_WORKERS] = num_workers
        return turn

    def _newest(self) -> tuple[int, bool]:
        """The newest turn, and whether all workers of one iteration have finished it."""
        marks = self._cells[_MARKS : _MARKS + self._cells[_WORKERS]]
        turn = max([int(self._cells[_TURN]), *(mark >> (_ITERATION_BITS + 1) for mark in marks)])
        finished = len(set(marks)) == 1 and marks[0] & 1 == 1 and marks[0] >> (_ITERATION_BITS + 1) == turn
        return turn, finished

    def _position(self, turn: int) -> Position:
        ahead = turn - self._cells[_TURN]
        _, epoch, start, within = self._cells[: _WITHIN + 1]
        return Position(turn, epoch + ahead, 0, 0) if ahead else Position(turn, epoch, start, within)

    def __getstate__(self) -> dict[str, Any]:
        # Shared memory can only be handed to a child that is being spawned. A copy that is pickled for any other reason
        # (a cluster of tasks, a cache) begins a life of its own at the same place.
        if multiprocessing.context.get_spawning_popen() is not None:
            return {"cells": self._cells, "owner_pid": self._owner_pid}
        return {"numbers": [*self.next, self.version, 0]}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._cells = state["cells"] if "cells" in state else _shared(state["numbers"])
        self._owner_pid = state.get("owner_pid", os.getpid())
        self.num_begun = 0


def _shared(numbers: Sequence[int]) -> Any:
    return multiprocessing.RawArray("q", [*numbers, *[0] * MAX_WORKERS])
