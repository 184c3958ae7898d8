"""A host's cache of decoded column blocks on local disk.

Theory of operation
-------------------
One file per lane (`loader.lane_file`), below a directory that the dataset's digest names, with a place for each column block.
What is read is verified every time: a damaged block counts as a miss. Several processes may share a directory, and any of
them may die. Nothing here is ever the only copy of anything. Who fetches a block claims it first (`loader.claims`), and whoever
wants it meanwhile finds it here a moment later.

The directory is bounded: what does not fit is not kept. Lanes of other datasets make room, those used longest ago first.
Those of the same dataset do not: an epoch reads each block once, so the one used longest ago is the one needed next, and a
cache of half a dataset would never hit. They go only when there is far more than the limit, because it was made smaller.

What others write is seen by looking at the directory, after every 1/64 of the limit that this process wants to add.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

from loader import lane_file
from loader.block import BlockTable, check_decoded
from loader.claims import claimed
from loader.errors import BlockCorrupt, InvalidOption
from loader.lane_file import LaneFile
from loader.value_room import ValueRoom
from loader.view_room import ViewRoom

__all__ = ["DiskCache"]

log = logging.getLogger(__name__)

_LOOKS: Final = 64
_EVICT_ABOVE: Final = 0.95
_EVICT_TO: Final = 0.9
_EVICT_OWN_ABOVE: Final = 1.125
_ABANDONED_S: Final = 3600.0  # No claim is held as long; who left it is dead.
_MAX_OPEN: Final = 256  # Of the 1,024 files that a process may have open by default; one that is mapped counts twice.
_SHORTAGES: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM})


class DiskCache:
    """Decoded column blocks under a directory, bounded in bytes. Thread-safe, and shared by processes.

    Parameters
    ----------
    root : Path
        Made if it does not exist.
    digest : str
        Of the dataset; blocks of several datasets may share `root` and its limit.
    limit_bytes : int
        Kept below this; each of several processes may add 1/64 to it before it sees what the others wrote.

    Raises
    ------
    InvalidOption
        If the directory can't be made or written.
    """

    def __init__(self, root: Path, *, digest: str, limit_bytes: int) -> None:
        self._root = root
        self._directory = root / digest[:32]
        self._limit_bytes = limit_bytes
        self._lock = threading.Lock()
        self._lanes: dict[int, LaneFile] = {}
        self._used_bytes = 0
        self._wanted_bytes = 0  # Since the directory was looked at.
        self._writable = True
        self._is_short = False
        self._full = False
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
            if not os.access(self._directory, os.W_OK | os.X_OK):
                raise PermissionError(f"{self._directory} is not writable")
        except OSError as exc:
            raise InvalidOption(f"cache_dir={str(root)!r} can't be used: {exc}") from exc
        self._look()

    def read_into(
        self,
        place: tuple[int, int, int],
        out: memoryview | ValueRoom | ViewRoom,
        *,
        table: BlockTable,
        read_whole: Callable[[], memoryview],
        wait: bool = True,
    ) -> bool:
        """Fill `out` with the column block at `place` (lane, block, column), verified; False if it is not here.

        Parameters
        ----------
        out : memoryview, ValueRoom or ViewRoom
            A room does not take the values, but knows where they are.
        table : BlockTable
            Of the lane.
        read_whole : callable
            Reads the decoded block, if values turn out to be damaged later.
        wait : bool
            Whether to wait for the disk; without that, what is not in memory counts as not here.
        """
        lane, block, column = place
        try:
            file = self._lane(lane, table)
            if file is None or not file.has(block, column):
                return False
        except (BlockCorrupt, OSError) as exc:
            if not self._is_shortage(exc):
                self._remove(lane, exc)
            return False
        try:
            check = int(table.check[block, column])
            if isinstance(out, memoryview):
                file.read_into(file.start(block, column), out, wait=wait)
                check_decoded(out, check=check, where=file.path)
            else:
                out.use_file(file, block, column, check=check, read_whole=read_whole, wait=wait)
            file.note_use()
        except BlockingIOError:
            return False
        except (BlockCorrupt, OSError) as exc:
            if self._is_shortage(exc):
                return False
            log.warning("a cached block is dropped and fetched again: %s", str(exc))
            try:
                file.forget(block, column)
            except (BlockCorrupt, OSError) as worse:
                self._remove(lane, worse)
            return False
        return True

    def holds(self, lane: int, block: int, columns: Iterable[int], *, table: BlockTable) -> bool:
        """Whether column blocks seem to be here."""
        try:
            file = self._lane(lane, table)
            return file is not None and all(file.has(block, column) for column in columns)
        except (BlockCorrupt, OSError):
            return False  # Who reads them deals with that.

    def write(self, place: tuple[int, int, int], data: memoryview, *, table: BlockTable, sums: bytes = b"") -> None:
        """Keep a verified column block, if there is room. Being unable to costs speed only: it is logged, not raised.

        Parameters
        ----------
        sums : bytes
            Of the block's values, if they are read one by one.
        """
        if not self._take_room(lane_file.room_bytes(len(data) + len(sums))):
            return
        lane, block, column = place
        try:
            lane_file.write(self._path(lane), table, block, column, data, sums=sums)
            self._writable = True
        except BlockCorrupt as exc:
            self._remove(lane, exc)  # The next block finds none, and makes one.
        except OSError as exc:
            if self._writable:
                log.warning("blocks can't be cached in %s, and are fetched each time: %s", self._directory, exc)
            self._writable = False  # Said once: a full disk would say so for each block.

    @contextmanager
    def claim(self, lane: int, block: int) -> Iterator[None]:
        """Be the only one on this host to fetch a block, which may have been kept here meanwhile."""
        with ExitStack() as stack:
            # What is not going to be kept is not waited for: each would fetch it after the other.
            if self._writable and not self._full:
                with contextlib.suppress(OSError):
                    stack.enter_context(claimed(f"{self._directory}/.{lane}-{block}"))
            yield

    def close(self) -> None:
        """Close all files, which nobody reads any more."""
        while self._lanes:
            self._lanes.popitem()[1].close()

    def _is_shortage(self, exc: Exception) -> bool:
        """Whether this process may not open or map any more files, which says nothing about those that are here."""
        if not isinstance(exc, OSError) or exc.errno not in _SHORTAGES:
            return False
        if not self._is_short:
            log.warning("blocks in %s can't be read, and are fetched: %s; `ulimit -n` is the limit", self._directory, exc)
        self._is_short = True  # Said once: each block would say so.
        return True

    def _remove(self, lane: int, reason: Exception) -> None:
        log.warning("cached blocks are dropped and fetched again: %s", str(reason))
        self._lanes.pop(lane, None)
        with contextlib.suppress(OSError):
            lane_file.remove(self._path(lane))

    def _path(self, lane: int) -> str:
        return f"{self._directory}/{lane}"

    def _lane(self, lane: int, table: BlockTable) -> LaneFile | None:
        """The file of a lane; None if there is none."""
        file = self._lanes.get(lane)
        if file is None or not file.is_live:
            try:
                file = LaneFile(self._path(lane), table)
            except FileNotFoundError:
                self._lanes.pop(lane, None)  # One that was removed takes room on disk for as long as it is open.
                return None
            if len(self._lanes) >= _MAX_OPEN:
                self._lanes.clear()
            self._lanes[lane] = file
        return file

    def _take_room(self, size: int) -> bool:
        with self._lock:
            self._wanted_bytes += size
            if self._wanted_bytes * _LOOKS > self._limit_bytes:
                self._look()
            self._full = self._used_bytes + size > self._limit_bytes
            if not self._full:
                self._used_bytes += size
            return not self._full

    def _look(self) -> None:
        """Count what is there, and evict if that is too much."""
        files = sorted(self._files(), key=lambda file: file[2])
        self._wanted_bytes, self._used_bytes = 0, sum(size for _, size, _ in files)
        others_to = self._limit_bytes * (_EVICT_TO if self._used_bytes > self._limit_bytes * _EVICT_ABOVE else 1)
        own_to = self._limit_bytes if self._used_bytes > self._limit_bytes * _EVICT_OWN_ABOVE else self._used_bytes
        abandoned_s = time.time() - _ABANDONED_S
        for path, size, used_s in files:
            directory, name = os.path.split(path)
            keep_to = own_to if directory == str(self._directory) else others_to
            is_claim = name.startswith(".")
            if (used_s < abandoned_s) if is_claim else (self._used_bytes > keep_to):
                with contextlib.suppress(OSError):
                    os.unlink(path) if is_claim else lane_file.remove(path)
                self._used_bytes -= size

    def _files(self) -> Iterator[tuple[str, int, float]]:
        """Path, bytes on disk and time of last use of each file."""
        # Another process may evict, or make a directory, at the same time.
        with contextlib.suppress(FileNotFoundError), os.scandir(self._root) as directories:
            for directory in directories:
                with contextlib.suppress(FileNotFoundError, NotADirectoryError), os.scandir(directory) as files:
                    for file in files:
                        with contextlib.suppress(FileNotFoundError):
                            stat = file.stat()
                            yield file.path, stat.st_blocks * 512, stat.st_mtime
