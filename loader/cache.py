"""A host's cache of decoded column blocks on local disk.

Theory of operation
-------------------
One file per column block, named by the dataset's digest and the block's place, holding the decoded bytes. A file appears
whole or not at all (written aside, then renamed), so several processes may share a directory and any of them may die. It is
read by pread into the caller's buffer and verified by the block's own check every time: a damaged file is deleted and
counts as a miss. When the directory outgrows its limit the files that were used longest ago go first. Nothing here is ever
the only copy of anything.
"""

from __future__ import annotations

import contextlib
import logging
import os
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

from loader.block import check_decoded
from loader.errors import BlockCorrupt, InvalidOption

__all__ = ["DiskCache"]

log = logging.getLogger(__name__)

_EVICT_TO = 0.9  # Evicting some more than needed makes a scan of the directory rare.


class DiskCache:
    """Decoded column blocks under a directory, bounded in bytes. Thread-safe, and shared by processes.

    Parameters
    ----------
    root : Path
        Made if it does not exist.
    digest : str
        Of the dataset; blocks of several datasets may share `root` and its limit.
    limit_bytes : int
        Kept below this, within what concurrent writers add meanwhile.

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
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
        except OSError as exc:
            raise InvalidOption(f"cache_dir={str(root)!r} can't be used: {exc}") from exc
        self._used_bytes = sum(size for _, size, _ in self._files())

    def read_into(self, place: tuple[int, int, int], out: memoryview, *, check: int) -> bool:
        """Fill `out` with the column block at `place` (lane, block, column), verified; False if it is not here."""
        path = self._path(place)
        try:
            with path.open("rb", buffering=0) as file:
                if os.fstat(file.fileno()).st_size != len(out):
                    raise BlockCorrupt(f"{path} has another length than its block")
                received = 0
                while received < len(out):
                    count = os.preadv(file.fileno(), [out[received:]], received)
                    if count == 0:
                        raise BlockCorrupt(f"{path} was cut short")
                    received += count
                check_decoded(out, check=check, where=str(path))
                os.utime(file.fileno())  # The time of last use, on which eviction goes.
        except FileNotFoundError:
            return False
        except (BlockCorrupt, OSError) as exc:
            log.warning("a cached block is dropped and fetched again: %s", exc)
            with contextlib.suppress(OSError):
                path.unlink()
            return False
        return True

    def write(self, place: tuple[int, int, int], data: memoryview) -> None:
        """Keep a verified column block. A cache that can't be written costs speed only, so that is logged, not raised."""
        with self._lock:
            self._used_bytes += len(data)
            full = self._used_bytes > self._limit_bytes
        if full:
            self._evict()
        try:
            with tempfile.NamedTemporaryFile(dir=self._directory, prefix=".", delete=False) as file:
                file.write(data)
            # No fsync: after a power cut a file may be torn, which its check finds.
            os.replace(file.name, self._path(place))
        except OSError as exc:
            log.warning("a block could not be cached in %s: %s", self._directory, exc)

    def _path(self, place: tuple[int, int, int]) -> Path:
        lane, block, column = place
        return self._directory / f"{lane}-{block}-{column}"

    def _files(self) -> Iterator[tuple[Path, int, float]]:
        for path in self._root.glob("*/*"):
            with contextlib.suppress(FileNotFoundError):  # Another process evicts, too.
                stat = path.stat()
                yield path, stat.st_size, stat.st_mtime

    def _evict(self) -> None:
        with self._lock:
            files = sorted(self._files(), key=lambda file: file[2])
            used_bytes = sum(size for _, size, _ in files)
            for path, size, _ in files:
                if used_bytes <= self._limit_bytes * _EVICT_TO:
                    break
                with contextlib.suppress(FileNotFoundError):
                    path.unlink()
                used_bytes -= size
            self._used_bytes = used_bytes
