"""A disk is full: the node says so, keeps what it has, writes nothing by halves, and others carry on."""

from __future__ import annotations

import contextlib
import os
import random
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from client.cli.gc import sweeps
from client.errors import DiskFull, ObjectNotFound
from client.manifest import make_ref
from tests.support.cluster import CHUNK_BYTES, LiveCluster, eventually

PAYLOAD = random.Random(7).randbytes(3 * CHUNK_BYTES)
DISK_BYTES = 16 * 1024 * 1024
RESERVE_BYTES = 4 * 1024 * 1024


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


@pytest.fixture
def small_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LiveCluster]:
    """A cluster whose first node has a disk of its own, of a few megabytes."""
    monkeypatch.setenv("FOREBAY_CHUNK_SIZE_BYTES", str(CHUNK_BYTES))
    disk = tmp_path / "node-1"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(disk)], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"a small disk can't be mounted here: {mounted.stderr.decode().strip()}")
    try:
        quick = {"FOREBAY_RESERVE_BYTES": str(RESERVE_BYTES), "FOREBAY_COORDINATOR_PERIOD_S": "0.2"}
        with LiveCluster(tmp_path, environment=quick) as cluster:
            with cluster.client() as client:
                client.buckets.create("data")
            yield cluster
    finally:
        subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.timeout(600)
def test_a_disk_that_is_full_to_the_last_byte_serves_and_is_freed_by_deletions(small_disk: LiveCluster) -> None:
    (full,) = (node_id for node_id, path in small_disk.data_dirs.items() if path.name == "node-1")
    filler = small_disk.data_dirs[full] / "filler"
    with small_disk.client() as client:
        kept = client.put("data", "kept", PAYLOAD)
        eventually(lambda: small_disk.is_whole(client, kept), what="all replicas")
        # The node takes chunks until its reserve is reached; the others take them all.
        number = 0
        while small_disk.ask(full, "GET", "/v1/admin/status")["disk"]["free_bytes"] > RESERVE_BYTES + 2 * CHUNK_BYTES:
            client.put("data", f"bulk-{number}", random.Random(number).randbytes(16 * CHUNK_BYTES))
            number += 1
            assert number * 16 * CHUNK_BYTES < 2 * DISK_BYTES
        missing = random.Random("missing").randbytes(16 * CHUNK_BYTES)
        missed = client.put("data", "missed", missing)
        with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while True:  # Then there is not a byte left for anybody.
                file.write(bytes(4096))
        assert os.statvfs(filler).f_bavail == 0
        with small_disk.client(full) as one:
            assert one.get("data", "kept") == PAYLOAD
            assert one.get("data", "missed") == missing
        assert not small_disk.is_whole(client, missed)
        assert small_disk.ask(full, "GET", "/v1/admin/status")["follower"]["pending"] > 0
        for bulk in range(number):
            client.delete("data", f"bulk-{bulk}")
        epoch = client.admin("POST", "/v1/admin/gc")["epoch"]
        *_, status = sweeps(lambda: client.admin("GET", "/v1/admin/gc"), epoch, timeout_s=120.0)
        assert status["nodes"][full]["epoch"] >= epoch
        # What was missed is fetched by itself, and the node takes chunks again.
        eventually(lambda: small_disk.is_whole(client, missed), what="the node has caught up")
        again = client.put("data", "again", PAYLOAD[: CHUNK_BYTES // 2])
        eventually(lambda: small_disk.is_whole(client, again), what="the node takes chunks")
        assert client.get("data", "kept") == PAYLOAD
