"""Columns as Arrow arrays, for the sides that are given such."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa

from benchmarks.loader.sets import Blobs

__all__ = ["arrow_column"]


def arrow_column(column: Any, start: int, stop: int) -> pa.Array:
    """Rows `start` to `stop` of a column."""
    if isinstance(column, Blobs):
        return pa.array([column[row] for row in range(start, stop)], pa.large_binary())
    rows = np.asarray(column[start:stop])
    if rows.ndim == 1:
        return pa.array(rows)
    return pa.FixedSizeListArray.from_arrays(pa.array(rows.reshape(-1)), rows.shape[1])
