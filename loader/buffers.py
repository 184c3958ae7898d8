"""Memory that is used again: staging buffers, which return to their pool when the last tensor on them is gone.

A batch is a slice of a staging array; the trainer may keep it as long as it likes. The pool hands a buffer out again only
once nothing refers to the array any more, which Python's reference counts tell exactly and at once.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

__all__ = ["BufferPool", "keep_freed_memory"]

_LARGEST_LEARNED_BYTES: Final = (32 << 20) - (64 << 10)


def keep_freed_memory() -> None:
    """Have the C library keep the memory of values that were freed, for the next ones.

    Byte strings can't be pooled. By default glibc gives what is free at the end of its heap back to the system from 128 KiB on,
    and each batch of large values so begins with memory that the system has to clear, which takes several times as long as
    reading the values does. What it keeps, it learns: twice the largest block that was ever allocated by itself and freed, up
    to 64 MiB (mallopt(3), M_MMAP_THRESHOLD). Elsewhere this does nothing.
    """
    np.empty(_LARGEST_LEARNED_BYTES, np.uint8)


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
