"""Copies re-hashed where they lie, and the bad ones taken out of their places. Blocking; it decides nothing about new copies.

A copy that fails its checksums leaves its place by rename into ``quarantine/`` and is never deleted here. Only the very file
that was just re-hashed is moved, so a late or wrong accusation can't take away a sound copy, nor the copy that repair has put
in a bad one's place.
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

    Attributes
    ----------
    num_withdrawn : int
        Copies that left their places.
    """

    def __init__(self, fs: FileSystem, *, quarantine: Path) -> None:
        self._fs = fs
        self._quarantine = quarantine
        self._moving = threading.Lock()
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
        with self._moving:
            try:
                self._fs.unlink(at.name, directory=directory)
            except FileNotFoundError:
                return False
            self.num_withdrawn += 1
        return True

    def _move_away(self, fd: int, at: ChunkPath, *, directory: int) -> bool:
        # The lock makes "the name still leads to the file that I hashed" and the rename one step: without it, two threads
        # that met the same bad copy could quarantine each other's good replacement after it was acknowledged. The file
        # is open, so its inode number can't be given to another.
        with self._moving, opened(self._fs.open_directory(self._quarantine)) as to_directory:
            try:
                named = self._fs.stat_name(at.name, directory=directory)
            except FileNotFoundError:
                return False
            if not os.path.samestat(named, self._fs.stat_file(fd)):
                return False
            # Not synced: if a crash undoes it, the bad copy is found again.
            to_name = f"{at.name}.{uuid.uuid4().hex}"
            self._fs.rename(at.name, directory=directory, to_name=to_name, to_directory=to_directory)
            self.num_withdrawn += 1
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
