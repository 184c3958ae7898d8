"""The recipes of docs/LOADER.md, run as they stand: each row is trained on once, whoever reads it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from loader import ShardWriter
from tests.support.cluster import LiveCluster
from tests.support.recipe import PAGE, recipes

ROOT = Path(__file__).parents[2]
NUM_ROWS, NUM_MORE = 1500, 500
SINGLE = {"plain": 2, "transform": 1, "device": 1, "workers": 1, "stateful": 1}  # How often each row is seen.
TWO_RANKS = {"ddp": 1, "fsdp": 1, "mesh": 2, "locality": 1}


@pytest.fixture(scope="module")
def trained_on(shared_cluster: LiveCluster) -> LiveCluster:
    for name, rows in (("train", np.arange(NUM_ROWS)), ("more", NUM_ROWS + np.arange(NUM_MORE))):
        x = np.random.default_rng(0).standard_normal((len(rows), 16), np.float32)
        with ShardWriter(
            f"forebay://data/{name}",
            columns={"x": "float32[16]", "y": "float32", "row": "int64"},
            num_lanes=16,
            block_size_bytes=2048,
            endpoints=list(shared_cluster.endpoints),
        ) as writer:
            writer.write_batch({"x": x, "y": x.sum(axis=1), "row": rows})
    return shared_cluster


def _run(cluster: LiveCluster, name: str, directory: Path, *, ranks: int) -> list[list[int]]:
    """The rows that each rank's steps saw."""
    module = ["-m", "tests.support.recipe", name, str(directory)]
    if ranks > 1:
        module = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks), *module]
    environment = {
        **os.environ,
        "FOREBAY_ENDPOINT": ",".join(cluster.endpoints),
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
    }
    done = subprocess.run(
        [sys.executable, *module], env=environment, cwd=directory, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return [json.loads((directory / f"{name}-{rank}.json").read_text()) for rank in range(ranks)]


def _each(times: int) -> list[int]:
    return sorted([*range(NUM_ROWS)] * times)


def test_every_recipe_is_run_here() -> None:
    assert recipes().keys() == {"common", "mixed", "save", "resume", *SINGLE, *TWO_RANKS}
    assert len(recipes()) == len(re.findall(r"```python", PAGE.read_text()))


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", SINGLE)
def test_one_process_sees_each_row(trained_on: LiveCluster, tmp_path: Path, name: str) -> None:
    (rows,) = _run(trained_on, name, tmp_path, ranks=1)
    assert sorted(rows) == _each(SINGLE[name])


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_mixture_has_as_much_of_each_dataset_as_its_weight_says(trained_on: LiveCluster, tmp_path: Path) -> None:
    (rows,) = _run(trained_on, "mixed", tmp_path, ranks=1)
    times = np.bincount(rows, minlength=NUM_ROWS + NUM_MORE)
    train, more = times[:NUM_ROWS], times[NUM_ROWS:]
    assert (train.sum(), more.sum()) == (3072, 1024)
    # No row comes once more before each has come as often.
    assert train.max() - train.min() == more.max() - more.min() == 1


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", TWO_RANKS)
def test_two_ranks_see_each_row_between_them(trained_on: LiveCluster, tmp_path: Path, name: str) -> None:
    first, second = _run(trained_on, name, tmp_path, ranks=2)
    assert sorted(first + second) == _each(TWO_RANKS[name])
    if name == "mesh":
        assert first == second
    else:
        assert abs(len(first) - len(second)) <= 1


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_one_rank_goes_on_where_two_have_saved(trained_on: LiveCluster, tmp_path: Path) -> None:
    begun = _run(trained_on, "save", tmp_path, ranks=2)
    assert [len(rows) for rows in begun] == [160, 160]
    (rest,) = _run(trained_on, "resume", tmp_path, ranks=1)
    assert sorted([*begun[0], *begun[1], *rest]) == _each(1)
