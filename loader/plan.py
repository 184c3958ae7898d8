"""Which blocks a stream needs, when, and in which slot of memory: the plan that fetching and gathering follow.

Theory of operation
-------------------
A lane is read one block visit at a time. While a visit is open it has a *slot*: room for one decoded block of each column.
The places of a slot are *cells*: place p of slot s is cell ``s * max_block_rows + p``. `VisitPlanner.plan` turns the rows of
some batches (lane and step) into cells. Where a lane's steps leave its open visit, the next visit opens in a free slot, and
the old slot closes: it may be reused once these rows are gathered. Until it is, it holds its block, and another visit to this
block, in a later epoch, gets that slot. The work per row is a few vectorised operations; Python runs once per visit.

A lane's steps go on from one epoch to the next, so a stream may do so, too: between them it lets go of the visits that it
will not come back to.

Invariants: a slot is never given out twice at a time; a visit is told that its slot holds its block only if that is what was
brought in there last; a plan that does not fit the free slots changes nothing. Pure: this module knows no bytes, threads or
clocks, nor which row of its block each place of a visit is.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from loader.assignment import Share
from loader.order import LaneOrder
from loader.slots import FreeSlots

__all__ = ["Plan", "Visit", "VisitPlanner"]

Int64s = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Visit:
    """Visit number `number` of a lane's sequence in one epoch, which is decoded into `slot`.

    Attributes
    ----------
    is_held : bool
        Whether the block is there already, from an earlier visit.
    """

    lane: int
    number: int
    slot: int
    order: LaneOrder
    is_held: bool = False


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Plan:
    """Where the rows of some batches are found.

    Attributes
    ----------
    share : Share
        The rows, in the order of delivery.
    cells : int64 [rows]
        The cell of each.
    opened : list of Visit
        Blocks that must be in their slots before these rows are gathered.
    closed : list of int
        Slots that are free again afterwards.
    """

    share: Share
    cells: Int64s
    opened: list[Visit]
    closed: list[int]

    def part(self, first: int, end: int) -> Plan:
        """The rows of the batches ``[first, end)`` alone."""
        share = self.share.part(first, end)
        start = int(self.share.ends[first - 1]) if first else 0
        return Plan(share=share, cells=self.cells[start : start + len(share)], opened=[], closed=[])


class VisitPlanner:
    """Plans the reads of one process.

    Parameters
    ----------
    num_lanes : int
        Lanes of all that is read.
    num_slots : int
        Slots there are.
    max_block_rows : int
        No block has more rows.
    order_of : callable
        Of a lane and a step: the order that the step is of, and the step at which that order begins.
    max_taken : int, optional
        Slots that may be in use at once; the others only hold what is in them. By default all.
    keeps_all : bool
        Whether there are slots enough to keep all blocks from epoch to epoch; see `FreeSlots`.
    """

    def __init__(
        self,
        *,
        num_lanes: int,
        num_slots: int,
        max_block_rows: int,
        order_of: Callable[[int, int], tuple[LaneOrder, int]],
        max_taken: int | None = None,
        keeps_all: bool = False,
    ) -> None:
        self._max_block_rows = max_block_rows
        self._order_of = order_of
        self._num_slots = num_slots
        self._max_taken = num_slots if max_taken is None else max_taken
        self._free = FreeSlots(num_slots, in_turn=keeps_all)
        # Of each lane: the slot of its open visit, -1 if there is none; the steps [start, end) that the visit covers; and
        # what makes a step a cell.
        self._slots = np.full(num_lanes, -1, np.int64)
        self._starts, self._ends, self._shifts = np.zeros((3, num_lanes), np.int64)

    @property
    def num_open(self) -> int:
        """Lanes with an open visit."""
        return int(np.count_nonzero(self._slots >= 0))

    @property
    def num_taken(self) -> int:
        """Slots in use: open, or closed and not yet released."""
        return self._num_slots - len(self._free)

    def grow(self, num_slots: int) -> None:
        """Have `num_slots` slots from now on, which is not fewer than before, and may all be in use."""
        self._free.add(range(self._num_slots, num_slots))
        self._num_slots = self._max_taken = num_slots

    def plan(self, share: Share) -> Plan | None:
        """Where the rows of `share` will be; None, and nothing changed, if there are too few free slots."""
        before = self._slots.copy(), self._starts.copy(), self._ends.copy(), self._shifts.copy(), self._free.copy()
        opened: list[Visit] = []
        closed: list[int] = []
        cells, inside = self._locate(share.lanes, share.steps)
        left = np.flatnonzero(~inside)
        while len(left):
            lanes, steps = share.lanes[left], share.steps[left]
            # Each lane with rows left moves to the visit of the first of them: of equal indexes, the last one assigns.
            first = np.full(len(self._slots), -1, np.int64)
            first[lanes[::-1]] = steps[::-1]
            moving = np.flatnonzero(first >= 0)
            if self.num_taken + len(moving) > self._max_taken:
                self._slots, self._starts, self._ends, self._shifts, self._free = before
                return None
            closed.extend(slot for slot in self._slots[moving].tolist() if slot >= 0)
            opened.extend(map(self._open, moving.tolist(), first[moving].tolist()))
            cells[left], inside = self._locate(lanes, steps)
            left = left[~inside]
        return Plan(share=share, cells=cells, opened=opened, closed=closed)

    def leave(self, steps: Int64s | None) -> Plan:
        """Close the visits that end at or before these steps of their lanes, or all of them; a plan without rows."""
        leaving = np.flatnonzero((self._slots >= 0) & (True if steps is None else self._ends <= steps))
        closed = self._slots[leaving].tolist()
        self._slots[leaving] = -1
        self._starts[leaving] = self._ends[leaving] = 0
        nothing = np.empty(0, np.int64)
        pad, num_lanes = nothing.astype(np.bool_), len(self._slots)
        share = Share(lanes=nothing, steps=nothing, pad=pad, ends=nothing, num_lanes=num_lanes)
        return Plan(share=share, cells=nothing, opened=[], closed=closed)

    def release(self, plan: Plan) -> None:
        """Take back the slots that `plan` closed, once its rows are gathered."""
        for slot in reversed(plan.closed):
            self._free.give_back(slot)

    def _locate(self, lanes: Int64s, steps: Int64s) -> tuple[Int64s, npt.NDArray[np.bool_]]:
        """The cells that the open visits have for some rows, and which rows are in them at all."""
        return self._shifts[lanes] + steps, (steps >= self._starts[lanes]) & (steps < self._ends[lanes])

    def _open(self, lane: int, step: int) -> Visit:
        order, first = self._order_of(lane, step)
        number = int(order.visit_ends.searchsorted(step - first, side="right"))
        start = first + (int(order.visit_ends[number - 1]) if number else 0)
        slot, is_held = self._free.take((lane, int(order.visits[number])))
        self._slots[lane], self._starts[lane], self._ends[lane] = slot, start, first + order.visit_ends[number]
        self._shifts[lane] = slot * self._max_block_rows - start
        return Visit(lane=lane, number=number, slot=slot, order=order, is_held=is_held)
