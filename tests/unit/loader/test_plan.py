"""The planner in small: which visits a batch opens and closes."""

from __future__ import annotations

from typing import Any

import numpy as np

from loader.assignment import Assignment, Share
from loader.order import LaneOrder
from loader.plan import Plan, VisitPlanner

NUM_LANES = 2
BLOCK_ROWS, LANE_ROWS = 3, 8


def planner(num_slots: int, **options: Any) -> VisitPlanner:
    def order_of(lane: int, step: int) -> tuple[LaneOrder, int]:
        epoch, place = divmod(step, LANE_ROWS)
        order = LaneOrder(digest="00" * 32, seed=0, epoch=epoch, lane=lane, block_rows=[3, 3, 2], shuffle=False)
        return order, step - place

    return VisitPlanner(num_lanes=NUM_LANES, num_slots=num_slots, max_block_rows=BLOCK_ROWS, order_of=order_of, **options)


def places(plan: Plan) -> list[tuple[int, int, int]]:
    """Lane, number and slot of each visit that is opened."""
    return [(visit.lane, visit.number, visit.slot) for visit in plan.opened]


def share(lane: int, *steps: int) -> Share:
    lanes, wanted = np.full(len(steps), lane), np.array(steps)
    pad = np.zeros(len(steps), np.bool_)
    return Share(lanes=lanes, steps=wanted, pad=pad, ends=np.array([len(steps)]), num_lanes=NUM_LANES)


def test_rows_of_one_visit_open_it_once() -> None:
    plans = planner(4)
    first = plans.plan(share(0, 0, 1))
    assert first is not None
    assert (places(first), first.closed, first.cells.tolist()) == ([(0, 0, 0)], [], [0, 1])
    second = plans.plan(share(0, 2))
    assert second is not None
    assert (places(second), second.closed, second.cells.tolist()) == ([], [], [2])


def test_leaving_a_visit_closes_its_slot_which_is_free_after_the_release() -> None:
    plans = planner(2)
    assert plans.plan(share(0, 2)) is not None
    moved = plans.plan(share(0, 3))
    assert moved is not None
    assert (places(moved), moved.closed, moved.cells.tolist()) == ([(0, 1, 1)], [0], [3])
    assert (plans.num_open, plans.num_taken) == (1, 2)
    assert plans.plan(share(1, 0)) is None
    plans.release(moved)
    assert plans.num_taken == 1
    other = plans.plan(share(1, 0))
    assert other is not None
    assert places(other) == [(1, 0, 0)]


def test_batch_over_several_visits_of_a_lane_takes_a_slot_for_each() -> None:
    plans = planner(3)
    plan = plans.plan(share(0, *range(8)))
    assert plan is not None
    assert [visit.number for visit in plan.opened] == [0, 1, 2]
    assert plan.closed == [0, 1]
    assert plan.cells.tolist() == list(range(8))
    assert planner(2).plan(share(0, *range(8))) is None


def test_repeated_row_may_visit_a_block_again() -> None:
    plans = planner(3)
    assert plans.plan(share(0, 2, 3)) is not None
    plan = plans.plan(share(0, 4, 1))
    assert plan is not None
    assert (places(plan), plan.closed) == ([(0, 0, 2)], [1])
    assert plan.cells.tolist() == [BLOCK_ROWS + 1, 2 * BLOCK_ROWS + 1]


def test_slots_that_were_used_are_used_again_before_new_ones() -> None:
    plans = planner(8)
    for step in (0, 3, 6):
        plan = plans.plan(share(0, step))
        assert plan is not None
        plans.release(plan)
        assert {visit.slot for visit in plan.opened} <= {0, 1}


def released(plans: VisitPlanner, plan: Plan | None) -> Plan:
    assert plan is not None
    plans.release(plan)
    return plan


def test_block_that_a_free_slot_holds_is_visited_there() -> None:
    plans = planner(8)
    for epoch in range(3):
        visits = [released(plans, plans.plan(share(0, LANE_ROWS * epoch + step))).opened[0] for step in (0, 3, 6)]
        # Of three blocks in two slots, the second one was given to the third.
        assert [(visit.slot, visit.is_held) for visit in visits] == [
            [(0, False), (1, False), (0, False)],
            [(1, False), (0, False), (1, False)],
            [(0, False), (1, False), (0, False)],
        ][epoch]
    plans = planner(8, keeps_all=True)
    for epoch in range(4):
        visits = [released(plans, plans.plan(share(0, LANE_ROWS * epoch + step))).opened[0] for step in (0, 3, 6)]
        assert [visit.is_held for visit in visits] == [epoch > 0] * 3


def test_plan_that_is_refused_forgets_nothing_that_is_held() -> None:
    plans = planner(4)
    assert plans.plan(share(0, 0)) is not None
    released(plans, plans.leave(None))
    both = np.repeat([0, 1], 8), np.concatenate([np.arange(LANE_ROWS, 2 * LANE_ROWS), np.arange(LANE_ROWS)])
    everything = Share(lanes=both[0], steps=both[1], pad=np.zeros(16, np.bool_), ends=np.array([16]), num_lanes=NUM_LANES)
    assert plans.plan(everything) is None
    (visit,) = released(plans, plans.plan(share(0, LANE_ROWS))).opened
    assert (visit.slot, visit.is_held) == (0, True)


def test_grown_planner_takes_what_did_not_fit() -> None:
    plans = planner(1)
    assert plans.plan(share(0, 0, 3)) is None
    plans.grow(2)
    plan = plans.plan(share(0, 0, 3))
    assert plan is not None
    assert plan.cells.tolist() == [0, BLOCK_ROWS]


def test_empty_share_needs_nothing() -> None:
    plan = planner(1).plan(share(0))
    assert plan is not None
    assert (places(plan), plan.closed, len(plan.cells)) == ([], [], 0)


def test_whole_epoch_of_a_real_assignment_fits_lanes_and_batch() -> None:
    assignment = Assignment(num_rows=16, num_lanes=NUM_LANES, batch_size=5)
    plans = planner(NUM_LANES + 5)
    for number in range(assignment.num_batches()):
        plan = plans.plan(assignment.share(number, run=0))
        assert plan is not None
        plans.release(plan)
    assert plans.num_taken == plans.num_open == NUM_LANES


def test_slots_that_only_hold_are_never_in_use_at_once() -> None:
    plans = planner(8, max_taken=2, keeps_all=True)
    for epoch in range(3):
        for step in (0, 3, 6):
            assert released(plans, plans.plan(share(0, LANE_ROWS * epoch + step))).opened[0].is_held == (epoch > 0)
    assert plans.plan(share(1, 0)) is not None
    assert plans.plan(share(1, 3)) is None
    plans.grow(9)
    assert plans.plan(share(1, 3)) is not None
