"""One chunk on its way to the disk, part by part, so that hashing and writing go on while the rest of it is still coming.

What has come is hashed and written into a file without a name, which is gone if the writer is closed before
`ChunkWriter.commit`. Which name it then gets, and what to do when a copy is there already, is the business of
`storenode.chunkstore`.
"""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType

import blake3
import xxhash

from client.checksum import SEGMENT_BYTES, segment_checks
from storenode.chunkfile import ChunkPath
from storenode.filesystem import UnnamedFile, translated
from storenode.trailer import Trailer

__all__ = ["ChunkHash", "ChunkWriter"]

# What is hashed three times should stay in the processor's cache meanwhile.
_HOT_BYTES = 512 * 1024
# What the page cache gets at once it keeps together (as one folio), and a reader on this host maps 2 MiB of it by one entry,
# a tenth of the work.
_WRITE_BYTES = 2 * 1024 * 1024


class ChunkHash:
    """The checksums of a payload that comes in parts."""

    def __init__(self) -> None:
        self._id = blake3.blake3()
        self._check = xxhash.xxh3_64()
        self._segments: list[bytes] = []
        self.size = 0

    def update(self, part: memoryview) -> None:
        """Take the next part; each but the last is of whole segments."""
        assert self.size % SEGMENT_BYTES == 0, self.size
        self._id.update(part)
        self._check.update(part)
        self._segments.append(segment_checks(part))
        self.size += len(part)

    @property
    def id(self) -> bytes:
        """BLAKE3-256 of what has come."""
        return self._id.digest()

    def trailer(self, *, partition: int) -> Trailer:
        """What the chunk's file ends with, if this is all of the payload."""
        segments = b"".join(self._segments)
        return Trailer(partition=partition, id=self.id, size=self.size, check=self._check.intdigest(), segment_checks=segments)


class ChunkWriter:
    """A chunk that is being written. For one thread at a time; a context manager.

    Parameters
    ----------
    at : ChunkPath
        Its name, for messages.
    payload : memoryview
        All of it, once it has come.
    draft : UnnamedFile or None
        Takes the payload; None where a copy is there already, so that it is only hashed.
    commit : callable
        Makes the copy durable; see `ChunkStore.put`.
    """

    def __init__(
        self, at: ChunkPath, payload: memoryview, draft: UnnamedFile | None, *, commit: Callable[[ChunkWriter], bool]
    ) -> None:
        self._at = at
        self.payload = payload
        self.draft = draft
        self.hash = ChunkHash()
        self._written = 0
        self._commit = commit

    def advance(self, end: int) -> None:
        """Take the bytes up to `end`, which have come: whole segments, or all. Raises `DiskFailed`, `DiskFull`."""
        for start in range(self.hash.size, end, _HOT_BYTES):
            self.hash.update(self.payload[start : min(end, start + _HOT_BYTES)])
            size = self.hash.size
            ready = size if size == len(self.payload) else size - size % _WRITE_BYTES
            if self.draft is not None and ready > self._written:
                with translated(self._at.path, key=self._at.name):
                    self.draft.write(self.payload[self._written : ready])
                self._written = ready

    def commit(self) -> bool:
        """Make the copy durable, once all has come; returns and raises what `ChunkStore.put` does."""
        self.advance(len(self.payload))
        return self._commit(self)

    def close(self) -> None:
        """Give up what has no name."""
        if self.draft is not None:
            self.draft.close()
            self.draft = None

    def __enter__(self) -> ChunkWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self.close()
