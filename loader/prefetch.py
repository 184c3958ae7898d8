"""The staged hot path: blocks fetched ahead of use, rows of several batches gathered at once, handed to the trainer.

Theory of operation
-------------------
One thread, the stager, walks the plan. It plans as far ahead as the budget of slots allows and hands each newly opened visit
to a pool of threads, which fetch, verify and decode it into its slot. Then it waits for the blocks of the oldest stage (some
batches), gathers their rows, frees what no later row needs, and puts the result into a short queue that the training loop
takes from. All of fetching, decoding and gathering happens without the GIL.

Memory: the open visits, as many again being fetched, `prefetch_bytes` more, and `_READY_STAGES` + 2 stages. An error in any
thread reaches the training loop with its next batch. Closing ends all threads and waits for them.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np

from loader.arena import Arena, Column
from loader.assignment import Assignment, Share
from loader.order import LaneOrder
from loader.plan import Plan, Visit, VisitPlanner
from loader.reader import DatasetReader
from loader.receipt import Receipt

__all__ = ["Stage", "Stager", "StreamSpec"]

STAGE_BYTES = 4 * 1024 * 1024
MAX_STAGE_ROWS = 65_536
MAX_PLANNED_STAGES = 1024
_READY_STAGES = 2


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
    seed, epoch : int
        Of the order.
    shuffle : bool
        False is written order.
    prefetch_bytes : int
        Decoded bytes fetched ahead, beside one block for each lane that is being read.
    num_threads : int
        Threads that fetch and decode.
    """

    assignment: Assignment
    run: int
    first: int
    step: int
    columns: tuple[int, ...]
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
    plan : Plan
        Whose share says where each batch ends.
    batches : range
        Numbers of the batches.
    """

    columns: list[Column]
    plan: Plan
    batches: range


@dataclass(slots=True)
class _Planned:
    plan: Plan
    batches: range
    fetches: list[Future[None]] = field(default_factory=list)


class _Closed(Exception):
    """The consumer has gone."""


class _HandOff:
    """A short queue that either side can close."""

    def __init__(self, *, limit: int) -> None:
        self._limit = limit
        self._items: deque[Stage | BaseException | None] = deque()
        self._changed = threading.Condition()
        self.closed = False

    def put(self, item: Stage | BaseException | None) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self.closed or len(self._items) < self._limit)
            if self.closed:
                raise _Closed
            self._items.append(item)
            self._changed.notify_all()

    def get(self) -> Stage | BaseException | None:
        with self._changed:
            self._changed.wait_for(lambda: bool(self._items))
            item = self._items.popleft()
            self._changed.notify_all()
            return item

    def close(self) -> None:
        with self._changed:
            self.closed = True
            self._items.clear()
            self._changed.notify_all()


class Stager:
    """Stages of one stream, in order. Use as a context manager, and iterate once.

    Parameters
    ----------
    reader : DatasetReader
        Where blocks come from.
    spec : StreamSpec
        What to read.
    receipt : Receipt
        Counts what it took.
    """

    def __init__(self, reader: DatasetReader, spec: StreamSpec, receipt: Receipt) -> None:
        self._reader = reader
        self._spec = spec
        self._receipt = receipt
        kinds = [reader.schema.types[number] for number in spec.columns]
        block_bytes = max(1, reader.index.block_size_bytes)
        self._ahead_slots = max(1, spec.prefetch_bytes // block_bytes)
        num_blocks = sum(lane.num_blocks for lane in reader.index.lanes)
        batch_size, num_lanes = spec.assignment.batch_size, reader.index.num_lanes
        # Enough for one batch beside all open visits, whatever else happens: the stager can always go on.
        num_slots = min(2 * num_blocks, 2 * num_lanes + self._ahead_slots + batch_size) + 1
        row_bytes = sum(kind.item_bytes for kind in kinds if kind.is_fixed)
        rows = min(MAX_STAGE_ROWS, STAGE_BYTES // max(1, row_bytes))
        self._batches_per_stage = max(1, rows // batch_size)
        self._planner = VisitPlanner(
            num_lanes=num_lanes,
            num_slots=num_slots,
            max_block_rows=reader.max_block_rows,
            order_of=self._order_of,
        )
        self._arena = Arena(kinds, num_slots=num_slots, max_block_rows=reader.max_block_rows)
        self._orders: dict[int, LaneOrder] = {}
        self._ready = _HandOff(limit=_READY_STAGES)
        self._fetchers = ThreadPoolExecutor(spec.num_threads, thread_name_prefix="forebay-fetch")
        self._thread = threading.Thread(target=self._run, name="forebay-stager", daemon=True)

    def __enter__(self) -> Stager:
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._ready.close()
        self._fetchers.shutdown(wait=True, cancel_futures=True)
        self._thread.join()

    def next(self) -> Stage | None:
        """The next stage, None after the last one; raises what went wrong in a thread."""
        item = self._ready.get()
        if isinstance(item, BaseException):
            raise item
        return item

    def _run(self) -> None:
        try:
            for stage in self._stages():
                self._ready.put(stage)
            self._ready.put(None)
        except _Closed:
            return
        except BaseException as error:  # Whatever it is belongs to the training loop, or it would wait for ever.
            try:
                self._ready.put(error)
            except _Closed:
                return

    def _stages(self) -> Iterator[Stage]:
        spec = self._spec
        todo = deque(range(spec.first, spec.assignment.num_batches(run=spec.run), spec.step))
        planned: deque[_Planned] = deque()
        while todo or planned:
            while todo and len(planned) < MAX_PLANNED_STAGES and self._plan_one(todo, planned):
                pass
            stage = planned.popleft()
            for fetch in stage.fetches:
                fetch.result()
            yield Stage(columns=self._arena.gather(stage.plan), plan=stage.plan, batches=stage.batches)
            self._planner.release(stage.plan)

    def _plan_one(self, todo: deque[int], planned: deque[_Planned]) -> bool:
        """Plan one more stage and begin to fetch its blocks; False if it has to wait for slots."""
        spec, planner = self._spec, self._planner
        if planned and planner.num_taken > 2 * planner.num_open + self._ahead_slots:
            return False
        count = min(self._batches_per_stage, len(todo))
        plan = planner.plan(self._share(todo[0], count))
        while plan is None:
            if planned:
                return False
            assert count > 1, "one batch always fits into the slots"
            count = -(-count // 2)
            plan = planner.plan(self._share(todo[0], count))
        stage = _Planned(plan=plan, batches=range(todo[0], todo[0] + count * spec.step, spec.step))
        stage.fetches = [self._fetchers.submit(self._fetch, visit) for visit in plan.opened]
        planned.append(stage)
        for _ in range(count):
            todo.popleft()
        return True

    def _share(self, first: int, count: int) -> Share:
        spec = self._spec
        if spec.step == 1:
            return spec.assignment.share(first, run=spec.run, count=count)
        batches = range(first, first + count * spec.step, spec.step)
        return _joined([spec.assignment.share(batch, run=spec.run) for batch in batches])

    def _order_of(self, lane: int) -> LaneOrder:
        order = self._orders.get(lane)
        if order is None:
            spec, reader = self._spec, self._reader
            order = self._orders[lane] = LaneOrder(
                digest=reader.index.digest,
                seed=spec.seed,
                epoch=spec.epoch,
                lane=lane,
                block_rows=reader.table(lane).rows,
                shuffle=spec.shuffle,
            )
        return order

    def _fetch(self, visit: Visit) -> None:
        columns = self._spec.columns
        rooms = self._arena.rooms(visit, self._reader.table(visit.lane), columns)
        fetched = self._reader.read_block_into(visit.lane, visit.block, columns, rooms)
        self._receipt.add(bytes_cache=fetched.bytes_cache, bytes_remote=fetched.bytes_remote, blocks=1)


def _joined(shares: list[Share]) -> Share:
    return Share(
        lanes=np.concatenate([share.lanes for share in shares]),
        steps=np.concatenate([share.steps for share in shares]),
        positions=np.concatenate([share.positions for share in shares]),
        pad=np.concatenate([share.pad for share in shares]),
        ends=np.cumsum([len(share) for share in shares]),
    )
