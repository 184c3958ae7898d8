"""Large values of a cached column block, which stay in its file until they are handed out.

A block that is read into memory when its visit begins is cold by the time its rows are gathered, and all blocks of all lanes
together are far larger than any processor's cache. So a cached block of large values is not read at first. Each value is read
when it is gathered, straight into the byte string that is handed out.

What is read by itself has to be verified by itself: behind such a block, its file holds the xxh3_64 of each value, and one of
the offsets, of these sums and of the block's own check. A value that is damaged or gone is taken from the whole block, which is
fetched anew if need be. For small values the many reads would cost more than they save: those are read as a whole.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Final

import numpy as np
import xxhash
from typing_extensions import Buffer

from loader.block import variable_view
from loader.block_codec import OFFSET_BYTES
from loader.column_type import ColumnType
from loader.errors import BlockCorrupt
from loader.lane_file import SUM_BYTES, LaneFile

__all__ = ["LARGE_VALUE_BYTES", "StoredValues", "ValueRoom", "has_large_values", "value_sums"]

LARGE_VALUE_BYTES: Final = 16 * 1024


def has_large_values(kind: ColumnType, *, raw_size: int, rows: int) -> bool:
    """Whether the values of a column block are read one by one, if it is cached."""
    return (kind.is_image or kind.kind == "bytes") and raw_size >= LARGE_VALUE_BYTES * rows


def value_sums(decoded: memoryview, *, rows: int, check: int) -> bytes:
    """What follows a decoded block of large values in its file."""
    offsets, data = variable_view(decoded, rows)
    sums = [xxhash.xxh3_64_intdigest(data[start:end]) for start, end in pairwise(offsets.tolist())]
    packed = np.array(sums, "<u8").tobytes()
    return packed + _seal(decoded[: OFFSET_BYTES * (rows + 1)], packed, check=check)


class StoredValues:
    """The values of a column block in a lane's file.

    Parameters
    ----------
    file : LaneFile
        Which has the block.
    block, column : int
        Its place.
    size_bytes, rows, check : int
        Of the decoded block.
    read_whole : callable
        Reads the decoded block from wherever it is sound.
    """

    def __init__(
        self,
        file: LaneFile,
        block: int,
        column: int,
        *,
        size_bytes: int,
        rows: int,
        check: int,
        read_whole: Callable[[], memoryview],
    ) -> None:
        self._file, self._start = file, file.start(block, column)
        self._size_bytes, self._rows, self._check = size_bytes, rows, check
        self._read_whole = read_whole
        self._offsets: list[int] = []
        self._sums: list[int] = []
        self._whole: memoryview | None = None

    @property
    def is_live(self) -> bool:
        """Whether their file is still in use."""
        return self._file.is_live

    def begin(self) -> None:
        """Have the values read ahead by the system, if they seem not to be in memory. Waits for nothing."""
        try:
            self._read_sums(wait=False)
        except BlockingIOError:
            self._file.read_ahead(self._start, self._size_bytes + SUM_BYTES * (self._rows + 1))

    def read(self, row: int) -> bytes:
        """The value of a row of the block; raises what reading the whole block does, if the value is not sound here."""
        if self._whole is None:
            try:
                if not self._sums:
                    self._read_sums(wait=True)
                start, end = self._offsets[row : row + 2]
                value = self._file.read(self._start + start, end - start)
                if xxhash.xxh3_64_intdigest(value) == self._sums[row]:
                    return value
            except (BlockCorrupt, OSError):
                pass  # Whatever it is: the whole block is looked at, and says what is wrong.
            self._whole = self._read_whole()
        offsets, data = variable_view(self._whole, self._rows)
        return bytes(data[offsets[row] : offsets[row + 1]])

    def _read_sums(self, *, wait: bool) -> None:
        head, tail = bytearray(OFFSET_BYTES * (self._rows + 1)), bytearray(SUM_BYTES * (self._rows + 1))
        self._file.read_into(self._start, memoryview(head), wait=wait)
        self._file.read_into(self._start + self._size_bytes, memoryview(tail), wait=wait)
        sums = tail[: SUM_BYTES * self._rows]
        if _seal(head, sums, check=self._check) != tail[len(sums) :]:
            raise BlockCorrupt(f"{self._file.path}: offsets or sums of values are damaged")
        self._offsets = (np.frombuffer(head, "<i8") + len(head)).tolist()
        self._sums = np.frombuffer(sums, "<u8").tolist()


class ValueRoom:
    """Room for a column block of large values: memory, or the file that has it.

    Parameters
    ----------
    size_bytes : int
        Of the decoded block.
    rows : int
        How many values there are.
    buffer : callable
        Gives memory for the decoded block, if that is needed.

    Attributes
    ----------
    stored : StoredValues or None
        The values, if they are in the cache and the buffer was not needed.
    """

    def __init__(self, size_bytes: int, *, rows: int, buffer: Callable[[], memoryview]) -> None:
        self._size_bytes = size_bytes
        self.rows = rows
        self.buffer = buffer
        self.stored: StoredValues | None = None

    def __len__(self) -> int:
        return self._size_bytes

    def use_file(
        self, file: LaneFile, block: int, column: int, *, check: int, read_whole: Callable[[], memoryview], wait: bool
    ) -> None:
        """Leave the values in a file. Waits for nothing."""
        stored = StoredValues(file, block, column, size_bytes=len(self), rows=self.rows, check=check, read_whole=read_whole)
        stored.begin()
        self.stored = stored


def _seal(head: Buffer, sums: Buffer, *, check: int) -> bytes:
    hasher = xxhash.xxh3_64(head)
    hasher.update(sums)
    hasher.update(check.to_bytes(SUM_BYTES, "little"))
    return hasher.intdigest().to_bytes(SUM_BYTES, "little")
