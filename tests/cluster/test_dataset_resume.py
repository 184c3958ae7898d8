"""Builds that are killed on a real cluster: the same command goes on, and the dataset is that of a build in one go."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from client.errors import ObjectNotFound
from loader.build import build_dataset
from loader.reader import DatasetReader
from loader.verify import verify_dataset
from tests.support.cluster import LiveCluster, eventually

pytestmark = pytest.mark.slow
URL = "forebay://data/sets/tokens"
ROOT = Path(__file__).parents[2]
OPTIONS = {"compression": "zstd:1", "num_lanes": 2, "resume": True}


def test_a_build_that_is_killed_goes_on(cluster: LiveCluster, tmp_path: Path) -> None:
    rng = np.random.default_rng(4)
    np.save(tmp_path / "tokens.npy", rng.integers(0, 60_000, (96_000, 512), np.uint16))
    script = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
from loader import build, build_journal
build.PART_BYTES = 2 << 20
add = build_journal.BuildJournal.add
def told(*args):
    start = add(*args)
    if start is not None and start.row > 0:
        print("part", flush=True)
        sys.stdin.read()  # It is killed here, however fast the machine.
    return start
build_journal.BuildJournal.add = told
build.build_dataset([{str(tmp_path / "tokens.npy")!r}], {URL!r}, **{OPTIONS!r})
"""
    # Small chunks, so that there are some of each lane soon.
    endpoint = cluster.endpoint(cluster.node_ids[0])
    environment = {**os.environ, "FOREBAY_ENDPOINT": endpoint, "FOREBAY_CHUNK_SIZE_BYTES": str(1 << 20)}
    for _ in range(2):
        with subprocess.Popen(
            [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        ) as builder:
            assert builder.stdout is not None
            assert builder.stdout.readline() == "part\n"
            builder.send_signal(signal.SIGKILL)
    with cluster.client() as client:
        with pytest.raises(ObjectNotFound):
            client.stat("data", "sets/tokens")
        parts = list(client.walk("data", prefix=".builds/"))
        assert len(parts) >= 2
        result = build_dataset([tmp_path / "tokens.npy"], URL, client=client, **OPTIONS)  # type: ignore[arg-type]
        whole = build_dataset([tmp_path / "tokens.npy"], "forebay://data/whole", client=client, **OPTIONS)  # type: ignore[arg-type]
        assert result.resumed_rows > 0
        assert whole.resumed_rows == 0
        assert (result.index.digest, result.index.num_rows) == (whole.index.digest, 96_000)
        health = verify_dataset(DatasetReader(client, "data", "sets/tokens"))
        assert health.clean, health.faults
        assert list(client.walk("data", prefix=".builds/")) == []
        eventually(lambda: cluster.is_whole(client, result.info), what="three sound copies of each chunk")


def test_the_command_line_resumes(cluster: LiveCluster, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"id": row}) + "\n" for row in range(1000)))
    environment = {**os.environ, "FOREBAY_ENDPOINT": cluster.endpoint(cluster.node_ids[0])}
    command = [sys.executable, "-m", "client.cli", "dataset", "build", str(tmp_path / "rows.jsonl"), "data/rows"]
    done = subprocess.run(
        [*command, "--resume", "--workers", "1", "--json"],
        capture_output=True,
        text=True,
        env=environment,
        cwd=ROOT,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["resumed_rows"] == 0
