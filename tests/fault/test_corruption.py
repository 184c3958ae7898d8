"""Bytes go bad on a disk: readers get the right ones, the copy is replaced, and no process dies of it."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest

from client.errors import AllReplicasFailed, ChunkCorrupt
from client.manifest import Ref
from client.record import ObjectInfo
from tests.support.cluster import CHUNK_BYTES, LiveCluster, eventually

PAYLOAD = random.Random(6).randbytes(10 * CHUNK_BYTES + 5)

Damage = Callable[[LiveCluster, str, Ref], None]


def flip_first(cluster: LiveCluster, node_id: str, ref: Ref) -> None:
    cluster.flip_bit(node_id, ref)


def flip_last(cluster: LiveCluster, node_id: str, ref: Ref) -> None:
    cluster.flip_bit(node_id, ref, offset=ref.size - 1)


def flip_in_trailer(cluster: LiveCluster, node_id: str, ref: Ref) -> None:
    cluster.flip_bit(node_id, ref, offset=ref.size + 3)


def cut_in_payload(cluster: LiveCluster, node_id: str, ref: Ref) -> None:
    cluster.cut_short(node_id, ref, size_bytes=ref.size // 2)


def cut_in_trailer(cluster: LiveCluster, node_id: str, ref: Ref) -> None:
    cluster.cut_short(node_id, ref, size_bytes=ref.size + 5)


def empty(cluster: LiveCluster, node_id: str, ref: Ref) -> None:
    cluster.cut_short(node_id, ref, size_bytes=0)


def grow(cluster: LiveCluster, node_id: str, ref: Ref) -> None:
    path = cluster.chunk_file(node_id, ref)
    assert path is not None
    with path.open("ab") as file:
        file.write(b"\0" * 100_000)


DAMAGES = (flip_first, flip_last, flip_in_trailer, cut_in_payload, cut_in_trailer, empty, grow)


def put_whole(cluster: LiveCluster) -> tuple[ObjectInfo, list[Ref]]:
    with cluster.client() as client:
        info = client.put("data", "key", PAYLOAD)
        eventually(lambda: cluster.is_whole(client, info), what="all replicas")
        return info, list(client.reader(info).refs())


def everything_is_right_again(cluster: LiveCluster, info: ObjectInfo) -> None:
    with cluster.client() as client:
        eventually(lambda: cluster.is_whole(client, info), what="the bad copies were replaced")
    quarantines = [path / "quarantine" for path in cluster.data_dirs.values()]
    eventually(lambda: not any(list(path.iterdir()) for path in quarantines), what="nothing is set aside any more")
    assert cluster.wait_for_exit(timeout_s=0.01) is None, "a node died"


def test_every_kind_of_damage_is_read_past_and_repaired(cluster: LiveCluster) -> None:
    info, refs = put_whole(cluster)
    for number, damage in enumerate(DAMAGES):
        # A chunk and a node of its own for each, the manifest (first of the refs) among them.
        damage(cluster, cluster.node_ids[number % 3], refs[number])
    # A reader picks a replica, so only readers on all of them are sure to meet the bad copies: each node is asked to verify.
    for node_id in cluster.node_ids:
        with cluster.client(node_id) as client:
            assert client.get("data", "key") == PAYLOAD
            client.chunks.verify(node_id, refs)
    everything_is_right_again(cluster, info)


@pytest.mark.parametrize("damage", [flip_first, cut_in_payload])
def test_a_reader_that_meets_a_bad_copy_gets_the_right_bytes_and_has_it_repaired(cluster: LiveCluster, damage: Damage) -> None:
    info, refs = put_whole(cluster)
    with cluster.client() as client:
        # A chunk for each node: the repair of one asks the other, which would find its own bad copy before we do.
        for node_id, bad in zip(cluster.node_ids, refs[1:], strict=False):
            damage(cluster, node_id, bad)
            # As a reader does that asks this node first.
            with pytest.raises(ChunkCorrupt):
                client.chunks.fetch_into(node_id, bad, memoryview(bytearray(bad.size)))
        assert client.get("data", "key") == PAYLOAD
        # Ranges are verified as well.
        start, end = CHUNK_BYTES - 7, 2 * CHUNK_BYTES + 7
        assert client.get("data", "key", start=start, end=end) == PAYLOAD[start:end]
        for node_id in cluster.node_ids:
            client.chunks.verify(node_id, refs)
    everything_is_right_again(cluster, info)


def test_plain_http_never_gets_wrong_bytes(cluster: LiveCluster) -> None:
    info, refs = put_whole(cluster)
    for node_id in cluster.node_ids:
        flip_first(cluster, node_id, refs[1 + cluster.node_ids.index(node_id)])
    transport = cluster.transport()
    for endpoint in cluster.endpoints:
        assert transport.request("GET", endpoint, "/v1/objects/data/key").body == PAYLOAD
    transport.close()
    with cluster.client() as client:
        for node_id in cluster.node_ids:
            client.chunks.verify(node_id, refs)
    everything_is_right_again(cluster, info)


def test_if_all_copies_are_bad_the_read_fails_and_their_bytes_are_kept(
    cluster: LiveCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FOREBAY_DEADLINE_S", "1")
    _, refs = put_whole(cluster)
    for node_id in cluster.node_ids:
        flip_first(cluster, node_id, refs[1])
    with cluster.client() as client, pytest.raises(AllReplicasFailed, match="from any of 3 replicas"):
        client.get("data", "key")

    def set_aside() -> list[Path]:
        return [file for path in cluster.data_dirs.values() for file in (path / "quarantine").iterdir()]

    eventually(lambda: len(set_aside()) == 3, what="all three are set aside")
    assert all(refs[1].hex in path.name for path in set_aside())
    assert cluster.wait_for_exit(timeout_s=0.01) is None, "a node died"


def test_what_was_set_aside_when_a_node_died_is_replaced_when_it_is_back(cluster: LiveCluster) -> None:
    info, refs = put_whole(cluster)
    victim = cluster.node_ids[0]
    cluster.kill(victim)
    path = cluster.chunk_file(victim, refs[2])
    assert path is not None
    path.rename(cluster.data_dirs[victim] / "quarantine" / f"{path.name}.0123456789abcdef")
    cluster.restart(victim)
    everything_is_right_again(cluster, info)
