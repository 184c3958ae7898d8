"""Copies re-hashed where they lie, tagged, and taken out of their places. Blocking; it decides nothing about new copies.

A copy that fails its checksums leaves its place by rename into ``quarantine/`` and is never deleted here. Only the very file
that was just re-hashed is moved, so a late or wrong accusation can't take away a sound copy, nor the copy that repair has put
in a bad one's place.

A copy's tag is the epoch of garbage collection in which somebody last relied on it. It is kept as the file's time of last
modification, in whole seconds: that costs no space and no write of its own, and is there from the moment that the name is. A
crash may take back a tag that was raised, so whatever was tagged before this process began counts for the floor, which is the
epoch that it found then. So does a time of the clock, from the year 2004 on, as a crash or another program may leave it.
"""

from __future__ import annotations

import os
import threading
import uuid
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum
from pathlib import Path

from client.errors import ChunkCorrupt
from client.wire import MAX_EPOCH
from storenode.chunkfile import ChunkPath, read_trailer, rehash
from storenode.filesystem import FileSystem, opened

__all__ = ["Copy", "Screening"]

# Buffers for re-hashing that are kept between calls; more threads than this allocate their own.
_NUM_KEPT_BUFFERS = 4


class Copy(Enum):
    """What was found under a name."""

    SOUND = "sound"
    ABSENT = "absent"
    QUARANTINED = "quarantined"


class Screening:
    """Re-hashes copies, and is the one place by which they leave theirs. Thread-safe.

    Parameters
    ----------
    quarantine : Path
        Directory for bad copies.
    floor : int
        Every copy counts as tagged with this epoch or a later one.

    Attributes
    ----------
    floor : int
        As given.
    num_withdrawn : int
        Copies that left their places.
    """

    def __init__(self, fs: FileSystem, *, quarantine: Path, floor: int) -> None:
        self._fs = fs
        self._quarantine = quarantine
        self.floor = floor
        # One for each directory. Whoever takes a name away, or relies on the copy that it leads to, holds it while he
        # looks and acts. Threads are enough, for the directory is of one process.
        self._moving = [threading.Lock() for _ in range(256)]
        self._counting = threading.Lock()
        self._buffers: deque[bytearray] = deque(maxlen=_NUM_KEPT_BUFFERS)
        self.num_withdrawn = 0

    def screen(self, at: ChunkPath, *, directory: int) -> Copy:
        """Re-hash the copy under a name, and move it away if it is corrupt."""
        try:
            fd = self._fs.open_file(at.name, directory=directory)
        except FileNotFoundError:
            return Copy.ABSENT
        with opened(fd):
            try:
                self.rehash(fd, at)
            except ChunkCorrupt:
                return Copy.QUARANTINED if self._move_away(fd, at, directory=directory) else Copy.ABSENT
        return Copy.SOUND

    def rehash(self, fd: int, at: ChunkPath) -> int:
        """Re-hash an open copy, payload, segments and trailer; its size in bytes. Raises `ChunkCorrupt`."""
        trailer = read_trailer(self._fs, fd, at=at)
        with self._buffer(trailer.size) as view:
            rehash(self._fs, fd, at=at, trailer=trailer, view=view)
        return trailer.size

    def delete(self, at: ChunkPath, *, directory: int) -> bool:
        """Remove a copy, whatever it is; returns whether there was one."""
        # Under the lock, so that `_move_away` never renames a name that was deleted and written anew after its check.
        with self._lock(at):
            try:
                self._fs.unlink(at.name, directory=directory)
            except FileNotFoundError:
                return False
            self.withdrawn()
        return True

    def tag(self, at: ChunkPath, *, epoch: int, directory: int) -> bool:
        """Raise the tag of the copy under a name to `epoch` at least; False if there is none."""
        # Under the lock, so that a copy that was found and tagged is never the one that `remove_older` has looked at before.
        with self._lock(at):
            try:
                found = self._fs.stat_name(at.name, directory=directory)
            except FileNotFoundError:
                return False
            if self.tag_of(found) < epoch:
                # Not synced: if a crash takes it back, the floor of the next start stands in for it.
                self._fs.stamp_name(at.name, directory=directory, seconds=epoch)
        return True

    def tag_of(self, found: os.stat_result) -> int:
        """The tag of a copy's file."""
        seconds = found.st_mtime_ns // 10**9
        return max(self.floor, seconds if seconds <= MAX_EPOCH else 0)

    def remove_older(self, at: ChunkPath, *, below: int, directory: int) -> int:
        """Remove the copy under a name if its tag is less than `below`; the bytes that it took, 0 if nothing was removed.

        Whoever has removed some tells `withdrawn` in the end.
        """
        # The lock makes the look at the tag and the removal one step: whoever tags the copy comes before it and saves it, or
        # after it and finds nothing. Nor does the name lead to another copy meanwhile, because names go only under it.
        with self._lock(at):
            try:
                found = self._fs.stat_name(at.name, directory=directory)
                if self.tag_of(found) >= below:
                    return 0
                self._fs.unlink(at.name, directory=directory)
            except FileNotFoundError:
                return 0
        return found.st_size

    def withdrawn(self) -> None:
        """Note that copies have left their places."""
        with self._counting:
            self.num_withdrawn += 1

    def _lock(self, at: ChunkPath) -> threading.Lock:
        return self._moving[at.id[0]]

    def _move_away(self, fd: int, at: ChunkPath, *, directory: int) -> bool:
        # The lock makes "the name still leads to the file that I hashed" and the rename one step: without it, two threads
        # that met the same bad copy could quarantine each other's good replacement after it was acknowledged. The file
        # is open, so its inode number can't be given to another.
        with self._lock(at), opened(self._fs.open_directory(self._quarantine)) as to_directory:
            try:
                named = self._fs.stat_name(at.name, directory=directory)
            except FileNotFoundError:
                return False
            if not os.path.samestat(named, self._fs.stat_file(fd)):
                return False
            # Not synced: if a crash undoes it, the bad copy is found again.
            to_name = f"{at.name}.{uuid.uuid4().hex}"
            self._fs.rename(at.name, directory=directory, to_name=to_name, to_directory=to_directory)
            self.withdrawn()
        return True

    @contextmanager
    def _buffer(self, size_bytes: int) -> Iterator[memoryview]:
        try:
            buffer = self._buffers.pop()
        except IndexError:
            buffer = bytearray()
        if len(buffer) < size_bytes:
            buffer = bytearray(size_bytes)
        with memoryview(buffer) as whole, whole[:size_bytes] as view:
            yield view
        self._buffers.append(buffer)
