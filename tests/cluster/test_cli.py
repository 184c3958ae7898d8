"""Every command of the command line, as a process, on a cluster of real nodes."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.support.cluster import CHUNK_BYTES, CLIENT, LiveCluster, eventually

pytestmark = pytest.mark.slow

REPOSITORY = Path(__file__).resolve().parents[2]
PAYLOAD = random.Random(7).randbytes(20 * CHUNK_BYTES + 5)  # enough chunks for a manifest
TIMEOUT_S = 60


@dataclass(frozen=True, slots=True, kw_only=True)
class Ran:
    """What a process did."""

    code: int
    out: bytes
    err: str

    @property
    def lines(self) -> list[str]:
        return self.out.decode().splitlines()

    @property
    def documents(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.lines]


Forebay = Callable[..., Ran]


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveCluster]:
    """A cluster for all tests that leave it whole; each has buckets of its own."""
    with LiveCluster(tmp_path_factory.mktemp("shared")) as cluster:
        yield cluster


@pytest.fixture
def forebay(shared: LiveCluster) -> Forebay:
    """Run `forebay` against the shared cluster, and expect the exit code `code`."""
    return _forebay_on(shared)


def _forebay_on(cluster: LiveCluster) -> Forebay:
    def run(*args: str, stdin: bytes = b"", code: int = 0) -> Ran:
        ran = _run(cluster, *args, stdin=stdin)
        assert ran.code == code, f"exit code {ran.code}: {ran.out!r}{ran.err}"
        return ran

    return run


def _run(cluster: LiveCluster, *args: str, stdin: bytes = b"") -> Ran:
    command = [sys.executable, "-m", "client.cli", *args]
    environment = _environment(cluster)
    ran = subprocess.run(
        command, input=stdin, capture_output=True, env=environment, cwd=REPOSITORY, timeout=TIMEOUT_S, check=False
    )
    return Ran(code=ran.returncode, out=ran.stdout, err=ran.stderr.decode())


def _environment(cluster: LiveCluster) -> dict[str, str]:
    return {**os.environ, **CLIENT, "FOREBAY_ENDPOINT": ",".join(cluster.endpoints)}


def test_bytes_make_the_round_through_files_and_streams(forebay: Forebay, tmp_path: Path) -> None:
    forebay("bucket", "create", "bytes")
    (tmp_path / "file").write_bytes(PAYLOAD)
    forebay("put", str(tmp_path / "file"), "bytes/file")
    forebay("get", "bytes/file", str(tmp_path / "copy"))
    assert (tmp_path / "copy").read_bytes() == PAYLOAD
    forebay("put", "-", "bytes/stream", stdin=PAYLOAD)
    assert forebay("get", "bytes/stream", "-").out == PAYLOAD
    assert forebay("cat", "bytes/stream", "bytes/file").out == PAYLOAD * 2
    assert not list(tmp_path.glob("*.forebay-part")) + list(tmp_path.glob(".*.forebay-part"))


def test_folders_make_the_round_and_sync_moves_only_what_differs(forebay: Forebay, tmp_path: Path) -> None:
    forebay("bucket", "create", "folders")
    up, down = tmp_path / "up", tmp_path / "down"
    for number, name in enumerate(("a", "b/c", "b-d", "b/é f/g")):
        (up / name).parent.mkdir(parents=True, exist_ok=True)
        (up / name).write_bytes(PAYLOAD[: number * CHUNK_BYTES + number])
    assert len(forebay("put", "-r", str(up), "folders/tree").lines) == 4
    forebay("get", "-r", "folders/tree", str(down))
    assert _tree(down) == _tree(up)
    assert forebay("sync", str(up), "forebay://folders/tree", "--delete").lines == []
    (up / "a").unlink()
    (up / "b/c").write_bytes(b"changed")
    dry = forebay("sync", str(up), "forebay://folders/tree", "--delete", "--dry-run", "--json").documents
    assert [(item["action"], item["key"]) for item in dry] == [("delete-object", "tree/a"), ("put", "tree/b/c")]
    forebay("sync", str(up), "forebay://folders/tree", "--delete")
    forebay("sync", "forebay://folders/tree", str(down), "--delete")
    assert _tree(down) == _tree(up)


def test_names_are_listed_copied_moved_and_removed(forebay: Forebay) -> None:
    forebay("bucket", "create", "names")
    for key in ("run1/x", "run1/y", "run10/z", "one"):
        forebay("put", "-", f"names/{key}", stdin=key.encode())
    forebay("cp", "names/one", "names/two")
    forebay("mv", "names/two", "names/folder/")
    forebay("mv", "-r", "names/run1", "names/moved")
    assert [row["key"] for row in forebay("ls", "names", "--json").documents] == ["folder/", "moved/", "one", "run10/"]
    keys = ["folder/two", "moved/x", "moved/y", "one", "run10/z"]
    assert [row["key"] for row in forebay("ls", "-r", "names", "--json").documents] == keys
    assert forebay("cat", "names/moved/y").out == b"run1/y"
    (stat,) = forebay("stat", "names/moved/y", "--json").documents
    assert (stat["size_bytes"], stat["replicas"], stat["url"]) == (6, 3, "forebay://names/moved/y")
    assert forebay("du", "names").lines == ["25\t75\t5\tnames/"]
    assert forebay("du", "-r", "names/moved").lines == ["12\t36\t2\tnames/moved"]
    assert forebay("rm", "-r", "names/moved").lines == ["rm names/moved/x", "rm names/moved/y"]
    assert forebay("rm", "names/one", "names/run10/z").lines == ["rm names/one", "rm names/run10/z"]
    assert [row["key"] for row in forebay("ls", "-r", "names", "--json").documents] == ["folder/two"]


def test_buckets_and_versions(forebay: Forebay) -> None:
    created = forebay("bucket", "create", "kept", "--versions", "2", "--ack", "all")
    assert created.lines == ["bucket kept: 3 replicas, ack all, 2 older versions kept"]
    assert forebay("bucket", "set", "kept", "--versions", "5", "--json").documents[0]["versions"] == 5
    assert "kept\t3\tall\t5" in forebay("bucket", "ls").lines
    assert forebay("ls").lines == forebay("bucket", "ls").lines
    first = json.loads(forebay("put", "-", "kept/key", "--json", stdin=b"one").out)
    forebay("put", "-", "kept/key", stdin=b"two")
    forebay("rm", "kept/key")
    versions = forebay("ls", "--versions", "kept", "--json").documents
    assert [(row["deleted"], row["size_bytes"]) for row in versions] == [(True, 0), (False, 3), (False, 3)]
    assert forebay("cat", "kept/key", "--version", str(first["version"])).out == b"one"
    assert "`forebay bucket set kept --versions 0`" in forebay("bucket", "rm", "kept", code=1).err
    forebay("bucket", "create", "empty")
    assert forebay("bucket", "rm", "empty").lines == ["rm empty"]
    assert forebay("verify", "kept").lines == ["2 objects, 2 chunks: 3 of 3 copies each, re-hashed"]


def test_errors_say_what_to_type_next(forebay: Forebay) -> None:
    forebay("bucket", "create", "errors")
    assert "`forebay bucket create nope`" in forebay("put", "-", "nope/key", stdin=b"x", code=1).err
    assert "`forebay bucket create nope`" in forebay("ls", "nope", code=1).err
    assert "errors/nope" in forebay("get", "errors/nope", "-", code=1).err
    assert "Missing argument" in forebay("put", code=2).err
    unreachable = forebay("--endpoint", "http://127.0.0.1:9", "ls", code=1).err
    assert unreachable.startswith("error: no node answers at http://127.0.0.1:9 (from the endpoints argument)")
    assert "Traceback" in forebay("-v", "ls", "nope", code=1).err


def test_verify_counts_what_lies_on_the_disks(forebay: Forebay, shared: LiveCluster) -> None:
    forebay("bucket", "create", "rot")
    forebay("put", "-", "rot/large", stdin=PAYLOAD)
    forebay("put", "-", "rot/small", stdin=b"small")
    clean = "2 objects, 23 chunks: 3 of 3 copies each, re-hashed"
    eventually(lambda: _run(shared, "verify", "rot").lines == [clean], what="all copies there")
    with shared.client() as client:
        ref = next(client.reader(client.stat("rot", "small")).refs())
    shared.flip_bit(shared.node_ids[0], ref)
    ran = forebay("verify", "rot", code=3)
    assert ran.lines == ["2 objects, 23 chunks: 68 of 69 copies, re-hashed; 1 corrupt; 1 object short"]
    assert "rot/small (version" in ran.err
    eventually(lambda: _run(shared, "verify", "rot").lines == [clean], what="the copy repaired")


def test_replicate_returns_when_the_copies_lie_on_the_disks(forebay: Forebay, shared: LiveCluster) -> None:
    forebay("bucket", "create", "single", "--replicas", "1", "--ack", "one")
    forebay("put", "-", "single/large", stdin=PAYLOAD)
    assert forebay("replicate", "single", "--replicas", "3").lines == ["1 object, 1 changed: 3 of 3 copies each, re-hashed"]
    with shared.client() as client:
        refs = list(client.reader(client.stat("single", "large")).refs())
    assert len(refs) == 22
    assert all(shared.sound_copies(ref) == set(shared.node_ids) for ref in refs)
    assert "the cluster has 3 nodes" in forebay("replicate", "single", "--replicas", "4", code=1).err


def test_a_dead_node_shows_in_status_verify_and_scrub(cluster: LiveCluster) -> None:
    forebay = _forebay_on(cluster)
    forebay("put", "-", "data/key", stdin=b"x")
    dead = cluster.node_ids[1]
    cluster.kill(dead)
    states = {node["node_id"]: node["state"] for node in forebay("cluster", "status", "--json").documents[0]["nodes"]}
    assert states == {node_id: "down" if node_id == dead else "up" for node_id in cluster.node_ids}
    ran = forebay("verify", "data", code=3)
    assert ran.lines == ["1 object, 1 chunk: 2 of 3 copies, re-hashed; 1 on nodes that did not answer; 1 object short"]
    assert f"node {dead} did not answer" in ran.err
    forebay("bucket", "set", "data", "--replicas", "2")
    assert f"node {dead} was not told to scrub" in forebay("scrub", code=1).err
    timed_out = forebay("replicate", "data", "--replicas", "3", "--timeout", "0.5", code=3)
    assert timed_out.lines == ["1 object, 0 changed: after 0.5 s 1 object still without 3 copies"]


def test_status_layout_scrub_and_jobs(forebay: Forebay, shared: LiveCluster) -> None:
    forebay("bucket", "create", "jobs")
    forebay("put", "-", "jobs/key", stdin=PAYLOAD)
    (status,) = forebay("cluster", "status", "--json").documents
    assert [node["node_id"] for node in status["nodes"]] == list(shared.node_ids)
    assert all(node["disk"]["free_bytes"] > 0 and node["state"] == "up" for node in status["nodes"])
    assert [line.split("\t")[:2] for line in forebay("cluster", "status").lines] == [[id, "up"] for id in shared.node_ids]
    (layout,) = forebay("cluster", "layout", "--json").documents
    assert [node["id"] for node in layout["nodes"]] == list(shared.node_ids)
    started = {job["id"] for job in forebay("scrub", "--json").documents}
    assert len(started) == 3
    forebay("job", "watch", *started)
    jobs = {job["id"]: job for job in forebay("job", "ls", "--json").documents}
    assert {jobs[job_id]["state"] for job_id in started} == {"done"}
    assert forebay("scrub", "--wait").lines[-1].endswith("0 corrupt, 0 missing and fetched")
    assert forebay("job", "cancel", started.pop()).lines[0].endswith(": done")
    assert "`forebay job ls`" in forebay("job", "cancel", "none", code=1).err


def test_an_interrupted_download_leaves_nothing(cluster: LiveCluster, tmp_path: Path) -> None:
    forebay = _forebay_on(cluster)
    forebay("bucket", "create", "single", "--replicas", "1", "--ack", "one")
    forebay("put", "-", "single/large", stdin=PAYLOAD)
    asked, *silent = cluster.node_ids
    folder = tmp_path / "here"
    folder.mkdir()
    # The first node knows the names, the others hold chunks: the download begins and then waits.
    with cluster.paused(silent[0]), cluster.paused(silent[1]):
        process = subprocess.Popen(
            [sys.executable, "-m", "client.cli", "get", "single/large", str(folder / "file")],
            env={**_environment(cluster), "FOREBAY_ENDPOINT": cluster.endpoint(asked), "FOREBAY_DEADLINE_S": "10"},
            cwd=REPOSITORY,
            stderr=subprocess.PIPE,
            text=True,
        )
        eventually(lambda: os.listdir(folder), what="the download has begun")
        assert os.listdir(folder)[0].endswith(".forebay-part")
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 130
    assert "Traceback" not in err
    assert os.listdir(folder) == []


def _tree(top: Path) -> dict[str, bytes]:
    return {str(path.relative_to(top)): path.read_bytes() for path in top.rglob("*") if path.is_file()}
