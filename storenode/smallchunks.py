"""Whole small chunks read from a disk, many in a row: three system calls each, and no byte of payload looked at.

A chunk of one segment has a trailer that its reference tells to the last bit (`storenode.trailer.small_trailer`). So one read
gets payload and trailer together, and comparing says that the file is whole and of this chunk. What else may be wrong with
it is for the receiver to find, as with `storenode.chunkfile`.
"""

from __future__ import annotations

import os

from client.checksum import SEGMENT_BYTES
from client.errors import ChunkCorrupt
from client.manifest import Ref
from storenode.filesystem import FileSystem
from storenode.trailer import small_trailer, trailer_bytes

__all__ = ["SmallChunks"]


class SmallChunks:
    """Reads chunks of up to 64 KiB. For one thread; the buffer is used again for each.

    Parameters
    ----------
    directory : int
        Descriptor of the directory of all chunks.
    """

    def __init__(self, fs: FileSystem, directory: int) -> None:
        self._fs = fs
        self._directory = directory
        # One byte more than the largest file, so that a file that grew is seen.
        self._buffer = memoryview(bytearray(SEGMENT_BYTES + trailer_bytes(SEGMENT_BYTES) + 1))

    def read(self, ref: Ref) -> memoryview | None:
        """The payload, until the next call; None without a copy.

        Raises
        ------
        ChunkCorrupt
            If the copy can't be read, or is not what `ref` says as far as its trailer tells.
        """
        name = f"{ref.partition:08x}-{ref.id.hex()}"
        try:
            fd = self._fs.open_file(f"{ref.id[0]:02x}/{name}", directory=self._directory)
            try:
                num_read = self._fs.pread_into(fd, self._buffer, offset=0)
            finally:
                os.close(fd)
        except FileNotFoundError:
            return None
        except OSError as exc:
            raise ChunkCorrupt(f"chunk {name}: {exc.strerror} (errno {exc.errno})", key=name) from exc
        trailer = small_trailer(ref.partition, ref.id, ref.size, ref.check)
        if self._buffer[ref.size : num_read] != trailer:
            raise ChunkCorrupt(f"chunk {name}: its file of {num_read} bytes does not end as its reference says", key=name)
        return self._buffer[: ref.size]
