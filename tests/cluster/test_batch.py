"""Many objects at once on real nodes: what is acknowledged lies on the disks, and is read whatever breaks."""

from __future__ import annotations

import os
import random
import signal

import pytest

from client.client import Client
from client.errors import NotEnoughReplicas
from client.manifest import Ref
from tests.support.cluster import CHUNK_BYTES, LiveCluster, eventually

pytestmark = pytest.mark.slow

NUM_OBJECTS = 400
RANDOM = random.Random(7)
PAYLOADS = [RANDOM.randbytes(RANDOM.randrange(1, 5000)) for _ in range(NUM_OBJECTS - 2)] + [
    RANDOM.randbytes(CHUNK_BYTES),
    b"\0",
]
ITEMS = [("data", f"small-{number:03d}", 0, None) for number in range(NUM_OBJECTS)]


def put_all(client: Client) -> list[Ref]:
    """Put all payloads at once; the chunk of each."""
    infos = client.put_many((bucket, key, data) for (bucket, key, _, _), data in zip(ITEMS, PAYLOADS, strict=True))
    assert [(info.bucket, info.key, info.size) for info in infos] == [
        (bucket, key, len(data)) for (bucket, key, _, _), data in zip(ITEMS, PAYLOADS, strict=True)
    ]
    return [ref for info in infos for ref in info.record.content.refs]


def test_batches_are_stored_on_every_replica_and_read_back(cluster: LiveCluster) -> None:
    with cluster.client() as client:
        refs = put_all(client)
        assert all(len(cluster.sound_copies(ref)) >= 2 for ref in refs)
        eventually(lambda: all(len(cluster.sound_copies(ref)) == 3 for ref in refs), what="three right copies of each")
        client.put("data", "large", bytes(3 * CHUNK_BYTES + 5))
        items = [*ITEMS, ("data", "large", CHUNK_BYTES - 1, None), ("data", "small-003", 0, 1)]
        assert client.get_many(items) == [*PAYLOADS, bytes(2 * CHUNK_BYTES + 6), PAYLOADS[3][:1]]


def test_objects_of_all_sizes_are_put_at_once_and_again(shared_cluster: LiveCluster) -> None:
    def put(seed: int) -> None:
        data = random.Random(seed)
        sizes = [0, 1, CHUNK_BYTES, CHUNK_BYTES + 1, 10 * CHUNK_BYTES, *range(1000, 1060)]
        contents = {f"mixed-{number}": data.randbytes(size) for number, size in enumerate(sizes)}
        infos = client.put_many([("data", "mixed-1", b"overwritten"), *(("data", *item) for item in contents.items())])
        assert client.get_many(("data", key, 0, None) for key in contents) == list(contents.values())
        assert [client.stat("data", key) for key in contents] == infos[1:]
        eventually(lambda: all(shared_cluster.is_whole(client, info) for info in infos[1:]), what="all copies are right")

    with shared_cluster.client() as client:
        put(1)
        put(2)


def test_with_a_node_killed_and_a_copy_damaged_all_is_read_and_the_copy_is_mended(cluster: LiveCluster) -> None:
    first, second, third = cluster.node_ids
    with cluster.client() as client:
        refs = put_all(client)
        eventually(lambda: all(len(cluster.sound_copies(ref)) == 3 for ref in refs), what="three right copies of each")
        kill(cluster, first)
        for ref in refs[:100]:
            cluster.flip_bit(second, ref)
        for ref in refs[100:110]:
            cluster.cut_short(second, ref, size_bytes=ref.size // 2)
        # In several orders, so that the damaged copies are met whichever node is asked for them. The first again, because at
        # first the dead node has its share, and the nodes are asked in the order of their random ids.
        for order in (ITEMS, ITEMS[::-1], ITEMS[NUM_OBJECTS // 2 :] + ITEMS[: NUM_OBJECTS // 2], ITEMS):
            found = client.get_many(order)
            assert dict(zip((key for _, key, _, _ in order), found, strict=True)) == {
                key: payload for (_, key, _, _), payload in zip(ITEMS, PAYLOADS, strict=True)
            }
        eventually(
            lambda: all(cluster.sound_copies(ref) >= {second, third} for ref in refs), what="damaged copies are replaced"
        )


def test_many_are_put_with_two_nodes_of_three_and_none_of_them_with_one(
    cluster: LiveCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FOREBAY_DEADLINE_S", "2")
    first, second, third = cluster.node_ids
    kill(cluster, first)
    with cluster.client(third) as client:
        infos = client.put_many(("data", f"two-{number}", b"with two nodes %d" % number) for number in range(50))
        assert all(cluster.sound_copies(ref) == {second, third} for info in infos for ref in info.record.content.refs)
        kill(cluster, second)
        with pytest.raises(NotEnoughReplicas, match="1 of 2 copies"):
            client.put_many(("data", f"one-{number}", b"with one node %d" % number) for number in range(50))
        assert [info.key for info in client.walk("data")] == sorted(info.key for info in infos)


def kill(cluster: LiveCluster, node_id: str) -> None:
    os.kill(cluster.pid(node_id), signal.SIGKILL)
    assert cluster.wait_for_exit(timeout_s=30.0) is not None
