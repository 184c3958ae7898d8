"""Membership: who may appear in the cluster, and that who falls silent disappears."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from client.cluster import Anchor, Cluster
from client.errors import MetadataCorrupt, MetadataUnavailable, Misconfigured
from client.placement import Layout, Layouts, Node
from storenode.layouts import change_epoch, change_layouts, create_layout, read_anchor, read_layouts
from storenode.lineage import create_cluster, read_cluster_id
from storenode.membership import (
    Membership,
    NodeRecord,
    ViewLoader,
    ViewWatcher,
    read_nodes,
)
from storenode.metastore import Put
from storenode.sqlite import SqliteMetaStore
from tests.support.peers import Clock

LAYOUT = Layout(version=1, partitions=16, nodes=(Node(id="a"), Node(id="b")))
TTL_S = 10.0


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(tmp_path: Path, clock: Clock) -> Iterator[SqliteMetaStore]:
    store = SqliteMetaStore(tmp_path / "meta.sqlite", clock=clock, wait=clock.wait)
    create_cluster(store)
    create_layout(store, LAYOUT)
    yield store
    store.close()


def record(*, port: int = 1, data_dir: str = "/disk/a", host: str = "m1") -> NodeRecord:
    return NodeRecord(endpoints=(f"http://127.0.0.1:{port}",), zone="z", host=host, data_dir=data_dir)


def member(store: SqliteMetaStore, node_id: str = "a", *, says: NodeRecord | None = None) -> Membership:
    return Membership(store, node_id=node_id, record=says or record(), ttl_s=TTL_S)


def test_a_cluster_and_its_layout_are_created_once(tmp_path: Path) -> None:
    store = SqliteMetaStore(tmp_path / "new.sqlite")
    assert read_cluster_id(store) is None and read_layouts(store) is None
    cluster_id = create_cluster(store)
    assert create_cluster(store) == cluster_id == read_cluster_id(store)
    assert create_layout(store, LAYOUT) == Layouts(current=LAYOUT)
    other = Layout(version=1, partitions=32, nodes=(Node(id="z"),))
    assert create_layout(store, other) == Layouts(current=LAYOUT)
    assert read_anchor(store).anchor == Anchor(layout=1, epoch=0)
    store.close()


def test_layouts_and_epoch_change_by_comparison(store: SqliteMetaStore) -> None:
    found, anchor = read_layouts(store), read_anchor(store)
    assert found is not None
    newer = Layouts(current=Layout(version=2, partitions=16, nodes=LAYOUT.nodes), older=(LAYOUT,))
    assert change_layouts(store, found, newer) is not None
    assert change_layouts(store, found, newer) is None
    assert change_epoch(store, anchor, epoch=1) is None
    assert read_anchor(store).anchor == Anchor(layout=2, epoch=0)
    assert change_epoch(store, read_anchor(store), epoch=1, also=[found.unchanged]) is None
    assert change_epoch(store, read_anchor(store), epoch=1) is not None
    assert read_anchor(store).anchor == Anchor(layout=2, epoch=1)


def test_a_node_appears_with_its_endpoints_and_disappears_when_it_stops(store: SqliteMetaStore) -> None:
    membership = member(store)
    membership.start()
    assert read_nodes(store) == {"a": record()}
    membership.stop()
    assert read_nodes(store) == {}


def test_a_node_that_falls_silent_disappears_when_its_lease_runs_out(store: SqliteMetaStore, clock: Clock) -> None:
    membership = member(store)
    membership.register()
    clock.wait(TTL_S - 1)
    assert membership.step() == pytest.approx(TTL_S / 3)
    clock.wait(TTL_S - 1)
    assert "a" in read_nodes(store)
    clock.wait(2)
    assert read_nodes(store) == {}


def test_a_node_whose_lease_ran_out_registers_again(store: SqliteMetaStore, clock: Clock) -> None:
    membership = member(store)
    membership.register()
    clock.wait(2 * TTL_S)
    assert read_nodes(store) == {}
    membership.step()
    assert read_nodes(store) == {"a": record()}


def test_a_node_that_comes_back_before_its_old_lease_ran_out_takes_its_place(store: SqliteMetaStore, clock: Clock) -> None:
    member(store).register()
    reborn = member(store, says=record(port=2))
    reborn.register()
    clock.wait(TTL_S - 1)
    reborn.step()
    clock.wait(2)  # the first lease is over now, and takes nothing with it
    assert read_nodes(store) == {"a": record(port=2)}


@pytest.mark.parametrize("elsewhere", [record(data_dir="/disk/copy"), record(host="m2")])
def test_a_copied_data_directory_is_refused(store: SqliteMetaStore, elsewhere: NodeRecord) -> None:
    member(store).register()
    with pytest.raises(Misconfigured, match=r"up already at http://127\.0\.0\.1:1.*must not be copied"):
        member(store, says=elsewhere).start()
    assert read_nodes(store) == {"a": record()}


def test_a_node_that_the_layout_does_not_name_is_up_all_the_same(store: SqliteMetaStore) -> None:
    spare = member(store, "spare")
    spare.start()
    assert read_nodes(store) == {"spare": record()}
    spare.stop()


def test_the_view_joins_layout_and_liveness(store: SqliteMetaStore) -> None:
    member(store).register()
    view = ViewLoader(store, cluster_id="c1")()
    assert view.layout == LAYOUT and view.cluster_id == "c1"
    assert view.endpoints == {"a": ("http://127.0.0.1:1",)}
    assert view.sockets == {"a": "/disk/a/chunks.sock"}


def test_the_last_view_stands_in_while_the_metadata_does_not_answer(store: SqliteMetaStore) -> None:
    member(store).register()
    load, fresh = ViewLoader(store, cluster_id="c1"), ViewLoader(store, cluster_id="c1")
    view = load()
    store.close()
    assert load() == view
    with pytest.raises(MetadataUnavailable):
        fresh()


def test_the_view_is_refreshed_when_a_node_comes_or_goes_or_the_layout_changes(store: SqliteMetaStore, clock: Clock) -> None:
    cluster = Cluster(ViewLoader(store, cluster_id="c1"), ttl_s=3600.0, suspect_s=1.0, clock=clock)
    watcher = ViewWatcher(store, cluster=cluster, watch_s=1.0)
    watcher.step()
    assert cluster.view().endpoints == {}
    membership = member(store)
    membership.register()
    watcher.step()
    assert set(cluster.view().endpoints) == {"a"}
    membership.stop()
    watcher.step()
    assert cluster.view().endpoints == {}
    found = read_layouts(store)
    assert found is not None
    newer = Layout(version=2, partitions=16, nodes=LAYOUT.nodes)
    change_layouts(store, found, Layouts(current=newer, older=(LAYOUT,)))
    watcher.step()
    assert cluster.anchor == Anchor(layout=2, epoch=0)
    change_epoch(store, read_anchor(store), epoch=1)
    watcher.step()
    assert cluster.anchor == Anchor(layout=2, epoch=1)


def test_records_that_do_not_decode_are_named(store: SqliteMetaStore) -> None:
    store.txn([], [Put(key="node/x", value=b"[]")])
    with pytest.raises(MetadataCorrupt, match="node/x"):
        read_nodes(store)
