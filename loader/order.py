"""The order of a dataset: where each row lies, and which row comes when.

Theory of operation
===================
A dataset of N rows has L lanes. With k = ceil(log2 L), σ is the lanes 0..L-1 sorted by the reversal of their k bits, and ρ
its inverse. Number i lies in lane σ[i mod L] at place i div L; the inverse is place · L + ρ(lane). This arithmetic serves
twice:

* written order: row i of the dataset is row i div L of lane σ[i mod L];
* an epoch: position p is the (p div L)-th step of the *epoch's sequence* of lane σ[p mod L].

A lane's sequence visits the lane's blocks one after another in a permuted order, and the rows of each block in a permuted
order: the window that is shuffled at once is one block. Permutations are stable sorts of Philox4x64-10 raw output.

Invariants: integers only; a pure function of (dataset digest, seed, epoch, lane) and the blocks' rows; seeking costs O(1) in
the position, and nothing of the size of N is ever built. This module does not know ranks, batches or bytes.
"""

from __future__ import annotations

import functools
import struct
from typing import Any, Final

import blake3
import numpy as np
import numpy.typing as npt

from loader.errors import InvalidOption

__all__ = [
    "MAX_LANES",
    "MAX_ROWS",
    "ORDER_ALGORITHM",
    "LaneOrder",
    "lane_lengths",
    "lane_permutation",
    "lane_ranks",
    "locate_position",
    "locate_row",
    "position_number",
    "row_number",
]

Int64s = npt.NDArray[np.int64]

ORDER_ALGORITHM: Final = "lane-philox-1"
MAX_LANES: Final = 1 << 16
MAX_ROWS: Final = 1 << 48
_KEY_CONTEXT: Final = b"forebay lane-philox-1\0"


@functools.lru_cache(maxsize=64)
def _permutations(num_lanes: int) -> tuple[Int64s, Int64s]:
    if not 1 <= num_lanes <= MAX_LANES:
        raise InvalidOption(f"num_lanes={num_lanes}: expected 1 to {MAX_LANES}")
    lanes = np.arange(num_lanes, dtype=np.int64)
    num_bits = (num_lanes - 1).bit_length()
    reversed_bits = np.zeros(num_lanes, np.int64)
    for bit in range(num_bits):
        reversed_bits |= ((lanes >> bit) & 1) << (num_bits - 1 - bit)
    sigma = np.argsort(reversed_bits, kind="stable").astype(np.int64)
    rho = np.empty_like(sigma)
    rho[sigma] = lanes
    for shared in (sigma, rho):
        shared.flags.writeable = False
    return sigma, rho


def lane_permutation(num_lanes: int) -> Int64s:
    """σ: ``lane_permutation(L)[i % L]`` is the lane of row (or position) i. Read-only."""
    return _permutations(num_lanes)[0]


def lane_ranks(num_lanes: int) -> Int64s:
    """ρ, the inverse of σ: ``lane_ranks(L)[lane]`` is i % L for the rows (or positions) of the lane. Read-only."""
    return _permutations(num_lanes)[1]


def lane_lengths(num_rows: int, num_lanes: int) -> Int64s:
    """Rows of each lane [num_lanes]: N div L, and one more where ρ(lane) < N mod L."""
    quotient, remainder = divmod(num_rows, num_lanes)
    return quotient + (lane_ranks(num_lanes) < remainder).astype(np.int64)


def locate_row(row: npt.ArrayLike, *, num_lanes: int) -> tuple[Int64s, Int64s]:
    """Lane, and index in the lane, of each row number; vectorised."""
    index, residue = np.divmod(_integers(row), num_lanes)
    return lane_permutation(num_lanes)[residue], index


def row_number(lane: npt.ArrayLike, index: npt.ArrayLike, *, num_lanes: int) -> Int64s:
    """Inverse of `locate_row`."""
    return _integers(index) * num_lanes + lane_ranks(num_lanes)[_integers(lane)]


def locate_position(position: npt.ArrayLike, *, num_lanes: int) -> tuple[Int64s, Int64s]:
    """Lane, and step in the lane's sequence of the epoch, of each position of an epoch; vectorised.

    The same arithmetic as `locate_row`, so that every lane is consumed as evenly as it was written.
    """
    return locate_row(position, num_lanes=num_lanes)


def position_number(lane: npt.ArrayLike, step: npt.ArrayLike, *, num_lanes: int) -> Int64s:
    """Inverse of `locate_position`."""
    return row_number(lane, step, num_lanes=num_lanes)


def _integers(values: npt.ArrayLike) -> Int64s:
    array: npt.NDArray[Any] = np.asarray(values)
    if array.dtype.kind not in "iu" and array.size:
        raise TypeError(f"expected integers, found {array.dtype}")
    return array.astype(np.int64, copy=False)


_FEW: Final = 512  # Numbers that the stable sort takes no longer for than the other, with a look at what it did.


class LaneOrder:
    """One lane's sequence in one epoch: which row of the lane comes at which step.

    Parameters
    ----------
    digest : str
        The dataset's digest, 64 hex digits.
    seed, epoch : int
        Each from 0 to 2**64 - 1.
    lane : int
        The lane's number.
    block_rows : int array [blocks]
        Rows of each of the lane's blocks, from its `BlockTable`.
    shuffle : bool
        False is written order.

    Attributes
    ----------
    visits : int64 [blocks]
        The block that each visit is to.
    visit_ends : int64 [blocks]
        How many steps there are up to and including each visit.
    """

    __slots__ = ("_block_rows", "_block_starts", "_key", "_shuffle", "visit_ends", "visits")

    def __init__(
        self, *, digest: str, seed: int, epoch: int, lane: int, block_rows: npt.ArrayLike, shuffle: bool = True
    ) -> None:
        self._block_rows = _integers(block_rows)
        self._block_starts = self._block_rows.cumsum() - self._block_rows
        self._shuffle = shuffle
        self._key = _philox_key(digest, seed=seed, epoch=epoch, lane=lane)
        num_blocks = len(self._block_rows)
        self.visits: Int64s = self._permutation(num_blocks, stream=0) if shuffle else np.arange(num_blocks, dtype=np.int64)
        self.visit_ends: Int64s = self._block_rows[self.visits].cumsum()

    def locate(self, steps: npt.ArrayLike) -> tuple[Int64s, Int64s]:
        """For each step, the number of its visit and its place in that visit."""
        wanted = _integers(steps)
        visit = np.searchsorted(self.visit_ends, wanted, side="right").astype(np.int64)
        starts = self.visit_ends[visit] - self._block_rows[self.visits[visit]]
        return visit, wanted - starts

    def rows_of_visit(self, visit: int) -> Int64s:
        """For each place in a visit, the row's number within the block that is visited. Computed anew at each call."""
        block = int(self.visits[visit])
        num_rows = int(self._block_rows[block])
        return self._permutation(num_rows, stream=1 + block) if self._shuffle else np.arange(num_rows, dtype=np.int64)

    def block_start(self, block: int) -> int:
        """The index in the lane of a block's first row."""
        return int(self._block_starts[block])

    def _permutation(self, count: int, *, stream: int) -> Int64s:
        if count == 1:
            return np.zeros(1, np.int64)
        draws = _draws(self._key, stream=stream, count=count)
        if count > _FEW:
            # numpy's default sort is faster than its stable one then, and gives the same unless two draws are equal.
            order = draws.argsort()
            ordered = draws[order]
            if not (ordered[1:] == ordered[:-1]).any():
                return order.astype(np.int64, copy=False)
        return draws.argsort(kind="stable").astype(np.int64, copy=False)


# Generators that are not in use, one for each thread that has needed one: making one takes ten times as long as this.
_idle: list[np.random.Philox] = []
_NEW_STATE: Final = np.random.Philox(key=0).state  # Nothing is left of a block of four draws.


def _draws(key: npt.NDArray[np.uint64], *, stream: int, count: int) -> npt.NDArray[np.uint64]:
    """The first draws of a stream. Only raw output: numpy promises that its bits stay, not what distributions make of them."""
    try:
        philox = _idle.pop()
    except IndexError:
        philox = np.random.Philox(key=0)
    philox.state = {**_NEW_STATE, "state": {"key": key, "counter": np.array([0, 0, 0, stream], np.uint64)}}
    draws = philox.random_raw(count)
    _idle.append(philox)
    return draws


def _philox_key(digest: str, *, seed: int, epoch: int, lane: int) -> npt.NDArray[np.uint64]:
    for name, value in (("seed", seed), ("epoch", epoch)):
        if not 0 <= value < 1 << 64:
            raise InvalidOption(f"{name}={value}: expected 0 to 2**64 - 1")
    material = _KEY_CONTEXT + bytes.fromhex(digest) + struct.pack("<QQQ", seed, epoch, lane)
    return np.frombuffer(blake3.blake3(material).digest(length=16), "<u8").astype(np.uint64)
