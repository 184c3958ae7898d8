"""Exports: a dataset that is built again from what was written is the same, digest included; nothing is half-written."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow.parquet
import pytest

from loader import export_mds, export_parquet, row_batches
from loader.build import build_dataset
from loader.errors import ColumnError, InvalidOption
from loader.export import Format, export_dataset, parse_format
from loader.reader import DatasetReader
from loader.writer import ShardWriter
from tests.support.fake_store import FakeStore
from tests.unit.loader.watched_store import watched_store

COLUMNS = {
    "id": "int64",
    "half": "float16",
    "grid": "float32[2,3]",
    "ragged": "int32[*]",
    "pairs": "uint8[*,2]",
    "text": "str",
    "blob": "bytes",
    "photo": "jpeg",
    "extra": "json",
}
OPTIONS: dict[str, Any] = {"num_lanes": 8, "block_size_bytes": 1500}


@pytest.fixture
def store() -> Iterator[FakeStore]:
    with watched_store() as (opened, _, _):
        yield opened


def write(store: FakeStore, num_rows: int, columns: dict[str, str] | None = None) -> DatasetReader:
    columns = COLUMNS if columns is None else columns
    rng = np.random.default_rng(3)
    with ShardWriter("forebay://data/set", columns, client=store, **OPTIONS) as writer:
        for number in range(num_rows):
            row = {
                "id": number,
                "half": np.float16(number / 7),
                "grid": np.full((2, 3), number, np.float32),
                "ragged": np.arange(number % 300 if number % 50 == 0 else number % 4, dtype=np.int32),
                "pairs": np.zeros((number % 3, 2), np.uint8),
                "text": f"zeile {number} ü",
                "blob": rng.bytes(number % 9),
                "photo": b"\xff\xd8\xff" + bytes([number % 256]),
                "extra": {"k": [number, None]} if number % 2 else f"a text {number}",
                "flag": number % 3 == 0,
                "wave": 1j * number,
            }
            writer.write({name: row[name] for name in columns})
    return DatasetReader(store, "data", "set")


@pytest.mark.parametrize("num_rows", [1, 7, 1000])
@pytest.mark.parametrize("compression", ["zstd:1", "none"])
@pytest.mark.parametrize("file_format", ["parquet", "mds"])
def test_what_is_built_from_an_export_is_the_same_dataset(
    store: FakeStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file_format: Format, compression: str, num_rows: int
) -> None:
    monkeypatch.setattr(row_batches, "BATCH_BYTES", 20_000)
    monkeypatch.setattr(export_parquet, "FILE_BYTES", 50_000)
    monkeypatch.setattr(export_mds, "SHARD_BYTES", 50_000)
    reader = write(store, num_rows)
    told: list[int] = []
    target = tmp_path / "out"
    result = export_dataset(reader, target, file_format=file_format, compression=compression, on_rows=told.append)
    assert sum(told) == result.num_rows == num_rows
    assert result.num_files == len(list(target.iterdir()))
    assert result.size_bytes == sum(path.stat().st_size for path in target.iterdir())
    if num_rows == 1000:
        assert result.num_files > 2
    again = build_dataset([target], "forebay://data/again", client=store, **OPTIONS)
    assert dict(again.index.schema.items()) == dict(reader.schema.items())
    assert again.index.digest == reader.index.digest


def test_a_dataset_without_rows_is_exported(store: FakeStore, tmp_path: Path) -> None:
    reader = write(store, 0)
    export_dataset(reader, tmp_path / "parquet", file_format="parquet")
    assert pyarrow.parquet.read_table(tmp_path / "parquet").num_rows == 0
    export_dataset(reader, tmp_path / "mds", file_format="mds")
    assert json.loads((tmp_path / "mds" / "index.json").read_text()) == {"version": 2, "shards": []}


def test_bool_is_kept_in_parquet_and_a_number_in_mds(store: FakeStore, tmp_path: Path) -> None:
    reader = write(store, 20, {"flag": "bool", "id": "int64"})
    for file_format, expected in (("parquet", "bool"), ("mds", "uint8")):
        export_dataset(reader, tmp_path / file_format, file_format=parse_format(file_format))
        again = build_dataset([tmp_path / file_format], "forebay://data/again", client=store)
        assert str(again.index.schema["flag"]) == expected
        rows = DatasetReader(store, "data", "again").rows()
        assert [bool(row["flag"]) for row in rows] == [number % 3 == 0 for number in range(20)]


@pytest.mark.parametrize("file_format", ["parquet", "mds"])
def test_what_can_not_be_exported_is_said_before_anything_is_written(
    store: FakeStore, tmp_path: Path, file_format: Format
) -> None:
    reader = write(store, 5, {"wave": "complex64"})
    with pytest.raises(ColumnError, match=r"column 'wave': expected a type that (Parquet|MDS) has, found complex64"):
        export_dataset(reader, tmp_path / "out", file_format=file_format)
    assert not (tmp_path / "out").exists()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").touch()
    with pytest.raises(InvalidOption, match="full: not empty"):
        export_dataset(write(store, 5), tmp_path / "full", file_format=file_format)
    with pytest.raises(InvalidOption, match="format 'csv': expected one of parquet, mds"):
        parse_format("csv")


@pytest.mark.parametrize("file_format", ["parquet", "mds"])
def test_an_export_goes_to_a_url(store: FakeStore, file_format: Format) -> None:
    reader = write(store, 50)
    try:
        export_dataset(reader, "memory://bucket/out", file_format=file_format)
        again = build_dataset(["memory://bucket/out"], "forebay://data/again", client=store, **OPTIONS)
        assert again.index.digest == reader.index.digest
        with pytest.raises(InvalidOption, match="memory://bucket/out: not empty"):
            export_dataset(reader, "memory://bucket/out", file_format=file_format)
    finally:
        fsspec.filesystem("memory").store.clear()
