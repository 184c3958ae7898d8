"""Readers on the host of the nodes: their bytes come past the network, verified, and without a node it goes on."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch

from client.chunks import Reads
from client.manifest import Ref
from client.record import ObjectInfo
from loader import load_tensors, save_tensors
from tests.support.cluster import CHUNK_BYTES, LiveCluster, eventually

pytestmark = pytest.mark.slow

NUM_CHUNKS = 6
PAYLOAD = random.Random(9).randbytes(NUM_CHUNKS * CHUNK_BYTES)


@pytest.fixture
def near(cluster: LiveCluster, monkeypatch: pytest.MonkeyPatch) -> LiveCluster:
    """The cluster, and clients that notice that it is on their host."""
    monkeypatch.setenv("FOREBAY_COLOCATED", "true")
    monkeypatch.setenv("FOREBAY_VIEW_TTL_S", "0.2")
    return cluster


def put_whole(cluster: LiveCluster) -> tuple[ObjectInfo, list[Ref]]:
    with cluster.client() as client:
        info = client.put("data", "key", PAYLOAD)
        eventually(lambda: cluster.is_whole(client, info), what="all replicas")
        return info, list(client.reader(info).refs())


def test_bytes_come_past_the_network(near: LiveCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    put_whole(near)
    with near.client() as client:
        buffer = bytearray(len(PAYLOAD))
        client.get_into("data", "key", buffer)
        assert buffer == PAYLOAD
        assert client.get("data", "key", start=5, end=CHUNK_BYTES + 5) == PAYLOAD[5 : CHUNK_BYTES + 5]
        # Of a chunk as small as this, the first that is read comes with the record.
        assert (client.chunks.reads.local, client.chunks.reads.http) == (NUM_CHUNKS + 2 - 2, 2)
    monkeypatch.setenv("FOREBAY_COLOCATED", "false")
    with near.client() as client:
        assert client.get("data", "key") == PAYLOAD
        assert client.chunks.reads == Reads(http=NUM_CHUNKS, http_bytes=len(PAYLOAD))


def test_a_bad_copy_is_found_read_past_and_repaired(near: LiveCluster) -> None:
    info, refs = put_whole(near)
    with near.client() as client:
        for ref in refs:
            first = client.cluster.layout.replicas(ref.partition, count=3)[0]
            near.flip_bit(first, ref, offset=ref.size // 2)
        buffer = bytearray(len(PAYLOAD))
        client.reader(info).read_into(buffer)
        assert buffer == PAYLOAD
        assert client.replica_reader.totals().failovers == NUM_CHUNKS
        assert (client.chunks.reads.local, client.chunks.reads.http) == (2 * NUM_CHUNKS, 0)
        eventually(lambda: near.is_whole(client, info), what="the bad copies were replaced")


def test_a_killed_node_is_done_without_and_is_read_locally_when_it_is_back(near: LiveCluster) -> None:
    _, refs = put_whole(near)
    with near.client() as client:
        assert client.get("data", "key") == PAYLOAD  # So that connections to it are idle.
        for victim in near.node_ids:
            near.kill(victim)
            assert client.get("data", "key") == PAYLOAD
            near.restart(victim)

            def is_read_locally(victim: str = victim) -> bool:
                before = client.chunks.reads.local
                client.chunks.fetch_into(victim, refs[0], memoryview(bytearray(refs[0].size)))
                return client.chunks.reads.local > before

            eventually(is_read_locally, what="the node's socket is found again")


def test_tensors_are_mapped_from_sound_copies_alone(near: LiveCluster) -> None:
    tensors = {"large": torch.randn(1 << 19), "small": torch.randn(1000)}
    with near.client() as client:
        info = save_tensors("forebay://data/model", tensors, client=client)
        eventually(lambda: near.is_whole(client, info), what="all replicas")
        refs = [ref for ref in client.reader(info).refs() if ref.size == CHUNK_BYTES]
        assert len(refs) == tensors["large"].nbytes // CHUNK_BYTES
        loaded = load_tensors("forebay://data/model", mmap=True, client=client)
        assert all(torch.equal(loaded[name], tensor) for name, tensor in tensors.items())
        maps = Path("/proc/self/maps").read_text()
        assert all(ref.hex in maps for ref in refs)

        for ref in refs[::2]:
            for victim in near.node_ids[:2]:
                near.flip_bit(victim, ref, offset=ref.size // 2)
        again = load_tensors("forebay://data/model", mmap=True, client=client)
        assert all(torch.equal(again[name], tensor) for name, tensor in tensors.items())
        assert client.replica_reader.totals().failovers
