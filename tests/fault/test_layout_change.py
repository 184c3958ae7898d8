"""A change of the layout is interrupted: whoever dies in the middle, it comes to its end, and nothing is lost on the way."""

from __future__ import annotations

import random
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from client.client import Client
from client.record import ObjectInfo
from client.verify import verify
from tests.support.cluster import CHUNK_BYTES, LiveCluster, eventually, running_cluster

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]

# So slow that there is a middle: the new node is given some 12 MB, in groups of 4 MiB.
RATE = {"FOREBAY_REBALANCE_RATE_BYTES_PER_S": str(1024 * 1024)}


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[LiveCluster]:
    with running_cluster(tmp_path, environment=RATE) as cluster:
        yield cluster


@pytest.fixture
def client(cluster: LiveCluster) -> Iterator[Client]:
    with cluster.client() as client:
        yield client


@pytest.fixture
def infos(client: Client) -> list[ObjectInfo]:
    return [client.put("data", f"object-{seed}", random.Random(seed).randbytes(6 * CHUNK_BYTES)) for seed in range(40)]


def await_middle(cluster: LiveCluster, node_id: str) -> None:
    """Wait until a node has some of what it is given, and not all."""
    eventually(lambda: len(cluster.chunk_files(node_id)) >= 10, what="the move is under way")


def assert_complete(cluster: LiveCluster, client: Client, infos: list[ObjectInfo]) -> None:
    cluster.await_complete(client)
    client.cluster.refresh()
    for info in infos:
        eventually(partial(cluster.is_whole, client, info), what=f"{info.key} has all its replicas")
    health = verify(client, infos)
    assert health.clean, health.to_json()


@pytest.mark.parametrize("who", ["newcomer", "coordinator", "source"])
def test_a_node_that_dies_in_the_middle_does_not_keep_the_change_from_its_end(
    cluster: LiveCluster, client: Client, infos: list[ObjectInfo], who: str
) -> None:
    newcomer = cluster.add_spare()
    coordinator = cluster.coordinator()
    assert coordinator is not None
    source = next(node_id for node_id in cluster.node_ids if node_id not in (newcomer, coordinator))
    victim = {"newcomer": newcomer, "coordinator": coordinator, "source": source}[who]
    cluster.change(client, "add", newcomer)
    await_middle(cluster, newcomer)
    cluster.kill(victim)
    # Down is not out: the change waits for it. And whatever is still where it was can be read.
    assert cluster.standing(client)["older"] == [1]
    assert all(client.get("data", info.key) for info in infos)
    if who == "coordinator":
        eventually(lambda: cluster.coordinator() not in (None, victim), what="another coordinator")
    cluster.restart(victim)
    assert_complete(cluster, client, infos)


def test_a_third_layout_before_the_second_is_complete(cluster: LiveCluster, client: Client, infos: list[ObjectInfo]) -> None:
    first, second = cluster.add_spare(), cluster.add_spare()
    cluster.change(client, "add", first)
    await_middle(cluster, first)
    leaving = cluster.node_ids[0]
    cluster.change(client, "add", second)
    cluster.change(client, "drain", leaving)
    assert cluster.standing(client)["older"] == [3, 2, 1]
    assert all(client.get("data", info.key) for info in infos)
    assert_complete(cluster, client, infos)
    cluster.await_drained(client, leaving)
    assert cluster.chunk_files(leaving) == []


def test_a_coordinator_that_was_paused_past_its_lease_does_nothing(
    cluster: LiveCluster, client: Client, infos: list[ObjectInfo]
) -> None:
    newcomer, old = cluster.add_spare(), cluster.coordinator()
    assert old is not None
    cluster.change(client, "add", newcomer)
    cluster.change(client, "drain", old)  # so that nobody waits for it
    with cluster.paused(old), cluster.client(newcomer) as other:
        eventually(lambda: cluster.coordinator() not in (None, old), what="another coordinator")
        cluster.await_complete(other)
        new = cluster.coordinator()
        before = cluster.standing(other)
    # It goes on in the middle of whatever it did. That it does is seen by its lease.
    eventually(lambda: old in cluster.up_nodes(newcomer), what="the old coordinator is up again")
    log = cluster.data_dirs[old].with_suffix(".log").read_text()
    assert "is complete on all nodes; retired" not in log
    assert cluster.coordinator() == new
    told = cluster.standing(client)
    assert (told["version"], told["older"]) == (before["version"], [])
    assert_complete(cluster, client, infos)
    cluster.await_drained(client, old)
