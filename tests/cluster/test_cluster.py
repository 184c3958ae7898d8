"""A cluster of real processes: it starts, answers through every node, stops, and comes back with its data."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from functools import partial
from pathlib import Path

import pytest

from client.errors import Misconfigured
from storenode.embedded import EmbeddedCluster
from storenode.identity import claim
from storenode.process import PARENT_VARIABLE
from storenode.secret import create_secret
from tests.support.cluster import CHUNK_BYTES, LiveCluster, eventually

pytestmark = pytest.mark.slow

DEADLINE_S = 30.0
# The command line with our commands alone, which also runs where the distribution is not installed.
FOREBAY = """
import typer
from storenode.cli import register
app = typer.Typer(pretty_exceptions_enable=False)
register(app)
app()
"""


def test_what_is_put_through_one_node_is_read_through_each(shared_cluster: LiveCluster) -> None:
    payload = random.Random(1).randbytes(3 * CHUNK_BYTES + 17)
    for number, node_id in enumerate(shared_cluster.node_ids):
        with shared_cluster.client(node_id) as client:
            info = client.put("data", f"object-{number}", payload + bytes([number]))
        for other in shared_cluster.node_ids:
            with shared_cluster.client(other) as client:
                assert client.get("data", f"object-{number}") == payload + bytes([number])
        with shared_cluster.client() as client:
            eventually(partial(shared_cluster.is_whole, client, info), what="three right copies on three disks")


def test_plain_http_without_our_client_stores_and_reads_the_same_bytes(shared_cluster: LiveCluster) -> None:
    payload = random.Random(2).randbytes(5 * CHUNK_BYTES)
    transport = shared_cluster.transport()
    first, second, _ = shared_cluster.endpoints
    transport.request("PUT", first, "/v1/objects/data/by/curl", body=payload)
    assert transport.request("GET", second, "/v1/objects/data/by/curl").body == payload
    part = transport.request("GET", second, "/v1/objects/data/by/curl", headers={"range": "bytes=70000-140000"})
    assert (part.status, part.body) == (206, payload[70000:140001])
    transport.close()
    with shared_cluster.client() as client:
        info = client.stat("data", "by/curl")
        eventually(partial(shared_cluster.is_whole, client, info), what="three right copies on three disks")


def test_a_stopped_cluster_comes_back_with_its_data(tmp_path: Path) -> None:
    with LiveCluster(tmp_path) as cluster, cluster.client() as client:
        client.buckets.create("data")
        client.put("data", "kept", b"over a restart")
        nodes = cluster.node_ids
    with LiveCluster(tmp_path) as cluster, cluster.client() as client:
        assert cluster.node_ids == nodes
        assert client.get("data", "kept") == b"over a restart"


def test_a_node_that_stops_is_gone_for_the_others_at_once_and_known_again_when_it_is_back(cluster: LiveCluster) -> None:
    first, second, third = cluster.node_ids
    os.kill(cluster.pid(second), signal.SIGTERM)
    ended = cluster.wait_for_exit(timeout_s=DEADLINE_S)
    assert ended is not None and (ended.node_id, ended.code) == (second, 0)
    # Released, not run out: the lease lives longer than this test would wait.
    eventually(lambda: cluster.up_nodes(first) == {first, third}, what="the others notice", deadline_s=1.5)
    cluster.restart(second)
    eventually(lambda: cluster.up_nodes(third) == {first, second, third}, what="the others notice", deadline_s=5.0)


def test_a_port_in_use_is_named(tmp_path: Path) -> None:
    with closing(socket.socket()) as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(Misconfigured, match=rf"can't listen on 127\.0\.0\.1:{port}: Address already in use"):
            EmbeddedCluster(tmp_path, nodes=1, port=port).start()


def two_free_ports() -> int:
    """The first of two, from where the kernel takes none by itself: others on this machine connect all the time."""
    for port in random.sample(range(20_000, 30_000), 100):
        with closing(socket.socket()) as first, closing(socket.socket()) as second, suppress(OSError):
            first.bind(("127.0.0.1", port))
            second.bind(("127.0.0.1", port + 1))
            return port
    raise AssertionError("no two ports are free")


def test_the_ports_follow_the_first_one_and_stay_with_their_nodes(tmp_path: Path) -> None:
    port = two_free_ports()
    with LiveCluster(tmp_path, nodes=2, port=port) as cluster:
        assert cluster.endpoints == (f"http://127.0.0.1:{port}", f"http://127.0.0.1:{port + 1}")
        before = cluster.endpoint(cluster.node_ids[0])
        cluster.kill(cluster.node_ids[0])
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port), timeout=5.0)
        cluster.restart(cluster.node_ids[0])
        assert cluster.endpoint(cluster.node_ids[0]) == before


def test_a_data_directory_serves_one_node_at_a_time(shared_cluster: LiveCluster) -> None:
    with pytest.raises(Misconfigured, match=r"node-1 is held by another process"):
        EmbeddedCluster(shared_cluster.directory).start()
    code, _, said = run_node(shared_cluster, shared_cluster.data_dirs[shared_cluster.node_ids[0]])
    assert code == 1 and "is held by another process" in said
    assert shared_cluster.up_nodes(shared_cluster.node_ids[0]) == set(shared_cluster.node_ids)


def test_a_copied_data_directory_is_refused(shared_cluster: LiveCluster, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    original = shared_cluster.data_dirs[shared_cluster.node_ids[0]]
    (copy / "node.json").write_bytes((original / "node.json").read_bytes())
    code, _, said = run_node(shared_cluster, copy)
    assert code == 1 and "must not be copied" in said


def test_a_node_of_another_cluster_is_refused(shared_cluster: LiveCluster, tmp_path: Path) -> None:
    with claim(tmp_path / "foreign", cluster_id="another"):
        pass
    code, _, said = run_node(shared_cluster, tmp_path / "foreign")
    assert code == 1 and "belongs to cluster 'another'" in said


def test_metadata_that_is_not_there_is_not_made(shared_cluster: LiveCluster, tmp_path: Path) -> None:
    code, _, said = run_node(shared_cluster, tmp_path / "new", FOREBAY_META=f"sqlite:///{tmp_path}/nowhere.sqlite")
    assert code == 1 and "there is no metadata at" in said and "`forebay up" in said
    assert not (tmp_path / "nowhere.sqlite").exists()


def test_other_machines_are_not_served_unless_that_is_meant(shared_cluster: LiveCluster, tmp_path: Path) -> None:
    code, out, said = run_node(shared_cluster, tmp_path / "new", "--json", FOREBAY_HOST="0.0.0.0")
    assert code == 1 and "--insecure" in said
    assert json.loads(out)["type"] == "urn:forebay:error:misconfigured"


def run_node(cluster: LiveCluster, data_dir: Path, *arguments: str, **settings: str) -> tuple[int, str, str]:
    """Run a node that must not start, with the metadata of `cluster`; its exit code and what it said."""
    environment = {
        **os.environ,
        "FOREBAY_DATA_DIR": str(data_dir),
        "FOREBAY_META": f"sqlite:///{cluster.meta_path}",
        "FOREBAY_PORT": "0",
        PARENT_VARIABLE: str(os.getpid()),
        **settings,
    }
    command = [sys.executable, "-m", "storenode", *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=DEADLINE_S, check=False)
    return done.returncode, done.stdout, done.stderr


@contextmanager
def forebay_up(directory: Path, *arguments: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """`forebay up` as a user runs it, and the line that it prints when it is ready."""
    command = [sys.executable, "-c", FOREBAY, "up", "--data", str(directory), "--port", "0", *arguments]
    environment = {**os.environ, "FOREBAY_LEASE_TTL_S": "2"}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield process, process.stdout.readline()
    finally:
        process.kill()
        process.communicate()


def test_up_says_in_one_line_what_to_type_next_and_stops_cleanly(tmp_path: Path) -> None:
    with forebay_up(tmp_path, "--nodes", "3") as (process, line):
        assert line.startswith("3 nodes are up at http://127.0.0.1:") and "bucket create" in line
        process.terminate()
        out, err = process.communicate(timeout=DEADLINE_S)
    assert (process.returncode, out, err) == (0, "", "")
    assert b"ERROR" not in b"".join(path.read_bytes() for path in tmp_path.glob("node-*.log"))


def test_up_with_a_secret_asks_for_tokens_and_says_how_to_make_the_first(tmp_path: Path) -> None:
    secret = tmp_path / "the secret"
    create_secret(secret)
    with forebay_up(tmp_path / "cluster", "--nodes", "1", "--secret-file", str(secret)) as (process, line):
        typed = line.partition("in another terminal: ")[2].replace("forebay ", f"{sys.executable} -m client.cli ")
        environment = {**os.environ, "FOREBAY_TOKEN": ""}
        done = subprocess.run(["bash", "-c", typed], env=environment, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr
        without = typed.partition(" && ")[2]
        done = subprocess.run(["bash", "-c", without], env=environment, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 1 and "`forebay token create` makes one" in done.stderr
        process.terminate()
        process.communicate(timeout=DEADLINE_S)


def test_a_node_without_its_secret_does_not_start(shared_cluster: LiveCluster, tmp_path: Path) -> None:
    code, _, said = run_node(shared_cluster, tmp_path / "new", FOREBAY_SECRET_FILE=str(tmp_path / "nowhere"))
    assert code == 1 and f"`forebay secret create {tmp_path / 'nowhere'}` makes one" in said
    assert not (tmp_path / "new").exists()


def test_up_says_when_a_node_died_and_keeps_the_others(tmp_path: Path) -> None:
    with forebay_up(tmp_path, "--nodes", "2", "--json") as (process, line):
        ready = json.loads(line)
        victim, survivor = ready["nodes"]
        os.kill(victim["pid"], signal.SIGKILL)
        assert process.stdout is not None
        said = json.loads(process.stdout.readline())
        assert said == {
            "event": "node-exit",
            "node_id": victim["id"],
            "code": -signal.SIGKILL,
            "num_left": 1,
            "log": str(tmp_path / "node-1.log"),
        }
        os.kill(survivor["pid"], 0)
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 0


def test_nodes_do_not_outlive_their_parent_even_if_it_is_killed(tmp_path: Path) -> None:
    with forebay_up(tmp_path, "--nodes", "2", "--json") as (process, line):
        pids = [node["pid"] for node in json.loads(line)["nodes"]]
        process.kill()
        eventually(lambda: not any(alive(pid) for pid in pids), what="the nodes are gone", deadline_s=5.0)


def test_up_with_fewer_nodes_than_there_are_is_refused(tmp_path: Path) -> None:
    EmbeddedCluster(tmp_path, nodes=3).prepare()
    with forebay_up(tmp_path, "--nodes", "2") as (process, line):
        _, err = process.communicate(timeout=DEADLINE_S)
    assert (process.returncode, line) == (1, "")
    assert "directories of 3 nodes, and 2 were asked for" in err


def test_up_with_more_nodes_starts_the_others_as_spares(tmp_path: Path) -> None:
    EmbeddedCluster(tmp_path, nodes=1).prepare()
    with forebay_up(tmp_path, "--nodes", "2") as (process, line):
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=DEADLINE_S)
    assert "1 of them spare" in line and "node add --all" in line


def alive(pid: int) -> bool:
    """Whether the process runs; one that has ended and was not waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
