"""Nodes notice when their metadata is older than it was, tell each other, and delete nothing until it is accepted."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import pytest

from storenode.cursor import Cursor
from storenode.incarnation import accept_restore
from storenode.layouts import change_epoch, read_anchor
from storenode.lineage import create_cluster, read_lineage
from storenode.lineage_watch import LineageWatch
from storenode.metastore import Put
from storenode.sqlite import SqliteMetaStore


class Bench:
    """Metadata in a file that can be copied and put back, and nodes that look at it."""

    def __init__(self, root: Path) -> None:
        self.path, self.copy = root / "meta.sqlite", root / "backup"
        self.store = SqliteMetaStore(self.path)
        self.cluster_id = create_cluster(self.store)

    def write(self, count: int = 1) -> None:
        for number in range(count):
            self.store.txn([], [Put(key=f"key {number}", value=b"")])

    def backup(self) -> None:
        self.store.close()
        shutil.copy(self.path, self.copy)
        self.store = SqliteMetaStore(self.path)

    def restore(self) -> None:
        self.store.close()
        shutil.copy(self.copy, self.path)
        self.store = SqliteMetaStore(self.path)

    def node(self, node_id: str = "n1", *, cursor: Cursor | None = None) -> LineageWatch:
        watch = LineageWatch(self.store, cluster_id=self.cluster_id, node_id=node_id, cursor=cursor, period_s=1.0)
        watch.look()
        return watch

    def cursor(self) -> Cursor:
        return Cursor(revision=1, layout=1, incarnation=read_lineage(self.store).incarnation, seen=self.store.revision())


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


@pytest.fixture(autouse=True)
def closed(bench: Bench) -> object:
    yield
    bench.store.close()


def test_a_node_that_starts_on_an_older_state_marks_it_for_all(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    bench.backup()
    bench.write(5)
    cursor = bench.cursor()
    bench.restore()
    with caplog.at_level(logging.CRITICAL):
        noticed = bench.node(cursor=cursor)
    assert noticed.metadata_went_back
    (said,) = caplog.messages
    assert "THE METADATA WENT BACK" in said and f"seen revision {cursor.seen}" in said and "accept-restore" in said
    # Another node, which has seen nothing, and this one after another restart.
    assert bench.node("n2").metadata_went_back and bench.node(cursor=cursor).metadata_went_back


def test_a_running_node_notices_an_older_state_and_says_so_once(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    bench.backup()
    node = bench.node()
    bench.write(3)
    node.look()
    assert not node.metadata_went_back
    bench.restore()
    node._store = bench.store
    node.look()
    node.look()
    assert node.metadata_went_back and len(caplog.messages) == 1


def test_an_epoch_that_went_back_is_noticed_whatever_the_revision(bench: Bench) -> None:
    bench.backup()
    change_epoch(bench.store, read_anchor(bench.store), epoch=4)
    node = bench.node()
    bench.restore()
    bench.write(9)
    node._store = bench.store
    node.look()
    assert node.metadata_went_back


def test_it_ends_when_the_restore_is_accepted_and_begins_no_second_time(bench: Bench) -> None:
    bench.backup()
    bench.write(5)
    cursor = bench.cursor()
    bench.restore()
    node = bench.node(cursor=cursor)
    before = node.incarnation
    accept_restore(bench.store)
    node.look()
    assert not node.metadata_went_back and node.incarnation != before
    assert not bench.node(cursor=cursor).metadata_went_back


def test_it_ends_when_the_newer_metadata_comes_back(bench: Bench, tmp_path: Path) -> None:
    bench.write(5)
    node = bench.node()
    bench.store.close()
    shutil.move(bench.path, tmp_path / "newer")
    bench.store = SqliteMetaStore(bench.path)
    node._store = bench.store
    node.look()
    assert node.metadata_went_back, "empty metadata, in which no record names any chunk"
    bench.store.close()
    shutil.move(tmp_path / "newer", bench.path)
    bench.store = SqliteMetaStore(bench.path)
    node._store = bench.store
    node.look()
    assert not node.metadata_went_back


def test_an_equal_or_newer_state_is_none_that_went_back(bench: Bench) -> None:
    cursor = bench.cursor()
    assert not bench.node(cursor=cursor).metadata_went_back
    bench.write()
    assert not bench.node(cursor=cursor).metadata_went_back


def test_the_metadata_of_another_cluster_counts_as_gone_back(bench: Bench) -> None:
    bench.cluster_id = "another"
    assert bench.node().metadata_went_back
