"""Chunks on one disk: durable, content-addressed, checked. Blocking; it knows neither HTTP nor which chunks ought to be here.

Theory of operation
-------------------
A chunk is named by (partition, id). Its file lies at ``chunks/<first byte of the id>/<partition>-<id>`` and is written once,
never changed (`storenode.chunkfile`).

A copy is *visible* when its name exists and *acknowledged* when `put` has returned. Between the two stands the fsync of the
directory. So that nobody counts a visible copy that a power cut would take back, `put` fsyncs the directory on every path,
also where the file was there already, and opening the store fsyncs all directories before anything else is answered.

A directory whose fsync failed takes no writes until the store is opened anew (`storenode.chunkdirs`). A copy that fails its
checksums is set aside, never deleted, and only by whoever has just re-hashed that very file (`storenode.screening`).

Each copy is tagged with the epoch of garbage collection in which it was last put or touched. A copy that was found here is
tagged first and looked at then: from the tag on, garbage collection of an earlier epoch lets it be.

Invariants: no bytes become visible under an id that they do not hash to; a failed or interrupted `put` leaves nothing under
the name that was not whole and on the disk. One process owns the directory (`storenode.identity`); its threads may call at
will.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from typing_extensions import Buffer

from client.checksum import blake3_id
from client.errors import BodyTooLarge, ChecksumMismatch, ChunkNotFound, DiskFailed, StoreError
from storenode.census import Census, take_census
from storenode.chunkdirs import ChunkDirectories
from storenode.chunkfile import ChunkPath, OpenChunk, parse_name, read_trailer
from storenode.chunkgroup import ChunkGroup, Member, require_reporting_sync
from storenode.chunkwriter import ChunkWriter
from storenode.diskspace import DiskSpace, DiskUsage
from storenode.filesystem import FileSystem, UnnamedFile, disk_error, opened, translated
from storenode.garbage import Garbage
from storenode.screening import Copy, Screening
from storenode.smallchunks import SmallChunks
from storenode.trailer import MAX_PAYLOAD_BYTES, trailer_bytes

__all__ = ["ChunkStore"]

# How often `put` starts again because the copy changed under it. Each turn means that another thread made progress.
_NUM_PUT_TURNS = 5


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
    floor : int
        The epoch of garbage collection as it is when the store is opened: no copy counts as tagged with an earlier one.
    fs : FileSystem, optional
        The operating system's calls.

    Raises
    ------
    Misconfigured
        If the file system has no ``O_TMPFILE``, or the kernel is too old.
    DiskFailed, DiskFull
        If the directories can't be made or synced.
    """

    def __init__(
        self, root: Path, *, reserve_bytes: int, max_chunk_bytes: int, floor: int = 0, fs: FileSystem | None = None
    ) -> None:
        assert max_chunk_bytes <= MAX_PAYLOAD_BYTES, max_chunk_bytes
        self.root = root
        self._max_chunk_bytes = max_chunk_bytes
        self._fs = fs or FileSystem()
        self._dirs = ChunkDirectories(root, fs=self._fs)
        self._screening = Screening(self._fs, quarantine=self._dirs.quarantine, floor=floor)
        self._space = DiskSpace(fs=self._fs, path=self._dirs.chunks, reserve_bytes=reserve_bytes)
        require_reporting_sync(self._fs)

    def put(self, partition: int, chunk_id: bytes, payload: Buffer, *, epoch: int = 0) -> bool:
        """Store a chunk durably, with `epoch` or a later one for its tag.

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
        with self.writer(partition, chunk_id, memoryview(payload).cast("B"), epoch=epoch) as writer:
            return writer.commit()

    def writer(self, partition: int, chunk_id: bytes, payload: memoryview, *, epoch: int = 0) -> ChunkWriter:
        """Begin to store a chunk whose payload is still coming into its memory; raises what `put` does."""
        at, size_bytes = self._dirs.at(partition, chunk_id), len(payload)
        if size_bytes > self._max_chunk_bytes:
            raise BodyTooLarge(f"{size_bytes} bytes for one chunk; this node takes {self._max_chunk_bytes}", key=at.name)
        with self._dirs.opened(at) as directory:
            self._dirs.require_synced(at)
            present = self._is_present(at, directory=directory)
            draft = None if present else self._draft(at, size_bytes=size_bytes, directory=directory)
        return ChunkWriter(at, payload, draft, commit=partial(self._commit, at, epoch=epoch))

    def put_group(self, chunks: Sequence[tuple[int, bytes, Buffer]], *, epoch: int = 0) -> list[StoreError | None]:
        """Store small chunks, given as (partition, id, payload), as one durable group; see `storenode.chunkgroup`.

        Each holds a descriptor meanwhile, so there are at most `MAX_MEMBERS`.

        Returns
        -------
        list of StoreError or None
            For each chunk None if it is durable, else what `put` would have raised.
        """
        members = [Member(at=self._dirs.at(partition, chunk_id), payload=payload) for partition, chunk_id, payload in chunks]
        group = ChunkGroup(
            fs=self._fs,
            root=self._dirs.chunks,
            epoch=epoch,
            is_sound=partial(self._is_sound, epoch=epoch),
            require_room=lambda size_bytes: self._space.require(size_bytes, key=members[0].at.name),
            require_synced=self._dirs.require_synced,
            sync_failed=self._dirs.distrust,
        )
        try:
            with translated(self._dirs.chunks):
                group.store([member for member in members if _has_its_id(member)])
        except StoreError as error:
            return [member.error or error for member in members]
        for member in members:
            if member.taken:
                # Another writer of the same bytes was faster, perhaps in this very group.
                try:
                    self.put(member.at.partition, member.at.id, member.payload, epoch=epoch)
                except StoreError as error:
                    member.error = error
        return [member.error for member in members]

    @contextmanager
    def small_chunks(self) -> Iterator[SmallChunks]:
        """To read many small chunks whole; raises `DiskFailed`."""
        with translated(self._dirs.chunks), opened(self._fs.open_directory(self._dirs.chunks)) as directory:
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
        at, fd = self._opened(partition, chunk_id)
        try:
            return OpenChunk(self._fs, fd=fd, at=at, trailer=read_trailer(self._fs, fd, at=at))
        except BaseException:
            os.close(fd)
            raise

    def open_file(self, partition: int, chunk_id: bytes) -> int:
        """A read-only descriptor of a chunk's file, the caller's, for who checks all of its payload; raises `ChunkNotFound`."""
        return self._opened(partition, chunk_id)[1]

    def verify(self, partition: int, chunk_id: bytes) -> int:
        """Re-hash a copy where it lies, payload, segments and trailer; returns its size in bytes.

        Raises `ChunkNotFound` or `ChunkCorrupt`. The copy stays where it is: `quarantine` moves it.
        """
        at = self._dirs.at(partition, chunk_id)
        with self._dirs.opened(at) as directory, opened(self._open_file(at, directory=directory)) as fd:
            return self._screening.rehash(fd, at)

    def quarantine(self, partition: int, chunk_id: bytes) -> bool:
        """Take a copy out of its place if it is corrupt. It is re-hashed first: an accusation alone moves nothing.

        Returns
        -------
        bool
            True if a corrupt copy was moved away, False if the copy is sound or gone.
        """
        at = self._dirs.at(partition, chunk_id)
        with self._dirs.opened(at) as directory:
            return self._screening.screen(at, directory=directory) is Copy.QUARANTINED

    def touch(self, partition: int, chunk_id: bytes, *, epoch: int = 0, rehash: bool = True) -> bool:
        """Tag a copy that is here, and re-hash it; who then relies on it calls `make_durable`.

        Parameters
        ----------
        rehash : bool
            False only looks for its name and tags it.

        Returns
        -------
        bool
            False if there is no sound copy.
        """
        at = self._dirs.at(partition, chunk_id)
        with self._dirs.opened(at) as directory:
            tagged = self._tagged_sound if rehash else self._screening.tag
            return tagged(at, epoch=epoch, directory=directory)

    def contains(self, partition: int, chunk_id: bytes) -> bool:
        """Whether a file of that name is here: a hint, which promises nothing about its bytes."""
        at = self._dirs.at(partition, chunk_id)
        with self._dirs.opened(at) as directory:
            return self._is_present(at, directory=directory)

    def make_durable(self, chunk_ids: Iterable[bytes]) -> None:
        """Make durable the names of copies that were seen to be here, for who is about to rely on them; raises `DiskFailed`.

        A visible copy may be one whose `put` is still under way, or failed at the fsync of its directory.
        """
        self._dirs.sync_many([self._dirs.at(0, chunk_id) for chunk_id in {each[0]: each for each in chunk_ids}.values()])

    def delete(self, partition: int, chunk_id: bytes) -> bool:
        """Remove a copy; returns whether there was one. A crash may bring it back, which costs space and nothing else."""
        at = self._dirs.at(partition, chunk_id)
        with self._dirs.opened(at) as directory:
            return self._screening.delete(at, directory=directory)

    def scan(self, *, after: tuple[int, bytes] | None = None) -> Iterator[tuple[int, bytes]]:
        """All chunks as (partition, id), ordered by first byte of the id, then partition, then id.

        Parameters
        ----------
        after : (int, bytes), optional
            Continue behind this chunk, which need not exist any more.

        Memory holds the names of one of the 256 directories. Chunks that come or go meanwhile may be seen or not.
        """
        last = self._dirs.at(*after).path if after else None
        for parent in self._dirs.parents:
            if last and parent < last.parent:
                continue
            with translated(parent):
                names = self._fs.list_names(parent)
            for name in sorted(names):
                if (named := parse_name(name)) and not (last and parent == last.parent and name <= last.name):
                    yield named

    @property
    def garbage(self) -> Garbage:
        """By which garbage collection finds copies and removes them."""
        return Garbage(self._fs, dirs=self._dirs, screening=self._screening)

    def usage(self) -> DiskUsage:
        """How full the disk is."""
        return self._space.usage()

    def census(self) -> Census:
        """About how many chunks are here, and their bytes; raises `DiskFailed`."""
        return take_census(self._fs, self._dirs.parents)

    @property
    def read_only(self) -> bool:
        """Whether the disk is so full that new chunks are refused."""
        return self.usage().read_only

    @property
    def num_withdrawn(self) -> int:
        """Copies that left their places; whoever keeps files open looks at it."""
        return self._screening.num_withdrawn

    def _is_present(self, at: ChunkPath, *, directory: int) -> bool:
        try:
            self._fs.stat_name(at.name, directory=directory)
        except FileNotFoundError:
            return False
        return True

    def _draft(self, at: ChunkPath, *, size_bytes: int, directory: int) -> UnnamedFile:
        self._space.require(size_bytes + trailer_bytes(size_bytes), key=at.name)
        return UnnamedFile(self._fs, directory=directory)

    def _commit(self, at: ChunkPath, writer: ChunkWriter, *, epoch: int) -> bool:
        if (found := writer.hash.id) != at.id:
            raise ChecksumMismatch(f"the bytes sent for chunk {at.id.hex()} hash to {found.hex()}", key=at.name)
        with self._dirs.opened(at) as directory:
            self._dirs.require_synced(at)
            created = self._link_unless_present(at, writer, epoch=epoch, directory=directory)
            self._dirs.sync(at, directory=directory)
        return created

    def _link_unless_present(self, at: ChunkPath, writer: ChunkWriter, *, epoch: int, directory: int) -> bool:
        trailer = writer.hash.trailer(partition=at.partition).encode()
        for _ in range(_NUM_PUT_TURNS):
            if writer.draft is None:
                # Found is not stored: a copy counts only after its bytes were read back and hashed. A bad one makes room
                # first.
                if self._tagged_sound(at, epoch=epoch, directory=directory):
                    return False
                writer.draft = self._draft(at, size_bytes=len(writer.payload), directory=directory)
                writer.draft.write(writer.payload)
            try:
                writer.draft.write(trailer)
                writer.draft.stamp(epoch)
                writer.draft.link_as(at.name, directory=directory)
                return True
            except FileExistsError:
                # Another writer of the same bytes was faster. Its copy is treated like any that was here before.
                writer.close()
        raise DiskFailed(f"{at.path}: the copy changed {_NUM_PUT_TURNS} times while it was being written", key=at.name)

    def _is_sound(self, at: ChunkPath, *, epoch: int) -> bool:
        with self._dirs.opened(at) as directory:
            return self._tagged_sound(at, epoch=epoch, directory=directory)

    def _tagged_sound(self, at: ChunkPath, *, epoch: int, directory: int) -> bool:
        """Tag the copy under a name and re-hash it, moving it away if it is bad; whether a sound one is there."""
        # The tag first: a copy that was found sound and is tagged only then may have been removed in between.
        tagged = self._screening.tag(at, epoch=epoch, directory=directory)
        return tagged and self._screening.screen(at, directory=directory) is Copy.SOUND

    def _opened(self, partition: int, chunk_id: bytes) -> tuple[ChunkPath, int]:
        at = self._dirs.at(partition, chunk_id)
        try:
            return at, self._fs.open_path(f"{at.parent}/{at.name}")
        except FileNotFoundError as exc:
            raise _not_found(at) from exc
        except OSError as exc:
            raise disk_error(exc, at.path, key=at.name) from exc

    def _open_file(self, at: ChunkPath, *, directory: int) -> int:
        try:
            return self._fs.open_file(at.name, directory=directory)
        except FileNotFoundError as exc:
            raise _not_found(at) from exc


def _not_found(at: ChunkPath) -> ChunkNotFound:
    return ChunkNotFound(f"no copy of chunk {at.name} here", key=at.name)


def _has_its_id(member: Member) -> bool:
    if (found := blake3_id(memoryview(member.payload).cast("B"))) == member.at.id:
        return True
    message = f"the bytes sent for chunk {member.at.id.hex()} hash to {found.hex()}"
    member.error = ChecksumMismatch(message, key=member.at.name)
    return False
