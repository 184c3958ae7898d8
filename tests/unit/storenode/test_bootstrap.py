"""A cluster begins with the nodes that were told to begin it: once, with all of them, and never over one that there was."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from client.errors import MetadataUnavailable, Misconfigured, StoreError
from client.placement import DEFAULT_PARTITIONS, Layout, Layouts, Node
from storenode.bootstrap import await_layout, find_cluster, first_layout, outlasting
from storenode.identity import claim
from storenode.layouts import create_layout, read_layouts
from storenode.lineage import create_cluster, read_cluster_id
from storenode.membership import Membership, NodeRecord, read_nodes
from storenode.sqlite import SqliteMetaStore
from tests.support.cluster import eventually

WAIT_S = 20.0


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SqliteMetaStore]:
    store = SqliteMetaStore(tmp_path / "meta.sqlite")
    yield store
    store.close()


def record(number: int) -> NodeRecord:
    return NodeRecord(endpoints=("http://n:1",), zone=f"zone-{number}", host=f"host-{number}", data_dir="/data")


def register(store: SqliteMetaStore, number: int) -> None:
    Membership(store, node_id=f"n{number}", record=record(number), ttl_s=60.0).register()


# --- the cluster


def test_a_node_that_may_begin_a_cluster_does_so_once(store: SqliteMetaStore, tmp_path: Path) -> None:
    found = find_cluster(store, where="here", data_dir=tmp_path / "new", bootstrap_nodes=3)
    assert found == read_cluster_id(store)
    assert find_cluster(store, where="here", data_dir=tmp_path / "other", bootstrap_nodes=0) == found


def test_a_node_that_may_not_begin_one_is_told_how(store: SqliteMetaStore, tmp_path: Path) -> None:
    with pytest.raises(Misconfigured, match=r"at here holds no cluster; `forebay up.*FOREBAY_BOOTSTRAP_NODES=N"):
        find_cluster(store, where="here", data_dir=tmp_path / "new", bootstrap_nodes=0)
    assert read_cluster_id(store) is None


def test_a_directory_of_a_cluster_whose_metadata_is_gone_begins_no_other(store: SqliteMetaStore, tmp_path: Path) -> None:
    with claim(tmp_path / "old", cluster_id="lost"):
        pass
    with pytest.raises(Misconfigured, match=r"belongs to cluster 'lost'\. Restore the metadata"):
        find_cluster(store, where="here", data_dir=tmp_path / "old", bootstrap_nodes=3)
    assert read_cluster_id(store) is None


# --- the first layout


def test_the_first_layout_has_every_node_that_is_up_in_its_place() -> None:
    nodes = {f"n{number}": record(number) for number in (3, 1, 2)}
    assert first_layout(nodes, wanted=4) is None
    expected = tuple(Node(id=f"n{number}", zone=f"zone-{number}", host=f"host-{number}") for number in (1, 2, 3))
    assert first_layout(nodes, wanted=3) == Layout(version=1, partitions=DEFAULT_PARTITIONS, nodes=expected)
    assert first_layout(nodes, wanted=2) == first_layout(nodes, wanted=3)


def test_nodes_wait_for_each_other_and_agree(store: SqliteMetaStore) -> None:
    create_cluster(store)
    found: list[Layouts] = []

    def node(number: int) -> None:
        register(store, number)
        found.append(await_layout(store, bootstrap_nodes=3, timeout_s=WAIT_S, watch_s=WAIT_S))

    threads = [threading.Thread(target=node, args=(number,)) for number in range(3)]
    for thread in threads[:2]:
        thread.start()
    eventually(lambda: len(read_nodes(store)) == 2, what="both are up")
    assert not found and read_layouts(store) is None
    threads[2].start()
    for thread in threads:
        thread.join(WAIT_S)
    assert len(found) == 3 and found[0] == found[1] == found[2]
    assert [node.id for node in found[0].current.nodes] == ["n0", "n1", "n2"]


def test_a_layout_that_there_is_counts_for_whoever_comes(store: SqliteMetaStore) -> None:
    layout = Layout(version=1, partitions=16, nodes=(Node(id="old"),))
    create_layout(store, layout)
    for number in range(3):
        register(store, number)
    assert await_layout(store, bootstrap_nodes=3, timeout_s=WAIT_S, watch_s=WAIT_S).current == layout
    assert await_layout(store, bootstrap_nodes=0, timeout_s=WAIT_S, watch_s=WAIT_S).current == layout


def test_a_node_that_may_not_begin_a_cluster_does_not_wait_for_one(store: SqliteMetaStore) -> None:
    register(store, 1)
    with pytest.raises(Misconfigured, match="has no layout yet"):
        await_layout(store, bootstrap_nodes=0, timeout_s=WAIT_S, watch_s=WAIT_S)
    assert read_layouts(store) is None


# --- a metadata engine that does not answer


def failing(*, times: int, error: type[StoreError] = MetadataUnavailable) -> Callable[[], int]:
    """Raises so often, then returns how often it was called."""
    calls = 0

    def call() -> int:
        nonlocal calls
        calls += 1
        if calls <= times:
            raise error("etcd is silent")
        return calls

    return call


def test_an_outage_is_outlasted_and_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    pauses: list[float] = []
    with caplog.at_level(logging.INFO):
        assert outlasting(failing(times=7), timeout_s=60.0, sleep=pauses.append) == 8
    assert all(pause <= most for pause, most in zip(pauses, (0.25, 0.5, 1.0, 2.0, 4.0, 5.0, 5.0), strict=True))
    said = [entry.message for entry in caplog.records]
    assert len(said) == 2
    assert "outlasts 60 s" in said[0] and "FOREBAY_START_TIMEOUT_S" in said[0] and "etcd is silent" in said[0]
    assert "works again" in said[1]


def test_an_outage_that_is_too_long_ends_the_start() -> None:
    pauses: list[float] = []
    with pytest.raises(MetadataUnavailable):
        outlasting(failing(times=10**9), timeout_s=0.01, sleep=pauses.append)
    assert all(pause <= 0.01 for pause in pauses)


def test_what_waiting_does_not_mend_ends_the_start_at_once() -> None:
    pauses: list[float] = []
    with pytest.raises(Misconfigured):
        outlasting(failing(times=1, error=Misconfigured), timeout_s=60.0, sleep=pauses.append)
    assert pauses == []
