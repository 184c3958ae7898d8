"""Builds whose input is read by Ray tasks: the same dataset, and the same errors. Left out where Ray isn't installed."""

from __future__ import annotations

import builtins
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from loader.build import build_dataset
from loader.errors import InvalidOption
from tests.unit.loader.test_build import URL, write_rows
from tests.unit.loader.watched_store import watched_store

ROOT = Path(__file__).parents[3]

# In a process of its own, because Ray leaves files open in the one that it ran in.
SCRIPT = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
import numpy, ray
from pathlib import Path
from loader import source_jsonl
from loader.build import build_dataset
from loader.source_rows import RowError
from tests.unit.loader.test_build import URL, write_rows
from tests.unit.loader.test_source_peers import GOLDEN
from tests.unit.loader.watched_store import watched_store

folder = Path(sys.argv[1])
source_jsonl.PIECE_BYTES = source_jsonl._READ_BYTES = 20_000
write_rows(folder / "rows.jsonl", 5000)
numpy.save(folder / "n.npy", numpy.arange(50_000))
ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
with watched_store() as (store, catalog, _):
    for name in (folder / "rows.jsonl", folder / "n.npy", "mds-zstd", "litdata-batch", "webdataset", "huggingface"):
        here = build_dataset([GOLDEN / name], URL, num_lanes=4, client=store)
        there = build_dataset([GOLDEN / name], URL, num_lanes=4, client=store, on_ray=True)
        assert here.index.digest == there.index.digest, name
        print("same", flush=True)
    write_rows(folder / "rows.jsonl", 5000, row_4321={{"tokens": [1, 2]}})
    catalog.history.clear()
    try:
        build_dataset([folder / "rows.jsonl"], URL, client=store, on_ray=True)
    except RowError as error:
        assert error.row == 4322 and not catalog.history
        print(error)
ray.shutdown()
"""


@pytest.mark.slow
def test_ray_builds_the_same_dataset(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    environment = {**os.environ, "HOME": str(tmp_path), "RAY_TMPDIR": "/tmp", "RAY_ADDRESS": "local"}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path)], capture_output=True, text=True, env=environment, timeout=110, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("same\n") == 6
    assert "rows.jsonl, line 4322: column 'tokens': expected int64[3], found list like int64[2]" in done.stdout


def test_without_ray_the_error_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_rows(tmp_path / "rows.jsonl", 5)
    real = builtins.__import__

    def refuse(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "ray":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with watched_store() as (store, catalog, _):
        with pytest.raises(InvalidOption, match=r"needs ray; install it with: pip install 'forebay\[loader,ray\]'"):
            build_dataset([tmp_path / "rows.jsonl"], URL, client=store, on_ray=True)
        assert not catalog.history
