"""Datasets written to real nodes: every row back, every copy where its group says, and nothing of a writer that died."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from client.client import Client
from client.errors import ObjectNotFound, PreconditionFailed
from client.placement import partition_of
from loader.build import build_dataset
from loader.reader import DatasetReader
from loader.verify import verify_dataset
from loader.writer import ShardWriter
from tests.support.cluster import LiveCluster, eventually

pytestmark = pytest.mark.slow
URL = "forebay://data/sets/tokens"
ROOT = Path(__file__).parents[2]


def tokens(num_rows: int) -> np.ndarray[tuple[int, int], np.dtype[np.uint16]]:
    return np.random.default_rng(5).integers(0, 5000, (num_rows, 256), np.uint16)


def test_a_dataset_comes_back_whole_and_its_lanes_lie_in_their_groups(cluster: LiveCluster) -> None:
    rows = tokens(5000)
    with cluster.client() as client:
        with ShardWriter(URL, {"tokens": "uint16[256]", "row": "int64"}, num_lanes=8, client=client) as writer:
            for start in range(0, len(rows), 700):
                part = rows[start : start + 700]
                writer.write_batch({"tokens": part, "row": np.arange(start, start + len(part))})
        reader = DatasetReader(client, "data", "sets/tokens")
        assert writer.info is not None
        assert reader.info == writer.info
        for number in (0, 1, 7, 8, 2500, 4999):
            row = reader.row(number)
            assert row["row"] == number
            assert np.array_equal(row["tokens"], rows[number])
        health = verify_dataset(reader)
        assert health.clean, health.faults
        assert (health.rows, health.digest) == (5000, reader.index.digest)
        layout = client.cluster.layout
        for lane in reader.index.lanes:
            partition = partition_of(str(lane.group).encode(), partitions=layout.partitions)
            chunks = [span.ref for span in client.reader(reader.info).spans(lane.offset, lane.offset + lane.blocks_bytes)]
            assert len(chunks) > 1
            assert {chunk.partition for chunk in chunks} == {partition}
        info = reader.info
        eventually(lambda: cluster.is_whole(client, info), what="three sound copies of each chunk")


def test_a_dataset_is_an_object_like_any_other(cluster: LiveCluster) -> None:
    with cluster.client() as client:
        with ShardWriter(URL, {"n": "int64"}, client=client) as writer:
            writer.write_batch({"n": np.arange(10_000)})
        client.copy("data", "sets/tokens", "data", "sets/copy")
        client.delete("data", "sets/tokens")
        reader = DatasetReader(client, "data", "sets/copy")
        assert verify_dataset(reader).clean
        assert [row["n"] for row in reader.rows(9_990)] == list(range(9_990, 10_000))
        assert writer.index is not None
        assert reader.index.digest == writer.index.digest


def test_writing_goes_on_when_a_node_dies(cluster: LiveCluster) -> None:
    rows = tokens(6000)
    with cluster.client() as client:
        with ShardWriter(URL, {"tokens": "uint16[256]"}, "none", 64 << 10, num_lanes=4, client=client) as writer:
            writer.write_batch({"tokens": rows[:3000]})
            cluster.kill(cluster.node_ids[1])
            writer.write_batch({"tokens": rows[3000:]})
        reader = DatasetReader(client, "data", "sets/tokens")
        assert verify_dataset(reader).clean
        assert np.array_equal(reader.row(5999)["tokens"], rows[5999])


def test_a_flipped_bit_on_one_node_is_read_around(cluster: LiveCluster) -> None:
    with cluster.client() as client:
        with ShardWriter(URL, {"tokens": "uint16[256]"}, "none", num_lanes=2, client=client) as writer:
            writer.write_batch({"tokens": tokens(500)})
        assert writer.info is not None
        info = writer.info
        eventually(lambda: cluster.is_whole(client, info), what="three sound copies of each chunk")
        ref = next(iter(client.reader(info).spans(0, 1))).ref
        cluster.flip_bit(client.cluster.layout.replicas(ref.partition, count=3)[0], ref, offset=1000)
        health = verify_dataset(DatasetReader(client, "data", "sets/tokens"))
        assert health.clean, health.faults
        eventually(lambda: cluster.is_whole(client, info), what="the damaged copy repaired")


def test_a_writer_that_is_killed_leaves_nothing_visible(cluster: LiveCluster, tmp_path: Path) -> None:
    script = f"""
import os, sys
sys.path.insert(0, {str(ROOT)!r})
import numpy
from loader import ShardWriter
writer = ShardWriter({URL!r}, {{"n": "int64"}}, "none", 65536, num_lanes=1)
stored = writer._store
def told(*args):
    ref = stored(*args)
    os.write(1, b"stored\\n")  # In one go: several threads store.
    return ref
writer._store = told
while True:
    writer.write_batch({{"n": numpy.random.default_rng().integers(0, 1 << 60, 200_000)}})
"""
    environment = {**os.environ, "FOREBAY_ENDPOINT": cluster.endpoint(cluster.node_ids[0])}
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, env=environment) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "stored\n"
        writer.send_signal(signal.SIGKILL)
    with cluster.client() as client:
        with pytest.raises(ObjectNotFound):
            client.stat("data", "sets/tokens")
        assert list(client.walk("data")) == []


def test_one_of_two_writers_wins_and_the_other_knows(cluster: LiveCluster) -> None:
    with cluster.client() as client, cluster.client() as other:
        first = ShardWriter(URL, {"n": "int64"}, client=client, if_none_match="*")
        second = ShardWriter(URL, {"n": "int64"}, client=other, if_none_match="*")
        first.write({"n": 1})
        second.write({"n": 2})
        assert second.commit().bucket == "data"
        with pytest.raises(PreconditionFailed):
            first.commit()
        assert DatasetReader(client, "data", "sets/tokens").row(0)["n"] == 2


def test_the_command_line_builds_shows_and_verifies(cluster: LiveCluster, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"id": row, "text": f"row {row}"}) + "\n" for row in range(3000)))
    environment = {**os.environ, "FOREBAY_ENDPOINT": cluster.endpoint(cluster.node_ids[0])}

    def forebay(*args: str, code: int = 0) -> str:
        command = [sys.executable, "-m", "client.cli", "dataset", *args]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT, timeout=60, check=False)
        assert done.returncode == code, done.stderr
        return done.stdout if code == 0 else done.stderr

    built = json.loads(forebay("build", str(tmp_path / "rows.jsonl"), "data/sets/rows", "--num-lanes", "4", "--json"))
    shown = json.loads(forebay("info", "data/sets/rows", "--json"))
    assert (shown["digest"], shown["rows"], shown["lanes"]) == (built["digest"], 3000, 4)
    assert {node["node_id"] for node in shown["nodes"]} == set(cluster.node_ids)
    assert all(node["lanes"] == 4 for node in shown["nodes"])  # three replicas on three nodes
    rows = [json.loads(line) for line in forebay("head", "data/sets/rows", "-n", "3", "--json").splitlines()]
    assert rows == [{"id": number, "text": f"row {number}"} for number in range(3)]
    assert "all as written" in forebay("verify", "data/sets/rows")
    assert "forebay bucket create nowhere" in forebay("build", str(tmp_path / "rows.jsonl"), "nowhere/x", code=1)


def test_the_endpoints_argument_finds_the_cluster(cluster: LiveCluster, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"n": 1}\n{"n": 2}\n')
    endpoints = [cluster.endpoint(node_id) for node_id in cluster.node_ids]
    result = build_dataset([tmp_path / "rows.jsonl"], URL, endpoints=endpoints)
    with Client(endpoints) as client:
        assert client.stat("data", "sets/tokens") == result.info
