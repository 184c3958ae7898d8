"""A cluster's metadata moves between SQLite and etcd, on the command line and under running nodes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from client.errors import MetadataFrozen
from client.placement import Layout, Node
from client.record import BucketPolicy
from storenode.catalog import MetaCatalog
from storenode.layouts import create_layout
from storenode.lineage import create_cluster, freeze, read_lineage
from storenode.metastore import MetaStore
from storenode.migration import export_metadata, import_metadata
from storenode.sqlite import SqliteMetaStore
from tests.support.catalogs import put, versions, write
from tests.support.cluster import CHUNK_BYTES, LiveCluster, eventually
from tests.support.etcd import Etcd

pytestmark = pytest.mark.slow
PAYLOAD = os.urandom(3 * CHUNK_BYTES)


def forebay(*arguments: str, code: int = 0) -> str:
    """Run a command as an operator does; returns what it printed."""
    command = [sys.executable, "-m", "client.cli", *arguments]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert ran.returncode == code, ran.stderr
    return ran.stdout if code == 0 else ran.stderr


@pytest.mark.parametrize("direction", ["to etcd", "from etcd"])
def test_records_keep_their_versions_from_one_engine_to_the_other(etcd_one: Etcd, tmp_path: Path, direction: str) -> None:
    sqlite = SqliteMetaStore(tmp_path / "meta.sqlite")
    with etcd_one.store(etcd_one.address()) as etcd:
        engines: list[MetaStore] = [sqlite, etcd] if direction == "to etcd" else [etcd, sqlite]
        old, new = engines
        create_cluster(old)
        create_layout(old, Layout(version=1, partitions=16, nodes=(Node(id="n1"),)))
        catalog = MetaCatalog(old, marker_ttl_s=60.0)
        catalog.create_bucket("data", BucketPolicy(versions=2))
        catalog.commit_many([write(name) for name in ["k", "k", "k", "ключ", *(f"many/{n}" for n in range(700))]])
        freeze(old, who="me")
        export_metadata(old, tmp_path / "file")
        import_metadata(new, tmp_path / "file")
        moved = MetaCatalog(new, marker_ttl_s=60.0)
        assert versions(moved) == versions(catalog)
        newest = max(version for _, version, _ in versions(moved))
        assert put(moved, "k").version > newest
    sqlite.close()


def test_a_running_cluster_moves_to_etcd_without_losing_a_write(
    cluster: LiveCluster, etcd_one: Etcd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, address, file = f"sqlite:///{cluster.meta_path}", etcd_one.address(), tmp_path / "export"
    with cluster.client() as client:
        before = [client.put("data", f"key {number}", PAYLOAD) for number in range(5)]
        exported = json.loads(forebay("meta", "export", str(file), "--from", old, "--freeze", "--json"))
        assert exported["frozen"] and exported["items"] >= 5
        # Reads go on, writes wait to be repeated, and status says why.
        with monkeypatch.context() as patch:
            patch.setenv("FOREBAY_DEADLINE_S", "1")
            with cluster.client() as hasty, pytest.raises(MetadataFrozen, match="meta thaw"):
                hasty.put("data", "refused", b"x")
        assert client.get("data", "key 3") == PAYLOAD
        status = subprocess.run(
            [sys.executable, "-m", "client.cli", "--endpoint", cluster.endpoints[0], "cluster", "status"],
            capture_output=True,
            text=True,
            check=True,
        )
        assert "no commits: commits are frozen by" in status.stderr
    imported = json.loads(forebay("meta", "import", str(file), "--to", str(address), "--json"))
    assert imported["cluster_id"] == exported["cluster_id"]
    assert "imported before" in forebay("meta", "import", str(file), "--to", str(address))
    assert "holds cluster" in forebay("meta", "import", str(file), "--to", old, code=1)
    for node_id in cluster.node_ids:
        cluster.restart(node_id, environment={"FOREBAY_META": str(address)})
    with cluster.client() as client:
        assert [client.stat("data", info.key) for info in before] == before
        assert client.get("data", "key 0") == PAYLOAD
        after = client.put("data", "key 0", b"after the move")
        assert after.version > max(info.version for info in before)
        _all_follow(cluster)
        assert forebay("--endpoint", cluster.endpoints[0], "verify")
    with etcd_one.store(address) as store:
        assert read_lineage(store).incarnation == imported["incarnation"]


def test_a_freeze_that_is_thought_better_of_is_thawed(cluster: LiveCluster, tmp_path: Path) -> None:
    engine = f"sqlite:///{cluster.meta_path}"
    forebay("meta", "export", str(tmp_path / "file"), "--from", engine, "--freeze")
    with cluster.client() as client:
        assert "commits go on" in forebay("meta", "thaw", "--meta", engine)
        client.put("data", "key", b"x")


def _all_follow(cluster: LiveCluster) -> None:
    """Wait until each node has gone through all records of the metadata that it has now."""

    def follows(node_id: str) -> bool:
        return cluster.ask(node_id, "GET", "/v1/admin/status")["follower"]["revision"] is not None

    eventually(lambda: all(map(follows, cluster.node_ids)), what="all nodes follow")
