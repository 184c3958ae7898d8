"""A node dies, or hangs: nothing that was acknowledged is lost or wrong, and writing goes on while a quorum lives."""

from __future__ import annotations

import random

import pytest

from client.client import Client
from client.errors import AllReplicasFailed, NotEnoughReplicas, ObjectNotFound
from client.record import ObjectInfo
from tests.support.cluster import CHUNK_BYTES, LiveCluster, eventually

NUM_OBJECTS = 8


def content(number: int) -> bytes:
    """Objects of no, one, a few and so many chunks that there is a manifest."""
    return random.Random(number).randbytes((0, 100, CHUNK_BYTES * 3, CHUNK_BYTES * 10 + 1)[number % 4])


def put_all(client: Client, prefix: str) -> dict[str, bytes]:
    objects = {f"{prefix}-{number}": content(number) for number in range(NUM_OBJECTS)}
    for key, data in objects.items():
        client.put("data", key, data)
    return objects


@pytest.mark.parametrize("which", [0, 1, 2])
def test_any_one_dead_node_costs_no_object_and_stops_no_write(cluster: LiveCluster, which: int) -> None:
    victim = cluster.node_ids[which]
    survivors = [node_id for node_id in cluster.node_ids if node_id != victim]
    with cluster.client() as client:
        objects = put_all(client, "before")
        cluster.kill(victim)
        # At once: the victim's lease still stands, so everybody takes it for up.
        objects |= put_all(client, "after")
    for node_id in survivors:
        with cluster.client(node_id) as client:
            for key, data in objects.items():
                assert client.get("data", key) == data
            key = f"through-{node_id}"
            objects[key] = content(3)
            client.put("data", key, objects[key])

    cluster.restart(victim)
    with cluster.client() as client:
        infos = [client.stat("data", key) for key in objects]
        eventually(lambda: all(cluster.is_whole(client, info) for info in infos), what="the node has caught up")
    with cluster.client(victim) as client:
        for key, data in objects.items():
            assert client.get("data", key) == data


def test_plain_http_through_a_survivor_works_while_a_node_is_dead(cluster: LiveCluster) -> None:
    first, second, third = cluster.node_ids
    cluster.kill(third)
    transport = cluster.transport()
    data = content(3)
    transport.request("PUT", cluster.endpoint(first), "/v1/objects/data/key", body=data)
    assert transport.request("GET", cluster.endpoint(second), "/v1/objects/data/key").body == data
    transport.close()


def test_a_node_that_hangs_delays_reads_and_writes_and_stops_neither(cluster: LiveCluster) -> None:
    with cluster.client() as client:
        objects = put_all(client, "before")
        with cluster.paused(cluster.node_ids[0]):
            objects |= put_all(client, "meanwhile")
            for key, data in objects.items():
                assert client.get("data", key) == data
        infos = [client.stat("data", key) for key in objects]
        eventually(lambda: all(cluster.is_whole(client, info) for info in infos), what="the node has caught up")


def test_without_a_quorum_a_write_is_refused_and_leaves_no_name(cluster: LiveCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second, third = cluster.node_ids
    monkeypatch.setenv("FOREBAY_DEADLINE_S", "3")
    with cluster.client(first) as client:
        kept = client.put("data", "kept", content(3))
        eventually(lambda: cluster.is_whole(client, kept), what="all replicas")
        cluster.kill(second)
        cluster.kill(third)
        with pytest.raises(NotEnoughReplicas, match=r"1 of 2 copies are durable") as refused:
            client.put("data", "refused", content(2))
        assert refused.value.status == 503 and second in refused.value.message
        with pytest.raises(ObjectNotFound):
            client.stat("data", "refused")
        # One copy is enough to read.
        assert client.get("data", "kept") == content(3)

        cluster.restart(second)
        info: ObjectInfo = client.put("data", "accepted", content(2))
        assert client.get("data", "accepted") == content(2)
        cluster.restart(third)
        eventually(lambda: cluster.is_whole(client, info), what="the last node has caught up")


def test_a_chunk_whose_only_node_is_dead_cannot_be_read_and_the_error_names_it(
    cluster: LiveCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FOREBAY_DEADLINE_S", "2")
    with cluster.client() as client:
        client.buckets.create("single", replicas=1)
        info = client.put("single", "key", b"one copy")
        (holder,) = cluster.sound_copies(info.record.content.refs[0])
        cluster.kill(holder)
        with pytest.raises(AllReplicasFailed, match=holder):
            client.get("single", "key")
        cluster.restart(holder)
        assert client.get("single", "key") == b"one copy"
