"""Builds on a local Ray cluster, with real nodes: the same dataset, the same errors, and a kill that is gone on from.

Left out where Ray isn't installed. In processes of their own, because Ray leaves files open in the one that it ran in.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from loader.build import build_dataset
from loader.reader import DatasetReader
from loader.verify import verify_dataset
from tests.support.cluster import LiveCluster
from tests.unit.loader.test_build import write_rows
from tests.unit.loader.test_source_peers import GOLDEN

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
SCRIPT = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
import ray
from loader import build, build_journal, build_ray, source_jsonl, source_numpy
from loader.errors import LoaderError
source_jsonl.PIECE_BYTES = source_jsonl._READ_BYTES = 20_000
source_numpy.PIECE_ROWS = 500
build.PART_BYTES = 2 << 20
build_ray.num_machines = lambda: 2
ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
class Killed(BaseException):
    pass
dies, names = sys.argv[1] == "dies", sys.argv[2:]
add = build_journal.BuildJournal.add
def told(*args):
    start = add(*args)
    if dies and start is not None and start.row > 0:
        raise Killed
    return start
build_journal.BuildJournal.add = told
for name in names:
    try:
        url = "forebay://data/ray/" + name.rpartition("/")[2]
        result = build.build_dataset([name], url, num_lanes=4, on_ray=True, resume=True)
        print(result.index.digest, result.resumed_rows)
    except LoaderError as error:
        print("error", error)
    except Killed:
        ray.shutdown()
        sys.exit(9)
ray.shutdown()
"""


def run(cluster: LiveCluster, home: Path, *names: Path, dies: bool = False) -> list[str]:
    pytest.importorskip("ray")
    endpoint = cluster.endpoint(cluster.node_ids[0])
    environment = {**os.environ, "FOREBAY_ENDPOINT": endpoint, "FOREBAY_CHUNK_SIZE_BYTES": str(1 << 20)}
    environment |= {"HOME": str(home), "RAY_TMPDIR": "/tmp", "RAY_ADDRESS": "local"}
    command = [sys.executable, "-c", SCRIPT, "dies" if dies else "lives", *map(str, names)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=250, check=False)
    assert done.returncode == (9 if dies else 0), done.stderr
    return done.stdout.splitlines()


@pytest.mark.timeout(600)
def test_ray_builds_the_same_datasets(cluster: LiveCluster, tmp_path: Path) -> None:
    write_rows(tmp_path / "rows.jsonl", 5000)
    write_rows(tmp_path / "wrong.jsonl", 5000, row_4321={"tokens": [1, 2]})
    inputs = [tmp_path / "rows.jsonl", *(GOLDEN / name for name in ("mds-zstd", "webdataset"))]
    *found, wrong = run(cluster, tmp_path, *inputs, tmp_path / "wrong.jsonl")
    assert "wrong.jsonl, line 4322: column 'tokens': expected int64[3], found list like int64[2]" in wrong
    with cluster.client() as client:
        for path, line in zip(inputs, found, strict=True):
            here = build_dataset([path], "forebay://data/here", num_lanes=4, client=client)
            assert line == f"{here.index.digest} 0"
        health = verify_dataset(DatasetReader(client, "data", "ray/rows.jsonl"))
        assert health.clean, health.faults
        assert list(client.walk("data", prefix=".builds/")) == []


@pytest.mark.timeout(600)
def test_a_build_that_is_killed_on_ray_goes_on(cluster: LiveCluster, tmp_path: Path) -> None:
    path = tmp_path / "tokens.npy"
    np.save(path, np.random.default_rng(4).integers(0, 60_000, (60_000, 512), np.uint16))
    run(cluster, tmp_path, path, dies=True)
    digest, resumed = run(cluster, tmp_path, path)[0].split()
    assert int(resumed) > 0
    with cluster.client() as client:
        whole = build_dataset([path], "forebay://data/here", num_lanes=4, client=client)
        assert digest == whole.index.digest
        health = verify_dataset(DatasetReader(client, "data", "ray/tokens.npy"))
        assert health.clean, health.faults
