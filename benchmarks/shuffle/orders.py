"""Forebay's order of an epoch, computed as a stream computes it, and the full shuffle. No data are needed."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from loader.assignment import Assignment
from loader.order import LaneOrder, lane_lengths, row_number

__all__ = ["forebay", "full"]

Int64s = npt.NDArray[np.int64]

_SHARE_ROWS = 1 << 16


def forebay(num_rows: int, *, num_lanes: int, block_rows: int, batch_size: int, seed: int) -> Int64s:
    """The rows of one rank's batches, one after another."""
    steps = np.empty((num_lanes, -(-num_rows // num_lanes)), np.int64)
    for lane, rows in enumerate(lane_lengths(num_rows, num_lanes).tolist()):
        blocks = [min(block_rows, rows - start) for start in range(0, rows, block_rows)]
        order = LaneOrder(digest="00" * 32, seed=seed, epoch=0, lane=lane, block_rows=blocks)
        visits = enumerate(order.visits.tolist())
        indexes = np.concatenate([order.block_start(block) + order.rows_of_visit(visit) for visit, block in visits])
        steps[lane, :rows] = row_number(np.full(rows, lane), indexes, num_lanes=num_lanes)
    assignment = Assignment(num_rows=num_rows, num_lanes=num_lanes, batch_size=batch_size)
    batches, count = assignment.num_batches(), _SHARE_ROWS // batch_size
    shares = [assignment.share(first, run=0, count=min(count, batches - first)) for first in range(0, batches, count)]
    return np.concatenate([steps[share.lanes, share.steps] for share in shares])


def full(num_rows: int, *, seed: int) -> Int64s:
    """Any order as likely as any other."""
    return np.random.default_rng(seed).permutation(num_rows)
