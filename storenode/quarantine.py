"""Corrupt copies that were set aside: the durable list of what has yet to be replaced.

The chunk store moves a bad copy into ``quarantine/`` by rename. So at any instant a bad copy lies either in its place, where
the next reader or scrub finds it, or here, where the next start of the node finds it. It is deleted only when its
replacement is durable; until then its bytes are kept, for they may be the last ones. That bounds the directory by what could
not be repaired.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from storenode.chunkfile import parse_name
from storenode.filesystem import FileSystem, disk_error, opened

__all__ = ["Quarantine", "chunk_set_aside"]


class Quarantine:
    """The copies set aside in a data directory. Thread-safe.

    Parameters
    ----------
    root : Path
        The node's data directory, which the chunk store has opened.
    fs : FileSystem, optional
        Calls of the operating system.
    """

    def __init__(self, root: Path, *, fs: FileSystem | None = None) -> None:
        self._path = root / "quarantine"
        self._fs = fs or FileSystem()

    def chunks(self) -> set[tuple[int, bytes]]:
        """What the copies set aside claimed to be, as (partition, id). Raises `DiskFailed`."""
        return {named for name in self._names() if (named := chunk_set_aside(name)) is not None}

    def discard(self, partition: int, chunk_id: bytes) -> None:
        """Delete the copies set aside of a chunk whose replacement is durable. Raises `DiskFailed`."""
        for name in self._names():
            if chunk_set_aside(name) == (partition, chunk_id):
                try:
                    with opened(self._fs.open_directory(self._path)) as directory, suppress(FileNotFoundError):
                        # Not synced: if a crash brings it back, the next start looks once more and finds a sound copy.
                        self._fs.unlink(name, directory=directory)
                except OSError as exc:
                    raise disk_error(exc, self._path / name) from exc

    def _names(self) -> list[str]:
        try:
            return sorted(self._fs.list_names(self._path))
        except OSError as exc:
            raise disk_error(exc, self._path) from exc


def chunk_set_aside(name: str) -> tuple[int, bytes] | None:
    """What a copy in quarantine claimed to be, by the name of its file; None for a file that is none of ours."""
    # The chunk store appends a random suffix, because one chunk may go bad more than once.
    return parse_name(name.partition(".")[0])
