"""Ranks on the hosts of real nodes: what they read hardly crosses the network, which the kernel counts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch.utils.data import DataLoader

from client.client import Client
from loader import ShardedDataset, ShardWriter
from loader.reader import DatasetReader
from tests.support.cluster import LiveCluster
from tests.support.hosts import HostCluster, can_have_hosts, running_hosts

URL = "forebay://data/set"
NUM_ROWS, LANES, HOSTS = 12_300, 64, 4
STORED_BYTES = NUM_ROWS * 2048
# All hosts share this machine's processors: that one is slow is no reason to read from another.
PATIENT = {"FOREBAY_READ_TIMEOUT_S": "60", "FOREBAY_HEDGE_LEAST_S": "30"}


def _read(cluster: HostCluster, world_size: int, **options: Any) -> tuple[list[dict[str, Any]], int]:
    """What each rank had of an epoch, and what came over the network meanwhile."""
    received = sum(host.received_bytes() for host in cluster.hosts)
    given = {"batch_size": 192 // world_size, "shuffle": True, "seed": 5, "tail": "uneven", **options}
    arguments = ["tests.support.reading_rank", URL, json.dumps(given)]
    printed = cluster.run_ranks(arguments, world_size=world_size, environment=PATIENT)
    return list(map(json.loads, printed)), sum(host.received_bytes() for host in cluster.hosts) - received


def _merged(ranks: list[dict[str, Any]]) -> list[set[int]]:
    batches = [set[int]() for _ in range(max(len(rank["batches"]) for rank in ranks))]
    for rank in ranks:
        for batch, rows in zip(batches, rank["batches"], strict=False):
            assert not batch & set(rows), "two ranks have the same row"
            batch.update(rows)
    return batches


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.skipif(not can_have_hosts(), reason="needs root, iproute2 and util-linux")
def test_ranks_read_from_their_hosts_and_their_global_batches_are_the_same(tmp_path: Path) -> None:
    with running_hosts(tmp_path, num_hosts=HOSTS, environment={"FOREBAY_RESERVE_BYTES": "0"}) as cluster:
        with Client(cluster.endpoints) as client:
            client.buckets.create("data", replicas=2)
            rng = np.random.default_rng(1)
            with ShardWriter(URL, {"row": "int64", "noise": "uint8[2040]"}, "none", 16384, LANES, client=client) as writer:
                noise = rng.integers(0, 256, (NUM_ROWS, 2040), np.uint8)
                writer.write_batch({"row": np.arange(NUM_ROWS), "noise": noise})
            num_blocks = DatasetReader(client, "data", "set").num_blocks
        usual, usually_crossed = _read(cluster, 4)
        expected = _merged(usual)
        assert sorted(row for batch in expected for row in batch) == list(range(NUM_ROWS))
        assert usually_crossed > 0.3 * STORED_BYTES  # Else what follows would show nothing.
        for world_size, most_amplified in ((4, 1.02), (3, 1.3)):
            ranks, crossed = _read(cluster, world_size, locality=True, run_id=f"run-{world_size}")
            assert _merged(ranks) == expected
            local, remote = (sum(rank["receipt"][name] for rank in ranks) for name in ("bytes_local", "bytes_remote"))
            assert local / (local + remote) >= 0.95
            # What nodes say to each other crosses, too, the more the longer it takes.
            assert crossed < 0.4 * usually_crossed
            assert sum(rank["receipt"]["blocks"] for rank in ranks) / num_blocks <= most_amplified


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_dataloader_workers_agree_for_their_rank(cluster: LiveCluster) -> None:
    with ShardWriter(URL, {"row": "int64"}, num_lanes=16, block_size_bytes=1024, endpoints=list(cluster.endpoints)) as writer:
        writer.write_batch({"row": np.arange(3000)})
    options: dict[str, Any] = {"batch_size": 32, "shuffle": True, "endpoints": list(cluster.endpoints), "prefetch_bytes": 0}
    with (
        ShardedDataset(URL, rank=0, world_size=2, locality=True, run_id="run-1", **options) as first,
        ShardedDataset(URL, rank=1, world_size=2, locality=True, run_id="run-1", **options) as second,
        ShardedDataset(URL, rank=0, world_size=1, **{**options, "batch_size": 64}) as whole,
    ):
        loader = DataLoader(second, batch_size=None, num_workers=2, persistent_workers=True)
        for _ in range(2):
            workers = iter(loader)  # From here on they wait for the other rank.
            mine, others, expected = ([set(batch["row"].tolist()) for batch in side] for side in (first, workers, whole))
            assert [some | more for some, more in zip(mine, others, strict=True)] == expected
            assert not any(some & more for some, more in zip(mine[:-1], others, strict=False))
        first.set_epoch(1)
        next(iter(first))
        assert second.state_at(batches=1) == first.state_dict()
        assert first.state_dict()["lane_map"].startswith("placed:run-1:2:")
        del workers, loader
