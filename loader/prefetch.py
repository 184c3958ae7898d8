"""The staged hot path: blocks fetched ahead of use, rows of several batches gathered at once, handed to the trainer.

Theory of operation
-------------------
One thread, the stager, walks the plan. It plans as far ahead as the budget of slots allows and has the block of each newly
opened visit brought into its slot (`loader.fetching`), unless it is still there from an epoch before: data of up to half as
many blocks as there are slots is read once or twice. It waits for the blocks of what was planned first, gathers its rows stage
by stage (some batches), frees what no later row needs, and hands each stage to a maker, whose jobs end in a short queue that
the training loop takes from. All of fetching, decoding and gathering happens without the GIL. What is planned at once is many
stages, for planning costs the more per row the fewer rows there are, and so does handing blocks to threads one by one; at the
very beginning it is few batches, so that the first one needs few blocks.

Epochs follow each other without a pause: at the end of one the walk puts a mark into the queue and goes on with the next, up to
about one block of each lane. Who iterates stops at the mark, and the next iteration takes the walk over.

Memory: the open visits, as many again being fetched, `prefetch_bytes` more, and `_READY_STAGES` + 2 stages; or, where the maker
has work for threads, 2 stages and what `num_threads` + 2 jobs make. A single batch that needs more gets it, or nothing could
go on. An error in any thread reaches the training loop at once, before what is ready; but one in what a later epoch begins
with is that epoch's, and nobody's who does not read it.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Generic, TypeVar

import numpy as np
import numpy.typing as npt

from loader.assignment import Assignment, Share
from loader.fetching import Fetching
from loader.handoff import HandOff, StreamClosed
from loader.jobs import JobRunner
from loader.opened import OpenStream
from loader.order import LaneOrder
from loader.plan import Plan, VisitPlanner
from loader.receipt import Receipt
from loader.stage import Epochs, Maker, Stage, StreamSpec

__all__ = ["Walk"]

T = TypeVar("T")
Int64s = npt.NDArray[np.int64]

STAGE_BYTES = 4 * 1024 * 1024
MAX_PLAN_ROWS = 65_536
MAX_PLAN_CELLS = 1 << 20  # Batches planned at once times lanes: planning takes some arrays of that size.
MAX_PLANNED_ROWS = 1 << 19  # Planned ahead, 41 bytes each.
_READY_STAGES = 2


@dataclass(slots=True, kw_only=True)
class _Epoch(Generic[T]):
    """An epoch that is being planned.

    Attributes
    ----------
    begins : tuple of int
        The epoch of each dataset in which it begins, and from whose begin steps are counted in `assignment`.
    passed : int64 [lanes]
        Steps of each lane before that, since this walk's first epoch began: what makes its steps go on from one to the next.
    todo : range
        Batches that are not planned yet.
    num_opened : int
        Visits that were planned.
    waiting : Share or None
        The rows of the batches that are next, if they wait for slots.
    """

    number: int
    assignment: Assignment
    run: int
    begins: tuple[int, ...]
    passed: Int64s
    todo: range
    maker: Maker[T]
    receipt: Receipt
    num_opened: int = 0
    waiting: Share | None = None

    @property
    def cut(self) -> tuple[int, tuple[int, ...]]:
        """Which part of its batches is read."""
        return self.run, self.assignment.lane_order


class _Orders:
    """The order that a step of a lane is of, and the step at which it begins, counted from the begin of the first epoch."""

    def __init__(self, opened: OpenStream, spec: StreamSpec, *, origin: tuple[int, ...]) -> None:
        self._opened, self._spec, self._origin = opened, spec, origin
        self._known: dict[int, tuple[LaneOrder, int]] = {}  # Of each lane the one that was used last.

    def __call__(self, lane: int, step: int) -> tuple[LaneOrder, int]:
        lanes = self._opened.lanes
        first = step - step % int(lanes.rows[lane])
        known = self._known.get(lane)
        if known is None or known[1] != first:
            epoch = self._origin[lanes.components[lane]] + first // int(lanes.rows[lane])
            order = self._opened.order(lane, seed=self._spec.seed, epoch=epoch, shuffle=self._spec.shuffle)
            known = self._known[lane] = order, first
        return known


@dataclass(slots=True, kw_only=True)
class _Planned(Generic[T]):
    """Batches of an epoch that are being fetched; an empty range of them marks its end."""

    plan: Plan
    epoch: _Epoch[T]
    batches: range
    fetches: list[Future[None]] = field(default_factory=list)


class Walk(Generic[T]):
    """The walk through a stream: its threads, and what they share.

    Parameters
    ----------
    opened, spec, epochs
        As `loader.stager.Stager` takes them.

    Attributes
    ----------
    thread : Thread
        To be started.
    ready : HandOff
        What was made, and None at the end of each epoch, for the training loop.
    reading : int
        The epoch that the training loop is in, or was in last.
    """

    def __init__(self, opened: OpenStream, spec: StreamSpec, epochs: Epochs[T]) -> None:
        self.opened, self.spec, self.pid = opened, spec, os.getpid()
        self.reading = spec.epoch
        self._epochs = epochs
        self._receipts: dict[int, Receipt] = {}
        self._receipts_lock = threading.Lock()
        self._origin: tuple[int, ...] = ()
        self._epoch: _Epoch[T] | None = (begun := self._begun(spec.epoch, start=spec.start))
        self.ready: HandOff[T | None] = HandOff(limit=spec.num_threads + 2 if begun.maker.in_threads else _READY_STAGES)
        self.thread = threading.Thread(target=self._run, name="forebay-stager", daemon=True)
        self._fetching = Fetching(opened, num_threads=spec.num_threads)
        self._jobs = JobRunner(self.ready, num_threads=spec.num_threads)
        self._ahead_slots = spec.prefetch_bytes // opened.slot_bytes
        # Also for a repeated row, whose block may be visited a second time.
        self._num_lanes = _lanes_of_run(begun.assignment)
        taken_slots = min(2 * opened.num_blocks, 2 * self._num_lanes + self._ahead_slots) + 1
        held_slots = min(2 * opened.num_blocks, spec.prefetch_bytes // opened.held_slot_bytes) + 1
        opened.arena.grow(max(taken_slots, held_slots))
        self._batches_per_stage = max(1, STAGE_BYTES // max(1, opened.row_bytes * spec.split.batch_size))
        self._batches_per_plan = _batches_per_plan(opened, spec, num_slots=taken_slots)
        self._planner = VisitPlanner(
            num_lanes=len(opened.lanes),
            num_slots=opened.arena.num_slots,
            max_block_rows=opened.max_block_rows,
            order_of=_Orders(opened, spec, origin=self._origin),
            max_taken=taken_slots,
            keeps_all=opened.arena.num_slots > 2 * opened.num_blocks,
        )
        self._num_plans = 0
        self._planned: deque[_Planned[T]] = deque()
        self._planned_rows = 0
        self._leaving_slots = 0
        self._failure: Exception | None = None  # Of an epoch that the training loop is not in yet.

    def close(self) -> None:
        """End all threads, and wait for them; in the process that they are in."""
        if os.getpid() != self.pid:
            return  # After a fork there are no threads, and a lock that one of them held is never released.
        self.ready.close()
        pools = self._fetching.threads, self._jobs.threads
        for pool in pools:
            pool.close()
        # The garbage collector may close a forgotten stager, and may do so in any thread. One can't wait for itself.
        ident = threading.get_ident()
        if ident != self.thread.ident and not any(pool.is_own(ident) for pool in pools):
            if self.thread.is_alive():
                self.thread.join()
            for pool in pools:
                pool.join()

    def read_next(self) -> None:
        """Note that the training loop is in the next epoch now."""
        self.reading += 1
        self.ready.wake()

    def receipt(self, epoch: int) -> Receipt:
        """The receipt of an epoch; those of earlier ones are forgotten."""
        with self._receipts_lock:
            for earlier in [number for number in self._receipts if number < self.reading]:
                del self._receipts[earlier]
            if epoch not in self._receipts:
                self._receipts[epoch] = self._epochs.receipt_of(epoch=epoch)
            return self._receipts[epoch]

    def _run(self) -> None:
        try:
            while self._walk_on():
                pass
            if self._failure is not None:
                self.ready.fail_at(self.ready.reserve(), self._failure)
        except StreamClosed:
            return
        except BaseException as error:  # Whatever it is belongs to the training loop, or it would wait for ever.
            self.ready.fail(error)

    def _walk_on(self) -> bool:
        """Plan ahead, and hand over what was planned first; False after the last."""
        self._plan_ahead()
        if not self._planned:
            if (epoch := self._epoch) is not None:
                self.ready.wait_for(lambda: epoch.number == self.reading)
            return epoch is not None
        planned = self._planned.popleft()
        try:
            for fetch in planned.fetches:
                fetch.result()
        except CancelledError as error:
            raise StreamClosed from error
        except Exception as error:
            if planned.epoch.number == self.reading:
                raise
            self._planned.clear()
            self._epoch, self._failure = None, error
            return False
        plan, batches, size = planned.plan, planned.batches, self._batches_per_stage
        for first in range(0, len(batches), size):
            self._hand_over(plan.part(first, first + size), batches[first : first + size], planned.epoch.maker)
        self._planned_rows -= len(plan.share)
        self.opened.arena.release(plan.closed)
        self._planner.release(plan)
        if not batches:
            self._leaving_slots -= len(plan.closed)
            self.ready.put(None)
        return True

    def _hand_over(self, plan: Plan, batches: range, maker: Maker[T]) -> None:
        """Gather a stage, and have it made. Nothing refers to it here afterwards: memory that is free soon is used again."""
        for job in maker.jobs_of(self._gather(plan, batches)):
            self._jobs.run(job)

    def _gather(self, plan: Plan, batches: range) -> Stage:
        share, lanes, columns = plan.share, self.opened.lanes, self.opened.arena.gather(plan)
        numbers = components = epochs = None
        if self.spec.with_index:
            numbers = self.opened.arena.indexes(plan) * lanes.strides[share.lanes] + lanes.ranks[share.lanes]
            if len(self.opened.datasets) > 1:
                components = lanes.components[share.lanes]
                epochs = np.array(self._origin)[components] + share.steps // lanes.rows[share.lanes]
        return Stage(
            columns=columns,
            numbers=numbers,
            pad=share.pad,
            ends=share.ends.tolist(),
            batches=batches,
            components=components,
            epochs=epochs,
        )

    # Planning

    def _begun(self, number: int, *, start: int = 0) -> _Epoch[T]:
        split, spec, lanes = self.spec.split, self.spec, self.opened.lanes
        assignment = split.assignment(number, start=start, lane_order=self._epochs.lane_order_of(epoch=number))
        run = split.run(number)
        begins = (number,) if assignment.mixture is None else assignment.mixture.begins
        self._origin = self._origin or begins
        return _Epoch(
            number=number,
            assignment=assignment,
            run=run,
            begins=begins,
            passed=np.subtract(begins, self._origin)[lanes.components] * lanes.rows,
            todo=range(spec.first, assignment.num_batches(run=run), spec.step),
            maker=self._epochs.maker_of(epoch=number),
            receipt=self.receipt(number),
        )

    def _plan_ahead(self) -> None:
        """Plan while there are slots, and the training loop does not wait for what is planned already."""
        while self._epoch is not None:
            try:
                if not (self._plan_batches(self._epoch) if self._epoch.todo else self._plan_end(self._epoch)):
                    return
            except Exception as error:
                if self._epoch.number == self.reading:
                    raise
                self._epoch, self._failure = None, error  # What is planned comes first.
            if self._num_plans == 1:
                return  # Nothing more is asked for before the first batch is there.
            if self.ready.is_empty and self._planned and all(fetch.done() for fetch in self._planned[0].fetches):
                return

    def _plan_batches(self, epoch: _Epoch[T]) -> bool:
        """Plan some more batches and begin to fetch their blocks; False if that has to wait for slots."""
        planner, planned = self._planner, self._planned
        open_slots = planner.num_open + self._leaving_slots
        if planned and (self._planned_rows >= MAX_PLANNED_ROWS or planner.num_taken > 2 * open_slots + self._ahead_slots):
            return False
        count = min(self._batches_per_plan, len(epoch.todo), 1 << min(self._num_plans, 30))
        if epoch.number != self.reading:
            # Perhaps nobody reads that epoch: a block of each lane is enough to begin with.
            if epoch.num_opened >= self._num_lanes:
                return False
            count = max(1, min(count, (self._num_lanes - epoch.num_opened) // (2 * self.spec.split.batch_size)))
        share = epoch.waiting or self._share(epoch, count)
        count, plan = len(share.ends), planner.plan(share)
        while plan is None:
            if planned:
                epoch.waiting = share
                return False
            if count > 1:
                count = -(-count // 2)
            else:
                # Nothing is being fetched now, and nothing would free a slot.
                self.opened.arena.grow(2 * self.opened.arena.num_slots)
                planner.grow(self.opened.arena.num_slots)
            plan = planner.plan(self._share(epoch, count))
        epoch.waiting = None
        batches, epoch.todo = epoch.todo[:count], epoch.todo[count:]
        fetches = self._fetching.begin(plan.opened, epoch.receipt, fail=partial(self._fail, epoch))
        planned.append(_Planned(plan=plan, epoch=epoch, batches=batches, fetches=fetches))
        epoch.num_opened += len(plan.opened)
        self._planned_rows += len(plan.share)
        self._num_plans += 1
        return True

    def _plan_end(self, epoch: _Epoch[T]) -> bool:
        """Plan the end of an epoch; False before that epoch is read."""
        if epoch.number != self.reading:
            return False
        following = keep = None
        if self.spec.follow:
            try:
                following = self._begun(epoch.number + 1)
            except Exception as error:
                self._failure = error
        # Where the same run goes on in the same lanes, those of a mixture are in the middle of their visits.
        if following is not None and following.cut == epoch.cut:
            keep = following.assignment.steps(np.zeros(1, np.int64))[0] + following.passed
        plan = self._planner.leave(keep)
        self._leaving_slots += len(plan.closed)
        self._planned.append(_Planned(plan=plan, epoch=epoch, batches=range(0)))
        self._epoch = following
        return True

    def _share(self, epoch: _Epoch[T], count: int) -> Share:
        """The rows of the next `count` batches, their steps counted from the begin of the first epoch."""
        step = self.spec.step
        share = epoch.assignment.share(epoch.todo[0], run=epoch.run, count=(count - 1) * step + 1)
        if step > 1:
            share = share.every(step)
        self._fetching.load_tables(share.lanes)
        return replace(share, steps=share.steps + epoch.passed[share.lanes])

    def _fail(self, epoch: _Epoch[T], error: BaseException) -> None:
        """Have the training loop know of an error at once, if it is in what is read; that of a later epoch has time."""
        if epoch.number == self.reading:
            self.ready.fail(error)


def _batches_per_plan(opened: OpenStream, spec: StreamSpec, *, num_slots: int) -> int:
    # No more than about an eighth of the slots at once, so that the next blocks are fetched meanwhile.
    rows = min(MAX_PLAN_ROWS, int(num_slots / max(opened.blocks_per_sample, 1e-6) / 8))
    cells = MAX_PLAN_CELLS // (len(opened.lanes) * spec.step)
    return max(1, min(rows // spec.split.batch_size, cells))


def _lanes_of_run(assignment: Assignment) -> int:
    """About how many lanes a run reads from: those of its part of a batch, and some that the part's borders move over.

    Any stretch of positions has as many rows in the first l lanes as its length says, give or take one for each bit of L.
    """
    num_lanes, world_size = assignment.num_lanes, assignment.world_size
    borders = 2 * num_lanes.bit_length() * num_lanes // assignment.global_batch_size
    return min(num_lanes, num_lanes // world_size + borders + 1)
