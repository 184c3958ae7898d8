"""What datasets are built from: every row once, in order, and a row that doesn't fit named by file, place and column."""

from __future__ import annotations

import builtins
import gzip
import json
import pickle
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import zstandard

from loader import source_files, source_jsonl, source_parquet
from loader.block import BlockBuilder, fixed_view, variable_view
from loader.block_codec import decode_value
from loader.columns import Schema
from loader.errors import ColumnError, InvalidOption
from loader.source_rows import RowError, Source, SourceError
from loader.sources import open_source, parse_columns

IMAGE = b"\xff\xd8\xff\xe0 image"


def rows_of(source: Source, columns: Mapping[str, Any] | None = None) -> list[dict[str, Any]]:
    """All rows of a source, as reading them from a block gives them; pieces travel as to another process."""
    schema = Schema.of(source.infer_columns() if columns is None else columns)
    rows: list[dict[str, Any]] = []
    done = 0
    for piece in source.pieces(schema, exact=columns is None):
        travelled = pickle.loads(pickle.dumps(piece)) if source.in_processes else piece
        batch = travelled.encode(schema)
        done += piece.input_bytes
        for start in range(len(batch[0])):
            block = BlockBuilder(schema, block_size_bytes=1 << 20)
            assert block.extend([column[start : start + 1] for column in batch], start=0) == 1
            parts = block.encode(None).parts
            rows.append({name: _value(schema, name, part.data) for name, part in zip(schema.names, parts, strict=True)})
    assert done == source.input_bytes
    return rows


def _value(schema: Schema, name: str, data: bytes | bytearray) -> Any:
    if schema[name].is_fixed:
        return fixed_view(data, schema[name], 1)[0].tolist()
    value = decode_value(schema[name], variable_view(data, 1)[1])
    return value.tolist() if isinstance(value, np.ndarray) else value


def types_of(source: Source) -> dict[str, str]:
    return {name: str(column_type) for name, column_type in source.infer_columns().items()}


def write_lines(path: Path, rows: Iterable[Any]) -> Path:
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
    if path.suffix == ".gz":
        text = gzip.compress(text)
    elif path.suffix == ".zst":
        half = len(text) // 2
        text = zstandard.compress(text[:half]) + zstandard.compress(text[half:])  # two frames, as pzstd writes them
    path.write_bytes(text)
    return path


SAMPLES = [
    {
        "id": number,
        "text": f"zeile {number} – ü\u2028",
        "score": number / 3,
        "tokens": [number, 1, 2],
        "extra": {"a": [None, number]},
    }
    for number in range(57)
]


# --- JSON lines


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.ndjson", "rows.jsonl.gz", "rows.jsonl.zst"])
def test_json_lines_are_rows_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(source_jsonl, "PIECE_BYTES", 500)
    monkeypatch.setattr(source_jsonl, "_READ_BYTES", 130)  # lines, and characters, are cut by reads
    source = open_source([write_lines(tmp_path / name, SAMPLES)])
    assert types_of(source) == {"id": "int64", "text": "str", "score": "float64", "tokens": "int64[3]", "extra": "json"}
    assert rows_of(source) == SAMPLES


def test_lines_may_be_blank_end_without_newline_and_begin_with_a_mark(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"n": 1}\r\n\n  \n{"n": 2}\n{"n": 3}')
    assert [row["n"] for row in rows_of(open_source([path]))] == [1, 2, 3]


def test_files_are_taken_in_the_order_given_and_patterns_by_path(tmp_path: Path) -> None:
    for name in ("b", "a", "c"):
        write_lines(tmp_path / f"{name}.jsonl", [{"from": name}])
    order = [row["from"] for row in rows_of(open_source([tmp_path / "c.jsonl", str(tmp_path / "[ab].jsonl")]))]
    assert order == ["c", "a", "b"]
    assert [row["from"] for row in rows_of(open_source([tmp_path]))] == ["a", "b", "c"]


def test_a_missing_key_is_null_in_a_json_column_and_an_error_elsewhere(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "rows.jsonl", [{"n": 1, "note": "a"}, {"n": 2}])
    source = open_source([path])
    assert types_of(source) == {"n": "int64", "note": "json"}
    assert [row["note"] for row in rows_of(source)] == ["a", None]
    with pytest.raises(RowError, match="line 2: column 'note': expected str, found no value; a column of type json"):
        rows_of(source, {"note": "str"})


@pytest.mark.parametrize(
    ("wrong", "columns", "words"),
    [
        ({"n": 70000, "t": "x"}, {"n": "uint16", "t": "str"}, "line 3: column 'n': expected uint16, found int 70000"),
        ({"n": None, "t": "x"}, {"n": "int64", "t": "str"}, "line 3: column 'n': expected int64, found None"),
        ({"n": 1, "t": 5}, None, "line 3: column 't': expected str, found int 5"),
        ({"n": 1.5, "t": "x"}, {"n": "int64"}, "line 3: column 'n': expected int64, found float 1.5"),
        ({"n": 1, "t": "x", "u": 2}, {"n": "int64", "t": "str"}, None),
    ],
)
def test_a_wrong_row_is_named(tmp_path: Path, wrong: Any, columns: Any, words: str | None) -> None:
    right = [{"n": 1, "t": "a"}, {"n": 2, "t": "b"}]
    path = write_lines(tmp_path / "rows.jsonl", [*right, wrong, *right])
    source = open_source([path])
    if words is None:
        assert len(rows_of(source, columns)) == 5  # columns that were not chosen are left out
        return
    schema = columns or {"n": "int64", "t": "str"}
    with pytest.raises(RowError) as caught:
        rows_of(source, schema)
    assert f"{path}, {words}" in caught.value.message
    assert (caught.value.file, caught.value.row) == (str(path), 3)
    assert caught.value.column in ("n", "t")
    assert caught.value.expected and caught.value.found
    assert pickle.loads(pickle.dumps(caught.value)).message == caught.value.message


def test_a_key_that_the_first_rows_do_not_have_is_not_dropped_silently(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source_jsonl, "SAMPLE_ROWS", 2)
    monkeypatch.setattr(source_jsonl, "_MIN_SAMPLE_PER_FILE", 2)
    path = write_lines(tmp_path / "rows.jsonl", [{"n": 1}, {"n": 2}, {"n": 3, "late": 1}])
    with pytest.raises(RowError, match=r"line 3: column 'late': expected only the columns n, found one more.*--columns"):
        rows_of(open_source([path]))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b'{"n": 1}\n{"n": \n', "line 2: expected a JSON object, found"),
        (b'{"n": 1}\n[1, 2]\n', "line 2: expected a JSON object, found list"),
        (b'{"n": 1}\n{"n": "\xff"}\n', "line 2: expected a JSON object, found"),
        (b"", "no rows to infer columns from"),
    ],
)
def test_what_is_no_json_line_is_named(tmp_path: Path, text: bytes, words: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(text)
    with pytest.raises(SourceError, match=words) as caught:
        rows_of(open_source([path]))
    assert str(path) in caught.value.message


@pytest.mark.parametrize("name", ["rows.jsonl.gz", "rows.jsonl.zst"])
def test_a_compressed_file_that_was_cut_short_is_an_error(tmp_path: Path, name: str) -> None:
    path = write_lines(tmp_path / name, SAMPLES)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(SourceError, match="can't be read"):
        rows_of(open_source([path]))


def test_a_line_without_end_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source_jsonl, "MAX_VALUE_BYTES", 1000)
    monkeypatch.setattr(source_jsonl, "_READ_BYTES", 100)
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"x" * 5000)
    with pytest.raises(SourceError, match="longer than 1000 bytes"):
        rows_of(open_source([path]))


def test_no_rows_are_a_dataset_if_the_columns_are_given(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"")
    assert rows_of(open_source([path]), {"n": "int64"}) == []


# --- Parquet


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


# --- files


def make_files(folder: Path, names: Iterable[str]) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(f"content of {name}".encode())


def test_each_file_is_a_row_and_class_folders_are_labels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source_files, "_PIECE_FILES", 2)
    names = ["cat/1.png", "cat/2.PNG", "cat/deep/3.png", "dog/1.png", "dog.big/1.png"]
    make_files(tmp_path, [*names, ".hidden/x.png", "cat/.DS_Store"])
    source = open_source([tmp_path])
    assert types_of(source) == {"data": "png", "path": "str", "label": "int64"}
    assert dict(source.metadata) == {"labels": '["cat", "dog", "dog.big"]'}
    rows = rows_of(source)
    assert [row["path"] for row in rows] == names
    assert [row["label"] for row in rows] == [0, 0, 0, 1, 2]
    assert all(row["data"] == f"content of {row['path']}".encode() for row in rows)


def test_files_without_class_folders_have_no_label(tmp_path: Path) -> None:
    make_files(tmp_path, ["a.jpg", "b.jpeg", "more/c.JPG"])
    source = open_source([tmp_path])
    assert types_of(source) == {"data": "jpeg", "path": "str"}
    assert dict(source.metadata) == {}
    assert [row["path"] for row in rows_of(source)] == ["a.jpg", "b.jpeg", "more/c.JPG"]
    make_files(tmp_path, ["d.txt"])
    assert types_of(open_source([tmp_path]))["data"] == "bytes"


def test_several_folders_are_classes(tmp_path: Path) -> None:
    make_files(tmp_path, ["b/1.txt", "a/1.txt", "a/2.txt", "other/1.txt"])
    rows = rows_of(open_source([tmp_path / "b", tmp_path / "a"]), {"path": "str", "label": "uint8"})
    # In the order given, and the labels sorted.
    assert rows == [{"path": "b/1.txt", "label": 1}, {"path": "a/1.txt", "label": 0}, {"path": "a/2.txt", "label": 0}]


def test_too_many_labels_stay_out_of_the_metadata(tmp_path: Path) -> None:
    make_files(tmp_path, [f"class number {number:04}/1.txt" for number in range(400)])
    source = open_source([tmp_path])
    assert dict(source.metadata) == {}
    assert rows_of(source)[399]["label"] == 399


def test_wrong_columns_and_files_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_files(tmp_path, ["a.txt", "b.txt"])
    with pytest.raises(ColumnError, match="column 'label': expected int64, found only the columns data, path"):
        rows_of(open_source([tmp_path]), {"label": "int64"})
    with pytest.raises(RowError, match=r"a\.txt: column 'data': expected int64"):
        rows_of(open_source([tmp_path]), {"data": "int64"})
    monkeypatch.setattr(source_files, "MAX_VALUE_BYTES", 5)
    with pytest.raises(SourceError, match=r"a.txt: larger than 5 bytes"):
        rows_of(open_source([tmp_path]))


# --- what is given


def test_inputs_that_are_not_there_or_twice_or_mixed_are_named(tmp_path: Path) -> None:
    make_files(tmp_path, ["a.jsonl", "b.parquet", "c.txt", "empty/.keep"])
    with pytest.raises(SourceError, match=r"nowhere/\*.jsonl: no such file or folder"):
        open_source([tmp_path / "nowhere" / "*.jsonl"])
    with pytest.raises(SourceError, match=r"a.jsonl: given twice"):
        open_source([tmp_path / "a.jsonl", tmp_path / "*.jsonl"])
    with pytest.raises(SourceError, match=r"b.parquet \(Parquet\) is of another kind than .*a.jsonl \(JSON lines\)"):
        open_source([tmp_path])
    with pytest.raises(SourceError, match="no files there"):
        open_source([tmp_path / "empty"])
    with pytest.raises(SourceError, match="no input: no files there"):
        open_source([])


def test_columns_are_parsed_from_text() -> None:
    assert parse_columns("a=uint16[3,4], b = str,c=float32[*,2]") == {"a": "uint16[3,4]", "b": "str", "c": "float32[*,2]"}
    for text in ("", "a", "a=", "=str", "a=str,,b=str", "a=str,a=int8", "a=int7"):
        with pytest.raises(InvalidOption):
            parse_columns(text)
