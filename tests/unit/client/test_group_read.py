"""Small chunks read together: which replicas are asked, and that what is wrong with one of them costs no other."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest

from client.errors import AllReplicasFailed
from client.manifest import make_ref
from client.replica import ReplicaReader
from client.wire import CHUNKS_GET_PATH
from tests.support.fake_cluster import FakeCluster, Fault, quick_config

SMALL = [random.Random(number).randbytes(100 + number) for number in range(40)]
SMALL_REFS = [make_ref(payload, partitions=64) for payload in SMALL]


@pytest.fixture
def fake() -> FakeCluster:
    fake = FakeCluster(num_nodes=4)
    for ref, payload in zip(SMALL_REFS, SMALL, strict=True):
        for node_id in fake.layout.replicas(ref.partition, count=3):
            fake.nodes[node_id].chunks[ref.partition, ref.id] = payload
    return fake


@pytest.fixture
def reader(fake: FakeCluster) -> Iterator[ReplicaReader]:
    made = ReplicaReader(fake.cluster, fake.chunks, quick_config())
    yield made
    made.close()


def read_small(reader: ReplicaReader, *, exclude: tuple[str, ...] = ()) -> list[bytes | AllReplicasFailed]:
    found = reader.read_small([(ref, 3) for ref in SMALL_REFS], exclude=exclude)
    return [one if isinstance(one, AllReplicasFailed) else bytes(one) for one in found]


def batches(fake: FakeCluster) -> dict[str, int]:
    return {name: node.requests.count(f"POST {CHUNKS_GET_PATH}") for name, node in fake.nodes.items()}


def test_small_chunks_come_by_one_request_to_each_node(fake: FakeCluster, reader: ReplicaReader) -> None:
    assert read_small(reader) == SMALL
    assert set(batches(fake).values()) == {1}
    assert reader.totals().failovers == 0
    assert read_small(reader, exclude=("node-0",)) == SMALL
    assert batches(fake)["node-0"] == 1


@pytest.mark.parametrize("fault", ["down", "silent", "busy", "missing", "corrupt", "swapped", "short"])
def test_small_chunks_that_a_replica_can_not_give_come_from_another(
    fake: FakeCluster, reader: ReplicaReader, fault: Fault
) -> None:
    fake.fail("node-0", "node-1", fault=fault)
    assert read_small(reader) == SMALL
    assert reader.totals().failovers > 0
    verified = sum(node.requests.count("POST /v1/chunks:verify") for node in fake.nodes.values())
    assert (verified > 0) == (fault in ("corrupt", "swapped"))


def test_a_small_chunk_that_nobody_has_costs_no_other(fake: FakeCluster, reader: ReplicaReader) -> None:
    for node in fake.nodes.values():
        node.chunks.pop((SMALL_REFS[7].partition, SMALL_REFS[7].id), None)
    found = read_small(reader)
    assert found[:7] + found[8:] == SMALL[:7] + SMALL[8:]
    lost = found[7]
    assert isinstance(lost, AllReplicasFailed) and lost.key == str(SMALL_REFS[7])
    assert lost.message.count("said No such chunk") == 3
    assert max(batches(fake).values()) <= 3


def test_small_chunks_without_any_replica_to_ask_say_so(fake: FakeCluster, reader: ReplicaReader) -> None:
    (found,) = reader.read_small([(SMALL_REFS[0], 1)], exclude=fake.layout.replicas(SMALL_REFS[0].partition, count=1))
    assert isinstance(found, AllReplicasFailed) and "names no other replica" in found.message
    assert sum(batches(fake).values()) == 0
