"""One iteration over a dataset in one process: items out, and how far it has come.

The main process's iteration moves the stream's position with each item, just before it hands the item out: what was yielded is
consumed. A DataLoader worker's only counts, because its items wait in a queue whose other end it can't see.

If it ends in any way but at the end of the epoch (dropped, stopped, or by an error), the stager's threads end with it. At the
end of an epoch the stager is left to whoever reads the next.
"""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator
from itertools import pairwise
from typing import Any

from loader.assignment import Assignment
from loader.epoch import SharedEpoch, WorkerTurn
from loader.errors import IteratorStopped
from loader.handoff import StreamClosed
from loader.items import Part
from loader.ranks import Worker
from loader.receipt import Receipt
from loader.stager import Stager
from loader.state import LoaderState
from loader.worker_state import WorkerState

__all__ = ["Iteration"]


class Iteration:
    """From the stream's position to the end of the epoch. Begins when it is made, reads when `items` is iterated.

    Parameters
    ----------
    epoch : SharedEpoch
        Where the stream is.
    worker : Worker or None
        The DataLoader worker that this process is.

    Attributes
    ----------
    begin : Position
        Where it began.
    worker : Worker or None
        As given.
    pid : int
        The process whose iteration it is.
    batches : int
        Batches that it has yielded completely.
    samples : int
        Samples of the next batch that were yielded already, before it began or by it.
    """

    def __init__(self, epoch: SharedEpoch, *, worker: Worker | None) -> None:
        self._epoch = epoch
        self._turn: WorkerTurn | None = None
        self.worker = worker
        self.pid = os.getpid()
        if worker is None:
            self.begin = epoch.begin()
        else:
            self._turn = epoch.begin_worker(worker.number, num_workers=worker.num_workers, base_seed=worker.base_seed)
            self.begin = self._turn.position
        self.batches = 0
        # The first batch is the first worker's.
        self.samples = self.begin.within if worker is None or worker.number == 0 else 0
        self._stager: Stager[Part] | None = None
        self._stopped = ""

    def stop(self, reason: str) -> None:
        """End it, and its threads; whoever goes on iterating gets an `IteratorStopped` that gives the reason."""
        self._stopped = reason
        if self._stager is not None:
            self._stager.close()

    def check(self) -> None:
        """Raise `IteratorStopped` if it was stopped."""
        if self._stopped:
            raise IteratorStopped(self._stopped)

    def items(
        self, stager: Stager[Part], assignment: Assignment, *, whole_batches: bool, receipt: Receipt
    ) -> Generator[Any, None, None]:
        """Each item, consumed once it is yielded. At the end the stream moves on to the next epoch."""
        items_of = self._batches_of if whole_batches else self._samples_of
        self._stager = stager
        try:
            while (part := self._next_part(stager, receipt)) is not None:
                yield from items_of(part, assignment, receipt)
        except BaseException:  # When the iterator is dropped, too.
            stager.close()
            raise
        self._stager = None
        if self._turn is None:
            self._epoch.finish(self.begin.turn)
        else:
            self._turn.finish()

    def worker_state(self, begin: LoaderState, *, num_rows: int, global_batch_size: int) -> WorkerState:
        """How far this worker is, which began at `begin`."""
        assert self.worker is not None
        return WorkerState(
            begin=begin,
            num_rows=num_rows,
            global_batch_size=global_batch_size,
            worker=self.worker.number,
            num_workers=self.worker.num_workers,
            batches=self.batches,
            samples=self.samples,
        )

    def _next_part(self, stager: Stager[Part], receipt: Receipt) -> Part | None:
        self.check()
        try:
            with receipt.stalled():
                return stager.next()
        except StreamClosed:
            self.check()
            raise

    def _batches_of(self, part: Part, assignment: Assignment, receipt: Receipt) -> Iterator[Any]:
        for number, (start, end), batch in zip(part.batches, pairwise((0, *part.ends)), part.items, strict=True):
            self._note(assignment.consumed(number + 1))
            receipt.samples += end - start
            yield batch
            self.check()

    def _samples_of(self, part: Part, assignment: Assignment, receipt: Receipt) -> Iterator[Any]:
        samples = iter(part.items)
        for number, (first, end) in zip(part.batches, pairwise((0, *part.ends)), strict=True):
            for place in range(1, end - first + 1):
                sample = next(samples)
                if place <= self.samples:
                    continue  # It was yielded before a break in the middle of the batch.
                if place < end - first:
                    self._note(assignment.consumed(number), samples=place)
                else:
                    self._note(assignment.consumed(number + 1))
                receipt.samples += 1
                yield sample
                self.check()

    def _note(self, consumed: int, *, samples: int = 0) -> None:
        """Note that the next item counts as consumed: the last of a batch, or number `samples` of it."""
        self.samples = samples
        self.batches += not samples
        if self._turn is None:
            self._epoch.advance(self.begin.turn, start=consumed, within=samples)
