"""Epochs while one replica is slow: hedged and then avoided, with the right bytes, and little of them in vain."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from client.objects import ObjectStore
from loader import ShardedDataset, ShardWriter
from tests.support.cluster import LiveCluster, running_cluster
from tests.support.slow_link import DetouredClient, SlowLink

URL = "forebay://data/blobs"
ROWS, ROW_BYTES = 1024, 16 * 1024


class DetouredDataset(ShardedDataset):
    """A dataset that reaches one node over a slow link."""

    def __init__(self, endpoints: list[str], detours: dict[str, str], **options: Any) -> None:
        super().__init__(URL, batch_size=32, shuffle=True, **options)
        self._all, self._detours = endpoints, detours

    def _connect(self) -> ObjectStore:
        return DetouredClient(self._all, detours=self._detours)


def content(rows: npt.NDArray[np.int64]) -> npt.NDArray[np.uint8]:
    """The value of each row: bytes that do not compress, in which the row can be told."""
    noise = np.random.default_rng(5).integers(0, 256, (16, ROW_BYTES), np.uint8)
    found: npt.NDArray[np.uint8] = np.bitwise_xor(noise[rows % 16], (rows // 16).astype(np.uint8)[:, None])
    return found


def write(cluster: LiveCluster) -> None:
    columns = {"row": "int64", "blob": f"uint8[{ROW_BYTES}]"}
    with ShardWriter(URL, columns, num_lanes=32, block_size_bytes=256 * 1024, endpoints=list(cluster.endpoints)) as writer:
        writer.write_batch({"row": np.arange(ROWS), "blob": content(np.arange(ROWS))})


def check_epoch(dataset: ShardedDataset) -> list[int]:
    """Read an epoch, its bytes checked; the rows."""
    rows: list[int] = []
    for batch in dataset:
        numbers = batch["row"].numpy()
        assert (batch["blob"].numpy() == content(numbers)).all()
        rows += numbers.tolist()
    return rows


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveCluster]:
    with running_cluster(tmp_path_factory.mktemp("cluster")) as cluster:
        write(cluster)
        yield cluster


@pytest.mark.parametrize("slowness", [{"rate_bytes_per_s": 1_000_000}, {"delay_s": 0.5}], ids=["trickle", "delay"])
def test_a_slow_replica_is_hedged_then_avoided_and_changes_no_byte(cluster: LiveCluster, slowness: dict[str, float]) -> None:
    slow = cluster.node_ids[0]
    port = int(cluster.endpoint(slow).rpartition(":")[2])
    with SlowLink(port) as link, DetouredDataset(list(cluster.endpoints[1:]), {slow: link.url}) as dataset:
        expected = check_epoch(dataset)
        assert sorted(expected) == list(range(ROWS))
        link.slow_down(**slowness)
        dataset.set_epoch(0)
        assert check_epoch(dataset) == expected
        found = dataset.receipt()
        assert found["hedges"] > 0
        assert found["bytes_hedged"] > 0
        assert found["bytes_wasted"] <= 0.1 * (found["bytes_local"] + found["bytes_remote"])
        # After some reads it is asked for a block now and then only.
        assert found["hedges"] < 0.2 * found["blocks"]
        assert found["failovers"] == 0
