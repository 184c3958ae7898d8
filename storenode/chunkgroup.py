"""Many small chunks that become durable together. Blocking; it belongs to `storenode.chunkstore`, which says what a copy is.

Theory of operation
-------------------
A file alone pays for two waits on the disk, one for its bytes and one for its name. A group pays for two as a whole, by
syncfs(2), which waits for everything that the file system has not written yet:

    write all files, without names  ->  sync  ->  link all  ->  sync  ->  acknowledge

The order is that of `write_new`, so its promises hold: a name never leads to bytes that a crash can take back, and nobody is
told of a name that it can. A chunk that fails by itself leaves the group, and the others go on. A failed sync is everybody's
failure, because nothing tells whose bytes were lost, and it is never repeated on the same files.

syncfs reports an error once for each open file description, and only since Linux 5.8; so each group opens its own before it
writes, and an older kernel is refused at start.

A name that is taken is no part of the group's work: a copy found before is screened by the store, and its name made durable
with the others; one that appears in the meantime is left to `ChunkStore.put`, which knows what to make of it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from typing_extensions import Buffer

from client.errors import Misconfigured, StoreError
from storenode.chunkfile import ChunkPath
from storenode.filesystem import FileSystem, disk_error, opened
from storenode.trailer import Trailer

__all__ = ["MAX_MEMBERS", "ChunkGroup", "Member", "require_reporting_sync"]

MAX_MEMBERS = 256  # Each holds a descriptor until its group is durable.

_REPORTING_KERNEL = (5, 8)


@dataclass(slots=True, kw_only=True)
class Member:
    """A chunk of a group and what becomes of it: `error` says why it is not stored, `taken` that its name was given away."""

    at: ChunkPath
    payload: Buffer
    error: StoreError | None = None
    taken: bool = False

    @property
    def name(self) -> str:
        """The file's path below the directory of all chunks."""
        return f"{self.at.id[0]:02x}/{self.at.name}"


@dataclass(frozen=True, slots=True, kw_only=True)
class ChunkGroup:
    """What a group needs of its store.

    Attributes
    ----------
    root : Path
        The directory of all chunks.
    epoch : int
        The tag of new copies.
    is_sound : callable
        Tags the copy under a name, re-hashes it, and moves it away if it is bad; whether a sound one is there.
    require_room : callable
        Raises `DiskFull` unless so many bytes may be written.
    require_synced : callable
        Raises `DiskFailed` for a chunk whose directory had a failed sync.
    sync_failed : callable
        Told of chunks whose names may not be durable.
    """

    fs: FileSystem
    root: Path
    epoch: int
    is_sound: Callable[[ChunkPath], bool]
    require_room: Callable[[int], None]
    require_synced: Callable[[ChunkPath], None]
    sync_failed: Callable[[Sequence[ChunkPath]], None]

    def store(self, members: Sequence[Member]) -> None:
        """Make the chunks of `members` durable, as many as can be; each is told what became of it.

        Raises
        ------
        OSError
            If the directory of all chunks can't be opened. Nothing was done.
        """
        with opened(self.fs.open_directory(self.root)) as directory, ExitStack() as files:
            absent, sound = self._screen(members, directory=directory)
            try:
                linked = self._link(self._write(absent, files, directory=directory), directory=directory)
                self._sync_names([*sound, *linked], directory=directory)
            except OSError as exc:
                _fail([*absent, *sound], disk_error(exc, self.root))

    def _screen(self, members: Sequence[Member], *, directory: int) -> tuple[list[Member], list[Member]]:
        """Those of `members` that have to be written, and those of which a sound copy is here."""
        absent: list[Member] = []
        sound: list[Member] = []
        for member in members:
            try:
                self.require_synced(member.at)
                try:
                    self.fs.stat_name(member.name, directory=directory)
                except FileNotFoundError:
                    absent.append(member)
                    continue
                # Found is not stored: a copy counts only after its bytes were read back and hashed.
                (sound if self.is_sound(member.at) else absent).append(member)
            except OSError as exc:
                member.error = _named(exc, member)
            except StoreError as error:
                member.error = error
        return absent, sound

    def _write(self, members: Sequence[Member], files: ExitStack, *, directory: int) -> list[tuple[int, Member]]:
        """Files without names, durable, for those of `members` that could be written. They are closed with `files`.

        Raises `OSError` if the sync failed.
        """
        if not members:
            return []
        parts = []
        for member in members:
            view = memoryview(member.payload).cast("B")
            trailer = Trailer.of(view, partition=member.at.partition, chunk_id=member.at.id).encode()
            parts.append(b"".join((view, trailer)))
        try:
            self.require_room(sum(map(len, parts)))
        except StoreError as error:
            _fail(members, error)
            return []
        written = []
        for member, data in zip(members, parts, strict=True):
            try:
                fd = self.fs.create_unnamed(directory=directory)
                files.callback(os.close, fd)
                rest = memoryview(data)
                while rest:
                    rest = rest[self.fs.write(fd, rest) :]
                self.fs.stamp_file(fd, seconds=self.epoch)
                written.append((fd, member))
            except OSError as exc:
                member.error = _named(exc, member)
        # Before the names, and never again for these files: the kernel may have marked lost pages clean.
        self.fs.sync_everything(directory)
        return written

    def _link(self, written: Sequence[tuple[int, Member]], *, directory: int) -> list[Member]:
        linked = []
        for fd, member in written:
            try:
                self.fs.link(fd, member.name, directory=directory)
                linked.append(member)
            except FileExistsError:
                member.taken = True
            except OSError as exc:
                member.error = _named(exc, member)
        return linked

    def _sync_names(self, members: Sequence[Member], *, directory: int) -> None:
        """Make the names of `members` durable; raises `OSError` if the sync failed."""
        if not members:
            return
        try:
            # Those of copies found sound, too: whoever linked one may have died before its own sync.
            self.fs.sync_everything(directory)
        except OSError:
            self.sync_failed([member.at for member in members])
            raise
        for member in members:
            try:
                # Again after the call: a thread that failed meanwhile may have been told of the lost write in our place.
                self.require_synced(member.at)
            except StoreError as error:
                member.error = error


def require_reporting_sync(fs: FileSystem) -> None:
    """Raise `Misconfigured` for a kernel whose syncfs keeps failed writes to itself."""
    release = fs.kernel_release()
    version = tuple(map(int, re.findall(r"[0-9]+", release)[:2]))
    if version < _REPORTING_KERNEL:
        raise Misconfigured(
            f"Linux {release} does not tell of failed writes where many files are synced together (syncfs); "
            f"Forebay needs {'.'.join(map(str, _REPORTING_KERNEL))} or newer"
        )


def _named(exc: OSError, member: Member) -> StoreError:
    return disk_error(exc, member.at.path, key=member.at.name)


def _fail(members: Sequence[Member], error: StoreError) -> None:
    for member in members:
        if not (member.error or member.taken):
            member.error = error
