"""Inputs by URL: whatever fsspec opens is read as the same files on a disk are, and what it raises names the URL."""

from __future__ import annotations

import builtins
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from loader.source_rows import SourceError
from loader.sources import open_source
from tests.unit.loader.read_source import rows_of
from tests.unit.loader.test_source_peers import GOLDEN


@pytest.fixture
def remote(tmp_path: Path) -> Iterator[Path]:
    """A folder whose files are also below memory://bucket once `publish` was called."""
    yield tmp_path
    fsspec.filesystem("memory").store.clear()


def publish(folder: Path) -> None:
    fs = fsspec.filesystem("memory")
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            fs.pipe_file(f"/bucket/{path.relative_to(folder).as_posix()}", path.read_bytes())


def test_every_kind_is_read_from_urls(remote: Path) -> None:
    for name in ("mds-zstd", "litdata-batch", "litdata-arrow", "webdataset", "huggingface"):
        shutil.copytree(GOLDEN / name, remote / name)
    (remote / "rows.jsonl").write_text('{"n": 1}\n{"n": 2}\n')
    (remote / "rows.csv").write_text("n\n1\n2\n")
    np.savez(remote / "rows.npz", n=np.arange(5))
    (remote / "columns").mkdir()
    np.save(remote / "columns" / "n.npy", np.arange(5))
    pyarrow.parquet.write_table(pyarrow.table({"n": [1, 2]}), remote / "rows.parquet")
    for label in ("cat", "dog"):
        (remote / "classes" / label).mkdir(parents=True)
        (remote / "classes" / label / "1.txt").write_text(label)
    publish(remote)
    for name in sorted(path.name for path in remote.iterdir()):
        expected, source = open_source([remote / name]), open_source([f"memory://bucket/{name}"])
        assert source.infer_columns() == expected.infer_columns()
        assert rows_of(source) == rows_of(expected), name
        assert source.metadata == expected.metadata
    rows = rows_of(open_source(["memory://bucket/classes"]), {"path": "str", "label": "int64"})
    assert rows == [{"path": "cat/1.txt", "label": 0}, {"path": "dog/1.txt", "label": 1}]


def test_patterns_and_missing_urls(remote: Path) -> None:
    for number in (2, 0, 1):
        (remote / f"{number}.jsonl").write_text(json.dumps({"n": number}) + "\n")
    publish(remote)
    assert [row["n"] for row in rows_of(open_source(["memory://bucket/[01].jsonl", "memory://bucket/2.jsonl"]))] == [0, 1, 2]
    with pytest.raises(SourceError, match="memory://bucket/nowhere: no such file or folder"):
        open_source(["memory://bucket/nowhere"])
    with pytest.raises(SourceError, match=r"bucket/0\.jsonl: given twice"):
        open_source(["memory://bucket/0.jsonl", "memory://bucket/*.jsonl"])
    with pytest.raises(SourceError, match=r"nosuchscheme://x: can't be read: .*nosuchscheme"):
        open_source(["nosuchscheme://x"])


def test_without_fsspec_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def refuse(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith("fsspec"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(SourceError, match=r"needs fsspec; install it with: pip install 'forebay\[loader\]'"):
        open_source(["s3://bucket/key"])
