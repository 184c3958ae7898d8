"""The verified read: bytes of a chunk from whichever replica gives the right ones.

One path serves applications, the node's own object routes, repair and the loader. It asks the replicas that placement
names, trusted and quick ones first. A copy that is corrupt is reported to its node, which sets it aside and repairs it,
while the reader goes on to the next.
"""

from __future__ import annotations

import logging
from collections.abc import Collection

from client.chunks import ChunkClient
from client.cluster import Cluster
from client.errors import AllReplicasFailed, ChunkCorrupt, StoreError
from client.manifest import Ref

__all__ = ["ReplicaReader"]

log = logging.getLogger(__name__)


class ReplicaReader:
    """Reads chunks by reference, moving on from replicas that fail. Thread-safe.

    Attributes
    ----------
    failovers : int
        How many times a read had to move on to another replica.
    """

    def __init__(self, cluster: Cluster, chunks: ChunkClient) -> None:
        self._cluster = cluster
        self._chunks = chunks
        self.failovers = 0

    def read_into(self, ref: Ref, buffer: memoryview, *, replicas: int, start: int = 0, exclude: Collection[str] = ()) -> None:
        """Fill `buffer` with the chunk's bytes from `start` on, verified.

        Parameters
        ----------
        replicas : int
            How many replicas the record that refers to the chunk asks for.
        exclude : collection of str
            Node ids not to ask.

        Raises
        ------
        AllReplicasFailed
            With what each replica said.
        """
        said: dict[str, str] = {}
        holders = self._cluster.layout.replicas(ref.partition, count=replicas)
        for node_id in self._cluster.ranked([node for node in holders if node not in exclude]):
            try:
                self._chunks.fetch_into(node_id, ref, buffer, start=start)
            except StoreError as error:
                said[node_id] = f"{error.title}: {error.message}"
                if isinstance(error, ChunkCorrupt):
                    self._report_corrupt(node_id, ref)
                continue
            self.failovers += len(said)
            return
        detail = "; ".join(f"{node} said {words}" for node, words in said.items()) or "the layout names no other replica"
        raise AllReplicasFailed(f"chunk {ref} can't be read from any of {len(said)} replicas: {detail}", key=str(ref))

    def read(
        self, ref: Ref, *, replicas: int, start: int = 0, end: int | None = None, exclude: Collection[str] = ()
    ) -> bytearray:
        """The chunk's bytes ``[start, end)``, verified; see `read_into`."""
        data = bytearray((ref.size if end is None else end) - start)
        self.read_into(ref, memoryview(data), replicas=replicas, start=start, exclude=exclude)
        return data

    def _report_corrupt(self, node_id: str, ref: Ref) -> None:
        log.warning("node %s sent corrupt bytes for chunk %s; asking it to verify its copy", node_id, ref)
        try:
            self._chunks.verify(node_id, [ref])
        except StoreError as error:
            # The reader has other replicas to try; scrub will find the copy if this node lives on.
            log.warning("node %s could not be told of its corrupt chunk %s: %s", node_id, ref, error.message)
