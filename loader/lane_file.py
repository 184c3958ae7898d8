"""One lane of a dataset in a host's cache: a file with a place for each decoded column block.

Theory of operation
-------------------
The file is as long as the lane is when it is decoded, and sparse: what was not kept takes no room. It begins with a byte that
says that the file is in use, and one for each column block that is there; the blocks follow, at the begins of pages, each with
room behind it for sums of its values (`loader.value_room`). A block's byte is set once the block is written, and what is read
is verified every time. So it doesn't matter who else writes the same block, or where a writer died.

The file stays open, and its first bytes are known: reading a block is one system call. A file that has to go is marked as no
longer in use and removed; all who have it open look at the mark once a second, and let go of it. Until then they may read it.
"""

from __future__ import annotations

import errno
import mmap
import os
import time
import weakref
from typing import Final

import numpy as np
import numpy.typing as npt

from loader.block import BlockTable
from loader.errors import BlockCorrupt

__all__ = ["SUM_BYTES", "LaneFile", "remove", "room_bytes", "write"]

SUM_BYTES: Final = 8
_PAGE: Final = mmap.PAGESIZE
_LOOK_AGAIN_S = 1.0
_USED_AGAIN_S: Final = 3600.0  # Noting each use would have the file system write an inode for each block that is read.


def room_bytes(size_bytes: int) -> int:
    """What so many bytes of a block take on disk."""
    return -(-size_bytes // _PAGE) * _PAGE


class _Layout:
    """Where in its file what of a lane is."""

    def __init__(self, table: BlockTable) -> None:
        self._num_columns: int = table.raw_size.shape[1]
        rooms = -(-(table.raw_size + SUM_BYTES * (table.rows[:, None] + 1)) // _PAGE) * _PAGE
        self.marks_bytes = room_bytes(1 + int(rooms.size))
        ends: npt.NDArray[np.int64] = self.marks_bytes + np.cumsum(rooms)
        self._starts = ends - rooms.ravel()
        self.size_bytes = int(ends[-1]) if rooms.size else self.marks_bytes

    def mark(self, block: int, column: int) -> int:
        """Where the byte is that says that a column block is there."""
        return 1 + block * self._num_columns + column

    def start(self, block: int, column: int) -> int:
        """Where a column block begins."""
        return int(self._starts[block * self._num_columns + column])


class LaneFile:
    """A lane's file, open for reading. Thread-safe.

    Parameters
    ----------
    path : str
        Of the file.
    table : BlockTable
        Of the lane.

    Raises
    ------
    FileNotFoundError
        If it is not there.
    BlockCorrupt
        If it is not the file of such a lane.
    """

    def __init__(self, path: str, table: BlockTable) -> None:
        self.path = path
        self._layout = _Layout(table)
        self._file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self._closing = weakref.finalize(self, os.close, self._file)
        self._closing.atexit = False  # Threads may still read then.
        stat = os.fstat(self._file)
        if stat.st_size != self._layout.size_bytes:
            self._closing()
            if stat.st_size <= 1:
                raise FileNotFoundError(f"{path} is just being made")
            raise BlockCorrupt(f"{path} takes {stat.st_size} bytes, expected {self._layout.size_bytes}")
        self._noted_s = stat.st_mtime
        self._mapped: memoryview | None = None
        self._look()

    def close(self) -> None:
        """Close the file, which nobody reads any more; views of it stay."""
        self._file = -1
        self._mapped = None
        self._closing()

    @property
    def is_live(self) -> bool:
        """Whether the file is still in use, as of the last second."""
        if time.monotonic() - self._looked_s > _LOOK_AGAIN_S:
            self._look()
        return self._marks[0] == 1

    def has(self, block: int, column: int) -> bool:
        """Whether a column block is there."""
        mark = self._layout.mark(block, column)
        if self._marks[mark] != 1:
            self._look()  # Somebody else may have put it there.
        return self._marks[mark] == 1

    def note_use(self) -> None:
        """Have the file show that it is in use, once an hour."""
        if time.time() - self._noted_s > _USED_AGAIN_S:
            self._noted_s = time.time()
            os.utime(self._file)

    def read_into(self, start: int, out: memoryview, *, wait: bool = True) -> None:
        """Fill `out` from byte `start` on.

        Parameters
        ----------
        wait : bool
            Whether to wait for the disk.

        Raises
        ------
        BlockingIOError
            If that would be needed.
        BlockCorrupt
            If the file ends before.
        """
        flags, received = 0 if wait else os.RWF_NOWAIT, 0
        while received < len(out):  # The kernel reads no more than 2 GiB at once.
            try:
                count = os.preadv(self._file, [out[received:]], start + received, flags)
            except OSError as exc:
                if exc.errno != errno.EOPNOTSUPP:
                    raise
                raise BlockingIOError(f"nobody knows whether {self.path} is in memory") from exc
            if not count:
                raise BlockCorrupt(f"{self.path} ends at {start + received}")
            received += count

    def start(self, block: int, column: int) -> int:
        """Where a column block begins."""
        return self._layout.start(block, column)

    def read(self, start: int, size: int) -> bytes:
        """So many bytes of the file, in the same way, as a byte string."""
        data = os.pread(self._file, size, start)
        if len(data) < size:
            raise BlockCorrupt(f"{self.path} ends at {start + len(data)}")
        return data

    def view(self, start: int, size: int) -> memoryview:
        """So many bytes of the file, mapped for as long as anybody holds them: to touch what is gone kills the process.

        Raises
        ------
        BlockCorrupt
            If the file was cut short.
        """
        if os.fstat(self._file).st_size != self._layout.size_bytes:
            raise BlockCorrupt(f"{self.path} was cut short")
        if self._mapped is None:
            self._mapped = memoryview(mmap.mmap(self._file, 0, prot=mmap.PROT_READ))
        return self._mapped[start : start + size]

    def read_ahead(self, start: int, size: int) -> None:
        """Have the system read so many bytes from disk, without waiting for it."""
        os.posix_fadvise(self._file, start, size, os.POSIX_FADV_WILLNEED)

    def forget(self, block: int, column: int) -> None:
        """Say that a column block is not there."""
        _put(self.path, b"\0", self._layout.mark(block, column))
        self._look()

    def _look(self) -> None:
        self._marks = self.read(0, self._layout.marks_bytes)
        self._looked_s = time.monotonic()


def write(path: str, table: BlockTable, block: int, column: int, data: memoryview, *, sums: bytes = b"") -> None:
    """Put a verified column block into the file of its lane, which is made if it is not there.

    Raises
    ------
    OSError
        If it can't be written.
    BlockCorrupt
        If the file is not that of such a lane.
    """
    layout = _Layout(table)
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        size = os.fstat(file).st_size
        if size <= 1:
            # In this order: who finds the file whole also finds it in use.
            os.pwrite(file, b"\1", 0)
            os.ftruncate(file, layout.size_bytes)
        elif size != layout.size_bytes:
            raise BlockCorrupt(f"{path} takes {size} bytes, expected {layout.size_bytes}")
        start, total, written = layout.start(block, column), len(data) + len(sums), 0
        while written < total:
            written += os.pwritev(file, [data[written:], sums[max(0, written - len(data)) :]], start + written)
        # No fsync: after a power cut a block may be torn, which its check finds.
        os.pwrite(file, b"\1", layout.mark(block, column))
    finally:
        os.close(file)


def remove(path: str) -> None:
    """Have everybody let go of a lane's file, and remove it; raises OSError."""
    try:
        _put(path, b"\0", 0)
        os.unlink(path)
    except FileNotFoundError:
        return  # Somebody else was faster.


def _put(path: str, data: bytes, offset: int) -> None:
    file = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.pwrite(file, data, offset)
    finally:
        os.close(file)
