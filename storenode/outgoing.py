"""A chunk on its way out of this node: its file mapped, its checksums at hand, and not a byte of it looked at.

The receiver checks the bytes, against its reference or against the checksums in the reply's head. (Looking here would also be
dangerous: the kernel answers a send from behind the end of a file that was cut short with an error, but kills a process
that touches such a page itself.) So the server must not copy them either, which means uvloop without TLS.
"""

from __future__ import annotations

import logging
import mmap
import os
import struct
from dataclasses import dataclass

from client.checksum import num_segments
from client.errors import ChunkCorrupt, StoreError
from client.wire import CHECK_HEADER, SEGMENTS_HEADER
from storenode.bodies import BodySender
from storenode.chunkstore import ChunkStore
from storenode.node import Node

__all__ = ["Outgoing", "open_outgoing", "set_aside"]

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outgoing:
    """A chunk file that is about to be sent: what its trailer says, and its pages."""

    size: int
    check: int
    segment_checks: bytes
    pages: mmap.mmap

    def checks(self, start: int, end: int) -> dict[str, str]:
        """The headers that let a receiver check bytes `start` to `end`, whole segments, of which those of all are not sent."""
        first, last = start // 65536, num_segments(end)
        checks = struct.unpack(f"<{last - first}Q", self.segment_checks[8 * first : 8 * last])
        return {CHECK_HEADER: f"{self.check:016x}", SEGMENTS_HEADER: ",".join(f"{check:016x}" for check in checks)}

    async def send(self, sender: BodySender, start: int, end: int) -> None:
        """Send bytes `start` to `end`; raises `ResponseAborted`."""
        # The map is not closed here: the server may still hold slices of it, and the last of them unmaps it.
        with memoryview(self.pages) as pages, pages[start:end] as wanted:
            await sender.piece(wanted)


async def open_outgoing(node: Node, partition: int, chunk_id: bytes) -> Outgoing:
    """This node's copy of a chunk, to be sent.

    Raises
    ------
    ChunkNotFound
        If there is none.
    ChunkCorrupt
        If its file is not what the name says. It is set aside and repaired.
    """
    try:
        return await node.pools.disk.run(_open, node.store, partition, chunk_id)
    except ChunkCorrupt:
        await set_aside(node, partition, chunk_id)
        raise


async def set_aside(node: Node, partition: int, chunk_id: bytes) -> None:
    """Quarantine a copy that was found corrupt, and have it replaced."""
    try:
        await node.pools.disk.run(node.store.quarantine, partition, chunk_id)
    except StoreError as error:
        log.warning("chunk %d/%s can't be quarantined: %s", partition, chunk_id.hex(), error.message)
    # In any case: repair looks at the copy itself.
    node.follower.repair(partition, chunk_id)


def _open(store: ChunkStore, partition: int, chunk_id: bytes) -> Outgoing:
    with store.open_chunk(partition, chunk_id) as chunk:
        # Reading begins here, in the disk's thread: a page that is still missing when it is sent stops the event loop.
        os.posix_fadvise(chunk.fd, 0, chunk.size, os.POSIX_FADV_WILLNEED)
        return Outgoing(size=chunk.size, check=chunk.check, segment_checks=chunk.segment_checks(), pages=chunk.map())
