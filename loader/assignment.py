"""Which rows of an epoch each rank gets, batch by batch.

A global batch is the next G = world_size · batch_size positions of the epoch, whoever computes them: batch k after a start at
c is the positions [c + kG, min(N, c + (k+1)G)). Sorted by (lane, step), it is cut into runs: run r gets rows [rB, (r+1)B), so
that each rank reads few lanes. Lanes may be sorted in any order, such as one that brings them to ranks near their data
(`loader.placed`): then the runs are others, and the batches the same. A short last batch of m rows is cut evenly: with
q, e = divmod(m, W), run r gets q + [r < e] rows, and the tail rule says what becomes of it:

* ``pad``: if e > 0, each run r >= e repeats row (r - e) mod m of this same batch, marked, so that all have q + 1;
* ``drop``: there is no short batch;
* ``uneven``: runs keep what they got, which may be nothing.

Invariants: integers only, pure. The set of each global batch depends on G and the start alone, not on W, B or the cluster.
The rows of a lane within a range of positions are arithmetic, so a share costs O(its rows + L), whatever G is. This module
does not know what the steps of a lane are (`loader.order`). Where several datasets are mixed, their lanes are numbered through
and `loader.mixture` says which steps lie before a position; all else is the same.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
import numpy.typing as npt

from loader.errors import InvalidOption
from loader.mixture import Mixture, MixtureEpoch
from loader.order import MAX_LANES, MAX_ROWS, lane_permutation, lane_ranks, position_number

__all__ = ["TAILS", "Assignment", "Share", "Split", "Tail", "run_of_rank"]

Int64s = npt.NDArray[np.int64]
Tail = Literal["pad", "drop", "uneven"]

TAILS: Final[tuple[Tail, ...]] = ("pad", "drop", "uneven")
MAX_WORLD_SIZE: Final = 1 << 20
MAX_BATCH_SIZE: Final = 1 << 24


def run_of_rank(rank: int, *, epoch: int, world_size: int, rotate: bool) -> int:
    """The run that `rank` takes in `epoch`.

    A run's rows come from few lanes; rotating by epoch lets every rank see all of them in turn. Without it a rank keeps its
    lanes, which is what a local cache wants.
    """
    if not 0 <= rank < world_size:
        raise InvalidOption(f"rank={rank}: expected 0 to {world_size - 1} with world_size={world_size}")
    return (rank + epoch) % world_size if rotate else rank


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Share:
    """The rows of one run in one or several successive batches, in the order they are delivered.

    Attributes
    ----------
    lanes, steps : int64 [rows]
        Lane of each row, and step in the lane's sequence of the epoch.
    pad : bool [rows]
        Whether the row is a repetition that fills a short last batch.
    ends : int64 [batches]
        How many rows there are up to and including each batch.
    num_lanes : int
        Lanes of all that is read.
    """

    lanes: Int64s
    steps: Int64s
    pad: npt.NDArray[np.bool_]
    ends: Int64s
    num_lanes: int

    def __len__(self) -> int:
        return len(self.lanes)

    @property
    def positions(self) -> Int64s:
        """Position of each row in the epoch of one dataset."""
        return position_number(self.lanes, self.steps, num_lanes=self.num_lanes)

    def part(self, first: int, end: int) -> Share:
        """The batches ``[first, end)`` of these."""
        start, ends = int(self.ends[first - 1]) if first else 0, self.ends[first:end]
        rows = slice(start, int(ends[-1]))
        return Share(
            lanes=self.lanes[rows], steps=self.steps[rows], pad=self.pad[rows], ends=ends - start, num_lanes=self.num_lanes
        )

    def every(self, step: int) -> Share:
        """Every `step`-th of these batches, from the first on."""
        sizes = np.diff(self.ends, prepend=0)
        wanted = np.arange(len(sizes)) % step == 0
        rows = np.repeat(wanted, sizes)
        return Share(
            lanes=self.lanes[rows],
            steps=self.steps[rows],
            pad=self.pad[rows],
            ends=np.cumsum(sizes[wanted]),
            num_lanes=self.num_lanes,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Assignment:
    """The batches of one epoch, from position `start` on.

    Parameters
    ----------
    num_rows, num_lanes : int
        N and L: positions of the epoch, and lanes of all that is read.
    world_size : int
        Number of data-parallel ranks, W.
    batch_size : int
        Rows of one rank in one batch, B.
    start : int
        Samples of this epoch that are consumed already, 0 to N.
    tail : str
        What becomes of a short last batch: ``pad``, ``drop`` or ``uneven``.
    lane_order : tuple of int
        All lanes, in the order by which batches are cut into runs; ascending if left out.
    mixture : MixtureEpoch, optional
        How several datasets share the positions; all are one dataset's if left out.

    Raises
    ------
    InvalidOption
        If one of them is out of range.
    """

    num_rows: int
    num_lanes: int
    world_size: int = 1
    batch_size: int
    start: int = 0
    tail: Tail = "pad"
    lane_order: tuple[int, ...] = ()
    mixture: MixtureEpoch | None = None

    def __post_init__(self) -> None:
        limits = {
            "num_rows": (self.num_rows, 0, MAX_ROWS),
            "num_lanes": (self.num_lanes, 1, MAX_LANES),
            "world_size": (self.world_size, 1, MAX_WORLD_SIZE),
            "batch_size": (self.batch_size, 1, MAX_BATCH_SIZE),
            "start": (self.start, 0, self.num_rows),
        }
        for name, (value, least, most) in limits.items():
            if not least <= value <= most:
                raise InvalidOption(f"{name}={value}: expected {least} to {most}")
        if self.tail not in TAILS:
            raise InvalidOption(f"tail={self.tail!r}: expected one of {', '.join(TAILS)}")
        if self.lane_order and sorted(self.lane_order) != list(range(self.num_lanes)):
            raise InvalidOption(f"lane_order={str(self.lane_order)[:200]}: expected each lane, 0 to {self.num_lanes - 1}, once")

    @property
    def global_batch_size(self) -> int:
        """Rows of all ranks in one batch, G."""
        return self.world_size * self.batch_size

    def num_batches(self, *, run: int = 0) -> int:
        """How many batches a run gets. Only ``uneven`` lets runs differ, by one; run 0 never gets fewer than another."""
        full, short = divmod(self.num_rows - self.start, self.global_batch_size)
        quotient, extra = divmod(short, self.world_size)
        match self.tail:
            case "pad":
                return full + (short > 0)
            case "drop":
                return full
            case "uneven":
                return full + (quotient + (run < extra) > 0)

    def consumed(self, batches: int) -> int:
        """Position of the epoch, and so samples consumed, after this many batches; resuming there goes on exactly."""
        return min(self.num_rows, self.start + batches * self.global_batch_size)

    def share(self, batch: int, *, run: int, count: int = 1) -> Share:
        """The rows of `run` in the batches `batch` to `batch + count - 1`, computed together.

        Parameters
        ----------
        batch : int
            Number of the first batch since `start`.
        run : int
            0 to W - 1; see `run_of_rank`.
        count : int
            How many batches; at least one.

        Raises
        ------
        IndexError
            If there is no such batch in any run. A run that ``uneven`` leaves without rows gets an empty share.
        """
        if not (batch >= 0 and count >= 1 and batch + count <= self.num_batches() and 0 <= run < self.world_size):
            raise IndexError(
                f"batches {batch} to {batch + count - 1} of run {run}: "
                f"there are {self.num_batches()} batches and {self.world_size} runs"
            )
        bounds = np.minimum(self.start + np.arange(batch, batch + count + 1) * self.global_batch_size, self.num_rows)
        low = np.full(count, run * self.batch_size, np.int64)
        high = low + self.batch_size
        repeated = None
        size = int(bounds[-1] - bounds[-2])
        if size < self.global_batch_size:
            quotient, extra = divmod(size, self.world_size)
            low[-1] = run * quotient + min(run, extra)
            high[-1] = low[-1] + quotient + (run < extra)
            if self.tail == "pad" and 0 < extra <= run:
                repeated = (run - extra) % size
        lanes, steps = self._rows(bounds, low=low, high=high)
        ends = np.cumsum(high - low)
        pad = np.zeros(len(lanes), np.bool_)
        if repeated is not None:
            index = np.array([repeated], np.int64)
            lane, step = self._rows(bounds[-2:], low=index, high=index + 1)
            lanes, steps, pad = np.append(lanes, lane), np.append(steps, step), np.append(pad, True)
            ends[-1] += 1
        return Share(lanes=lanes, steps=steps, pad=pad, ends=ends, num_lanes=self.num_lanes)

    def shares(self, *, run: int, first: int = 0) -> Iterator[Share]:
        """The shares of `run` from batch `first` on, one batch each: what a run will need, in order, for fetching ahead."""
        for batch in range(first, self.num_batches(run=run)):
            yield self.share(batch, run=run)

    def steps(self, bounds: Int64s) -> Int64s:
        """The first step of each lane that lies at or after each position [bounds, lanes]."""
        if self.mixture is not None:
            return self.mixture.steps(bounds)
        # ceil((bound - ρ) / L), floor division being exact.
        return -((lane_ranks(self.num_lanes) - bounds[:, None]) // self.num_lanes)

    def _rows(self, bounds: Int64s, *, low: Int64s, high: Int64s) -> tuple[Int64s, Int64s]:
        """Lanes and steps of rows low[k] to high[k] of each batch k, the positions bounds[k] to bounds[k + 1] by lane."""
        if self.mixture is not None:
            return self._rows_of_large_batches(bounds, low=low, high=high)
        if self.global_batch_size <= self.num_lanes:
            return self._rows_of_small_batches(bounds, low=low, high=high)
        cycles, rest = divmod(self.global_batch_size, self.num_lanes)
        full = int(np.count_nonzero(np.diff(bounds) == self.global_batch_size))
        if rest or full < 2:
            return self._rows_of_large_batches(bounds, low=low, high=high)
        # Each full batch takes the same number of steps from a lane: what the first one reads is read by all, later.
        lanes, steps = self._rows_of_large_batches(bounds[:2], low=low[:1], high=high[:1])
        steps = (steps + cycles * np.arange(full)[:, None]).ravel()
        lanes = np.tile(lanes, full)
        if full < len(low):
            last = self._rows_of_large_batches(bounds[full:], low=low[full:], high=high[full:])
            lanes, steps = np.append(lanes, last[0]), np.append(steps, last[1])
        return lanes, steps

    def _rows_of_small_batches(self, bounds: Int64s, *, low: Int64s, high: Int64s) -> tuple[Int64s, Int64s]:
        """As `_rows`, where no batch has two rows of a lane: its positions are sorted by lane."""
        num_lanes = self.num_lanes
        order, places = _lane_order(self.lane_order, num_lanes)
        sizes = np.diff(bounds)
        batches = np.repeat(np.arange(len(sizes)), sizes)
        keys = np.sort(batches * num_lanes + places[np.arange(bounds[0], bounds[-1]) % num_lanes])
        if bool(np.any(high - low < sizes)):
            within = np.arange(len(keys)) - (bounds[:-1] - bounds[0])[batches]
            chosen = (within >= low[batches]) & (within < high[batches])
            batches, keys = batches[chosen], keys[chosen]
        lanes = order[keys - batches * num_lanes]
        # The first step of the lane at or after the batch's begin, as in `steps`.
        return lanes, -((lane_ranks(num_lanes)[lanes] - bounds[batches]) // num_lanes)

    def _rows_of_large_batches(self, bounds: Int64s, *, low: Int64s, high: Int64s) -> tuple[Int64s, Int64s]:
        """As `_rows`, by counting the rows that each batch has of each lane."""
        order, _ = _lane_order(self.lane_order, self.num_lanes)
        steps = self.steps(bounds)[:, order]
        counts = steps[1:] - steps[:-1]
        before = np.cumsum(counts, axis=1) - counts
        skipped = np.clip(low[:, None] - before, 0, counts)
        taken = (np.clip(high[:, None] - before, 0, counts) - skipped).ravel()
        cells = np.repeat(np.arange(taken.size), taken)
        within = np.arange(cells.size) - (np.cumsum(taken) - taken)[cells]
        return order[cells % self.num_lanes], (steps[:-1] + skipped).ravel()[cells] + within


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """How any epoch of a stream is split among the ranks.

    Attributes
    ----------
    rank, rotate
        As for `run_of_rank`.
    mixture : Mixture, optional
        How several datasets share the positions.
    num_rows, num_lanes, world_size, batch_size, tail
        As for `Assignment`.
    """

    rank: int
    rotate: bool
    num_rows: int
    num_lanes: int
    world_size: int
    batch_size: int
    tail: Tail
    mixture: Mixture | None = None

    def assignment(self, epoch: int, *, start: int = 0, lane_order: tuple[int, ...] = ()) -> Assignment:
        """The batches of an epoch from a position on."""
        return Assignment(
            num_rows=self.num_rows,
            num_lanes=self.num_lanes,
            world_size=self.world_size,
            batch_size=self.batch_size,
            start=start,
            tail=self.tail,
            lane_order=lane_order,
            mixture=None if self.mixture is None else self.mixture.epoch(epoch),
        )

    def run(self, epoch: int) -> int:
        """The run that this rank takes in an epoch."""
        return run_of_rank(self.rank, epoch=epoch, world_size=self.world_size, rotate=self.rotate)


@functools.lru_cache(maxsize=64)
def _lane_order(lane_order: tuple[int, ...], num_lanes: int) -> tuple[Int64s, Int64s]:
    """The lanes in the order of the runs, and for each residue of positions the place of its lane in that order."""
    order = np.array(lane_order, np.int64) if lane_order else np.arange(num_lanes)
    places = np.empty_like(order)
    places[order] = np.arange(num_lanes)
    places = places[lane_permutation(num_lanes)]
    for shared in (order, places):
        shared.flags.writeable = False
    return order, places
