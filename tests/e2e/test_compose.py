"""docker-compose.yml on a real engine: hosts and containers use the cluster while parts of it die and change."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from client.client import Client
from loader import ShardWriter
from tests.support.docker import ROOT, Compose, composed, output, until

# Images are built for the first test.
pytestmark = pytest.mark.timeout(900)
NODES = ("node-1", "node-2", "node-3")
MEMBERS = ("etcd-1", "etcd-2", "etcd-3")
BUCKET, DATASET = "data", "forebay://data/numbers"
SIZE_BYTES = 20_000_000


@pytest.fixture(scope="module")
def compose() -> Iterator[Compose]:
    """The running cluster; this process, and what it starts, is a client with a token that reaches it at one port."""
    with composed() as compose, pytest.MonkeyPatch.context() as patch:
        patch.setenv("FOREBAY_TOKEN", compose.run("exec", "-T", "node-1", "forebay", "token", "create", "--admin").strip())
        patch.setenv("FOREBAY_ENDPOINT", compose.endpoint(1))
        patch.setenv("PYTHONPATH", str(ROOT))
        with Client() as client:
            client.buckets.create(BUCKET)
        yield compose


@pytest.fixture
def client(compose: Compose) -> Iterator[Client]:
    with Client() as client:
        yield client


def is_whole(compose: Compose) -> bool:
    """Whether every object has all its replicas, as a container counts them from the disks."""
    try:
        return bool(json.loads(compose.forebay("verify", "--json"))["clean"])
    except AssertionError:  # some are still missing
        return False


def test_containers_have_no_right_that_they_do_not_need(compose: Compose) -> None:
    published = {}
    for service in (*NODES, *MEMBERS, "secret"):
        found = compose.inspect(service)
        host = found["HostConfig"]
        assert found["Config"]["User"] == "10001:10001"
        assert host["ReadonlyRootfs"] and host["CapDrop"] == ["ALL"] and host["SecurityOpt"] == ["no-new-privileges:true"]
        bindings = [binding for port in (host["PortBindings"] or {}).values() for binding in port]
        published[service] = [(binding["HostIp"], int(binding["HostPort"])) for binding in bindings]
        networks = {name.removeprefix(f"{compose.project}_") for name in found["NetworkSettings"]["Networks"]}
        assert networks == ({"metadata", "cluster"} if service in NODES else {"metadata"} if service in MEMBERS else {"none"})
    mine = {service: [("127.0.0.1", port)] for service, port in zip(NODES, compose.ports, strict=False)}
    assert published == {**{service: [] for service in (*MEMBERS, "secret")}, **mine}


def test_the_host_and_a_container_put_get_and_replicate(compose: Compose, client: Client, tmp_path: Path) -> None:
    data = np.random.default_rng(7).bytes(SIZE_BYTES)
    client.put(BUCKET, "large", data, ack="all")
    (tmp_path / "small").write_bytes(b"of the host")
    output(sys.executable, "-m", "client.cli", "put", str(tmp_path / "small"), f"{BUCKET}/small")
    assert client.get(BUCKET, "large") == data
    assert {node.zone for node in client.cluster.layout.nodes} == {"zone-1", "zone-2", "zone-3"}
    assert client.chunks.reads.http_bytes >= SIZE_BYTES

    assert compose.forebay("cat", f"{BUCKET}/small") == "of the host"
    compose.forebay("cp", f"{BUCKET}/small", f"{BUCKET}/copy")
    assert client.get(BUCKET, "copy") == b"of the host"
    compose.forebay("replicate", f"{BUCKET}/small", "--replicas", "2")
    assert client.stat(BUCKET, "small").record.replicas == 2
    assert is_whole(compose)


def test_who_has_no_token_is_refused(compose: Compose, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FOREBAY_TOKEN")
    with pytest.raises(AssertionError, match="token"):
        output(sys.executable, "-m", "client.cli", "ls", BUCKET)


def test_training_sees_the_same_rows_from_the_host_and_from_a_container(compose: Compose) -> None:
    write_dataset()
    assert train_on_the_host() == train_in_a_container(compose)


def test_a_killed_node_and_a_killed_member_of_etcd_stop_nobody(compose: Compose, client: Client) -> None:
    write_dataset()
    before = train_on_the_host()
    info = client.put(BUCKET, "before", b"b" * SIZE_BYTES)
    compose.kill("node-1")  # whose port this process was given
    assert client.get(BUCKET, "before") == b"b" * SIZE_BYTES
    client.put(BUCKET, "while a node is down", b"w" * SIZE_BYTES)
    compose.kill("etcd-2")
    client.put(BUCKET, "before", b"changed", if_match=info.etag)
    compose.run("up", "--detach")
    compose.await_health(*NODES, *MEMBERS)
    assert train_on_the_host() == before
    assert client.get(BUCKET, "while a node is down") == b"w" * SIZE_BYTES
    until(lambda: is_whole(compose), what="the node that was down has fetched what it missed")


def test_a_node_that_crashes_is_started_again_and_is_the_same_one(compose: Compose, client: Client) -> None:
    nodes = client.cluster.refresh().endpoints
    pid = compose.inspect("node-3")["State"]["Pid"]
    os.kill(pid, signal.SIGKILL)
    until(lambda: compose.inspect("node-3")["State"]["Pid"] not in (0, pid), what="the engine starts it again")
    compose.await_health("node-3")
    until(lambda: client.cluster.refresh().endpoints == nodes, what="all nodes are up as before")


def test_a_fourth_node_takes_the_place_of_one_that_is_drained(compose: Compose, client: Client) -> None:
    client.put(BUCKET, "stays", b"s" * SIZE_BYTES, ack="all")
    compose.run("up", "--detach", "node-4", fourth=True)
    compose.await_health("node-4")
    before = {node["host"]: node for node in nodes(compose)}
    assert before["node-4"]["state"] == "spare"
    compose.forebay("node", "add", before["node-4"]["node_id"], "--wait")
    assert is_whole(compose)
    compose.forebay("node", "drain", before["node-1"]["node_id"], "--wait")
    assert {node["host"]: node["state"] for node in nodes(compose)} == {
        "node-1": "drained",
        "node-2": "up",
        "node-3": "up",
        "node-4": "up",
    }
    compose.forebay("node", "remove", before["node-1"]["node_id"])
    compose.kill("node-1")
    assert client.get(BUCKET, "stays") == b"s" * SIZE_BYTES
    assert is_whole(compose)


def nodes(compose: Compose) -> list[dict[str, Any]]:
    return [json.loads(line) for line in compose.forebay("node", "ls", "--json").splitlines()]


def write_dataset() -> None:
    rng = np.random.default_rng(5)
    columns = {"x": "float32[16]", "y": "float32", "row": "int64"}
    with ShardWriter(DATASET, columns=columns, block_size_bytes=16 * 1024) as writer:
        for row in range(2048):
            x = rng.standard_normal(16, dtype=np.float32)
            writer.write({"x": x, "y": x.sum(), "row": row})


def train_on_the_host() -> Any:
    return json.loads(output(sys.executable, "-m", "tests.e2e.train_steps", DATASET))


def train_in_a_container(compose: Compose) -> Any:
    """With this process's own Python and environment, because images have no torch."""
    ours = {str(ROOT), sys.prefix, sys.base_prefix}
    return json.loads(
        compose.engine.docker(
            "run",
            "--rm",
            "--user=root",
            f"--network={compose.project}_cluster",
            *(f"--volume={path}:{path}:ro" for path in ours),
            f"--workdir={ROOT}",
            "--env=FOREBAY_TOKEN",
            "--env=PYTHONPATH",
            "--env=FOREBAY_ENDPOINT=http://node-2:7070",
            f"--entrypoint={sys.executable}",
            compose.image,
            *("-m", "tests.e2e.train_steps", DATASET),
        )
    )
