"""Room for the large values of a column block, each a byte string of its own.

A value that is read from a file by itself is where it is handed out, without another copy; the block's check is taken over
all of them as they come. For small values the many reads would cost more than the copy does: those are decoded as a whole.
"""

from __future__ import annotations

import os
from itertools import pairwise
from typing import Final

import xxhash

from loader.block import variable_view
from loader.block_codec import OFFSET_BYTES
from loader.errors import BlockCorrupt

__all__ = ["LARGE_VALUE_BYTES", "ValueRoom"]

LARGE_VALUE_BYTES: Final = 16 * 1024


class ValueRoom:
    """Takes the values of one column block.

    Parameters
    ----------
    size_bytes : int
        Of the decoded block.
    rows : int
        How many values there are.

    Attributes
    ----------
    values : list of bytes
        The values; empty before the block was read and checked.
    """

    def __init__(self, size_bytes: int, *, rows: int) -> None:
        self._size_bytes = size_bytes
        self._rows = rows
        self.values: list[bytes] = []

    def __len__(self) -> int:
        return self._size_bytes

    def take(self, decoded: memoryview) -> None:
        """Take the values out of a decoded and checked block."""
        offsets, data = variable_view(decoded, self._rows)
        self.values = [bytes(data[start:end]) for start, end in pairwise(offsets.tolist())]

    def read_from(self, file: int, *, check: int, where: str) -> None:
        """Take the values from a file that holds the decoded block; raises `BlockCorrupt` if it does not."""
        start = OFFSET_BYTES * (self._rows + 1)
        head = _read(file, start, offset=0, where=where)
        hasher = xxhash.xxh3_64(head)
        # The values lie one after another, so wherever damaged offsets point to, the check is of other bytes.
        ends = memoryview(head).cast("q").tolist()
        values = []
        for first, end in pairwise(ends):
            if not 0 <= first <= end <= self._size_bytes - start:
                raise BlockCorrupt(f"{where}: a value of bytes {first} to {end} of {self._size_bytes - start}")
            values.append(_read(file, end - first, offset=start + first, where=where))
            hasher.update(values[-1])
        if hasher.intdigest() != check or ends[-1] != self._size_bytes - start:
            raise BlockCorrupt(f"{where}: checksum {hasher.intdigest():016x}, expected {check:016x}")
        self.values = values


def _read(file: int, size: int, *, offset: int, where: str) -> bytes:
    data = os.pread(file, size, offset)
    while len(data) < size:  # The kernel reads no more than 2 GiB at once.
        more = os.pread(file, size - len(data), offset + len(data))
        if not more:
            raise BlockCorrupt(f"{where}: {size} bytes at {offset} were cut short to {len(data)}")
        data += more
    return data
