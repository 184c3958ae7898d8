"""One chunk file: where it lies, how it is opened, read and re-hashed. Blocking; it knows no other chunk and moves nothing.

The payload lies at offset 0, the trailer (`storenode.trailer`) behind it. Opening checks the structure: length, trailer, and
that the trailer belongs to the chunk that the name promises. The payload is checked by whoever receives it, against the
checksums in the trailer or the reference, or by `rehash`.

User-space hashing reads through pread into buffers: touching a map of a file that is cut short kills the process.
"""

from __future__ import annotations

import errno
import mmap
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from typing_extensions import Buffer

from client.checksum import ID_BYTES, blake3_id, num_segments, segment_checks, xxh3
from client.errors import ChunkCorrupt
from storenode.filesystem import FileSystem, disk_error
from storenode.trailer import CHECK_BYTES, DamagedTrailer, Trailer, payload_bytes

__all__ = ["ChunkPath", "OpenChunk", "parse_name", "read_trailer", "rehash"]


@dataclass(frozen=True, slots=True)
class ChunkPath:
    """A chunk's name and the one place where its file may lie.

    Attributes
    ----------
    parent : Path
        Its directory.
    name : str
        The file's name, which is also the chunk's key in messages.
    """

    partition: int
    id: bytes
    parent: Path
    name: str

    @classmethod
    def under(cls, parents: Sequence[Path], *, partition: int, chunk_id: bytes) -> ChunkPath:
        """Its place in one of 256 directories."""
        assert 0 <= partition < 2**32, partition
        assert len(chunk_id) == ID_BYTES, chunk_id
        return cls(partition, chunk_id, parents[chunk_id[0]], _name(partition, chunk_id))

    @property
    def path(self) -> Path:
        """The whole path."""
        return self.parent / self.name


class OpenChunk:
    """A chunk file that is open for reading. Its structure has been checked, its payload has not.

    It stays readable after the chunk is quarantined or deleted. Close it, or use it as a context manager.

    Attributes
    ----------
    fd : int
        Read-only descriptor; the payload is bytes 0 to `size`.
    size : int
        Bytes of payload.
    check : int
        xxh3_64 of the payload.
    """

    __slots__ = ("_at", "_fs", "_trailer", "check", "fd", "size")

    def __init__(self, fs: FileSystem, *, fd: int, at: ChunkPath, trailer: Trailer) -> None:
        self._fs = fs
        self._at = at
        self._trailer = trailer
        self.fd = fd
        self.size = trailer.size
        self.check = trailer.check

    def segment_checks(self, start: int = 0, end: int | None = None) -> bytes:
        """The checksums of segments `start` to `end` (exclusive; None: all that follow), 8 bytes little-endian each."""
        last = num_segments(self.size) if end is None else end
        assert 0 <= start <= last <= num_segments(self.size), (start, end, self.size)
        return self._trailer.segment_checks[CHECK_BYTES * start : CHECK_BYTES * last]

    def pread_into(self, buffer: Buffer, *, offset: int) -> None:
        """Fill `buffer` with the payload from `offset` on.

        Raises
        ------
        ChunkCorrupt
            If the file has been cut short since, or the disk can't read it.
        """
        with memoryview(buffer).cast("B") as view:
            assert 0 <= offset <= self.size - len(view), (offset, len(view), self.size)
            _read_exactly(self._fs, self.fd, view, offset=offset, at=self._at)

    def map(self) -> mmap.mmap:
        """The whole file, payload first, for sockets only: reading it here is a SIGBUS if the file is cut short."""
        try:
            return mmap.mmap(self.fd, 0, prot=mmap.PROT_READ)
        except OSError as exc:
            raise disk_error(exc, self._at.path, key=self._at.name) from exc

    def detach(self) -> int:
        """The descriptor, the caller's from now on."""
        fd, self.fd = self.fd, -1
        return fd

    def close(self) -> None:
        """Close the descriptor. Maps stay valid."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def __enter__(self) -> OpenChunk:
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self.close()


def read_trailer(fs: FileSystem, fd: int, *, at: ChunkPath) -> Trailer:
    """The trailer of an open chunk file; raises `ChunkCorrupt` if the file's structure is not that of the chunk `at`."""
    try:
        file_bytes = fs.stat_file(fd).st_size
    except OSError as exc:
        raise disk_error(exc, at.path, key=at.name) from exc
    try:
        start = payload_bytes(file_bytes)
        data = bytearray(file_bytes - start)
        _read_exactly(fs, fd, memoryview(data), offset=start, at=at)
        trailer = Trailer.decode(data)
    except DamagedTrailer as exc:
        raise ChunkCorrupt(f"{at.path}: {exc}", key=at.name) from exc
    if (trailer.partition, trailer.id, trailer.size) != (at.partition, at.id, start):
        raise ChunkCorrupt(
            f"{at.path}: its trailer is of chunk {_name(trailer.partition, trailer.id)} with {trailer.size} bytes, but "
            f"the payload has {start}",
            key=at.name,
        )
    return trailer


def rehash(fs: FileSystem, fd: int, *, at: ChunkPath, trailer: Trailer, view: memoryview) -> None:
    """Read the payload into `view`, which has its size, and check it against its id and every checksum in the trailer.

    Raises
    ------
    ChunkCorrupt
        If anything differs, the file was cut short, or the disk can't read it.
    """
    _read_exactly(fs, fd, view, offset=0, at=at)
    if (found := blake3_id(view)) != at.id:
        raise ChunkCorrupt(f"{at.path}: its bytes hash to {found.hex()}", key=at.name)
    if (xxh3(view), segment_checks(view)) != (trailer.check, trailer.segment_checks):
        raise ChunkCorrupt(f"{at.path}: its trailer holds the checksums of other bytes", key=at.name)


def parse_name(name: str) -> tuple[int, bytes] | None:
    """The (partition, id) that a file's name stands for, None for a file that is none of ours."""
    partition, _, chunk_id = name.partition("-")
    try:
        named = int(partition, 16), bytes.fromhex(chunk_id)
    except ValueError:
        return None
    return named if _name(*named) == name and len(named[1]) == ID_BYTES else None


def _name(partition: int, chunk_id: bytes) -> str:
    return f"{partition:08x}-{chunk_id.hex()}"


def _read_exactly(fs: FileSystem, fd: int, view: memoryview, *, offset: int, at: ChunkPath) -> None:
    done = 0
    while done < len(view):
        try:
            num_read = fs.pread_into(fd, view[done:], offset=offset + done)
        except OSError as exc:
            if exc.errno != errno.EIO:
                raise disk_error(exc, at.path, key=at.name) from exc
            # A sector that can't be read has lost this copy as surely as a flipped bit, and is mended the same way.
            message = f"{at.path}: {exc.strerror} (errno {exc.errno}) at byte {offset + done}"
            raise ChunkCorrupt(message, key=at.name) from exc
        if num_read == 0:
            raise ChunkCorrupt(f"{at.path}: the file ends at byte {offset + done}; it was cut short", key=at.name)
        done += num_read
