"""The bytes of a chunk file that another process has opened, verified: read into a buffer, or mapped there.

They are read with pread and hashed piece by piece, because to touch a map of a file that is cut short kills the process. Who
prefers a map says so by a buffer of `client.pages`, into which whole chunks are mapped where they fit.
"""

from __future__ import annotations

import errno
import logging
import os
from dataclasses import dataclass

from client.checksum import SEGMENT_BYTES, Announced, ReadCheck, xxh3
from client.errors import ChunkCorrupt
from client.manifest import Ref
from client.pages import Place, bring_in, is_in_memory, place_of
from client.retry import NEVER, Deadline

__all__ = ["ChunkFile"]

log = logging.getLogger(__name__)

_NOTHING = Announced()
# Large enough that threads seldom wait for the GIL between a read and its hash, small enough to give up in between. Whole
# segments, as `ReadCheck` wants them.
PIECE_BYTES = 32 * SEGMENT_BYTES


@dataclass(frozen=True, slots=True)
class ChunkFile:
    """A chunk file, and where its bytes are to be.

    Attributes
    ----------
    fd : int
        Closed by whoever made this.
    node_id : str
        Whose copy it is.
    buffer : memoryview
        For the whole chunk, or for whole segments of it.
    start : int
        Which byte of the chunk comes first.
    """

    fd: int
    node_id: str
    ref: Ref
    buffer: memoryview
    start: int = 0

    def fill(self, announced: Announced, *, deadline: Deadline) -> bool:
        """Whether the right bytes are in the buffer now.

        Raises
        ------
        ChunkCorrupt
            The file was cut short, or the disk can't read it.
        """
        self._bring_in(deadline)
        return self._fill(announced, deadline=deadline)

    def fill_if_near(self) -> bool:
        """Whether the file of a whole chunk is in memory, and the right bytes are in the buffer now."""
        try:
            return is_in_memory(self.fd, self.ref.size) and self._fill(_NOTHING, deadline=NEVER)
        except (ChunkCorrupt, OSError) as exc:
            log.info("a chunk is read anew: %s", exc)
            return False

    def _bring_in(self, deadline: Deadline) -> None:
        """Have the kernel read what it does not have yet, ahead of who reads it here."""
        size = len(self.buffer)
        if is_in_memory(self.fd, size, start=self.start):
            return
        try:
            if size == self.ref.size:
                for _ in bring_in(self.fd, size):
                    deadline.check()
                return
        except OSError as exc:
            log.info("a chunk is read without being mapped before: %s", exc)
        os.posix_fadvise(self.fd, self.start, size, os.POSIX_FADV_WILLNEED)

    def _fill(self, announced: Announced, *, deadline: Deadline) -> bool:
        place = self._map()
        sound = None if place is None else self._fill_mapped(place)
        if sound is None:
            return self._read(announced, deadline=deadline)
        deadline.took(len(self.buffer))
        deadline.check()
        return sound

    def _map(self) -> Place | None:
        """Where the file is mapped now. Where it can't (file systems differ, maps have a limit), it is read like any other."""
        place = place_of(self.buffer) if len(self.buffer) == self.ref.size else None
        if place is not None:
            try:
                place.map(self.fd)
            except OSError as exc:
                log.info("a chunk is read because it can't be mapped: %s", exc)
                return None
        return place

    def _fill_mapped(self, place: Place) -> bool | None:
        """Whether the right bytes are there, None if the kernel can't bring them. Others don't stay mapped."""
        sound = None
        try:
            place.populate()
            sound = xxh3(self.buffer) == self.ref.check
        except OSError as exc:
            # To read it says what is wrong, if it is not just an old kernel.
            log.info("a chunk is read because its map can't be filled: %s", exc)
        finally:
            if not sound:
                place.clear()
        return sound

    def _read(self, announced: Announced, *, deadline: Deadline) -> bool:
        check = ReadCheck(whole=len(self.buffer) == self.ref.size)
        for offset in range(0, len(self.buffer), PIECE_BYTES):
            piece = self.buffer[offset : offset + PIECE_BYTES]
            self._read_exactly(piece, offset=self.start + offset)
            check.update(piece)
            deadline.took(len(piece))
            deadline.check()
        return check.matches(self.ref.check, announced)

    def _read_exactly(self, piece: memoryview, *, offset: int) -> None:
        done, whose = 0, f"chunk {self.ref} on node {self.node_id}"
        while done < len(piece):
            try:
                num_read = os.preadv(self.fd, [piece[done:]], offset + done)
            except OSError as exc:
                if exc.errno != errno.EIO:
                    raise
                # A sector that can't be read has lost this copy as surely as a flipped bit.
                message = f"{whose}: {exc.strerror} (errno {exc.errno}) at byte {offset + done}"
                raise ChunkCorrupt(message, key=str(self.ref), node_id=self.node_id) from exc
            if num_read == 0:
                message = f"{whose}: the file ends at byte {offset + done}; it was cut short"
                raise ChunkCorrupt(message, key=str(self.ref), node_id=self.node_id)
            done += num_read
