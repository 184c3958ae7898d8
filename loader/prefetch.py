"""The staged hot path: blocks fetched ahead of use, rows of several batches gathered at once, handed to the trainer.

Theory of operation
-------------------
One thread, the stager, walks the plan. It plans as far ahead as the budget of slots allows and hands each newly opened visit
to a pool of threads, which fetch, verify and decode it into its slot. It waits for the blocks of the oldest stage (some
batches), gathers their rows, frees what no later row needs, and hands the result to a maker, whose jobs end in a short queue
that the training loop takes from. All of fetching, decoding and gathering happens without the GIL. The first stages are short,
so that the first batch needs few blocks.

Memory: the open visits, as many again being fetched, `prefetch_bytes` more, and `_READY_STAGES` + 2 stages; or, where the maker
has work for threads, 2 stages and what `num_threads` + 2 jobs make. A single batch that needs more gets it, or nothing could
go on. An error in any thread reaches the training loop at once, before what is ready. Closing ends all threads and waits for
them.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from loader.arena import Arena, Column
from loader.assignment import Assignment, Share
from loader.handoff import HandOff, StreamClosed
from loader.jobs import Job, JobRunner
from loader.order import LaneOrder
from loader.plan import Plan, Visit, VisitPlanner
from loader.reader import DatasetReader
from loader.receipt import Receipt

__all__ = ["Maker", "Stage", "Stager", "StreamSpec"]

T_co = TypeVar("T_co", covariant=True)
T = TypeVar("T")

STAGE_BYTES = 4 * 1024 * 1024
MAX_STAGE_ROWS = 65_536
MAX_STAGE_CELLS = 1 << 20  # Batches of a stage times lanes: planning takes some arrays of that size.
MAX_PLANNED_ROWS = 1 << 19  # Planned ahead, 41 bytes each.
_READY_STAGES = 2
_CELL_BYTES = 8  # What a row in the arena takes beside its columns.


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamSpec:
    """What one process reads of one epoch.

    Attributes
    ----------
    assignment : Assignment
        The batches of the epoch from where it goes on.
    run : int
        Which run of each batch.
    first, step : int
        Of these batches, every `step`-th from `first` on: DataLoader worker w of n has (w, n).
    columns : tuple of int
        Columns to read, ascending.
    with_index : bool
        Whether the numbers of rows are wanted, too.
    seed, epoch : int
        Of the order.
    shuffle : bool
        False is written order.
    prefetch_bytes : int
        Decoded bytes fetched ahead, beside one block for each lane that is being read.
    num_threads : int
        Threads that fetch and decode; a maker has as many.
    """

    assignment: Assignment
    run: int
    first: int
    step: int
    columns: tuple[int, ...]
    with_index: bool
    seed: int
    epoch: int
    shuffle: bool
    prefetch_bytes: int
    num_threads: int


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Stage:
    """The gathered rows of some batches.

    Attributes
    ----------
    columns : list of Column
        One for each column that is read.
    numbers : int64 [rows] or None
        Number of each row in the dataset, if wanted.
    pad : bool [rows]
        Which rows are repetitions.
    ends : list of int
        How many rows there are up to and including each batch.
    batches : range
        Numbers of the batches.
    """

    columns: list[Column]
    numbers: npt.NDArray[np.int64] | None
    pad: npt.NDArray[np.bool_]
    ends: list[int]
    batches: range


class Maker(Protocol[T_co]):
    """What becomes of stages."""

    @property
    def in_threads(self) -> bool:
        """Whether jobs have pieces; else each hands a stage over as it is."""
        ...

    def jobs_of(self, stage: Stage) -> Iterator[Job[T_co]]:
        """What to do with a stage, in order."""
        ...


@dataclass(slots=True)
class _Planned:
    plan: Plan
    batches: range
    fetches: list[Future[None]] = field(default_factory=list)


class Stager(Generic[T]):
    """What is made of the stages of one stream, in order. Use as a context manager, and iterate once.

    Parameters
    ----------
    reader : DatasetReader
        Where blocks come from.
    spec : StreamSpec
        What to read.
    receipt : Receipt
        Counts what it took.
    arena : Arena
        For these columns, and used by nobody else until the stager is closed.
    maker : Maker
        Makes what is handed over.
    """

    def __init__(self, reader: DatasetReader, spec: StreamSpec, receipt: Receipt, *, arena: Arena, maker: Maker[T]) -> None:
        self._reader = reader
        self._spec = spec
        self._receipt = receipt
        self._ahead_slots = spec.prefetch_bytes // _slot_bytes(reader, spec.columns)
        self._orders: dict[int, LaneOrder] = {}
        self._arena = arena
        # Also for a repeated row, whose block may be visited a second time.
        arena.grow(min(2 * reader.num_blocks, 2 * _lanes_of_run(spec.assignment) + self._ahead_slots) + 1)
        self._batches_per_stage = _batches_per_stage(reader, spec, num_slots=arena.num_slots)
        self._planner = VisitPlanner(
            num_lanes=reader.index.num_lanes,
            num_slots=arena.num_slots,
            max_block_rows=reader.max_block_rows,
            order_of=self._orders.__getitem__,
        )
        self._num_stages = 0
        self._todo = range(spec.first, spec.assignment.num_batches(run=spec.run), spec.step)
        self._planned: deque[_Planned] = deque()
        self._planned_rows = 0
        self._maker = maker
        self._ready: HandOff[T | None] = HandOff(limit=spec.num_threads + 2 if maker.in_threads else _READY_STAGES)
        self._own_threads = own_threads = set[int]()

        def note_thread() -> None:
            own_threads.add(threading.get_ident())

        self._fetchers = ThreadPoolExecutor(spec.num_threads, thread_name_prefix="forebay-fetch", initializer=note_thread)
        self._jobs = JobRunner(self._ready, num_threads=spec.num_threads, initializer=note_thread)
        self._thread = threading.Thread(target=self._run, name="forebay-stager", daemon=True)

    def __enter__(self) -> Stager[T]:
        try:
            self._thread.start()
        except BaseException:  # Ctrl-C, when the thread runs already.
            self.close()
            raise
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        """End all threads, and wait for them; a fetch that is under way ends first."""
        self._ready.close()
        # The garbage collector may close a forgotten iterator, and may do so in any thread. One can't wait for itself.
        wait = threading.get_ident() not in self._own_threads
        self._fetchers.shutdown(wait=wait, cancel_futures=True)
        self._jobs.close(wait=wait)
        if wait and self._thread.is_alive():
            self._thread.join()

    def next(self) -> T | None:
        """What was made next, None after the last; raises what went wrong in a thread, or `StreamClosed`."""
        return self._ready.get()

    def _run(self) -> None:
        self._own_threads.add(threading.get_ident())
        try:
            for stage in self._stages():
                for job in self._maker.jobs_of(stage):
                    self._jobs.run(job)
            self._ready.put(None)
        except StreamClosed:
            return
        except BaseException as error:  # Whatever it is belongs to the training loop, or it would wait for ever.
            self._ready.fail(error)

    def _stages(self) -> Iterator[Stage]:
        planned = self._planned
        while self._todo or planned:
            while self._todo and self._plan_one():
                # While the training loop waits, what it waits for goes first.
                if self._ready.is_empty and all(fetch.done() for fetch in planned[0].fetches):
                    break
            stage = planned.popleft()
            for fetch in stage.fetches:
                fetch.result()
            yield self._gather(stage.plan, stage.batches)
            self._planned_rows -= len(stage.plan.share)
            self._planner.release(stage.plan)

    def _gather(self, plan: Plan, batches: range) -> Stage:
        numbers = self._arena.numbers(plan, num_lanes=self._reader.index.num_lanes) if self._spec.with_index else None
        share = plan.share
        columns = self._arena.gather(plan)
        return Stage(columns=columns, numbers=numbers, pad=share.pad, ends=share.ends.tolist(), batches=batches)

    def _plan_one(self) -> bool:
        """Plan one more stage and begin to fetch its blocks; False if it has to wait for slots."""
        planner = self._planner
        if self._planned and (
            self._planned_rows >= MAX_PLANNED_ROWS or planner.num_taken > 2 * planner.num_open + self._ahead_slots
        ):
            return False
        count = min(self._batches_per_stage, len(self._todo), 1 << min(self._num_stages, 30))
        plan = planner.plan(self._share(count))
        while plan is None:
            if self._planned:
                return False
            if count > 1:
                count = -(-count // 2)
            else:
                # Nothing is being fetched now, and nothing would free a slot.
                self._arena.grow(2 * self._arena.num_slots)
                planner.grow(self._arena.num_slots)
            plan = planner.plan(self._share(count))
        batches, self._todo = self._todo[:count], self._todo[count:]
        fetches = [self._fetchers.submit(self._fetch, visit) for visit in plan.opened]
        self._planned.append(_Planned(plan=plan, batches=batches, fetches=fetches))
        self._planned_rows += len(plan.share)
        self._num_stages += 1
        return True

    def _share(self, count: int) -> Share:
        """The rows of the next `count` batches."""
        spec = self._spec
        share = spec.assignment.share(self._todo[0], run=spec.run, count=(count - 1) * spec.step + 1)
        if spec.step > 1:
            share = _every(share, spec.step)
        self._load_orders(share.lanes)
        return share

    def _load_orders(self, lanes: npt.NDArray[np.int64]) -> None:
        """Have the orders of `lanes` at hand."""
        spec, reader = self._spec, self._reader
        if len(self._orders) == reader.index.num_lanes:
            return
        missing = [lane for lane in np.flatnonzero(np.bincount(lanes)).tolist() if lane not in self._orders]
        if not all(map(reader.has_table, missing)):
            # Several at once: each costs a request.
            deque(self._fetchers.map(reader.table, missing), maxlen=0)
        for lane in missing:
            self._orders[lane] = LaneOrder(
                digest=reader.index.digest,
                seed=spec.seed,
                epoch=spec.epoch,
                lane=lane,
                block_rows=reader.table(lane).rows,
                shuffle=spec.shuffle,
            )

    def _fetch(self, visit: Visit) -> None:
        try:
            columns, order = self._spec.columns, self._orders[visit.lane]
            block = int(order.visits[visit.number])
            sizes = self._reader.table(visit.lane).raw_size[block].tolist()
            rooms = self._arena.rooms(visit, order, [sizes[column] for column in columns])
            cached = self._reader.read_block_into(visit.lane, block, columns, rooms)
            self._receipt.add(bytes_cache=cached, blocks=1)
        except BaseException as error:
            self._ready.fail(error)
            raise


def _slot_bytes(reader: DatasetReader, columns: tuple[int, ...]) -> int:
    """What a slot takes: decoded columns, and the order of their rows."""
    kinds = [reader.schema.types[number] for number in columns]
    fixed_bytes = sum(kind.item_bytes for kind in kinds if kind.is_fixed) + _CELL_BYTES
    variable = not all(kind.is_fixed for kind in kinds)
    return fixed_bytes * reader.max_block_rows + (reader.mean_block_bytes if variable else 0)


def _batches_per_stage(reader: DatasetReader, spec: StreamSpec, *, num_slots: int) -> int:
    kinds = [reader.schema.types[number] for number in spec.columns]
    row_bytes = sum(kind.item_bytes for kind in kinds if kind.is_fixed)
    if not all(kind.is_fixed for kind in kinds):
        row_bytes += reader.mean_block_bytes * reader.num_blocks // max(1, reader.index.num_rows)
    # No more than a quarter of the slots for one stage, so that the next ones are fetched meanwhile.
    rows = min(MAX_STAGE_ROWS, STAGE_BYTES // max(1, row_bytes), num_slots * reader.max_block_rows // 4)
    cells = MAX_STAGE_CELLS // (reader.index.num_lanes * spec.step)
    return max(1, min(rows // spec.assignment.batch_size, cells))


def _lanes_of_run(assignment: Assignment) -> int:
    """About how many lanes a run reads from: those of its part of a batch, and some that the part's borders move over.

    Any stretch of positions has as many rows in the first l lanes as its length says, give or take one for each bit of L.
    """
    num_lanes, world_size = assignment.num_lanes, assignment.world_size
    borders = 2 * num_lanes.bit_length() * num_lanes // assignment.global_batch_size
    return min(num_lanes, num_lanes // world_size + borders + 1)


def _every(share: Share, step: int) -> Share:
    """Every `step`-th batch of a share, from the first on."""
    sizes = np.diff(share.ends, prepend=0)
    wanted = np.arange(len(sizes)) % step == 0
    rows = np.repeat(wanted, sizes)
    return Share(
        lanes=share.lanes[rows],
        steps=share.steps[rows],
        pad=share.pad[rows],
        ends=np.cumsum(sizes[wanted]),
        num_lanes=share.num_lanes,
    )
