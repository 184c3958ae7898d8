"""Garbage collection on real nodes: disks shrink, what is referred to stays, also while uploads and sweeps never end."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from client.cli.gc import sweeps
from client.client import Client
from client.errors import ObjectNotFound
from client.verify import verify
from loader import load_tensors, save_tensors
from loader.series import Series
from tests.support.cluster import CHUNK_BYTES, LiveCluster, eventually

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

DEADLINE_S = 60.0
NUM_ROUNDS = 5
QUICK = {"FOREBAY_COORDINATOR_PERIOD_S": "0.2"}


@pytest.fixture
def quick(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LiveCluster]:
    monkeypatch.setenv("FOREBAY_CHUNK_SIZE_BYTES", str(CHUNK_BYTES))
    with LiveCluster(tmp_path, environment=QUICK) as cluster:
        with cluster.client() as client:
            client.buckets.create("data")
        yield cluster


def chunk_files(cluster: LiveCluster) -> dict[str, int]:
    """How many chunk files each node has."""
    return {
        node_id: sum(path.is_file() for path in (data_dir / "chunks").rglob("*"))
        for node_id, data_dir in cluster.data_dirs.items()
    }


def collect(client: Client) -> None:
    """Have all that is garbage now removed, and wait for it."""
    epoch = client.admin("POST", "/v1/admin/gc")["epoch"]
    *_, status = sweeps(lambda: client.admin("GET", "/v1/admin/gc"), epoch, timeout_s=DEADLINE_S)
    assert all(node["epoch"] >= epoch and not node["problem"] for node in status["nodes"].values()), status


def is_clean(client: Client) -> bool:
    return verify(client, client.list("data", versions=True).objects).clean


def test_the_space_of_deleted_and_overwritten_objects_is_freed(quick: LiveCluster) -> None:
    rng = random.Random(1)
    with quick.client() as client:
        kept = client.put("data", "kept", rng.randbytes(3 * CHUNK_BYTES))
        for version in range(2):  # The second write makes garbage of the first one's chunks and manifest.
            client.put("data", "replaced", rng.randbytes(20 * CHUNK_BYTES + version))
        client.put("data", "deleted", rng.randbytes(5 * CHUNK_BYTES))
        client.put_many([("data", f"small-{number}", b"%d" % number) for number in range(50)])
        eventually(lambda: is_clean(client), what="all replicas")
        before = chunk_files(quick)
        client.delete("data", "deleted")
        for number in range(50):
            client.delete("data", f"small-{number}")
        ran = subprocess.run(
            [sys.executable, "-m", "client.cli", "--endpoint", quick.endpoints[0], "gc", "--wait", "--json"],
            capture_output=True,
            timeout=2 * DEADLINE_S,
            check=True,
        )
        told = json.loads(ran.stdout)
        assert told["complete"]
        after = chunk_files(quick)
        freed = {node["node_id"]: node for node in told["nodes"]}
        for node_id in quick.node_ids:
            # 20 chunks and a manifest of the first version, 5 chunks of the one that is deleted, and the small ones.
            assert before[node_id] - after[node_id] == freed[node_id]["num_removed"] == 21 + 5 + 50
            assert freed[node_id]["removed_bytes"] > 25 * CHUNK_BYTES
        assert is_clean(client)
        assert client.get("data", "kept") == random.Random(1).randbytes(3 * CHUNK_BYTES)
        assert quick.is_whole(client, kept)
        jobs = [job for job in client.admin("GET", "/v1/admin/jobs")["jobs"] if job["kind"] == "gc"]
        assert {job["state"] for job in jobs} == {"done"}
        assert sum(job["num_chunks"] for job in jobs) == 3 * 76


class Writers:
    """Threads that put, copy and delete without end, with contents that come again and again, and remember what they wrote."""

    def __init__(self, cluster: LiveCluster, *, num_threads: int) -> None:
        self._cluster = cluster
        self._stop = threading.Event()
        self._errors: list[BaseException] = []
        self.contents: dict[str, bytes | None] = {}
        self._threads = [threading.Thread(target=self._guarded, args=(number,)) for number in range(num_threads)]

    def __enter__(self) -> Writers:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()
        assert not self._errors, self._errors

    def _guarded(self, number: int) -> None:
        try:
            self._run(number)
        except BaseException as error:
            self._errors.append(error)

    def _run(self, number: int) -> None:
        rng = random.Random(number)
        with self._cluster.client() as client:
            while not self._stop.is_set():
                key, other = (f"{number}-{rng.randrange(5)}" for _ in range(2))
                # Few distinct chunks: what one write leaves behind, the next one finds and counts.
                content = b"".join(random.Random(rng.randrange(6)).randbytes(CHUNK_BYTES) for _ in range(rng.randrange(1, 4)))
                match rng.choice(("put", "put", "copy", "delete")):
                    case "put":
                        client.put("data", key, content)
                        self.contents[key] = content
                    case "copy" if self.contents.get(key) is not None:
                        client.copy("data", key, "data", other)
                        self.contents[other] = self.contents[key]
                    case "delete":
                        try:
                            client.delete("data", key)
                        except ObjectNotFound:
                            assert self.contents.get(key) is None
                        self.contents[key] = None


def test_writes_that_never_pause_lose_nothing_to_sweeps_that_never_pause(quick: LiveCluster) -> None:
    with quick.client() as client, Writers(quick, num_threads=3) as writers:
        for number in range(NUM_ROUNDS):
            collect(client)
            if number == NUM_ROUNDS // 2:
                quick.restart(quick.node_ids[0])
    with quick.client() as client:
        eventually(lambda: is_clean(client), what="all replicas")
        collect(client)
        for key, content in writers.contents.items():
            if content is None:
                with pytest.raises(ObjectNotFound):
                    client.stat("data", key)
            else:
                assert client.get("data", key) == content
        refs = {(ref.partition, ref.id) for info in client.list("data").objects for ref in client.reader(info).refs()}
        assert set(chunk_files(quick).values()) == {len(refs)}
        assert is_clean(client)


def test_pruned_steps_of_a_series_free_what_nothing_else_refers_to(quick: LiveCluster) -> None:
    with quick.client() as client:
        series = Series("forebay://data/run", client=client)
        frozen = torch.randn(4 * CHUNK_BYTES // 4)  # The same in every step: stored once.
        for step in range(1, 6):
            save_tensors(series.url_of(step), {"frozen": frozen, "w": torch.randn(8 * CHUNK_BYTES // 4)}, client=client)
        series.publish(2, name="best")
        eventually(lambda: is_clean(client), what="all replicas")
        before = chunk_files(quick)
        assert [member.step for member in series.prune(keep_last=1)] == [1, 2, 3, 4]
        collect(client)
        collect(client)
        after = chunk_files(quick)
        # Of steps 1, 3 and 4 the weights, the headers and the manifests are gone, on each of the three nodes.
        assert all(before[node] - after[node] >= 3 * (8 + 1) for node in before), (before, after)
        assert is_clean(client)
        for url in (series.url_of(5), series.url_of_name("best")):
            assert torch.equal(load_tensors(url, client=client)["frozen"], frozen)
