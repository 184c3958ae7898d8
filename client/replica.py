"""The verified read: bytes of a chunk from whichever replica gives the right ones.

One path serves applications, the node's own object routes, repair and the loader. It asks the replicas that placement
names, under the current layout and those that it has not replaced everywhere: trusted ones first, of those the ones on this
host, and of the rest current holders before former ones. A copy that is corrupt is reported to its node, which sets it
aside and repairs it, but only after the reader has its bytes from the next one.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Collection, Iterator, Mapping

from client.chunks import ChunkClient
from client.cluster import Cluster
from client.errors import (
    AllReplicasFailed,
    ChunkCorrupt,
    ChunkNotFound,
    DeadlineExceeded,
    Forbidden,
    StoreError,
    Unauthenticated,
)
from client.manifest import Ref
from client.retry import Deadline

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
        self._lock = threading.Lock()
        self.failovers = 0

    def read_into(
        self,
        ref: Ref,
        buffer: memoryview,
        *,
        replicas: int,
        start: int = 0,
        exclude: Collection[str] = (),
        deadline: Deadline | None = None,
    ) -> None:
        """Fill `buffer` (of bytes) with the chunk's bytes from `start` on, verified.

        Parameters
        ----------
        replicas : int
            How many replicas the record that refers to the chunk asks for.
        exclude : collection of str
            Node ids not to ask.
        deadline : Deadline, optional
            Once it has passed no further replica is asked, and none is waited for longer.

        Raises
        ------
        AllReplicasFailed
            With what each replica said.
        Unauthenticated, Forbidden
            The token is not good, or not good for this.
        """
        options = {} if deadline is None else {"deadline": deadline}
        failed: dict[str, StoreError] = {}
        for node_id in self._to_ask(ref, replicas=replicas, exclude=exclude, failed=failed):
            if failed and deadline is not None and not deadline.remaining_s():
                failed[node_id] = DeadlineExceeded("there was no time left to ask it", node_id=node_id)
                continue
            try:
                self._chunks.fetch_into(node_id, ref, buffer, start=start, **options)
            except (Unauthenticated, Forbidden):
                raise  # The other nodes would say the same, and waiting changes nothing.
            except StoreError as error:
                failed[node_id] = error
                continue
            if failed:
                self._note(ref, failed)
            return
        self.report_corrupt(ref, failed)
        said = "; ".join(f"{node} said {error.title}: {error.message}" for node, error in failed.items())
        raise AllReplicasFailed(
            f"chunk {ref} can't be read from any of {len(failed)} replicas: {said or 'the layout names no other replica'}",
            key=str(ref),
        )

    def _to_ask(self, ref: Ref, *, replicas: int, exclude: Collection[str], failed: Mapping[str, StoreError]) -> Iterator[str]:
        """Whom to ask, one after another. If in the end nobody has it, the layouts are read anew: they may have changed."""
        layouts = self._cluster.layouts
        asked = [node for node in layouts.holders(ref.partition, count=replicas) if node not in exclude]
        yield from self._cluster.ranked(asked, near=self._chunks.colocated())
        if not any(isinstance(error, ChunkNotFound) for error in failed.values()):
            return
        try:
            newer = self._cluster.refresh().layouts
        except StoreError as trouble:
            log.warning(
                "chunk %s is on none of its nodes, and whether those have changed is not known: %s", ref, trouble.message
            )
            return
        if newer != layouts:
            holders = newer.holders(ref.partition, count=replicas)
            yield from self._cluster.ranked([node for node in holders if node not in exclude and node not in asked])

    def read(
        self,
        ref: Ref,
        *,
        replicas: int,
        start: int = 0,
        end: int | None = None,
        exclude: Collection[str] = (),
        deadline: Deadline | None = None,
    ) -> bytearray:
        """The chunk's bytes ``[start, end)``, verified; see `read_into`."""
        data = bytearray((ref.size if end is None else end) - start)
        self.read_into(ref, memoryview(data), replicas=replicas, start=start, exclude=exclude, deadline=deadline)
        return data

    def _note(self, ref: Ref, failed: dict[str, StoreError]) -> None:
        with self._lock:
            self.failovers += len(failed)
        self.report_corrupt(ref, failed)

    def report_corrupt(self, ref: Ref, failed: Mapping[str, StoreError]) -> None:
        """Have the nodes verify their copies that, of all in `failed`, sent corrupt bytes."""
        for node_id, error in failed.items():
            if not isinstance(error, ChunkCorrupt):
                continue
            log.warning("corrupt bytes came for chunk %s; asking node %s to verify its copy", ref, node_id)
            try:
                self._chunks.verify(node_id, [ref])
            except StoreError as trouble:
                # Scrub will find the copy if this node lives on.
                log.warning("node %s could not be told of its corrupt chunk %s: %s", node_id, ref, trouble.message)
