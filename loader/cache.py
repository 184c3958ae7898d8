"""A host's cache of decoded column blocks on local disk.

Theory of operation
-------------------
One file per column block, named by the dataset's digest and the block's place, holding the decoded bytes. A file appears
whole or not at all (written aside, then renamed), so several processes may share a directory and any of them may die. It is
read by pread into the caller's buffer and verified by the block's own check every time: a damaged file is deleted and
counts as a miss. Nothing here is ever the only copy of anything. Who fetches a block claims it first (`loader.claims`), and
whoever wants it meanwhile finds it here a moment later.

The directory is bounded: what does not fit is not kept. Blocks of other datasets make room, those used longest ago first.
Those of the same dataset do not: an epoch reads each block once, so the one used longest ago is the one needed next, and a
cache of half a dataset would never hit. They go only when there is more than the limit, because it was made smaller or
several processes have written at once.

What others write is seen by looking at the directory, after every 1/64 of the limit that this process wants to add.
"""

from __future__ import annotations

import contextlib
import logging
import os
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

from loader.block import check_decoded
from loader.claims import claimed
from loader.errors import BlockCorrupt, InvalidOption
from loader.value_room import ValueRoom

__all__ = ["DiskCache"]

log = logging.getLogger(__name__)

_LOOKS: Final = 64
_EVICT_ABOVE: Final = 0.95
_EVICT_TO: Final = 0.9
_ABANDONED_S: Final = 3600.0  # No write takes as long; who left it is dead.
_USED_AGAIN_S: Final = 3600.0  # Noting each use would have the file system write an inode for each block that is read.


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
        self._used_bytes = 0
        self._wanted_bytes = 0  # Since the directory was looked at.
        self._writable = True
        self._full = False
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
            if not os.access(self._directory, os.W_OK | os.X_OK):
                raise PermissionError(f"{self._directory} is not writable")
        except OSError as exc:
            raise InvalidOption(f"cache_dir={str(root)!r} can't be used: {exc}") from exc
        self._look()

    def read_into(self, place: tuple[int, int, int], out: memoryview | ValueRoom, *, check: int) -> bool:
        """Fill `out` with the column block at `place` (lane, block, column), verified; False if it is not here."""
        path = self._path(place)
        try:
            file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        except OSError as exc:
            self._drop(path, exc)
            return False
        try:
            stat = os.fstat(file)
            if stat.st_size != len(out):
                raise BlockCorrupt(f"{path} has another length than its block")
            if isinstance(out, ValueRoom):
                out.read_from(file, check=check, where=path)
            else:
                _read_all(file, out)
                check_decoded(out, check=check, where=path)
            if time.time() - stat.st_mtime > _USED_AGAIN_S:
                os.utime(file)
        except (BlockCorrupt, OSError) as exc:
            self._drop(path, exc)
            return False
        finally:
            os.close(file)
        return True

    def write(self, place: tuple[int, int, int], data: memoryview) -> None:
        """Keep a verified column block, if there is room. Being unable to costs speed only: it is logged, not raised."""
        if not self._take_room(len(data)):
            return
        aside = ""
        try:
            with tempfile.NamedTemporaryFile(dir=self._directory, prefix=".", delete=False) as file:
                aside = file.name
                file.write(data)
            # No fsync: after a power cut a file may be torn, which its check finds.
            os.replace(aside, self._path(place))
            self._writable = True
        except OSError as exc:
            if self._writable:
                log.warning("blocks can't be cached in %s, and are fetched each time: %s", self._directory, exc)
            self._writable = False  # Said once: a full disk would say so for each block.
            with contextlib.suppress(OSError):
                os.unlink(aside)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(aside)
            raise

    @contextmanager
    def claim(self, lane: int, block: int) -> Iterator[None]:
        """Be the only one on this host to fetch a block, which may have been kept here meanwhile."""
        with ExitStack() as stack:
            # What is not going to be kept is not waited for: each would fetch it after the other.
            if self._writable and not self._full:
                with contextlib.suppress(OSError):
                    stack.enter_context(claimed(f"{self._directory}/.{lane}-{block}"))
            yield

    def _path(self, place: tuple[int, int, int]) -> str:
        lane, block, column = place
        return f"{self._directory}/{lane}-{block}-{column}"

    def _drop(self, path: str, reason: Exception) -> None:
        log.warning("a cached block is dropped and fetched again: %s", reason)
        with contextlib.suppress(OSError):
            os.unlink(path)

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
        abandoned_s = time.time() - _ABANDONED_S
        for path, size, used_s in files:
            directory, name = os.path.split(path)
            keep_to = self._limit_bytes if directory == str(self._directory) else others_to
            if self._used_bytes > keep_to or (name.startswith(".") and used_s < abandoned_s):
                with contextlib.suppress(OSError):
                    os.unlink(path)
                self._used_bytes -= size

    def _files(self) -> Iterator[tuple[str, int, float]]:
        """Path, size and time of last use of each file, also those that a writer left aside when it died."""
        # Another process may evict, or make a directory, at the same time.
        with contextlib.suppress(FileNotFoundError), os.scandir(self._root) as directories:
            for directory in directories:
                with contextlib.suppress(FileNotFoundError, NotADirectoryError), os.scandir(directory) as files:
                    for file in files:
                        with contextlib.suppress(FileNotFoundError):
                            stat = file.stat()
                            yield file.path, stat.st_size, stat.st_mtime


def _read_all(file: int, out: memoryview) -> None:
    received = 0
    while received < len(out):
        count = os.preadv(file, [out[received:]], received)
        if count == 0:
            raise BlockCorrupt(f"a cached block of {len(out)} bytes was cut short to {received}")
        received += count
