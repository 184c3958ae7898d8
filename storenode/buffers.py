"""Buffers for bodies of chunks, used again: for a fresh one the kernel clears every page, in the middle of receiving."""

from __future__ import annotations

from collections import deque

__all__ = ["Buffers"]


class Buffers:
    """A stock of buffers. It belongs to the event loop.

    Parameters
    ----------
    max_kept_bytes : int
        Most that lies in stock.
    """

    def __init__(self, *, max_kept_bytes: int) -> None:
        self._max_kept_bytes = max_kept_bytes
        self._kept: deque[memoryview] = deque()
        self._kept_bytes = 0

    def take(self, size_bytes: int) -> memoryview:
        """A buffer of exactly `size_bytes`; what is in it is left over from before."""
        for index, buffer in enumerate(self._kept):
            if len(buffer) == size_bytes:
                del self._kept[index]
                self._kept_bytes -= size_bytes
                return buffer
        return memoryview(bytearray(size_bytes))

    def give_back(self, buffer: memoryview) -> None:
        """Put a buffer that nobody uses any more into stock, in place of those that were not asked for lately."""
        self._kept.append(buffer)
        self._kept_bytes += len(buffer)
        while self._kept_bytes > self._max_kept_bytes:
            self._kept_bytes -= len(self._kept.popleft())
