"""Metadata that comes back from an older backup: nodes notice, delete nothing, commit nothing, and wait for the operator."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from client.client import Client
from client.errors import InvalidRequest, MetadataFrozen, ObjectNotFound
from client.record import ObjectInfo
from storenode.incarnation import accept_restore
from storenode.lineage import thaw
from storenode.migration import export_metadata, import_metadata
from storenode.sqlite import SqliteMetaStore
from tests.support.cluster import CHUNK_BYTES, LiveCluster, eventually
from tests.support.etcd import running_etcd

PAYLOAD = os.urandom(2 * CHUNK_BYTES)


def went_back(cluster: LiveCluster) -> list[bool]:
    return [cluster.ask(node_id, "GET", "/v1/admin/status")["metadata"]["went_back"] for node_id in cluster.node_ids]


def check_waits_for_the_operator(
    cluster: LiveCluster, client: Client, *, kept: ObjectInfo, lost: ObjectInfo, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What holds as long as nobody has accepted the older state."""
    eventually(lambda: all(went_back(cluster)), what="all nodes know")
    with monkeypatch.context() as patch:
        patch.setenv("FOREBAY_DEADLINE_S", "1")
        with cluster.client() as hasty, pytest.raises(MetadataFrozen, match="accept-restore"):
            hasty.put("data", "refused", b"x")
    assert client.get("data", "kept") == PAYLOAD and client.stat("data", "kept") == kept
    with pytest.raises(ObjectNotFound):
        client.stat("data", "lost")
    for ref in lost.record.content.refs:
        assert cluster.sound_copies(ref), "copies that no record names any more, and that a newer backup may"


def check_goes_on(cluster: LiveCluster, client: Client, *, kept: ObjectInfo, lost: ObjectInfo) -> None:
    """What holds once the older state was accepted."""
    eventually(lambda: not any(went_back(cluster)), what="all nodes go on")
    assert client.stat("data", "kept") == kept
    again = client.put("data", "lost", b"another")
    assert again.version > lost.version, "no version is given out twice"
    assert client.get("data", "lost") == b"another"


def test_a_file_of_metadata_that_was_copied_back_is_noticed_at_the_start_and_accepted(
    cluster: LiveCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with cluster.client() as client:
        kept = client.put("data", "kept", PAYLOAD)
    cluster.stop()
    shutil.copy(cluster.meta_path, tmp_path / "backup")
    cluster.start()
    with cluster.client() as client:
        lost = client.put("data", "lost", os.urandom(2 * CHUNK_BYTES))
        eventually(lambda: cluster.is_whole(client, lost), what="all replicas")
    cluster.stop()
    shutil.copy(tmp_path / "backup", cluster.meta_path)
    cluster.start()
    with cluster.client() as client:
        check_waits_for_the_operator(cluster, client, kept=kept, lost=lost, monkeypatch=monkeypatch)
        store = SqliteMetaStore(cluster.meta_path)
        accept_restore(store)
        store.close()
        check_goes_on(cluster, client, kept=kept, lost=lost)


def test_a_snapshot_of_etcd_that_was_restored_under_running_nodes_is_noticed_and_accepted(
    cluster: LiveCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if shutil.which("etcdctl") is None:
        pytest.skip("etcdctl is not installed; Debian's package is etcd-client")
    (tmp_path / "etcd").mkdir()
    with running_etcd(tmp_path / "etcd") as etcd:
        address, member = etcd.address(), etcd.members[0]
        sqlite = SqliteMetaStore(cluster.meta_path)
        export_metadata(sqlite, tmp_path / "file")
        sqlite.close()
        with etcd.store(address) as store:
            import_metadata(store, tmp_path / "file")
        for node_id in cluster.node_ids:
            cluster.restart(node_id, environment={"FOREBAY_META": str(address)})
        with cluster.client() as client:
            kept = client.put("data", "kept", PAYLOAD)
            etcdctl("--endpoints", str(member.endpoint), "snapshot", "save", str(tmp_path / "snapshot"))
            lost = client.put("data", "lost", os.urandom(2 * CHUNK_BYTES))
            # A backup is older than what nodes write by themselves until they look, and all of them look while this goes on.
            for _ in range(300):
                client.buckets.set("data", versions=0)
            eventually(lambda: cluster.is_whole(client, lost), what="all replicas")
            member.kill()
            # As an operator does: the snapshot becomes the data directory of a new etcd at the same address.
            shutil.rmtree(tmp_path / "etcd" / "m0")
            etcdctl(
                "snapshot",
                "restore",
                str(tmp_path / "snapshot"),
                "--data-dir",
                str(tmp_path / "etcd" / "m0"),
                "--name",
                "m0",
                *(
                    option
                    for option in member.command
                    if option.startswith(("--initial-advertise-peer-urls", "--initial-cluster="))
                ),
            )
            member.start()
            etcd.await_health()
            check_waits_for_the_operator(cluster, client, kept=kept, lost=lost, monkeypatch=monkeypatch)
            with etcd.store(address) as store:
                with pytest.raises(InvalidRequest, match="accept-restore"):
                    thaw(store)
                accept_restore(store)
            check_goes_on(cluster, client, kept=kept, lost=lost)
        cluster.stop()


def etcdctl(*arguments: str) -> None:
    environment = {**os.environ, "ETCDCTL_API": "3"}
    subprocess.run(["etcdctl", *arguments], env=environment, check=True, capture_output=True, timeout=60)
