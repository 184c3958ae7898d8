"""A writer that lives for longer than garbage collection spares chunks without a name keeps its chunks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from typing_extensions import Buffer

from client.chunks import Stored
from client.cluster import Cluster
from client.manifest import Ref
from client.objects import ObjectStore
from loader.reader import DatasetReader
from loader.verify import verify_dataset
from loader.writer import ShardWriter
from tests.support.fake_store import FakeStore
from tests.unit.loader.watched_store import WatchedChunks, watched_store

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


@pytest.mark.parametrize("batch_rows", [100, 4000])
def test_epochs_pass_while_rows_are_written(monkeypatch: pytest.MonkeyPatch, batch_rows: int) -> None:
    monkeypatch.setattr("loader.writer.DEAL_BYTES", 10_000)
    monkeypatch.setattr("loader.staging.MIN_CHUNK_BYTES", 2000)
    monkeypatch.setattr("loader.staging.LANE_CHUNKS_BYTES", 8000)
    rows = np.random.default_rng(1).integers(0, 1 << 60, 40_000)
    with watched_store() as (store, _, _):
        chunks = collected(store)
        with ShardWriter("forebay://data/set", {"n": "int64"}, "none", 2000, num_lanes=4, client=store) as writer:
            for start in range(0, len(rows), batch_rows):
                writer.write_batch({"n": rows[start : start + batch_rows]})
                if start % 4000 == 0:
                    chunks.next_epoch()
        reader = DatasetReader(store, "data", "set")
        assert verify_dataset(reader).clean
        assert [row["n"] for row in reader.rows(0, 40_000)] == rows.tolist()
    assert chunks.num_removed == 0
