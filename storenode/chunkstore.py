"""Chunks on one disk: durable, content-addressed, checked. Blocking; it knows neither HTTP nor which chunks ought to be here.

Theory of operation
-------------------
A chunk is named by (partition, id). Its file lies at ``chunks/<first byte of the id>/<partition>-<id>`` and is written once,
never changed (`storenode.chunkfile`).

A copy is *visible* when its name exists and *acknowledged* when `put` has returned. Between the two stands the fsync of the
directory. So that nobody counts a visible copy that a power cut would take back, `put` fsyncs the directory on every path,
also where the file was there already, and opening the store fsyncs all directories before anything else is answered.

A directory whose fsync failed takes no writes until the store is opened anew: the kernel reports such a failure once and may
call the next fsync a success without having written anything.

A copy that fails its checksums leaves its place by rename into ``quarantine/`` and is never deleted here. The store moves
only the very file that it has just re-hashed itself, so a late or wrong accusation can't take away a sound copy, nor the
copy that repair has put in a bad one's place.

Invariants: no bytes become visible under an id that they do not hash to; a failed or interrupted `put` leaves nothing under
the name that was not whole and on the disk. One process owns the directory (`storenode.identity`); its threads may call at
will.
"""

from __future__ import annotations

import errno
import os
import threading
import uuid
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from enum import Enum
from functools import partial
from pathlib import Path

from typing_extensions import Buffer

from client.checksum import blake3_id
from client.errors import (
    BodyTooLarge,
    ChecksumMismatch,
    ChunkCorrupt,
    ChunkNotFound,
    DiskFailed,
    DiskFull,
    Misconfigured,
    StoreError,
)
from storenode.chunkfile import ChunkPath, OpenChunk, parse_name, read_trailer, rehash
from storenode.chunkgroup import ChunkGroup, Member, require_reporting_sync
from storenode.chunkwriter import ChunkWriter
from storenode.filesystem import FileSystem, UnnamedFile, opened, translated
from storenode.smallchunks import SmallChunks
from storenode.trailer import MAX_PAYLOAD_BYTES, trailer_bytes

__all__ = ["ChunkStore", "DiskUsage"]

# Buffers for re-hashing that are kept between calls; more threads than this allocate their own.
_NUM_KEPT_BUFFERS = 4
# How often `put` starts again because the copy changed under it. Each turn means that another thread made progress.
_NUM_PUT_TURNS = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskUsage:
    """Room on the disk that holds the chunks, in bytes; `free_bytes` is what this process may still use."""

    total_bytes: int
    free_bytes: int
    reserve_bytes: int

    @property
    def read_only(self) -> bool:
        """Whether the reserve is reached, so that new chunks are refused."""
        return self.free_bytes < self.reserve_bytes


class _Copy(Enum):
    """What `ChunkStore._screen` found under a name."""

    SOUND = "sound"
    ABSENT = "absent"
    QUARANTINED = "quarantined"


class ChunkStore:
    """The chunks in one directory.

    Parameters
    ----------
    root : Path
        An existing directory that this process owns; ``chunks`` and ``quarantine`` are made in it.
    reserve_bytes : int
        Free space below which new chunks are refused.
    max_chunk_bytes : int
        Largest payload that is accepted, at most 1 GiB.
    fs : FileSystem, optional
        The operating system's calls.

    Raises
    ------
    Misconfigured
        If the file system has no ``O_TMPFILE``, or the kernel is too old.
    DiskFailed, DiskFull
        If the directories can't be made or synced.
    """

    def __init__(self, root: Path, *, reserve_bytes: int, max_chunk_bytes: int, fs: FileSystem | None = None) -> None:
        assert max_chunk_bytes <= MAX_PAYLOAD_BYTES, max_chunk_bytes
        self.root = root
        self._chunks = root / "chunks"
        self._quarantine = root / "quarantine"
        self._reserve_bytes = reserve_bytes
        self._max_chunk_bytes = max_chunk_bytes
        self._fs = fs or FileSystem()
        self._unsynced: set[Path] = set()
        self._moving = threading.Lock()
        self.num_withdrawn = 0  # Copies that left their places; whoever keeps files open looks at it.
        self._buffers: deque[bytearray] = deque(maxlen=_NUM_KEPT_BUFFERS)
        with translated(root):
            self._make_directories()
            self._require_unnamed_files()
        require_reporting_sync(self._fs)

    def put(self, partition: int, chunk_id: bytes, payload: Buffer) -> bool:
        """Store a chunk durably.

        Returns
        -------
        bool
            True if it was written, False if a sound copy was here already.

        Raises
        ------
        ChecksumMismatch
            If `chunk_id` is not the BLAKE3-256 of `payload`.
        BodyTooLarge
            If the payload is longer than ``max_chunk_bytes``.
        DiskFull
            If the disk has no room above the reserve. Nothing was half-written.
        DiskFailed
            If a call of the operating system failed. The copy must not be counted.
        """
        view = memoryview(payload).cast("B")
        with self.writer(partition, chunk_id, size_bytes=len(view)) as writer:
            writer.write(view)
            return writer.commit(view)

    def writer(self, partition: int, chunk_id: bytes, *, size_bytes: int) -> ChunkWriter:
        """Begin to store a chunk that comes in parts; raises what `put` does."""
        at = self._at(partition, chunk_id)
        if size_bytes > self._max_chunk_bytes:
            raise BodyTooLarge(f"{size_bytes} bytes for one chunk; this node takes {self._max_chunk_bytes}", key=at.name)
        with self._directory(at) as directory:
            self._require_synced(at)
            present = self._is_present(at, directory=directory)
            draft = None if present else self._draft(at, size_bytes=size_bytes, directory=directory)
        return ChunkWriter(at, draft, commit=partial(self._commit, at))

    def put_group(self, chunks: Sequence[tuple[int, bytes, Buffer]]) -> list[StoreError | None]:
        """Store small chunks, given as (partition, id, payload), as one durable group; see `storenode.chunkgroup`.

        Each holds a descriptor meanwhile, so the caller bounds their number.

        Returns
        -------
        list of StoreError or None
            For each chunk None if it is durable, else what `put` would have raised.
        """
        members = [Member(at=self._at(partition, chunk_id), payload=payload) for partition, chunk_id, payload in chunks]
        group = ChunkGroup(
            fs=self._fs,
            root=self._chunks,
            is_sound=self._is_sound,
            require_room=lambda size_bytes: self._require_room(size_bytes, at=members[0].at),
            require_synced=self._require_synced,
            sync_failed=lambda places: self._unsynced.update(at.path.parent for at in places),
        )
        with translated(self._chunks):
            group.store([member for member in members if _has_its_id(member)])
        for member in members:
            if member.taken:
                # Another writer of the same bytes was faster, perhaps in this very group.
                try:
                    self.put(member.at.partition, member.at.id, member.payload)
                except StoreError as error:
                    member.error = error
        return [member.error for member in members]

    @contextmanager
    def small_chunks(self) -> Iterator[SmallChunks]:
        """To read many small chunks whole; raises `DiskFailed`."""
        with translated(self._chunks), opened(self._fs.open_directory(self._chunks)) as directory:
            yield SmallChunks(self._fs, directory)

    def open_chunk(self, partition: int, chunk_id: bytes) -> OpenChunk:
        """Open a chunk for reading, hashing none of its payload.

        Raises
        ------
        ChunkNotFound
            If there is no copy.
        ChunkCorrupt
            If the file was cut short, grew, or its trailer is damaged or of another chunk.
        """
        at = self._at(partition, chunk_id)
        with self._directory(at) as directory:
            fd = self._open_file(at, directory=directory)
            try:
                return OpenChunk(self._fs, fd=fd, at=at, trailer=read_trailer(self._fs, fd, at=at))
            except BaseException:
                os.close(fd)
                raise

    def verify(self, partition: int, chunk_id: bytes) -> int:
        """Re-hash a copy where it lies, payload, segments and trailer; returns its size in bytes.

        Raises `ChunkNotFound` or `ChunkCorrupt`. The copy stays where it is: `quarantine` moves it.
        """
        at = self._at(partition, chunk_id)
        with self._directory(at) as directory, opened(self._open_file(at, directory=directory)) as fd:
            return self._rehash(fd, at)

    def quarantine(self, partition: int, chunk_id: bytes) -> bool:
        """Take a copy out of its place if it is corrupt. It is re-hashed first: an accusation alone moves nothing.

        Returns
        -------
        bool
            True if a corrupt copy was moved away, False if the copy is sound or gone.
        """
        at = self._at(partition, chunk_id)
        with self._directory(at) as directory:
            return self._screen(at, directory=directory) is _Copy.QUARANTINED

    def touch(self, partition: int, chunk_id: bytes) -> bool:
        """Make a copy that is here count like one that was just put: re-hashed, and its name durable.

        Returns
        -------
        bool
            False if there is no sound copy.
        """
        at = self._at(partition, chunk_id)
        with self._directory(at) as directory:
            if self._screen(at, directory=directory) is not _Copy.SOUND:
                return False
            self._require_synced(at)
            self._sync_directory(at, directory=directory)
        return True

    def contains(self, partition: int, chunk_id: bytes) -> bool:
        """Whether a file of that name is here: a hint, which promises nothing about its bytes."""
        at = self._at(partition, chunk_id)
        with self._directory(at) as directory:
            return self._is_present(at, directory=directory)

    def make_durable(self, chunk_ids: Iterable[bytes]) -> None:
        """Make durable the names of copies that `contains` saw, for who is about to rely on them; raises `DiskFailed`.

        A visible copy may be one whose `put` is still under way, or failed at the fsync of its directory.
        """
        for chunk_id in {chunk_id[0]: chunk_id for chunk_id in chunk_ids}.values():
            at = self._at(0, chunk_id)
            with self._directory(at) as directory:
                self._sync_directory(at, directory=directory)

    def delete(self, partition: int, chunk_id: bytes) -> bool:
        """Remove a copy; returns whether there was one. A crash may bring it back, which costs space and nothing else."""
        at = self._at(partition, chunk_id)
        # Under the lock, so that `_move_away` never renames a name that was deleted and written anew after its check.
        with self._directory(at) as directory, self._moving:
            try:
                self._fs.unlink(at.name, directory=directory)
            except FileNotFoundError:
                return False
            self.num_withdrawn += 1
        return True

    def scan(self, *, after: tuple[int, bytes] | None = None) -> Iterator[tuple[int, bytes]]:
        """All chunks as (partition, id), ordered by first byte of the id, then partition, then id.

        Parameters
        ----------
        after : (int, bytes), optional
            Continue behind this chunk, which need not exist any more.

        Memory holds the names of one of the 256 directories. Chunks that come or go meanwhile may be seen or not.
        """
        last = self._at(*after).path if after else None
        for parent in self._parents():
            if last and parent < last.parent:
                continue
            with translated(parent):
                names = self._fs.list_names(parent)
            for name in sorted(names):
                if (named := parse_name(name)) and not (last and parent == last.parent and name <= last.name):
                    yield named

    def usage(self) -> DiskUsage:
        """How full the disk is."""
        with translated(self._chunks):
            space = self._fs.stat_space(self._chunks)
        return DiskUsage(
            total_bytes=space.f_blocks * space.f_frsize,
            free_bytes=space.f_bavail * space.f_frsize,
            reserve_bytes=self._reserve_bytes,
        )

    @property
    def read_only(self) -> bool:
        """Whether the disk is so full that new chunks are refused."""
        return self.usage().read_only

    def _make_directories(self) -> None:
        for path in (self._chunks, self._quarantine, *self._parents()):
            with suppress(FileExistsError):
                self._fs.make_directory(path)
        # A name is durable once all directories above it are. This also settles the names that a process linked before it
        # died and did not come to sync: from here on, what is visible is durable.
        for path in (*self._parents(), self._chunks, self.root):
            with opened(self._fs.open_directory(path)) as directory:
                self._fs.sync(directory)

    def _require_unnamed_files(self) -> None:
        with opened(self._fs.open_directory(self._parents()[0])) as directory:
            try:
                os.close(self._fs.create_unnamed(directory=directory))
            except OSError as exc:
                if exc.errno not in (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL):
                    raise
                raise Misconfigured(
                    f"the file system of {self.root} can't create unnamed files (O_TMPFILE: {exc.strerror}), and without "
                    "them no chunk can be written durably; put the data on ext4, xfs, btrfs or tmpfs"
                ) from exc

    def _is_present(self, at: ChunkPath, *, directory: int) -> bool:
        try:
            self._fs.stat_name(at.name, directory=directory)
        except FileNotFoundError:
            return False
        return True

    def _draft(self, at: ChunkPath, *, size_bytes: int, directory: int) -> UnnamedFile:
        self._require_room(size_bytes + trailer_bytes(size_bytes), at=at)
        return UnnamedFile(self._fs, directory=directory)

    def _commit(self, at: ChunkPath, writer: ChunkWriter, payload: memoryview) -> bool:
        assert writer.hash.size == len(payload), (writer.hash.size, len(payload))
        if (found := writer.hash.id) != at.id:
            raise ChecksumMismatch(f"the bytes sent for chunk {at.id.hex()} hash to {found.hex()}", key=at.name)
        with self._directory(at) as directory:
            self._require_synced(at)
            created = self._link_unless_present(at, writer, payload, directory=directory)
            self._sync_directory(at, directory=directory)
        return created

    def _link_unless_present(self, at: ChunkPath, writer: ChunkWriter, payload: memoryview, *, directory: int) -> bool:
        trailer = writer.hash.trailer(partition=at.partition).encode()
        for _ in range(_NUM_PUT_TURNS):
            if writer.draft is None:
                # Found is not stored: a copy counts only after its bytes were read back and hashed. A bad one makes room
                # first.
                if self._screen(at, directory=directory) is _Copy.SOUND:
                    return False
                writer.draft = self._draft(at, size_bytes=len(payload), directory=directory)
                writer.draft.write(payload)
            try:
                writer.draft.write(trailer)
                writer.draft.link_as(at.name, directory=directory)
                return True
            except FileExistsError:
                # Another writer of the same bytes was faster. Its copy is treated like any that was here before.
                writer.close()
        raise DiskFailed(f"{at.path}: the copy changed {_NUM_PUT_TURNS} times while it was being written", key=at.name)

    def _require_room(self, size_bytes: int, *, at: ChunkPath) -> None:
        # Before the first byte: a disk filled to the brim has no room for metadata either. Writers that run at the same
        # time may undercut the reserve by one chunk each.
        usage = self.usage()
        if usage.free_bytes - size_bytes < self._reserve_bytes:
            raise DiskFull(
                f"{self.root} has {usage.free_bytes} bytes free; {size_bytes} more would leave less than the reserve of "
                f"{self._reserve_bytes}; free space, add a node or lower the reserve",
                key=at.name,
            )

    def _sync_directory(self, at: ChunkPath, *, directory: int) -> None:
        try:
            # The name is durable only now. On a dedup hit too: whoever linked it may have died before this very call, or
            # may still be about to make it.
            self._fs.sync(directory)
        except OSError:
            self._unsynced.add(at.path.parent)
            raise
        # Again after the call: a thread that failed meanwhile may have been told of the lost write in our place.
        self._require_synced(at)

    def _require_synced(self, at: ChunkPath) -> None:
        if at.path.parent in self._unsynced:
            message = f"{at.path.parent}: an fsync failed before, so this one means nothing; check the disk, restart the node"
            raise DiskFailed(message, key=at.name)

    def _is_sound(self, at: ChunkPath) -> bool:
        with self._directory(at) as directory:
            return self._screen(at, directory=directory) is _Copy.SOUND

    def _screen(self, at: ChunkPath, *, directory: int) -> _Copy:
        """Re-hash the copy under a name, and move it away if it is corrupt."""
        try:
            fd = self._fs.open_file(at.name, directory=directory)
        except FileNotFoundError:
            return _Copy.ABSENT
        with opened(fd):
            try:
                self._rehash(fd, at)
            except ChunkCorrupt:
                return _Copy.QUARANTINED if self._move_away(fd, at, directory=directory) else _Copy.ABSENT
        return _Copy.SOUND

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

    def _open_file(self, at: ChunkPath, *, directory: int) -> int:
        try:
            return self._fs.open_file(at.name, directory=directory)
        except FileNotFoundError as exc:
            raise ChunkNotFound(f"no copy of chunk {at.name} here", key=at.name) from exc

    def _rehash(self, fd: int, at: ChunkPath) -> int:
        trailer = read_trailer(self._fs, fd, at=at)
        with self._buffer(trailer.size) as view:
            rehash(self._fs, fd, at=at, trailer=trailer, view=view)
        return trailer.size

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

    @contextmanager
    def _directory(self, at: ChunkPath) -> Iterator[int]:
        with translated(at.path, key=at.name), opened(self._fs.open_directory(at.path.parent)) as directory:
            yield directory

    def _parents(self) -> list[Path]:
        return [self._chunks / f"{first:02x}" for first in range(256)]

    def _at(self, partition: int, chunk_id: bytes) -> ChunkPath:
        return ChunkPath.under(self._chunks, partition=partition, chunk_id=chunk_id)


def _has_its_id(member: Member) -> bool:
    if (found := blake3_id(memoryview(member.payload).cast("B"))) == member.at.id:
        return True
    message = f"the bytes sent for chunk {member.at.id.hex()} hash to {found.hex()}"
    member.error = ChecksumMismatch(message, key=member.at.name)
    return False
