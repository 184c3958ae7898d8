"""A store in memory whose nodes collect garbage: chunks go that nobody has tagged for two epochs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from typing_extensions import Buffer

from client.chunks import Stored
from client.cluster import Cluster
from client.manifest import Ref
from client.objects import ObjectStore
from tests.support.fake_store import FakeStore
from tests.unit.loader.watched_store import WatchedChunks

__all__ = ["CollectedChunks", "collected"]

Place = tuple[str, int, bytes]


class CollectedChunks(WatchedChunks):
    """Nodes that tag chunks with the epoch of whoever stores or touches them, and remove at E what has E - 2 or less."""

    def __init__(self, node_ids: Sequence[str]) -> None:
        super().__init__(node_ids)
        self.epoch = 1
        self.tags: dict[Place, int] = {}
        self.num_removed = 0

    def put(self, node_id: str, ref: Ref, payload: Buffer, *, epoch: int, **options: Any) -> Stored:
        stored = super().put(node_id, ref, payload, epoch=epoch, **options)
        for node in stored.durable:
            self._tag(node, ref, epoch)
        return stored

    def touch(self, node_id: str, refs: Sequence[Ref], *, epoch: int, rehash: bool = True, fetch: bool = False) -> list[bool]:
        answers = super().touch(node_id, refs, epoch=epoch, rehash=rehash, fetch=fetch)
        for ref, held in zip(refs, answers, strict=True):
            if held:
                self._tag(node_id, ref, epoch)
        return answers

    def next_epoch(self) -> None:
        self.epoch += 1
        for (node_id, partition, chunk_id), tag in list(self.tags.items()):
            if tag <= self.epoch - 2:
                del self.nodes[node_id][partition, chunk_id], self.tags[node_id, partition, chunk_id]
                self.num_removed += 1

    def _tag(self, node_id: str, ref: Ref, epoch: int) -> None:
        place = (node_id, ref.partition, ref.id)
        self.tags[place] = max(self.tags.get(place, 0), epoch)


def collected(store: FakeStore) -> CollectedChunks:
    """Give the store such nodes, and a view of their epoch."""
    chunks, view = CollectedChunks(store.node_ids), store.cluster.view()
    store.fake_chunks = chunks
    cluster = Cluster(lambda: replace(view, epoch=chunks.epoch), ttl_s=0.0, suspect_s=1.0)
    ObjectStore.__init__(store, store.fake_catalog, cluster, chunks, store.config)
    return chunks
