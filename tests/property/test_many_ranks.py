"""Far more ranks than lanes: each global batch still covered exactly once, at a cost for each rank that others don't add to."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from loader.assignment import Assignment, Split
from loader.mixture import Component, Mixture

RANKS, ROWS_EACH, LANES = 8000, 4, 1024
SIZE = RANKS * ROWS_EACH
MIXTURE = Mixture(
    components=(
        Component(digest="0a" * 32, num_rows=50_000_000, num_lanes=LANES, weight=3000),
        Component(digest="0b" * 32, num_rows=3_000, num_lanes=64, weight=1096),
    ),
    seed=1,
    epoch_samples=10_000_007,
)


def assignment_of(mixture: Mixture | None) -> Assignment:
    num_lanes = LANES if mixture is None else len(mixture.lanes)
    split = Split(
        rank=0,
        rotate=True,
        num_rows=10_000_007,
        num_lanes=num_lanes,
        world_size=RANKS,
        batch_size=ROWS_EACH,
        tail="pad",
        mixture=mixture,
    )
    return split.assignment(3, start=5, lane_order=() if mixture is None else mixture.lane_order)


@pytest.mark.parametrize(("mixture", "batch"), [(None, 100), (None, -1), (MIXTURE, 100)])
def test_eight_thousand_ranks_cover_a_global_batch_once(mixture: Mixture | None, batch: int) -> None:
    assignment = assignment_of(mixture)
    batch %= assignment.num_batches()
    lanes, steps, most_lanes = [], [], 0
    for rank in range(RANKS):
        share = assignment.share(batch, run=rank)
        most_lanes = max(most_lanes, len(set(share.lanes.tolist())))
        lanes.append(share.lanes[~share.pad])
        steps.append(share.steps[~share.pad])
    first, end = assignment.consumed(batch), assignment.consumed(batch + 1)
    bounds = assignment.steps(np.array([first, end]))
    found = np.stack([np.concatenate(lanes), np.concatenate(steps)])
    expected = np.concatenate(
        [
            np.stack([np.full(last - start, lane), np.arange(start, last)])
            for lane, (start, last) in enumerate(bounds.T.tolist())
        ],
        axis=1,
    )
    assert found.shape == (2, end - first)
    assert (found[:, np.lexsort(found[::-1])] == expected[:, np.lexsort(expected[::-1])]).all()
    assert most_lanes <= ROWS_EACH


@pytest.mark.parametrize("mixture", [None, MIXTURE])
def test_share_of_one_rank_takes_memory_for_its_rows_and_the_lanes_only(mixture: Mixture | None) -> None:
    assignment = assignment_of(mixture)
    assignment.share(100, run=17)
    tracemalloc.start()
    try:
        assignment.share(101, run=4711)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    # Some arrays of a number for each lane and bound, and of a mixture some permutations of a round; not SIZE numbers of them.
    assert peak_bytes < 16 * 8 * 2 * (assignment.num_lanes + ROWS_EACH) + (0 if mixture is None else 1 << 19)
    assert 4 * peak_bytes < 8 * SIZE * 16
