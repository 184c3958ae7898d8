"""Rows of arrays whose first dimension varies, as two arrays: all values one after another, and where each row begins.

It is how such columns are gathered, and what padding and packing start from; one array per row is made only for those who want
that. Pure: numpy alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["Ragged"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Ragged:
    """Some rows of a ragged column.

    Attributes
    ----------
    values : array [total, *shape]
        The rows one after another, along the first dimension.
    offsets : int64 [rows + 1]
        Row r is ``values[offsets[r]:offsets[r + 1]]``. They begin at 0, never fall, and end at `total`.
    """

    values: npt.NDArray[Any]
    offsets: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __iter__(self) -> Iterator[npt.NDArray[Any]]:
        for start, end in pairwise(self.offsets.tolist()):
            yield self.values[start:end]

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """Of each row."""
        lengths: npt.NDArray[np.int64] = np.diff(self.offsets)
        return lengths

    def __getitem__(self, rows: slice) -> Ragged:
        """Some consecutive rows; their values are not copied."""
        start, end, step = rows.indices(len(self))
        assert step == 1
        offsets = self.offsets[start : max(start, end) + 1]
        return Ragged(values=self.values[offsets[0] : offsets[-1]], offsets=offsets - offsets[0])
