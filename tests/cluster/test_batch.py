"""Small objects in batches on real nodes: what is acknowledged lies on the disks, and is read whatever breaks."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from client.checksum import content_digest
from client.client import Client
from client.manifest import Ref
from client.record import Condition, Content, ObjectRecord
from client.write_id import new_write_id
from tests.support.cluster import CHUNK_BYTES, LiveCluster, eventually

NUM_OBJECTS = 400
RANDOM = random.Random(7)
PAYLOADS = [RANDOM.randbytes(RANDOM.randrange(1, 5000)) for _ in range(NUM_OBJECTS - 2)] + [
    RANDOM.randbytes(CHUNK_BYTES),
    b"\0",
]
ITEMS = [("data", f"small-{number:03d}", 0, None) for number in range(NUM_OBJECTS)]


@pytest.fixture
def executor() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(6) as made:
        yield made


def store(client: Client, executor: ThreadPoolExecutor) -> list[Ref]:
    """Store all payloads in batches and give them their names."""
    refs = client.uploader(3, ack="quorum").store_many(PAYLOADS, executor=executor)
    for ref, (bucket, key, _, _) in zip(refs, ITEMS, strict=True):
        content = Content(size=ref.size, digest=content_digest([ref.id]), refs=(ref,))
        record = ObjectRecord(write_id=new_write_id(), content=content, created_s=time.time())
        client.catalog.commit(bucket, key, record, condition=Condition())
    return refs


def test_batches_are_stored_on_every_replica_and_read_back(cluster: LiveCluster, executor: ThreadPoolExecutor) -> None:
    with cluster.client() as client:
        refs = store(client, executor)
        eventually(lambda: all(len(cluster.sound_copies(ref)) == 3 for ref in refs), what="three right copies of each")
        client.put("data", "large", bytes(3 * CHUNK_BYTES + 5))
        items = [*ITEMS, ("data", "large", CHUNK_BYTES - 1, None), ("data", "small-003", 0, 1)]
        assert client.get_many(items) == [*PAYLOADS, bytes(2 * CHUNK_BYTES + 6), PAYLOADS[3][:1]]


def test_with_a_node_killed_and_a_copy_damaged_all_is_read_and_the_copy_is_mended(
    cluster: LiveCluster, executor: ThreadPoolExecutor
) -> None:
    first, second, third = cluster.node_ids
    with cluster.client() as client:
        refs = store(client, executor)
        eventually(lambda: all(len(cluster.sound_copies(ref)) == 3 for ref in refs), what="three right copies of each")
        os.kill(cluster.pid(first), signal.SIGKILL)
        assert cluster.wait_for_exit(timeout_s=30.0) is not None
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
        more = client.uploader(3, ack="quorum").store_many([b"with two nodes %d" % n for n in range(50)], executor=executor)
        assert all(cluster.sound_copies(ref) == {second, third} for ref in more)
