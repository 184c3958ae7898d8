"""The stream of samples over real nodes: the same whoever reads it, also when a node dies on the way and on resuming."""

from __future__ import annotations

import numpy as np

from loader import ShardedDataset, ShardWriter
from tests.support.cluster import LiveCluster

URL = "forebay://data/numbers"
ROWS = 3001
GLOBAL_BATCH = 12


def _write(cluster: LiveCluster) -> None:
    with ShardWriter(
        URL,
        columns={"number": "int64", "text": "str"},
        num_lanes=16,
        block_size_bytes=1024,
        endpoints=list(cluster.endpoints),
    ) as writer:
        writer.write_batch({"number": np.arange(ROWS), "text": [f"row {number}" for number in range(ROWS)]})


def _dataset(cluster: LiveCluster, rank: int, world_size: int, *, prefetch_bytes: int = 0) -> ShardedDataset:
    return ShardedDataset(
        URL,
        batch_size=GLOBAL_BATCH // world_size,
        shuffle=True,
        seed=3,
        rank=rank,
        world_size=world_size,
        tail="uneven",
        prefetch_bytes=prefetch_bytes,
        endpoints=list(cluster.endpoints),
    )


def _global_batches(cluster: LiveCluster, world_size: int, *, state: dict[str, object] | None = None) -> list[frozenset[int]]:
    """The rows of each global batch of one epoch, gathered over all ranks; each row's text is checked on the way."""
    batches: dict[int, set[int]] = {}
    for rank in range(world_size):
        with _dataset(cluster, rank, world_size) as dataset:
            if state is not None:
                dataset.load_state_dict(state)
            for place, batch in enumerate(dataset):
                rows = batch["number"].tolist()
                assert batch["text"] == [f"row {number}" for number in rows]
                assert not batches.setdefault(place, set()) & set(rows), "two ranks have the same row"
                batches[place] |= set(rows)
    return [frozenset(batches[place]) for place in sorted(batches)]


def test_the_global_batches_do_not_depend_on_ranks_dead_nodes_or_resuming(cluster: LiveCluster) -> None:
    _write(cluster)
    expected = _global_batches(cluster, 1)
    assert sorted(row for batch in expected for row in batch) == list(range(ROWS))
    assert _global_batches(cluster, 3) == expected
    half = len(expected) // 2
    with _dataset(cluster, 0, 1) as dataset:
        seen = []
        for place, batch in enumerate(dataset):
            if place == half // 2:
                cluster.kill(cluster.node_ids[0])
            seen.append(frozenset(batch["number"].tolist()))
            if place + 1 == half:
                break
        state = dataset.state_dict()
    assert seen == expected[:half]
    assert _global_batches(cluster, 4, state=state) == expected[half:]
