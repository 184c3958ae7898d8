"""Snapshots on real nodes: their bytes stay, and go with them."""

from __future__ import annotations

import os

import pytest

from client.errors import ObjectNotFound, SnapshotNotFound
from client.verify import verify
from tests.support.cluster import CHUNK_BYTES, LiveCluster, eventually


def test_a_bucket_is_read_as_it_was_until_its_snapshot_is_given_up(shared_cluster: LiveCluster) -> None:
    old, new = os.urandom(3 * CHUNK_BYTES), os.urandom(CHUNK_BYTES)
    with shared_cluster.client() as client:
        client.buckets.create("kept")
        before = [client.put("kept", key, old) for key in ("changed", "deleted")]
        made = client.snapshots.create("kept", "monday")
        assert client.snapshots.list("kept") == (made,) and made.version > before[-1].version
        client.put("kept", "changed", new)
        client.delete("kept", "deleted")
        assert client.get("kept", "changed") == new
        assert [info.key for info in client.walk("kept")] == ["changed"]
        assert list(client.walk("kept", snapshot="monday")) == before
        for info in before:
            assert client.get("kept", info.key, snapshot="monday") == old
            assert client.stat("kept", info.key, snapshot="monday") == info
        eventually(lambda: verify(client, client.walk("kept", snapshot="monday")).clean, what="all replicas of what it shows")
        assert client.snapshots.delete("kept", "monday") == 2
        with pytest.raises(SnapshotNotFound):
            client.get("kept", "changed", snapshot="monday")
        with pytest.raises(ObjectNotFound):
            client.stat("kept", "changed", version=before[0].version)
        assert [info.key for info in client.walk("kept", versions=True)] == ["changed"]
