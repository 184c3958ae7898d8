"""A disk is full: the node says so, keeps what it has, writes nothing by halves, and others carry on."""

from __future__ import annotations

import random

import pytest

from client.errors import DiskFull, ObjectNotFound
from client.manifest import make_ref
from tests.support.cluster import CHUNK_BYTES, LiveCluster, eventually

PAYLOAD = random.Random(7).randbytes(3 * CHUNK_BYTES)


def test_a_full_node_answers_507_and_writes_nothing(cluster: LiveCluster) -> None:
    node_id = cluster.node_ids[0]
    with cluster.client() as client:
        kept = client.put("data", "kept", PAYLOAD)
        eventually(lambda: cluster.is_whole(client, kept), what="all replicas")
        cluster.fill(node_id)
        files = sorted(cluster.data_dirs[node_id].rglob("*"))
        ref = make_ref(b"does not fit", partitions=client.cluster.layout.partitions)
        with pytest.raises(DiskFull, match="free space, add a node or lower the reserve") as refused:
            client.chunks.put(node_id, ref, b"does not fit", epoch=0)
        assert refused.value.status == 507
        assert sorted(cluster.data_dirs[node_id].rglob("*")) == files
    with cluster.client(node_id) as client:
        assert client.get("data", "kept") == PAYLOAD


def test_one_full_node_stops_no_write_and_gets_its_copies_when_it_has_room(cluster: LiveCluster) -> None:
    node_id = cluster.node_ids[0]
    cluster.fill(node_id)
    with cluster.client(node_id) as client:
        info = client.put("data", "key", PAYLOAD)
        assert client.get("data", "key") == PAYLOAD
        refs = list(client.reader(info).refs())
        assert not any(cluster.stored(node_id, ref) for ref in refs)
        cluster.restart(node_id)
        eventually(lambda: cluster.is_whole(client, info), what="the node has caught up")


@pytest.mark.parametrize("plain", [False, True], ids=["client", "plain HTTP"])
def test_a_write_that_finds_no_room_is_refused_with_507_and_leaves_no_name(cluster: LiveCluster, plain: bool) -> None:
    for node_id in cluster.node_ids:
        cluster.fill(node_id)
    transport = cluster.transport()
    with cluster.client() as client:
        with pytest.raises(DiskFull) as refused:
            if plain:
                transport.request("PUT", cluster.endpoints[0], "/v1/objects/data/key", body=PAYLOAD)
            else:
                client.put("data", "key", PAYLOAD)
        assert refused.value.status == 507
        with pytest.raises(ObjectNotFound):
            client.stat("data", "key")
    transport.close()
    for data_dir in cluster.data_dirs.values():
        assert not [path for path in (data_dir / "chunks").rglob("*") if path.is_file()]
