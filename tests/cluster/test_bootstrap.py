"""Nodes on an empty etcd become a cluster by themselves; one that comes later is a spare; a start outlasts a silent etcd."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest

from client.client import Client
from client.errors import MetadataUnavailable, Misconfigured
from storenode.etcd_address import EtcdAddress
from storenode.process import NodeProcess
from tests.support.cluster import CLIENT, DEADLINE_S, QUICK, eventually
from tests.support.etcd import Etcd, free_port, running_etcd

pytestmark = pytest.mark.slow

StartNode = Callable[..., NodeProcess]


@pytest.fixture
def start_node(tmp_path: Path) -> Iterator[StartNode]:
    """Starts node number N in zone N, on the etcd and with the settings that are given; it may wait instead of answering."""
    with ExitStack() as stack:
        spawner = stack.enter_context(ThreadPoolExecutor(1))

        def start(number: int, address: EtcdAddress, **settings: str) -> NodeProcess:
            environment = {
                **os.environ,
                **QUICK,
                "FOREBAY_DATA_DIR": str(tmp_path / f"node-{number}"),
                "FOREBAY_META": str(address),
                "FOREBAY_PORT": "0",
                "FOREBAY_ZONE": f"zone-{number}",
                **{f"FOREBAY_{name}": value for name, value in settings.items()},
            }
            log_path = tmp_path / f"node-{number}.log"
            process = NodeProcess(environment, log_path=log_path, spawner=spawner, on_exit=lambda _: None)
            stack.callback(process.kill)
            return process

        yield start


@pytest.fixture
def quick_client(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in CLIENT.items():
        monkeypatch.setenv(name, value)


@pytest.mark.usefixtures("quick_client")
def test_nodes_on_an_empty_etcd_become_a_cluster_and_a_later_one_is_a_spare(etcd_one: Etcd, start_node: StartNode) -> None:
    address = etcd_one.address()
    port = free_port()
    first = [start_node(1, address, BOOTSTRAP_NODES="3", PORT=str(port)), start_node(2, address, BOOTSTRAP_NODES="3")]
    eventually(lambda: all("waiting for the others" in node.last_words() for node in first), what="two wait for a third")
    with pytest.raises(ConnectionRefusedError):  # at once: nobody waits for a node that waits itself
        socket.create_connection(("127.0.0.1", port), timeout=5.0)
    third = start_node(3, address, BOOTSTRAP_NODES="3")
    ready = [node.await_ready(timeout_s=DEADLINE_S) for node in (*first, third)]
    node_ids = {said["node_id"] for said in ready}
    assert len({said["cluster_id"] for said in ready}) == 1

    with Client([said["endpoint"] for said in ready]) as client:
        eventually(lambda: set(client.cluster.refresh().endpoints) == node_ids, what="all know each other")
        layout = client.cluster.layout
        assert {node.id for node in layout.nodes} == node_ids
        assert {node.zone for node in layout.nodes} == {"zone-1", "zone-2", "zone-3"}
        client.buckets.create("data")
        client.put("data", "key", b"value", ack="all")

        spare = start_node(4, address).await_ready(timeout_s=DEADLINE_S)["node_id"]
        eventually(lambda: spare in client.cluster.refresh().endpoints, what="the spare is seen")
        assert client.cluster.layout == layout
        assert client.admin("GET", "/v1/admin/status", node_id=spare)["node_id"] == spare

        # Its life goes on where it was: nothing is begun anew, though it may begin a cluster.
        third.expect_end()
        third.signal(signal.SIGTERM)
        assert third.wait(timeout_s=DEADLINE_S)
        again = start_node(3, address, BOOTSTRAP_NODES="3").await_ready(timeout_s=DEADLINE_S)
        assert (again["node_id"], again["cluster_id"]) == (ready[2]["node_id"], ready[2]["cluster_id"])
        assert client.get("data", "key") == b"value"


def test_a_node_without_the_word_to_begin_one_is_refused_by_an_empty_etcd(etcd_one: Etcd, start_node: StartNode) -> None:
    with pytest.raises(Misconfigured, match="FOREBAY_BOOTSTRAP_NODES=N on each of N nodes"):
        start_node(1, etcd_one.address()).await_ready(timeout_s=DEADLINE_S)


def test_a_start_outlasts_an_etcd_that_is_not_there_yet(tmp_path: Path, start_node: StartNode) -> None:
    with running_etcd(tmp_path) as etcd:
        etcd.members[0].kill()
        node = start_node(1, etcd.address(), BOOTSTRAP_NODES="1")
        eventually(lambda: "FOREBAY_START_TIMEOUT_S" in node.last_words(), what="the node says what it waits for")
        assert node.running
        etcd.members[0].start()
        node.await_ready(timeout_s=DEADLINE_S)
        assert "works again" in node.last_words()


def test_a_start_ends_when_etcd_stays_away(tmp_path: Path, start_node: StartNode) -> None:
    with running_etcd(tmp_path) as etcd:
        etcd.members[0].kill()
        with pytest.raises(MetadataUnavailable):
            start_node(1, etcd.address(), START_TIMEOUT_S="0.1").await_ready(timeout_s=DEADLINE_S)
