"""Building from files: the order of the input, processes and threads alike, nothing left of a build that fails."""

from __future__ import annotations

import json
import multiprocessing
import os
import select
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from client.errors import NotEnoughReplicas
from client.manifest import Ref
from client.objects import ObjectStore
from loader import build as build_module
from loader.build import BuildResult, _num_workers, build_dataset, plan_build
from loader.columns import Schema
from loader.errors import InvalidOption
from loader.reader import DatasetReader
from loader.source_jsonl import JsonLinesSource
from loader.source_rows import RowError, SourceError
from loader.sources import open_source
from tests.unit.loader.watched_store import watched_store

URL = "forebay://data/sets/rows"
ROOT = Path(__file__).parents[3]


def write_rows(path: Path, num_rows: int, **changes: Any) -> list[dict[str, Any]]:
    rows = [{"id": number, "text": f"row {number}", "tokens": [number % 7] * 3} for number in range(num_rows)]
    for key, change in changes.items():
        rows[int(key.removeprefix("row_"))].update(change)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return rows


def read_rows(store: ObjectStore, result: BuildResult) -> list[dict[str, Any]]:
    reader = DatasetReader(store, result.info.bucket, result.info.key)
    return [{name: np.asarray(value).tolist() for name, value in row.items()} for row in reader.rows()]


@pytest.fixture
def in_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build_module, "MIN_PROCESS_BYTES", 0)
    monkeypatch.setattr(build_module, "usable_cores", lambda: 2)
    monkeypatch.setattr("loader.source_jsonl.PIECE_BYTES", 20_000)
    monkeypatch.setattr("loader.source_jsonl._READ_BYTES", 20_000)


def test_rows_keep_their_order_and_progress_adds_up(tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", 5000)
    told: list[int] = []
    with watched_store() as (store, _, _):
        result = build_dataset([tmp_path / "rows.jsonl"], URL, num_lanes=8, client=store, on_bytes=told.append)
        assert read_rows(store, result) == rows
    assert sum(told) == result.input_bytes == (tmp_path / "rows.jsonl").stat().st_size
    assert result.index.num_rows == 5000


@pytest.mark.usefixtures("in_processes")
def test_processes_build_the_same_dataset_as_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", 5000)
    with watched_store() as (store, _, _):
        result = build_dataset([tmp_path / "rows.jsonl"], URL, client=store)
        assert read_rows(store, result) == rows
        monkeypatch.setattr(build_module, "MIN_PROCESS_BYTES", 1 << 40)
        assert build_dataset([tmp_path / "rows.jsonl"], URL, client=store).index.digest == result.index.digest
    assert not multiprocessing.active_children()


@pytest.mark.usefixtures("in_processes")
def test_a_wrong_row_found_in_a_process_is_named_and_nothing_is_visible(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    write_rows(path, 5000, row_4321={"tokens": [1, 2]})
    with watched_store() as (store, catalog, _):
        with pytest.raises(RowError) as caught:
            build_dataset([path], URL, client=store)
        assert not catalog.history
    assert f"{path}, line 4322: column 'tokens': expected int64[3], found list like int64[2]" in caught.value.message
    assert (caught.value.file, caught.value.row, caught.value.column) == (str(path), 4322, "tokens")
    assert not multiprocessing.active_children()


@pytest.mark.usefixtures("in_processes")
def test_a_process_that_is_killed_is_an_error_and_no_hang(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_rows(tmp_path / "rows.jsonl", 5000)
    monkeypatch.setattr(build_module, "_encode_in_worker", _die)
    with watched_store() as (store, catalog, _):
        with pytest.raises(SourceError, match="a process that reads the input was killed"):
            build_dataset([tmp_path / "rows.jsonl"], URL, client=store)
        assert not catalog.history


def _die(piece: Any) -> Any:
    os.kill(os.getpid(), signal.SIGKILL)


def test_workers_end_when_their_parent_is_killed(tmp_path: Path) -> None:
    script = f"""
import multiprocessing, os, sys, time
from concurrent.futures import ProcessPoolExecutor
sys.path.insert(0, {str(ROOT)!r})
from loader.build import _begin_worker
from loader.columns import Schema
if __name__ == "__main__":
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(1, mp_context=context, initializer=_begin_worker, initargs=(Schema.of({{"n": "int8"}}),))
    print(pool.submit(os.getpid).result(), flush=True)
    time.sleep(60)
"""
    (tmp_path / "parent.py").write_text(script)
    with subprocess.Popen([sys.executable, str(tmp_path / "parent.py")], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        worker = int(parent.stdout.readline())
        fd = os.pidfd_open(worker)
        parent.kill()
    try:
        assert select.select([fd], [], [], 20)[0], f"the worker {worker} outlived its parent"
    finally:
        os.close(fd)


def test_columns_are_chosen_or_inferred(tmp_path: Path) -> None:
    write_rows(tmp_path / "rows.jsonl", 10)
    plan = plan_build([tmp_path / "rows.jsonl"], columns={"tokens": "uint8[3]"})
    assert (plan.schema, plan.exact) == (Schema.of({"tokens": "uint8[3]"}), False)
    assert isinstance(plan.source, JsonLinesSource)
    plan = plan_build([tmp_path / "rows.jsonl"])
    assert [str(column_type) for column_type in plan.schema.types] == ["int64", "str", "int64[3]"]
    assert plan.exact
    with watched_store() as (store, _, _):
        result = build_dataset(plan, URL, client=store, compression="none", block_size_bytes=2048)
        assert (result.index.compression, result.index.block_size_bytes) == ("none", 2048)
        with pytest.raises(InvalidOption, match="columns"):
            build_dataset(plan, URL, columns={"id": "int64"}, client=store)


def test_labels_are_kept_with_the_dataset(tmp_path: Path) -> None:
    for name in ("cat/1.png", "dog/1.png", "cat/2.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(name.encode())
    with watched_store() as (store, _, _):
        result = build_dataset([tmp_path], URL, client=store)
        assert json.loads(result.info.metadata["labels"]) == ["cat", "dog"]
        assert [(row["path"], row["label"]) for row in read_rows(store, result)] == [
            ("cat/1.png", 0),
            ("cat/2.png", 0),
            ("dog/1.png", 1),
        ]


def test_large_files_are_read_ahead_within_a_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "small.bin").write_bytes(b"x")
    assert _num_workers(open_source([tmp_path]), 64) == 16
    with (tmp_path / "large.bin").open("wb") as file:
        file.truncate(100 << 20)
    assert _num_workers(open_source([tmp_path]), 64) == 2
    monkeypatch.setattr(build_module, "READ_AHEAD_BYTES", 1)
    assert _num_workers(open_source([tmp_path]), 64) == 1


def test_a_failing_store_ends_the_build_with_its_error(tmp_path: Path) -> None:
    write_rows(tmp_path / "rows.jsonl", 5000)
    with watched_store() as (store, catalog, chunks):

        def fail(ref: Ref) -> None:
            raise NotEnoughReplicas("1 of 2 copies are durable")

        chunks.before_put = fail
        with pytest.raises(NotEnoughReplicas):
            build_dataset([tmp_path / "rows.jsonl"], URL, client=store)
        assert not catalog.history


def test_writing_and_building_work_without_torch(tmp_path: Path) -> None:
    """In a fresh interpreter in which torch can't be imported, as where it isn't installed."""
    write_rows(tmp_path / "rows.jsonl", 100)
    script = f"""
import sys
class NoTorch:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "torchdata"):
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, NoTorch())
sys.path.insert(0, {str(ROOT)!r})
import numpy
from client.cli.app import build_app
from loader import ShardWriter
from loader.build import build_dataset
from loader.cli import register
from loader.preview import row_text
from loader.reader import DatasetReader
from loader.summary import summarize
from loader.verify import verify_dataset
from tests.unit.loader.watched_store import watched_store
build_app()
with watched_store() as (store, _, _):
    with ShardWriter({URL!r}, {{"n": "int64"}}, client=store) as writer:
        writer.write_batch({{"n": numpy.arange(10)}})
    build_dataset([{str(tmp_path / "rows.jsonl")!r}], {URL!r}, client=store)
    reader = DatasetReader(store, "data", "sets/rows")
    assert verify_dataset(reader).clean
    assert summarize(reader, store).index.num_rows == 100
    print(row_text(7, reader.row(7), reader.schema))
assert "torch" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert "row 7" in done.stdout
