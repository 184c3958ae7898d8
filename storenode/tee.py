"""Passing a chunk on to other nodes while it is still coming in and this one stores it.

Each copy takes a thread for as long as a part is being sent, and at last until the other node has answered or the transport
has given it up. A node that hangs would take
all threads, one chunk after the other, so one node gets only a part of them, and a copy beyond that fails at once.
"""

from __future__ import annotations

from collections import Counter

from client.chunks import ChunkClient, ChunkSending, Stored
from client.errors import Busy, NotEnoughReplicas
from client.retry import Deadline
from storenode.arriving import Arriving
from storenode.threads import BUSY_RETRY_S, BoundedPool

__all__ = ["Tee"]


class Tee:
    """Forwards chunks. It belongs to the event loop.

    Parameters
    ----------
    chunks : ChunkClient
        Puts a chunk on a node.
    pool : BoundedPool
        The threads.
    max_per_node : int
        Copies on their way to one node at once.
    timeout_s : float
        Longest silence of a node.
    """

    def __init__(self, chunks: ChunkClient, pool: BoundedPool, *, max_per_node: int, timeout_s: float) -> None:
        self._chunks = chunks
        self._pool = pool
        self._max_per_node = max_per_node
        self._timeout_s = timeout_s
        self._under_way: Counter[str] = Counter()

    async def forward(
        self, node_id: str, partition: int, chunk_id: bytes, arriving: Arriving, *, epoch: int, deadline: Deadline | None = None
    ) -> None:
        """Put the chunk on `node_id`; returns once it is durable there.

        Parameters
        ----------
        epoch : int
            What it is tagged with.
        deadline : Deadline, optional
            Of the client that sends the chunk; the other node is told of it.

        Raises
        ------
        Busy
            If too many copies are on their way to that node, or to all.
        StoreError
            What the other node answered, or that it did not.
        """
        if self._under_way[node_id] >= self._max_per_node:
            raise Busy(
                f"{self._max_per_node} chunks are on their way to node {node_id}, which answers slowly or not at all",
                retry_after_s=BUSY_RETRY_S,
            )
        self._under_way[node_id] += 1
        try:
            stored = await self._send(node_id, partition, chunk_id.hex(), arriving, epoch=epoch, deadline=deadline)
        finally:
            self._under_way[node_id] -= 1
            if not self._under_way[node_id]:
                del self._under_way[node_id]
        if node_id not in stored.durable:
            # It answered without an error, and yet not that it holds the chunk. Not counted.
            raise NotEnoughReplicas(f"node {node_id} did not confirm chunk {partition}/{chunk_id.hex()}: {stored.failed}")

    async def _send(
        self, node_id: str, partition: int, chunk_hex: str, arriving: Arriving, *, epoch: int, deadline: Deadline | None
    ) -> Stored:
        # To the end, each time: the thread reads the payload until then, and counts against its node.
        run, size_bytes = self._pool.run_to_end, len(arriving)
        part = await arriving.part(0)
        with self._chunks.sending(
            node_id, partition, chunk_hex, size_bytes=size_bytes, epoch=epoch, timeout_s=self._timeout_s, deadline=deadline
        ) as sending:
            sent = 0
            while sent + len(part) < size_bytes:
                await run(sending.send, part)
                sent += len(part)
                part = await arriving.part(sent)
            return await run(_send_last, sending, part)


def _send_last(sending: ChunkSending, part: memoryview) -> Stored:
    sending.send(part)
    return sending.finish()
