"""The 256 directories that chunk files lie in: made, checked and durable at the start, and synced for every name. Blocking.

A name is durable once its directory has been synced after it was linked, and all directories above were, too. So opening the
directories syncs all of them before anything else is answered: whatever is visible from then on, and was not linked since, is
durable.

A directory whose fsync failed is not trusted again until they are opened anew: the kernel reports such a failure once and may
call the next fsync a success without having written anything. What the files hold is `storenode.chunkstore`'s business.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from client.errors import DiskFailed, Misconfigured
from storenode.chunkfile import ChunkPath
from storenode.filesystem import FileSystem, opened, translated

__all__ = ["ChunkDirectories"]

# Each sync of a directory has the disk write out its cache, even if there was nothing to write. syncfs does so once, but waits
# for what others have written, too.
_FEW_DIRECTORIES = 4


class ChunkDirectories:
    """The directories below `root`, for its one process. Thread-safe.

    Attributes
    ----------
    chunks : Path
        The directory of all chunks.
    quarantine : Path
        Where copies go that leave their places.
    """

    def __init__(self, root: Path, *, fs: FileSystem) -> None:
        self.chunks = root / "chunks"
        self.quarantine = root / "quarantine"
        self.parents = [self.chunks / f"{first:02x}" for first in range(256)]
        self._root = root
        self._fs = fs
        self._unsynced: set[Path] = set()
        with translated(root):
            self._make()
            self._require_unnamed_files()

    def at(self, partition: int, chunk_id: bytes) -> ChunkPath:
        """Where a chunk's file may lie."""
        return ChunkPath.under(self.parents, partition=partition, chunk_id=chunk_id)

    @contextmanager
    def opened(self, at: ChunkPath) -> Iterator[int]:
        """A descriptor of a chunk's directory; errors of the operating system in the block are named for the chunk."""
        with translated(at.path, key=at.name), opened(self._fs.open_directory(at.parent)) as directory:
            yield directory

    def sync(self, at: ChunkPath, *, directory: int) -> None:
        """Make a chunk's name durable; `directory` is its own. Raises `OSError`, or `DiskFailed` after an earlier failure."""
        try:
            # The name is durable only now. On a dedup hit too: whoever linked it may have died before this very call, or
            # may still be about to make it.
            self._fs.sync(directory)
        except OSError:
            self.distrust([at])
            raise
        # Again after the call: a thread that failed meanwhile may have been told of the lost write in our place.
        self.require_synced(at)

    def sync_many(self, places: Sequence[ChunkPath]) -> None:
        """Make all names durable in the directories of some chunks, one for each directory; raises `DiskFailed`."""
        if len(places) <= _FEW_DIRECTORIES:
            for at in places:
                with self.opened(at) as directory:
                    self.sync(at, directory=directory)
            return
        with translated(self.chunks), opened(self._fs.open_directory(self.chunks)) as directory:
            try:
                self._fs.sync_everything(directory)
            except OSError:
                self.distrust(places)
                raise
        for at in places:
            self.require_synced(at)

    def require_synced(self, at: ChunkPath) -> None:
        """Raise `DiskFailed` for a chunk whose directory had a failed sync."""
        if at.parent in self._unsynced:
            message = f"{at.parent}: an fsync failed before, so this one means nothing; check the disk, restart the node"
            raise DiskFailed(message, key=at.name)

    def distrust(self, places: Iterable[ChunkPath]) -> None:
        """Note that a sync of the names of these chunks has failed."""
        self._unsynced.update(at.parent for at in places)

    def _make(self) -> None:
        for path in (self.chunks, self.quarantine, *self.parents):
            with suppress(FileExistsError):
                self._fs.make_directory(path)
        # A name is durable once all directories above it are. This also settles the names that a process linked before it
        # died and did not come to sync: from here on, what is visible is durable.
        for path in (*self.parents, self.chunks, self._root):
            with opened(self._fs.open_directory(path)) as directory:
                self._fs.sync(directory)

    def _require_unnamed_files(self) -> None:
        with opened(self._fs.open_directory(self.parents[0])) as directory:
            try:
                os.close(self._fs.create_unnamed(directory=directory))
            except OSError as exc:
                if exc.errno not in (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL):
                    raise
                raise Misconfigured(
                    f"the file system of {self._root} can't create unnamed files (O_TMPFILE: {exc.strerror}), and without "
                    "them no chunk can be written durably; put the data on ext4, xfs, btrfs or tmpfs"
                ) from exc
