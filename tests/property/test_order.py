"""Lane orders are permutations and pure functions, and an epoch visits each row of the dataset exactly once."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from loader.assignment import Assignment
from loader.order import LaneOrder, lane_lengths, locate_position, locate_row, position_number, row_number

digests = st.binary(min_size=32, max_size=32).map(bytes.hex)
seeds = st.integers(0, 2**64 - 1)


def cut(num_rows: int, *, block_rows: int) -> list[int]:
    return [min(block_rows, num_rows - start) for start in range(0, num_rows, block_rows)]


def index_at_each_step(order: LaneOrder, num_rows: int) -> list[int]:
    visits, places = order.locate(np.arange(num_rows))
    return [
        order.block_start(int(order.visits[visit])) + int(order.rows_of_visit(int(visit))[place])
        for visit, place in zip(visits, places, strict=True)
    ]


@given(digests, seeds, seeds, st.integers(0, 65_535), st.lists(st.integers(1, 40), max_size=8), st.booleans())
def test_lane_order_is_a_permutation_and_a_pure_function(
    digest: str, seed: int, epoch: int, lane: int, block_rows: list[int], shuffle: bool
) -> None:
    made, again = (
        LaneOrder(digest=digest, seed=seed, epoch=epoch, lane=lane, block_rows=block_rows, shuffle=shuffle) for _ in range(2)
    )
    num_rows = sum(block_rows)
    indexes = index_at_each_step(made, num_rows)
    assert sorted(indexes) == list(range(num_rows))
    assert indexes == index_at_each_step(again, num_rows)
    if not shuffle:
        assert indexes == list(range(num_rows))
    # Rows of one block come together: the reader holds one block of a lane at a time.
    blocks = np.repeat(np.arange(len(block_rows)), block_rows)[indexes].tolist()
    assert len([1 for before, after in pairwise(blocks) if before != after]) == max(0, len(block_rows) - 1)


@given(digests, seeds, st.integers(0, 1000), st.integers(0, 65_534))
def test_digest_seed_epoch_and_lane_each_change_the_order(digest: str, seed: int, epoch: int, lane: int) -> None:
    def rows(**changes: Any) -> tuple[int, ...]:
        options: dict[str, Any] = {"digest": digest, "seed": seed, "epoch": epoch, "lane": lane}
        return tuple(map(int, LaneOrder(**options | changes, block_rows=[200]).rows_of_visit(0)))

    other = ("00" if digest[:2] != "00" else "01") + digest[2:]
    orders = [rows(), rows(seed=seed ^ 1), rows(epoch=epoch + 1), rows(lane=lane + 1), rows(digest=other)]
    assert len(set(orders)) == 5


@given(digests, st.integers(0, 300), st.integers(1, 40), st.integers(1, 9), st.integers(1, 9), st.integers(1, 9), st.booleans())
def test_epoch_visits_each_row_once(
    digest: str, num_rows: int, num_lanes: int, block_rows: int, world_size: int, batch_size: int, shuffle: bool
) -> None:
    sequences = []
    for lane, length in enumerate(lane_lengths(num_rows, num_lanes).tolist()):
        order = LaneOrder(
            digest=digest, seed=5, epoch=1, lane=lane, block_rows=cut(length, block_rows=block_rows), shuffle=shuffle
        )
        sequences.append(index_at_each_step(order, length))
    assignment = Assignment(num_rows=num_rows, num_lanes=num_lanes, world_size=world_size, batch_size=batch_size)
    rows = np.full(num_rows, -1)
    for run in range(world_size):
        for share in assignment.shares(run=run):
            for lane, step, position in zip(share.lanes, share.steps, share.positions, strict=True):
                rows[position] = row_number(lane, sequences[lane][step], num_lanes=num_lanes)
    assert sorted(rows.tolist()) == list(range(num_rows))
    if not shuffle:
        assert rows.tolist() == list(range(num_rows))


@given(st.lists(st.integers(0, 1 << 48), max_size=20), st.integers(1, 2000))
def test_locating_is_one_to_one(numbers: list[int], num_lanes: int) -> None:
    assert row_number(*locate_row(numbers, num_lanes=num_lanes), num_lanes=num_lanes).tolist() == numbers
    assert position_number(*locate_position(numbers, num_lanes=num_lanes), num_lanes=num_lanes).tolist() == numbers
