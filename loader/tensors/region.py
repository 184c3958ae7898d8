"""A slice of a tensor as the ranges of bytes that it takes in a file, exactly.

Theory of operation
-------------------
An index of ints and slices selects, in C order, equal *runs* of adjacent bytes: from the last dimension that is cut back to the
end, everything is adjacent. Along the first dimension that is one run; along others there is one for each row of the
dimensions before. Runs that lie closer than `gap_bytes` are read as one *extent* and copied apart in memory: a request for
each would cost more than the bytes between them, and nodes check 64 KiB at a time anyway.

Pure: numpy for arithmetic on offsets, no I/O.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["Extent", "Region", "parse_index"]

Index = Any
Int64s = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Extent:
    """Adjacent bytes to read, and which of them are wanted.

    Attributes
    ----------
    start, end : int
        Bytes of the tensor.
    first : int
        The first run in it; its bytes are those from ``first * run_bytes`` on of the result.
    runs : int64 [runs]
        Where each run begins, counted from `start`.
    """

    start: int
    end: int
    first: int
    runs: Int64s


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Region:
    """What an index selects.

    Attributes
    ----------
    run_bytes : int
        Bytes of each run.
    starts : int64 [runs]
        Where each begins in the tensor; ascending, and in the order of the result.
    """

    run_bytes: int
    starts: Int64s

    @classmethod
    def of(cls, shape: Sequence[int], axes: Sequence[range], *, item_bytes: int) -> Region:
        """The elements at `axes`, a range of each dimension with a step of 1 or more, of a tensor of `shape`."""
        # The dimension at which adjacency ends: all after it are whole.
        cut = len(shape)
        while cut and axes[cut - 1] == range(shape[cut - 1]):
            cut -= 1
        inner = item_bytes * math.prod(shape[cut:])
        outer, last = axes[:cut], range(1)
        if outer and outer[-1].step == 1:
            outer, last = outer[:-1], outer[-1]
        starts = np.array([last.start * inner], np.int64)
        stride = inner * (shape[cut - 1] if len(outer) < cut else 1)
        for axis, size in zip(reversed(outer), reversed(shape[: len(outer)]), strict=True):
            steps = np.arange(axis.start, axis.stop, axis.step, dtype=np.int64) * stride
            starts = (steps[:, None] + starts).reshape(-1)
            stride *= size
        run_bytes = inner * len(last)
        return cls(run_bytes=run_bytes, starts=starts if run_bytes else starts[:0])

    @property
    def first(self) -> int:
        """Where the first run begins; there must be one."""
        return int(self.starts[0])

    @property
    def num_bytes(self) -> int:
        """Bytes of the result."""
        return self.run_bytes * len(self.starts)

    def extents(self, *, gap_bytes: int, most_bytes: int) -> Iterator[Extent]:
        """The extents that hold all runs, in order; none is longer than `most_bytes` unless a single run is."""
        if not self.num_bytes:
            return
        ends = self.starts + self.run_bytes
        breaks = np.flatnonzero(self.starts[1:] - ends[:-1] > gap_bytes) + 1
        for first, last in zip([0, *breaks.tolist()], [*breaks.tolist(), len(ends)], strict=True):
            while first < last:
                upto = int(np.searchsorted(ends[first:last], self.starts[first] + most_bytes, side="right"))
                stop = first + max(1, upto)
                start = int(self.starts[first])
                yield Extent(start=start, end=int(ends[stop - 1]), first=first, runs=self.starts[first:stop] - start)
                first = stop


def parse_index(shape: Sequence[int], index: Index) -> tuple[tuple[range, ...], tuple[bool, ...]]:
    """The places of each dimension that ``tensor[index]`` selects, and which dimensions it keeps: ints drop theirs, as ever.

    Raises
    ------
    IndexError
        For an int out of range, too many of them, or what is neither an int, a slice of a step of 1 or more, nor ``...``.
    """
    axes: list[range] = []
    kept: list[bool] = []
    for size, part in zip(shape, _full(index, len(shape)), strict=True):
        kept.append(isinstance(part, slice))
        if isinstance(part, slice):
            axis = range(*part.indices(size))
            if axis.step < 1:
                raise IndexError(f"a step of {axis.step}: expected 1 or more")
        elif -size <= part < size:
            axis = range(part % size, part % size + 1)
        else:
            raise IndexError(f"index {part} of a dimension of {size}")
        axes.append(axis)
    return tuple(axes), tuple(kept)


def _full(index: Index, num_dimensions: int) -> list[Any]:
    parts = list(index) if isinstance(index, tuple) else [index]
    if sum(part is Ellipsis for part in parts) > 1:
        raise IndexError("an index has at most one ...")
    given = sum(part is not Ellipsis for part in parts)
    if given > num_dimensions:
        raise IndexError(f"{given} indices for a tensor of {num_dimensions} dimensions")
    filling = [slice(None)] * (num_dimensions - given)
    place = next((number for number, part in enumerate(parts) if part is Ellipsis), len(parts))
    parts[place : place + 1] = filling
    for part in parts:
        if not isinstance(part, slice) and (isinstance(part, bool) or not hasattr(part, "__index__")):
            raise IndexError(f"an index of ints, slices and ..., found {part!r}")
    return [part if isinstance(part, slice) else part.__index__() for part in parts]
