"""Small chunks that were read lately, kept open, so that the event loop can read them again without a thread.

A thread costs a small read more than everything else that is done for it, but the event loop must never wait for a disk. An
open file needs no look at directories, and the kernel is asked for its bytes only as far as it has them in memory
(``RWF_NOWAIT``). Whatever can't be had that way is read by a thread.

A copy that the store takes out of its place must not be served from here any more: all are let go then, which is rare.

It belongs to the event loop.
"""

from __future__ import annotations

import os
from collections import OrderedDict

from client.manifest import Ref
from storenode.chunkstore import ChunkStore

__all__ = ["OpenChunks"]


class OpenChunks:
    """Descriptors of the chunks that were read last.

    Parameters
    ----------
    store : ChunkStore
        Whose chunks they are.
    limit : int
        Most descriptors that are kept.
    """

    def __init__(self, store: ChunkStore, *, limit: int) -> None:
        self._store = store
        self._limit = limit
        self._withdrawn = store.num_withdrawn
        self._open: OrderedDict[tuple[int, bytes], int] = OrderedDict()

    def read_now(self, ref: Ref) -> bytearray | None:
        """The whole payload, unverified; None if it can't be had without waiting."""
        if self._withdrawn != self._store.num_withdrawn:
            self.close()
        fd = self._open.get((ref.partition, ref.id))
        if fd is None:
            return None
        self._open.move_to_end((ref.partition, ref.id))
        payload = bytearray(ref.size)
        try:
            count = os.preadv(fd, [payload], 0, os.RWF_NOWAIT)
        except OSError:
            return None  # Not in memory, or a file system that can't tell. The thread reads it, or names the error.
        return payload if count == ref.size else None

    def keep(self, ref: Ref, fd: int, *, withdrawn: int) -> None:
        """Take over a descriptor of the chunk's file; `withdrawn` is the store's `num_withdrawn` from before it was opened."""
        if withdrawn != self._store.num_withdrawn:
            os.close(fd)  # Perhaps this is the copy that was taken out of its place meanwhile.
            return
        known = self._open.pop((ref.partition, ref.id), None)
        if known is not None:
            os.close(known)
        self._open[ref.partition, ref.id] = fd
        if len(self._open) > self._limit:
            _, oldest = self._open.popitem(last=False)
            os.close(oldest)

    def close(self) -> None:
        """Let all go."""
        self._withdrawn = self._store.num_withdrawn
        while self._open:
            os.close(self._open.popitem()[1])
