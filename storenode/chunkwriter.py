"""One chunk on its way to the disk, part by part, so that hashing and writing go on while the rest of it is still coming.

Parts are hashed and written into a file without a name, which is gone if the writer is closed before `ChunkWriter.commit`.
Which name it then gets, and what to do when a copy is there already, is `storenode.chunkstore`'s business.
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

# A part is hashed three times and copied once, so it should stay in the processor's cache meanwhile.
_HOT_BYTES = 512 * 1024


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
    draft : UnnamedFile or None
        Takes the payload; None where a copy is there already, so that it is only hashed.
    commit : callable
        Makes the copy durable; see `ChunkStore.put`.
    """

    def __init__(self, at: ChunkPath, draft: UnnamedFile | None, *, commit: Callable[[ChunkWriter, memoryview], bool]) -> None:
        self._at = at
        self.draft = draft
        self.hash = ChunkHash()
        self._commit = commit

    def write(self, part: memoryview) -> None:
        """Take the next bytes, whole segments but for the last ones. Raises `DiskFailed`, `DiskFull`."""
        for start in range(0, len(part), _HOT_BYTES):
            hot = part[start : start + _HOT_BYTES]
            self.hash.update(hot)
            if self.draft is not None:
                with translated(self._at.path, key=self._at.name):
                    self.draft.write(hot)

    def commit(self, payload: memoryview) -> bool:
        """Make the copy durable, once all of `payload` has been written; returns and raises what `ChunkStore.put` does."""
        return self._commit(self, payload)

    def close(self) -> None:
        """Give up what has no name."""
        if self.draft is not None:
            self.draft.close()
            self.draft = None

    def __enter__(self) -> ChunkWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self.close()
