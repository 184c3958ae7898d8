"""Staging buffers that return to their pool when the last tensor on them is gone.

A batch is a slice of a staging array; the trainer may keep it as long as it likes. The pool hands a buffer out again only
once nothing refers to the array any more, which Python's reference counts tell exactly and at once.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["BufferPool"]


class BufferPool:
    """Arrays of one dtype and row shape, over buffers that are reused. Thread-safe.

    Parameters
    ----------
    dtype : numpy.dtype
        Of the elements.
    shape : sequence of int
        Of one row.
    max_idle : int
        Buffers kept for reuse; more are freed.
    """

    def __init__(self, dtype: np.dtype[Any], shape: Sequence[int], *, max_idle: int) -> None:
        self._dtype = dtype
        self._shape = tuple(shape)
        self._row_bytes = dtype.itemsize * int(np.prod(self._shape, dtype=np.int64))
        self._max_idle = max_idle
        # No lock: a garbage collection inside `take` may run `_give_back` in the same thread. A list's append and pop are
        # atomic, and at worst some buffers more than `max_idle` are kept for a moment.
        self._idle: list[npt.NDArray[np.uint8]] = []

    def take(self, rows: int) -> npt.NDArray[Any]:
        """An array [rows, *shape] of undefined content."""
        size = rows * self._row_bytes
        try:
            buffer = self._idle.pop()
        except IndexError:
            buffer = np.empty(size, np.uint8)
        if len(buffer) < size:
            buffer = np.empty(size, np.uint8)
        # Its base is a memoryview, so numpy keeps this array, and not `buffer`, alive as the base of every view of it.
        array = np.frombuffer(buffer.data, self._dtype, count=size // self._dtype.itemsize)
        weakref.finalize(array, self._give_back, buffer).atexit = False
        return array.reshape(rows, *self._shape)

    def _give_back(self, buffer: npt.NDArray[np.uint8]) -> None:
        if len(self._idle) < self._max_idle:
            self._idle.append(buffer)
