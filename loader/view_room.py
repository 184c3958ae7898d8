"""Column blocks whose values are handed out as views of the memory that the block lies in: no value is ever copied.

That memory is a map of the lane's file in the host's cache, once the block is there. A block that was just fetched lies in
memory of its own. Either is kept by whoever refers to it, and never used for anything else: a view stays what it is for as long
as somebody holds it.

Each time that a mapped block is brought in it is verified: through the map if it is in memory, otherwise by reading it, so that
a disk that fails is an error like any other. What can't be prevented: that the kernel drops a page for lack of memory, and
reads it again unverified, or can't, which kills whoever touches it. So this is for those who ask for it (`zero_copy`).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from loader.block import check_decoded, variable_view
from loader.column_type import ColumnType
from loader.lane_file import LaneFile

__all__ = ["ViewRoom", "can_be_viewed"]


def can_be_viewed(kind: ColumnType) -> bool:
    """Whether the values of a column are what lies in its blocks, and not made of it."""
    return kind.kind == "bytes" or kind.is_image


class ViewRoom:
    """Room for a column block: memory of its own, if that is needed, or a map of the file that has it.

    Parameters
    ----------
    size_bytes : int
        Of the decoded block.
    rows : int
        How many values there are.
    """

    def __init__(self, size_bytes: int, *, rows: int) -> None:
        self._size_bytes = size_bytes
        self._rows = rows
        self._block: memoryview | None = None
        self._file: LaneFile | None = None
        self._values: tuple[list[int], memoryview] | None = None

    def __len__(self) -> int:
        return self._size_bytes

    @property
    def is_live(self) -> bool:
        """Whether this is a map of a file that is still in use."""
        return self._file is not None and self._file.is_live

    def buffer(self) -> memoryview:
        """Memory for the decoded block."""
        self._block = memory = np.empty(self._size_bytes, np.uint8).data
        return memory

    def use_file(
        self, file: LaneFile, block: int, column: int, *, check: int, read_whole: Callable[[], memoryview], wait: bool
    ) -> None:
        """Have the block where a file has it.

        Raises
        ------
        BlockCorrupt
            If it is damaged there.
        BlockingIOError
            Unless `wait`: if it seems to be on disk only.
        """
        start = file.start(block, column)
        mapped = file.view(start, self._size_bytes)
        if wait:
            read = np.empty(self._size_bytes, np.uint8).data
            file.read_into(start, read)
        else:
            # A block comes into memory from its begin on.
            for place in (start, start + self._size_bytes - 1):
                file.read_into(place, memoryview(bytearray(1)), wait=False)
            read = mapped
        check_decoded(read, check=check, where=file.path)
        self._block, self._file = mapped, file

    def values(self) -> tuple[list[int], memoryview]:
        """Offsets, and read-only bytes: value i is ``data[offsets[i]:offsets[i + 1]]``; raises `BlockCorrupt`."""
        if self._values is None:
            assert self._block is not None
            offsets, data = variable_view(self._block, self._rows)
            self._values = offsets.tolist(), data.toreadonly()
        return self._values
