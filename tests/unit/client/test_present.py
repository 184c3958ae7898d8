"""Which nodes are on this host, and what the layout calls it."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from client.chunks import ChunkClient
from client.colocated import Colocated
from client.objects import ObjectStore
from tests.support.door import open_door
from tests.support.fake_cluster import FakeCluster, quick_config


@contextmanager
def store_of(sockets: dict[str, str], *, machine: str = "") -> Iterator[ObjectStore]:
    """A store of three nodes with these sockets, each on a host of its own."""
    fake, config = FakeCluster(), quick_config(machine=machine)
    fake.layout = replace(fake.layout, nodes=tuple(replace(node, host=f"host-of-{node.id}") for node in fake.layout.nodes))
    fake.sockets = sockets
    with closing(Colocated(fake.cluster, config)) as colocated:
        chunks = ChunkClient(fake.cluster, fake.transport, colocated)
        with closing(ObjectStore(fake.catalog, fake.cluster, chunks, config)) as store:
            yield store


def test_nodes_on_this_host_prove_it(tmp_path: Path) -> None:
    sockets = {f"node-{number}": str(tmp_path / name / "chunks.sock") for number, name in enumerate(("ours", "other", "dead"))}
    for name in ("ours", "other", "dead"):
        (tmp_path / name).mkdir()
    (tmp_path / "dead" / "chunks.sock").write_bytes(b"no socket")
    with (
        open_door(tmp_path / "ours", node_id="node-0"),
        open_door(tmp_path / "other", node_id="node-1", cluster_id="another"),
        store_of(sockets) as store,
    ):
        assert set(store.chunks.colocated()) == set(sockets)
        assert store.chunks.present() == {"node-0"}


def test_of_nodes_with_the_same_path_the_one_that_answers_is_here(tmp_path: Path) -> None:
    with (
        open_door(tmp_path, node_id="node-1") as door,
        store_of(dict.fromkeys(("node-0", "node-1", "node-2"), door.path)) as store,
    ):
        assert store.chunks.present() == {"node-1"}


@pytest.mark.parametrize(
    ("is_open", "machine", "expected"),
    [(True, "", "host-of-node-1"), (False, "", socket.gethostname()), (True, "mine", "mine")],
)
def test_this_host_is_called_what_the_layout_calls_it(tmp_path: Path, is_open: bool, machine: str, expected: str) -> None:
    with (
        open_door(tmp_path, node_id="node-1") as door,
        store_of({"node-1": door.path} if is_open else {}, machine=machine) as store,
    ):
        assert store.host() == expected
