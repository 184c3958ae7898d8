"""A store as a process on one host sees it: the cluster of a `FakeStore`, of which it reads the nodes on that host first."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

from client.chunks import Reads
from client.manifest import Ref
from client.objects import ObjectStore
from tests.support.fake_cluster import quick_config
from tests.support.fake_store import FakeChunks, FakeStore

__all__ = ["NearStore"]


class NearChunks(FakeChunks):
    """The nodes of other `FakeChunks`, some of them near."""

    def __init__(self, shared: FakeChunks, *, near: set[str]) -> None:
        super().__init__(())
        self.nodes, self.down = shared.nodes, shared.down
        self.reads = Reads()
        self._near = near
        self._counting = threading.Lock()

    def colocated(self) -> set[str]:
        return self._near

    def take_together(self, node_id: str, wanted: Sequence[tuple[Ref, memoryview]]) -> list[bool]:
        return [False] * len(wanted)

    def fetch_into(self, node_id: str, ref: Ref, buffer: memoryview, *, start: int = 0, **options: Any) -> None:
        super().fetch_into(node_id, ref, buffer, start=start, **options)
        with self._counting:
            if node_id in self._near:
                self.reads.local += 1
                self.reads.local_bytes += len(buffer)
            else:
                self.reads.http += 1
                self.reads.http_bytes += len(buffer)


class NearStore(ObjectStore):
    """What a process on `host` has of `shared`. The caller closes it.

    Attributes
    ----------
    chunks : NearChunks
        Its ``reads`` count what came from the nodes on the host, and what from others.
    """

    def __init__(self, shared: FakeStore, *, host: str) -> None:
        near = {node.id for node in shared.cluster.layout.nodes if node.host == host}
        chunks = NearChunks(shared.fake_chunks, near=near)
        # How long reads take must not decide where they go.
        super().__init__(shared.fake_catalog, shared.cluster, chunks, quick_config(machine=host, hedge_waste=0))
