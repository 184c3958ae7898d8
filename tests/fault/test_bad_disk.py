"""A disk turns read-only, or is gone: the node says so and loses nothing, others carry on, and it catches up afterwards."""

from __future__ import annotations

import os
import random
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from client.errors import DiskFailed
from client.manifest import make_ref
from tests.support.cluster import CHUNK_BYTES, LiveCluster, eventually

PAYLOAD = random.Random(11).randbytes(3 * CHUNK_BYTES)

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="mounting takes root")


def mount(*options: str) -> None:
    subprocess.run(["mount", *options], check=True, capture_output=True)


@contextmanager
def disk_of(cluster: LiveCluster, node_id: str) -> Iterator[Path]:
    """Restart a node with its data directory as a mount, of which the node's real directory beside it is given."""
    path = cluster.data_dirs[node_id]
    cluster.kill(node_id)
    real = path.rename(path.with_name(f"{path.name}-disk"))
    path.mkdir()
    mount("--bind", str(real), str(path))
    try:
        cluster.restart(node_id)
        yield real
    finally:
        cluster.kill(node_id)
        # Lazily, and as often as it was mounted: a test may have ended in the middle.
        while subprocess.run(["umount", "--lazy", str(path)], capture_output=True).returncode == 0:
            pass


def test_a_node_on_a_read_only_disk_serves_what_it_has_and_takes_nothing(cluster: LiveCluster) -> None:
    node_id = cluster.node_ids[0]
    with disk_of(cluster, node_id), cluster.client() as client:
        kept = client.put("data", "kept", PAYLOAD)
        eventually(lambda: cluster.is_whole(client, kept), what="all replicas")
        remount = ["mount", "-o", "remount,bind,ro", str(cluster.data_dirs[node_id])]
        # Not while a file is open for writing.
        eventually(lambda: not subprocess.run(remount, capture_output=True).returncode, what="it is read-only")
        ref = make_ref(b"refused", partitions=client.cluster.layout.partitions)
        with pytest.raises(DiskFailed, match=r"[Rr]ead-only"):
            client.chunks.put(node_id, ref, b"refused", epoch=0)
        first = next(client.reader(kept).refs())
        buffer = bytearray(first.size)
        client.chunks.fetch_into(node_id, first, memoryview(buffer))
        assert PAYLOAD.startswith(bytes(buffer))
        info = client.put("data", "meanwhile", PAYLOAD[::-1])
        assert client.get("data", "meanwhile") == PAYLOAD[::-1]
        mount("-o", "remount,bind,rw", str(cluster.data_dirs[node_id]))
        eventually(lambda: cluster.is_whole(client, info), what="the node has caught up")


def test_a_node_whose_disk_is_gone_acknowledges_nothing_and_has_all_when_it_is_back(cluster: LiveCluster) -> None:
    node_id = cluster.node_ids[0]
    path = cluster.data_dirs[node_id]
    with disk_of(cluster, node_id) as real, cluster.client() as client:
        kept = client.put("data", "kept", PAYLOAD)
        eventually(lambda: cluster.is_whole(client, kept), what="all replicas")
        subprocess.run(["umount", "--lazy", str(path)], check=True)
        ref = make_ref(b"refused", partitions=client.cluster.layout.partitions)
        with pytest.raises(DiskFailed):
            client.chunks.put(node_id, ref, b"refused", epoch=0)
        assert client.get("data", "kept") == PAYLOAD
        info = client.put("data", "meanwhile", PAYLOAD[::-1])
        assert client.get("data", "meanwhile") == PAYLOAD[::-1]
        # Its cursor it may leave on the disk below; there it is true of nothing and says less than the one on the node's own.
        assert {found.name for found in path.rglob("*")} <= {"follower.json"}, "nothing else is written to the disk below"
        mount("--bind", str(real), str(path))
        eventually(lambda: cluster.is_whole(client, kept) and cluster.is_whole(client, info), what="the node has caught up")
