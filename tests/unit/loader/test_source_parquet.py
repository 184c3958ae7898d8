"""Parquet as a source: whole rows in order, numbers that fit or a row that is named."""

from __future__ import annotations

import builtins
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from loader import source_parquet
from loader.source_rows import RowError, SourceError
from loader.sources import open_source
from tests.unit.loader.read_source import rows_of, types_of

IMAGE = b"\xff\xd8\xff\xe0 image"


def parquet_table(num_rows: int = 300) -> pyarrow.Table:
    numbers = np.arange(num_rows)
    return pyarrow.table(
        {
            "id": numbers,
            "small": numbers.astype(np.int8),
            "flag": numbers % 3 == 0,
            "half": numbers.astype(np.float16),
            "text": [f"zeile {number} ü" for number in numbers],
            "kind": pyarrow.array([f"kind {number % 3}" for number in numbers]).dictionary_encode(),
            "blob": [bytes([number % 256]) * (number % 5) for number in numbers],
            "photo": [IMAGE + bytes([number % 256]) for number in numbers],
            "fixed": pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(np.arange(num_rows * 4, dtype=np.uint16)), 4),
            "same": [[number, number + 1] for number in numbers],
            "ragged": [list(range(number % 4)) for number in numbers],
            "maybe": [None if number % 7 == 0 else int(number) for number in numbers],
            "nested": [{"a": int(number), "b": ["x", None]} for number in numbers],
        }
    )


EXPECTED_TYPES = {
    "id": "int64",
    "small": "int8",
    "flag": "bool",
    "half": "float16",
    "text": "str",
    "kind": "str",
    "blob": "bytes",
    "photo": "jpeg",
    "fixed": "uint16[4]",
    "same": "int64[2]",
    "ragged": "int64[*]",
    "maybe": "json",
    "nested": "json",
}


@pytest.mark.parametrize("group_bytes", [0, 1 << 20])
def test_parquet_rows_come_whole_and_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, group_bytes: int) -> None:
    monkeypatch.setattr(source_parquet, "_GROUP_BYTES", group_bytes)  # 0: every row group counts as a large one
    monkeypatch.setattr(source_parquet, "PIECE_ROWS", 13)
    table = parquet_table()
    for part in range(2):
        pyarrow.parquet.write_table(table.slice(part * 150, 150), tmp_path / f"part-{part}.parquet", row_group_size=64)
    source = open_source([tmp_path])
    assert types_of(source) == EXPECTED_TYPES
    assert rows_of(source) == table.to_pylist()


def test_parquet_columns_can_be_chosen_and_narrowed(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    table = parquet_table()
    pyarrow.parquet.write_table(table, path)
    columns = {"fixed": "uint32[2,2]", "id": "uint16", "half": "float32", "ragged": "int32[*]", "same": "float32[2]"}
    rows = rows_of(open_source([path]), columns)
    assert [list(row) for row in rows] == [list(columns)] * 300
    expected = table.select(["id", "half", "ragged", "same"]).to_pylist()
    assert [{name: row[name] for name in ("id", "half", "ragged", "same")} for row in rows] == expected
    assert rows[1]["fixed"] == [[4, 5], [6, 7]]


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"id": "int8"}, "row 128: column 'id': expected int8, found int 128"),
        ({"maybe": "int64"}, "row 0: column 'maybe': expected int64, found None"),
        ({"ragged": "int64[2]"}, r"row 0: column 'ragged': expected int64[2], found int64[0]"),
        ({"text": "bytes"}, "row 0: column 'text': expected bytes, as bytes, found str"),
        ({"missing": "int8"}, "column 'missing': expected int8, found only the columns id, small"),
    ],
)
def test_a_parquet_row_that_does_not_fit_is_named(tmp_path: Path, columns: dict[str, str], words: str) -> None:
    path = tmp_path / "rows.parquet"
    pyarrow.parquet.write_table(parquet_table(), path)
    with pytest.raises(RowError) as caught:
        rows_of(open_source([path]), columns)
    assert words in caught.value.message
    assert str(path) in caught.value.message


@pytest.mark.parametrize(
    ("number", "wanted"),
    [(2**53 + 1, "float64"), (2**63 - 1, "float64"), (-1, "uint64"), (2**31, "int32"), (1e300, "float32"), (0.5, "int64")],
)
def test_a_number_that_would_change_is_refused(tmp_path: Path, number: float, wanted: str) -> None:
    path = tmp_path / "rows.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"n": [type(number)(1), number]}), path)
    with pytest.raises(RowError, match=f"row [01]: column 'n': expected {wanted}"):
        rows_of(open_source([path]), {"n": wanted})


def test_a_parquet_type_without_a_column_type_is_named(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"when": pyarrow.array([1, 2], pyarrow.timestamp("s"))}), path)
    with pytest.raises(RowError, match=r"column 'when'.*timestamp\[ms\].*--columns"):
        rows_of(open_source([path]))


def test_parquet_files_of_one_dataset_have_the_same_columns(tmp_path: Path) -> None:
    pyarrow.parquet.write_table(pyarrow.table({"a": [1]}), tmp_path / "1.parquet")
    pyarrow.parquet.write_table(pyarrow.table({"a": [1], "b": [2]}), tmp_path / "2.parquet")
    with pytest.raises(RowError, match=r"2.parquet: column 'b': expected only the columns a"):
        rows_of(open_source([tmp_path]))
    assert len(rows_of(open_source([tmp_path]), {"a": "int64"})) == 2


def test_a_damaged_parquet_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    path.write_bytes(b"PAR1 and nothing else PAR1")
    with pytest.raises(SourceError, match=r"rows\.parquet: can't be read as Parquet"):
        rows_of(open_source([path]))


def test_without_pyarrow_the_error_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "rows.parquet"
    pyarrow.parquet.write_table(parquet_table(3), path)
    real = builtins.__import__

    def refuse(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith("pyarrow"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(SourceError, match=r"needs pyarrow; install it with: pip install 'forebay\[loader\]'"):
        open_source([path])
