"""Assignment against a naive reference, for any world size, batch size, tail, and chain of resumes into others."""

from __future__ import annotations

import random
from collections import Counter

from hypothesis import example, given
from hypothesis import strategies as st

from loader.assignment import TAILS, Assignment, Tail, run_of_rank

rows_and_lanes = st.tuples(st.integers(0, 500), st.integers(1, 100))
worlds = st.integers(1, 130)
batch_sizes = st.integers(1, 64)
tails = st.sampled_from(TAILS)
# None is the usual order of lanes; else a seed of another one.
order_seeds = st.none() | st.integers(0, 99)


def lane_order(num_lanes: int, *, seed: int | None) -> tuple[int, ...]:
    return () if seed is None else tuple(random.Random(seed).sample(range(num_lanes), num_lanes))


def lane_and_step(position: int, *, num_lanes: int) -> tuple[int, int]:
    width = (num_lanes - 1).bit_length()
    sigma = sorted(range(num_lanes), key=lambda lane: [lane >> bit & 1 for bit in range(width)])
    return sigma[position % num_lanes], position // num_lanes


def naive_batches(assignment: Assignment) -> list[list[list[tuple[int, bool]]]]:
    """(position, pad) of each row, by batch and run, written down from the definition."""
    world, size = assignment.world_size, assignment.batch_size
    batches = []
    order = assignment.lane_order or range(assignment.num_lanes)

    def by_lane(position: int) -> tuple[int, int]:
        lane, step = lane_and_step(position, num_lanes=assignment.num_lanes)
        return order.index(lane), step

    for first in range(assignment.start, assignment.num_rows, world * size):
        rows = sorted(range(first, min(assignment.num_rows, first + world * size)), key=by_lane)
        if len(rows) == world * size:
            batches.append([[(row, False) for row in rows[run * size : (run + 1) * size]] for run in range(world)])
        elif assignment.tail != "drop":
            quotient, extra = divmod(len(rows), world)
            runs, rest = [], iter(rows)
            for run in range(world):
                runs.append([(next(rest), False) for _ in range(quotient + (run < extra))])
                if assignment.tail == "pad" and extra > 0 and run >= extra:
                    runs[-1].append((rows[(run - extra) % len(rows)], True))
            batches.append(runs)
    return batches


@given(rows_and_lanes, worlds, batch_sizes, st.floats(0, 1), tails, order_seeds)
@example((0, 1), 1, 1, 0.0, "pad", None)
@example((1, 8), 4, 2, 0.0, "pad", None)
@example((5, 100), 130, 1, 0.0, "pad", None)
@example((500, 100), 130, 1, 0.0, "uneven", 1)
def test_shares_are_those_of_the_definition(
    shape: tuple[int, int], world_size: int, batch_size: int, part: float, tail: Tail, order_seed: int | None
) -> None:
    num_rows, num_lanes = shape
    assignment = Assignment(
        num_rows=num_rows,
        num_lanes=num_lanes,
        world_size=world_size,
        batch_size=batch_size,
        start=int(part * num_rows),
        tail=tail,
        lane_order=lane_order(num_lanes, seed=order_seed),
    )
    expected = naive_batches(assignment)
    assert assignment.num_batches() == len(expected)
    for run in range(world_size):
        mine = [runs[run] for runs in expected if runs[run]]
        assert assignment.num_batches(run=run) == len(mine)
        for batch, rows in enumerate(mine):
            share = assignment.share(batch, run=run)
            assert list(zip(share.positions.tolist(), share.pad.tolist(), strict=True)) == rows
            places = [lane_and_step(position, num_lanes=num_lanes) for position, _ in rows]
            assert list(zip(share.lanes.tolist(), share.steps.tolist(), strict=True)) == places
            assert share.ends.tolist() == [len(rows)]


@given(rows_and_lanes, st.integers(1, 12), batch_sizes, tails, st.data())
def test_batches_computed_together_are_those_computed_alone(
    shape: tuple[int, int], world_size: int, batch_size: int, tail: Tail, data: st.DataObject
) -> None:
    assignment = Assignment(num_rows=shape[0], num_lanes=shape[1], world_size=world_size, batch_size=batch_size, tail=tail)
    run = data.draw(st.integers(0, world_size - 1))
    if assignment.num_batches():
        first = data.draw(st.integers(0, assignment.num_batches() - 1))
        count = data.draw(st.integers(1, assignment.num_batches() - first))
        together = assignment.share(first, run=run, count=count)
        alone = [assignment.share(first + batch, run=run) for batch in range(count)]
        for name in ("lanes", "steps", "positions", "pad"):
            assert getattr(together, name).tolist() == [value for share in alone for value in getattr(share, name).tolist()]
        lengths = [len(share) for share in alone]
        assert together.ends.tolist() == [sum(lengths[: batch + 1]) for batch in range(count)]


stops_on_the_way = st.lists(st.tuples(worlds, batch_sizes, st.integers(0, 4), order_seeds), max_size=5)


@given(rows_and_lanes, stops_on_the_way, worlds, batch_sizes, tails)
def test_chain_of_resumes_loses_and_repeats_nothing(
    shape: tuple[int, int], stops: list[tuple[int, int, int, int | None]], last_world: int, last_batch: int, tail: Tail
) -> None:
    num_rows, num_lanes = shape
    start, seen = 0, []
    for world_size, batch_size, batches, order_seed in [*stops, (last_world, last_batch, num_rows, None)]:
        assignment = Assignment(
            num_rows=num_rows,
            num_lanes=num_lanes,
            world_size=world_size,
            batch_size=batch_size,
            start=start,
            tail=tail,
            lane_order=lane_order(num_lanes, seed=order_seed),
        )
        order = assignment.lane_order or range(num_lanes)
        batches = min(batches, assignment.num_batches())
        for batch in range(batches):
            shares = [assignment.share(batch, run=run) for run in range(world_size)]
            rows = [row for share in shares for row in share.positions[~share.pad].tolist()]
            first, end = assignment.consumed(batch), assignment.consumed(batch + 1)
            # In the order of the runs a global batch is sorted by lane; by position it is the next stretch of the epoch.
            places = [lane_and_step(row, num_lanes=num_lanes) for row in rows]
            sorted_by = [(order.index(lane), step) for lane, step in places]
            assert sorted_by == sorted(sorted_by)
            assert sorted(rows) == list(range(first, end))
            pads = [row for share in shares for row in share.positions[share.pad].tolist()]
            assert len(pads) < world_size
            assert set(pads) <= set(rows)
            if tail == "pad":
                assert len({len(share) for share in shares}) == 1
            seen += rows
        start = assignment.consumed(batches)
    lost = num_rows - len(seen)
    assert sorted(seen) == list(range(len(seen)))
    assert lost < last_world * last_batch if tail == "drop" else lost == 0


@given(rows_and_lanes, st.sampled_from([1, 6, 12, 24, 60]), tails)
def test_equal_global_batch_sizes_have_equal_global_batches(shape: tuple[int, int], global_size: int, tail: Tail) -> None:
    batches = []
    for world_size in (size for size in range(1, global_size + 1) if global_size % size == 0):
        assignment = Assignment(
            num_rows=shape[0], num_lanes=shape[1], world_size=world_size, batch_size=global_size // world_size, tail=tail
        )
        rows = []
        for batch in range(assignment.num_batches()):
            shares = [assignment.share(batch, run=run) for run in range(world_size)]
            rows.append([row for share in shares for row in share.positions[~share.pad].tolist()])
        batches.append(rows)
    assert all(rows == batches[0] for rows in batches)


@given(st.integers(1, 130), st.integers(0, 1000), st.booleans())
def test_ranks_and_runs_are_one_to_one(world_size: int, epoch: int, rotate: bool) -> None:
    runs = Counter(run_of_rank(rank, epoch=epoch, world_size=world_size, rotate=rotate) for rank in range(world_size))
    assert runs == Counter(range(world_size))
