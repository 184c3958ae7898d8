"""The planner against a model of slots: every row where its cell says, no slot given out twice, nothing lost by a refusal."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field, replace

import numpy as np
from hypothesis import example, given, settings
from hypothesis import strategies as st

from loader.assignment import TAILS, Assignment, Share, Tail
from loader.order import LaneOrder, lane_lengths
from loader.plan import Plan, VisitPlanner

DIGEST = "5a" * 32


def lane_orders(num_rows: int, num_lanes: int, *, block_rows: int, shuffle: bool, epoch: int = 1) -> list[LaneOrder]:
    orders = []
    for lane, length in enumerate(lane_lengths(num_rows, num_lanes).tolist()):
        # Every third block is short, as where values vary in length.
        sizes: list[int] = []
        while length:
            sizes.append(min(length, block_rows if len(sizes) % 3 else 1 + block_rows // 2))
            length -= sizes[-1]
        orders.append(
            LaneOrder(digest=DIGEST, seed=7, epoch=epoch, lane=lane, block_rows=np.array(sizes, int), shuffle=shuffle)
        )
    return orders


@dataclass
class Slots:
    """What an arena would hold: which visit is in which slot, and which slots some plan still reads.

    Only a visit that is not told that its block is held brings it in.
    """

    orders: list[LaneOrder]
    max_block_rows: int
    held: dict[int, tuple[int, int]] = field(default_factory=dict)
    blocks: dict[int, tuple[int, int]] = field(default_factory=dict)
    num_held: int = 0
    open_slots: dict[int, int] = field(default_factory=dict)
    pending: deque[Plan] = field(default_factory=deque)

    def accept(self, plan: Plan) -> None:
        unreleased = {slot for earlier in self.pending for slot in earlier.closed}
        closed = []
        for visit in plan.opened:
            if visit.lane in self.open_slots:
                closed.append(self.open_slots.pop(visit.lane))
            assert visit.slot not in unreleased | set(closed) | set(self.open_slots.values())
            self.open_slots[visit.lane] = visit.slot
            self.held[visit.slot] = visit.lane, visit.number
            block = visit.lane, int(visit.order.visits[visit.number])
            assert not visit.is_held or self.blocks[visit.slot] == block
            self.blocks[visit.slot] = block
            self.num_held += visit.is_held
        assert sorted(closed) == sorted(plan.closed)
        self.pending.append(plan)

    def gather(self) -> Plan:
        plan = self.pending.popleft()
        for cell, lane, step in zip(plan.cells.tolist(), plan.share.lanes.tolist(), plan.share.steps.tolist(), strict=True):
            slot, place = divmod(cell, self.max_block_rows)
            visit, wanted_place = (int(values[0]) for values in self.orders[lane].locate([step]))
            assert (self.held[slot], place) == ((lane, visit), wanted_place)
        return plan


@settings(max_examples=150)
@given(
    shape=st.tuples(st.integers(0, 200), st.integers(1, 17)),
    geometry=st.tuples(st.integers(1, 8), st.integers(1, 40), st.sampled_from(TAILS)),
    block_rows=st.integers(1, 30),
    spare_slots=st.integers(0, 40),
    counts=st.lists(st.integers(1, 6), min_size=1, max_size=8),
    depth=st.integers(1, 4),
    shuffle=st.booleans(),
)
@example(shape=(50, 4), geometry=(3, 5, "pad"), block_rows=1, spare_slots=0, counts=[6], depth=1, shuffle=True)
def test_every_row_is_where_its_cell_says(
    shape: tuple[int, int],
    geometry: tuple[int, int, Tail],
    block_rows: int,
    spare_slots: int,
    counts: list[int],
    depth: int,
    shuffle: bool,
) -> None:
    num_rows, num_lanes = shape
    world_size, batch_size, tail = geometry
    orders = lane_orders(num_rows, num_lanes, block_rows=block_rows, shuffle=shuffle)
    assignment = Assignment(num_rows=num_rows, num_lanes=num_lanes, world_size=world_size, batch_size=batch_size, tail=tail)

    def order_of(lane: int, step: int) -> tuple[LaneOrder, int]:
        return orders[lane], 0

    for run in range(world_size):
        num_slots = num_lanes + batch_size + 1 + spare_slots
        planner = VisitPlanner(num_lanes=num_lanes, num_slots=num_slots, max_block_rows=block_rows, order_of=order_of)
        slots = Slots(orders, block_rows)
        batch, turn = 0, 0
        while batch < assignment.num_batches(run=run) or slots.pending:
            count = min(counts[turn % len(counts)], assignment.num_batches(run=run) - batch)
            turn += 1
            plan = None
            if count and len(slots.pending) < depth:
                plan = planner.plan(assignment.share(batch, run=run, count=count))
                if plan is None and not slots.pending:
                    # One batch always fits beside the open visits.
                    count = 1
                    plan = planner.plan(assignment.share(batch, run=run, count=1))
                    assert plan is not None
            if plan is not None:
                slots.accept(plan)
                batch += count
            elif slots.pending:
                planner.release(slots.gather())
            unreleased = sum(len(earlier.closed) for earlier in slots.pending)
            assert planner.num_open == len(slots.open_slots)
            assert planner.num_taken == planner.num_open + unreleased <= num_slots


@given(
    shape=st.tuples(st.integers(1, 60), st.integers(1, 7)),
    block_rows=st.integers(1, 20),
    batch_size=st.integers(1, 9),
    num_epochs=st.integers(1, 8),
    spare_slots=st.integers(0, 80),
    held_slots=st.integers(0, 80),
    depth=st.integers(1, 3),
    keeps_all=st.booleans(),
)
def test_blocks_that_are_held_are_those_that_were_brought_in_last(
    shape: tuple[int, int],
    block_rows: int,
    batch_size: int,
    num_epochs: int,
    spare_slots: int,
    held_slots: int,
    depth: int,
    keeps_all: bool,
) -> None:
    num_rows, num_lanes = shape
    epochs = [lane_orders(num_rows, num_lanes, block_rows=block_rows, shuffle=True, epoch=epoch) for epoch in range(num_epochs)]
    assignment = Assignment(num_rows=num_rows, num_lanes=num_lanes, batch_size=batch_size, tail="uneven")
    lengths = lane_lengths(num_rows, num_lanes)

    def order_of(lane: int, step: int) -> tuple[LaneOrder, int]:
        epoch = step // int(lengths[lane])
        return epochs[epoch][lane], epoch * int(lengths[lane])

    max_taken = num_lanes + batch_size + 1 + spare_slots
    planner = VisitPlanner(
        num_lanes=num_lanes,
        num_slots=(num_slots := max_taken + held_slots),
        max_block_rows=block_rows,
        order_of=order_of,
        max_taken=max_taken,
        keeps_all=keeps_all,
    )
    slots = Slots(epochs[0], block_rows)
    for epoch in range(num_epochs):
        for batch in range(assignment.num_batches()):
            share = assignment.share(batch, run=0)
            share = replace(share, steps=share.steps + epoch * lengths[share.lanes])
            if len(slots.pending) >= depth:
                planner.release(slots.pending.popleft())
            while (plan := planner.plan(share)) is None:
                planner.release(slots.pending.popleft())  # One batch always fits beside the open visits.
            slots.accept(plan)
            assert planner.num_taken <= max_taken
    blocks, copies = sum(len(order.visits) for order in epochs[0]), depth + 2  # Open, and closed by plans that wait.
    if keeps_all and num_slots >= copies * blocks:
        assert slots.num_held >= (num_epochs - copies) * blocks


@given(num_rows=st.integers(1, 120), num_lanes=st.integers(1, 9), block_rows=st.integers(1, 9), first=st.integers(0, 60))
def test_refused_plan_changes_nothing(num_rows: int, num_lanes: int, block_rows: int, first: int) -> None:
    orders = lane_orders(num_rows, num_lanes, block_rows=block_rows, shuffle=True)
    everything = Assignment(num_rows=num_rows, num_lanes=num_lanes, batch_size=num_rows).share(0, run=0)
    visits = sum(len(order.visits) for order in orders)
    head, rest = part(everything, 0, first), part(everything, first, num_rows)

    def order_of(lane: int, step: int) -> tuple[LaneOrder, int]:
        return orders[lane], 0

    def planner_after_head(num_slots: int) -> VisitPlanner:
        planner = VisitPlanner(num_lanes=num_lanes, num_slots=num_slots, max_block_rows=block_rows, order_of=order_of)
        assert planner.plan(head) is not None
        return planner

    roomy = planner_after_head(visits)
    needed = roomy.num_taken + len(nonempty(roomy.plan(rest)).opened)
    if needed > planner_after_head(visits).num_taken:
        tight = planner_after_head(needed - 1)
        before = tight.num_open, tight.num_taken
        assert tight.plan(rest) is None
        assert (tight.num_open, tight.num_taken) == before
        tight.grow(needed)
        again, untouched = nonempty(tight.plan(rest)), nonempty(planner_after_head(needed).plan(rest))
        assert again.closed == untouched.closed
        assert [(visit.lane, visit.number, visit.is_held) for visit in again.opened] == [
            (visit.lane, visit.number, visit.is_held) for visit in untouched.opened
        ]


def part(share: Share, start: int, end: int) -> Share:
    cut = slice(start, end)
    size = len(share.lanes[cut])
    return Share(
        lanes=share.lanes[cut],
        steps=share.steps[cut],
        pad=share.pad[cut],
        ends=np.array([size]),
        num_lanes=share.num_lanes,
    )


def nonempty(plan: Plan | None) -> Plan:
    assert plan is not None
    return plan
