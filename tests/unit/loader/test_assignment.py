"""Batches and shares where a hand can follow them; tests/property/test_assignment.py holds them against a naive reference."""

from __future__ import annotations

from typing import Any

import pytest

from loader.assignment import Assignment, run_of_rank
from loader.errors import InvalidOption


def positions(assignment: Assignment, *, run: int) -> list[list[int]]:
    return [assignment.share(batch, run=run).positions.tolist() for batch in range(assignment.num_batches(run=run))]


def test_global_batch_is_sorted_by_lane_and_cut_into_runs() -> None:
    # Four lanes: positions 0 1 2 3 lie in lanes 0 2 1 3.
    assignment = Assignment(num_rows=16, num_lanes=4, world_size=2, batch_size=4)
    share = assignment.share(1, run=0)
    assert share.lanes.tolist() == [0, 0, 1, 1]
    assert share.steps.tolist() == [2, 3, 2, 3]
    assert share.positions.tolist() == [8, 12, 10, 14]
    assert not share.pad.any()
    assert assignment.share(1, run=1).lanes.tolist() == [2, 2, 3, 3]


def test_another_order_of_lanes_changes_the_runs_and_not_the_batch() -> None:
    assignment = Assignment(num_rows=16, num_lanes=4, world_size=2, batch_size=4, lane_order=(3, 0, 2, 1))
    shares = [assignment.share(1, run=run) for run in range(2)]
    assert [share.lanes.tolist() for share in shares] == [[3, 3, 0, 0], [2, 2, 1, 1]]
    assert shares[0].positions.tolist() == [11, 15, 8, 12]
    assert sorted(position for share in shares for position in share.positions.tolist()) == list(range(8, 16))


@pytest.mark.parametrize("order", [(0, 1, 2), (0, 1, 2, 2), (0, 1, 2, 4), (0, 1, 2, 3, 4)])
def test_an_order_that_is_none_of_all_lanes_is_refused(order: tuple[int, ...]) -> None:
    with pytest.raises(InvalidOption, match=r"lane_order=\(0, 1, 2.*expected each lane, 0 to 3, once"):
        Assignment(num_rows=16, num_lanes=4, batch_size=4, lane_order=order)


def test_short_last_batch_by_each_tail() -> None:
    # 5 rows are left for 3 runs: 2, 2 and 1, as long as nothing is padded.
    options: dict[str, Any] = {"num_rows": 11, "num_lanes": 1, "world_size": 3, "batch_size": 2}
    pad = Assignment(**options, tail="pad")
    assert [positions(pad, run=run)[-1] for run in range(3)] == [[6, 7], [8, 9], [10, 6]]
    assert [pad.share(1, run=run).pad.tolist() for run in range(3)] == [[False, False], [False, False], [False, True]]
    drop = Assignment(**options, tail="drop")
    assert [positions(drop, run=run) for run in range(3)] == [[[0, 1]], [[2, 3]], [[4, 5]]]
    uneven = Assignment(**options, tail="uneven")
    assert [positions(uneven, run=run)[-1] for run in range(3)] == [[6, 7], [8, 9], [10]]


def test_padding_reaches_around_a_batch_smaller_than_the_world() -> None:
    assignment = Assignment(num_rows=2, num_lanes=4, world_size=7, batch_size=3)
    assert [positions(assignment, run=run) for run in range(7)] == [[[0]], [[1]], [[0]], [[1]], [[0]], [[1]], [[0]]]
    assert [assignment.share(0, run=run).pad.tolist() for run in range(7)] == [[run >= 2] for run in range(7)]


def test_uneven_leaves_some_runs_without_the_last_batch() -> None:
    assignment = Assignment(num_rows=8, num_lanes=2, world_size=3, batch_size=2, tail="uneven")
    assert [assignment.num_batches(run=run) for run in range(3)] == [2, 2, 1]
    assert len(assignment.share(1, run=2)) == 0


@pytest.mark.parametrize("tail", ["pad", "drop", "uneven"])
def test_no_rows_no_batches(tail: Any) -> None:
    assignment = Assignment(num_rows=0, num_lanes=4, world_size=3, batch_size=2, tail=tail)
    assert [assignment.num_batches(run=run) for run in range(3)] == [0, 0, 0]
    assert list(assignment.shares(run=0)) == []
    with pytest.raises(IndexError, match="there are 0 batches"):
        assignment.share(0, run=0)


@pytest.mark.parametrize(("tail", "counts"), [("pad", [1, 1]), ("drop", [0, 0]), ("uneven", [1, 0])])
def test_one_row(tail: Any, counts: list[int]) -> None:
    assignment = Assignment(num_rows=1, num_lanes=8, world_size=2, batch_size=2, tail=tail)
    assert [assignment.num_batches(run=run) for run in range(2)] == counts


def test_consumed_is_where_a_resume_goes_on() -> None:
    assignment = Assignment(num_rows=20, num_lanes=4, world_size=2, batch_size=3, start=4)
    assert [assignment.consumed(batches) for batches in range(4)] == [4, 10, 16, 20]
    resumed = Assignment(num_rows=20, num_lanes=4, world_size=2, batch_size=3, start=assignment.consumed(1))
    assert positions(resumed, run=1) == positions(assignment, run=1)[1:]


def test_shares_come_in_order_from_any_batch() -> None:
    assignment = Assignment(num_rows=29, num_lanes=4, world_size=2, batch_size=3)
    assert [share.positions.tolist() for share in assignment.shares(run=1, first=2)] == positions(assignment, run=1)[2:]


@pytest.mark.parametrize(
    "options",
    [
        *({"num_rows": -1}, {"num_rows": (1 << 48) + 1}, {"num_lanes": 0}, {"world_size": 0}, {"batch_size": 0}),
        *({"start": -1}, {"start": 11}, {"tail": "wrap"}, {"batch_size": (1 << 24) + 1}),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(InvalidOption, match=next(iter(options))):
        Assignment(**({"num_rows": 10, "num_lanes": 2, "batch_size": 3} | options))


@pytest.mark.parametrize(("batch", "run", "count"), [(-1, 0, 1), (4, 0, 1), (3, 0, 2), (0, 2, 1), (0, -1, 1), (0, 0, 0)])
def test_share_that_does_not_exist_is_refused(batch: int, run: int, count: int) -> None:
    assignment = Assignment(num_rows=23, num_lanes=4, world_size=2, batch_size=3)
    assert assignment.num_batches() == 4
    with pytest.raises(IndexError, match="there are 4 batches and 2 runs"):
        assignment.share(batch, run=run, count=count)


def test_runs_rotate_by_epoch_if_wanted() -> None:
    assert [run_of_rank(rank, epoch=0, world_size=3, rotate=True) for rank in range(3)] == [0, 1, 2]
    assert [run_of_rank(rank, epoch=4, world_size=3, rotate=True) for rank in range(3)] == [1, 2, 0]
    assert [run_of_rank(rank, epoch=4, world_size=3, rotate=False) for rank in range(3)] == [0, 1, 2]
    with pytest.raises(InvalidOption, match="rank=3: expected 0 to 2"):
        run_of_rank(3, epoch=0, world_size=3, rotate=True)


def test_share_of_a_huge_epoch_costs_no_more_than_itself() -> None:
    # Would take terabytes if anything of the size of the epoch or of the global batch were built.
    assignment = Assignment(num_rows=1 << 48, num_lanes=1024, world_size=1 << 20, batch_size=1 << 20, start=12_345)
    share = assignment.share(200, run=77_777)
    assert len(share) == 1 << 20
    assert len(set(share.lanes.tolist())) <= 2
