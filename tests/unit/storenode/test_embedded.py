"""The embedded cluster's directory: it becomes a cluster once, and what does not fit is said before anything is started."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from client.errors import Misconfigured
from client.placement import Layout, Layouts, Node
from storenode.embedded import EmbeddedCluster
from storenode.identity import claim
from storenode.layouts import change_layouts, read_layouts
from storenode.lineage import create_cluster, read_cluster_id
from storenode.sqlite import SqliteMetaStore


def prepare(directory: Path, *, nodes: int | None = None, partitions: int = 64) -> EmbeddedCluster:
    cluster = EmbeddedCluster(directory, nodes=nodes, partitions=partitions)
    cluster.prepare()
    return cluster


def test_a_new_directory_gets_three_nodes_and_a_layout_of_them(tmp_path: Path) -> None:
    cluster = prepare(tmp_path / "new" / "cluster")
    assert [path.name for path in cluster.data_dirs.values()] == ["node-1", "node-2", "node-3"]
    store = SqliteMetaStore(cluster.meta_path)
    found = read_layouts(store)
    store.close()
    assert found is not None
    layout = found.layouts.current
    assert (layout.version, layout.partitions) == (1, 64)
    assert tuple(node.id for node in layout.nodes) == cluster.node_ids


def test_a_later_start_finds_the_same_nodes(tmp_path: Path) -> None:
    first = prepare(tmp_path, nodes=2)
    assert prepare(tmp_path).node_ids == prepare(tmp_path, nodes=2, partitions=128).node_ids == first.node_ids


def test_fewer_nodes_than_there_are_is_refused_and_changes_nothing(tmp_path: Path) -> None:
    prepare(tmp_path, nodes=3)
    with pytest.raises(Misconfigured, match=r"directories of 3 nodes, and 2 were asked for; give --nodes 3"):
        prepare(tmp_path, nodes=2)


def test_more_nodes_than_there_are_become_spare_ones(tmp_path: Path) -> None:
    first = prepare(tmp_path, nodes=3)
    assert first.spares == ()
    second = prepare(tmp_path, nodes=4)
    assert second.node_ids[:3] == first.node_ids and second.spares == second.node_ids[3:]
    assert second.data_dirs[second.spares[0]].name == "node-4"
    assert prepare(tmp_path).spares == second.spares


def test_the_directory_of_a_removed_node_may_go(tmp_path: Path) -> None:
    first = prepare(tmp_path, nodes=3)
    store = SqliteMetaStore(first.meta_path)
    known = read_layouts(store)
    assert known is not None
    left = Layout(version=2, partitions=64, nodes=tuple(Node(id=node_id) for node_id in first.node_ids[1:]))
    change_layouts(store, known, Layouts(current=left))
    store.close()
    assert prepare(tmp_path).spares == first.node_ids[:1]
    shutil.rmtree(tmp_path / "node-1")
    assert prepare(tmp_path).node_ids == first.node_ids[1:]
    # Its number is free again.
    assert prepare(tmp_path, nodes=3).data_dirs.keys() - set(first.node_ids) and (tmp_path / "node-1").exists()


@pytest.mark.parametrize("nodes", [0, -1, 65])
def test_a_number_that_no_cluster_has_is_refused(tmp_path: Path, nodes: int) -> None:
    with pytest.raises(Misconfigured, match="1 to 64 nodes"):
        EmbeddedCluster(tmp_path, nodes=nodes)


def test_a_start_that_was_broken_off_is_gone_on_with(tmp_path: Path) -> None:
    # The cluster is made and one directory minted, then the power goes.
    store = SqliteMetaStore(tmp_path / "meta.sqlite")
    with claim(tmp_path / "node-1", cluster_id=create_cluster(store)) as found:
        node_id = found.node_id
    store.close()
    cluster = prepare(tmp_path, nodes=2)
    assert cluster.node_ids[0] == node_id and len(cluster.node_ids) == 2


def test_nodes_without_their_metadata_are_not_made_a_new_cluster(tmp_path: Path) -> None:
    prepare(tmp_path)
    (tmp_path / "meta.sqlite").rename(tmp_path / "elsewhere")
    with pytest.raises(Misconfigured, match=r"holds 3 nodes, but their metadata .*meta\.sqlite is missing"):
        prepare(tmp_path)
    assert not (tmp_path / "meta.sqlite").exists()


def test_metadata_of_another_cluster_is_refused(tmp_path: Path) -> None:
    prepare(tmp_path / "a")
    prepare(tmp_path / "b")
    (tmp_path / "b" / "meta.sqlite").replace(tmp_path / "a" / "meta.sqlite")
    with pytest.raises(Misconfigured, match=r"a/node-1 belongs to cluster"):
        prepare(tmp_path / "a")


def test_empty_metadata_beside_nodes_is_refused(tmp_path: Path) -> None:
    prepare(tmp_path)
    (tmp_path / "meta.sqlite").unlink()
    SqliteMetaStore(tmp_path / "meta.sqlite").close()
    with pytest.raises(Misconfigured, match="is empty, but"):
        prepare(tmp_path)
    store = SqliteMetaStore(tmp_path / "meta.sqlite")
    assert read_cluster_id(store) is None
    store.close()


def test_a_directory_that_another_process_holds_is_named(tmp_path: Path) -> None:
    cluster = prepare(tmp_path, nodes=1)
    store = SqliteMetaStore(cluster.meta_path)
    cluster_id = read_cluster_id(store)
    store.close()
    assert cluster_id is not None
    with (
        claim(tmp_path / "node-1", cluster_id=cluster_id),
        pytest.raises(Misconfigured, match=r"node-1 is held by another process"),
    ):
        prepare(tmp_path)


def test_a_directory_that_lost_its_identity_gets_no_new_one(tmp_path: Path) -> None:
    prepare(tmp_path, nodes=2)
    (tmp_path / "node-2" / "node.json").unlink()
    with pytest.raises(Misconfigured, match=r"node-2 is a node of this cluster, but its identity node\.json is missing"):
        prepare(tmp_path)
    assert not (tmp_path / "node-2" / "node.json").exists()


def test_a_directory_of_an_unknown_node_is_refused(tmp_path: Path) -> None:
    prepare(tmp_path, nodes=2)
    identity = tmp_path / "node-2" / "node.json"
    identity.write_text(identity.read_text().replace('"node_id": "', '"node_id": "f'))
    with pytest.raises(Misconfigured, match=r"the layout has node .*has no directory of it; restore it"):
        prepare(tmp_path)
