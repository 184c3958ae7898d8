"""What datasets are built from: every row once, in order, and a row that doesn't fit named by file, place and column."""

from __future__ import annotations

import gzip
import json
import pickle
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import zstandard

from loader import source_files, source_jsonl
from loader.errors import ColumnError, InvalidOption
from loader.source_rows import RowError, SourceError
from loader.sources import open_source, parse_columns
from tests.unit.loader.read_source import rows_of, types_of


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
    assert source.note == "labels: 3 folders, their names in the object's metadata"
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
    assert source.note == "labels: 400 folders, their names too many for the object's metadata; each path begins with its own"
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
