"""Copies that are missing are made without anybody asking: checked on the disks, past the client and past the nodes."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Iterable
from functools import partial

import pytest

from client.client import Client
from client.manifest import Ref
from client.record import ObjectInfo
from tests.support.cluster import CHUNK_BYTES, LiveCluster, eventually

pytestmark = pytest.mark.slow

# More than fit into a record, so that there is a manifest to find, too.
NUM_CHUNKS = 12


def put(client: Client, key: str, *, seed: int) -> ObjectInfo:
    return client.put("data", key, random.Random(seed).randbytes(NUM_CHUNKS * CHUNK_BYTES + seed))


def test_a_node_that_comes_back_becomes_complete_by_itself(cluster: LiveCluster) -> None:
    with cluster.client() as client:
        before = put(client, "before", seed=1)
        for round_number, victim in enumerate(cluster.node_ids):
            await_whole(cluster, client, [before])
            cluster.kill(victim)
            missed = [
                put(client, f"missed-{round_number}-{number}", seed=100 * (round_number + 1) + number) for number in range(3)
            ]
            assert not any(cluster.stored(victim, ref) for info in missed for ref in client.reader(info).refs())
            cluster.restart(victim)
            await_whole(cluster, client, missed)


def test_a_node_whose_disk_was_replaced_is_filled_again(cluster: LiveCluster) -> None:
    victim = cluster.node_ids[1]
    with cluster.client() as client:
        infos = [put(client, f"object-{number}", seed=number) for number in range(3)]
        await_whole(cluster, client, infos)
        cluster.kill(victim)
        for name in ("chunks", "quarantine"):
            shutil.rmtree(cluster.data_dirs[victim] / name)
        (cluster.data_dirs[victim] / "follower.json").unlink()
        cluster.restart(victim)
        await_whole(cluster, client, infos)


def test_the_cursor_on_the_disk_reaches_the_last_commit(cluster: LiveCluster) -> None:
    with cluster.client() as client:
        info = put(client, "last", seed=3)

    def reached() -> bool:
        texts = [
            (path / "follower.json").read_text() for path in cluster.data_dirs.values() if (path / "follower.json").exists()
        ]
        return len(texts) == 3 and all(json.loads(text)["revision"] >= info.version for text in texts)

    eventually(reached, what="all cursors have passed the commit")


def test_older_versions_are_repaired_like_the_newest(cluster: LiveCluster) -> None:
    victim = cluster.node_ids[2]
    with cluster.client() as client:
        client.buckets.create("versioned", versions=5)
        cluster.kill(victim)
        for seed in (1, 2):
            client.put("versioned", "key", random.Random(seed).randbytes(2 * CHUNK_BYTES))
        cluster.restart(victim)
        versions = client.list("versioned", versions=True).objects
        assert len(versions) == 2
        await_whole(cluster, client, versions)


def test_more_replicas_asked_for_later_are_made(cluster: LiveCluster) -> None:
    with cluster.client() as client:
        client.buckets.create("single", replicas=1)
        info = client.put("single", "key", random.Random(4).randbytes(NUM_CHUNKS * CHUNK_BYTES))
        assert all(len(cluster.sound_copies(ref)) == 1 for ref in client.reader(info).refs())
        info = client.set_replicas(info, 3)
        await_whole(cluster, client, [info])


def test_a_scrub_finds_what_no_reader_asked_for(cluster: LiveCluster) -> None:
    node_id = cluster.node_ids[0]
    with cluster.client() as client:
        info = put(client, "key", seed=5)
        await_whole(cluster, client, [info])
        refs = list(client.reader(info).refs())
        cluster.flip_bit(node_id, refs[0], offset=100)
        cluster.cut_short(node_id, refs[1], size_bytes=10)
        remove(cluster, node_id, refs[2])

        job = cluster.ask(node_id, "POST", "/v1/admin/scrub")

        def ended() -> bool:
            (found,) = [found for found in jobs(client) if found["id"] == job["id"]]
            assert found["state"] in ("running", "done"), found
            return bool(found["state"] == "done")

        eventually(ended, what="the scrub is done")
        await_whole(cluster, client, [info])
    assert not list((cluster.data_dirs[node_id] / "quarantine").iterdir())


def await_whole(cluster: LiveCluster, client: Client, infos: Iterable[ObjectInfo]) -> None:
    """Wait until all replicas of all these objects lie on their disks with the right bytes."""
    for info in infos:
        eventually(partial(cluster.is_whole, client, info), what=f"{info.key} has all its replicas")


def remove(cluster: LiveCluster, node_id: str, ref: Ref) -> None:
    """Lose a file the way a file system does after a crash."""
    path = cluster.chunk_file(node_id, ref)
    assert path is not None
    path.unlink()


def jobs(client: Client) -> list[dict[str, object]]:
    """All jobs, as some node lists them."""
    return list(client.admin("GET", "/v1/admin/jobs")["jobs"])
