"""CSV as a source: fields as they are written, types strictly from what is there, and a field that doesn't fit named."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import pytest

from loader import source_csv
from loader.errors import LoaderError
from loader.sources import open_source
from tests.unit.loader.read_source import rows_of, types_of

TEXT = 'id,score,name,flag,zip,list\n1,0.5,"x, ""y""\nz",true,007,"[1,2]"\n-2,1e3,,False,010,"[3]"\n'


@pytest.mark.parametrize("name", ["rows.csv", "rows.csv.gz", "rows.tsv"])
def test_types_are_those_of_the_fields(tmp_path: Path, name: str) -> None:
    text = TEXT
    if name.endswith(".tsv"):
        text = text.replace("x, ", "x; ").replace("1,2", "1;2").replace(",", "\t").replace(";", ",")
    data = text.encode()
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    source = open_source([tmp_path / name])
    types = {"id": "int64", "score": "float64", "name": "str", "flag": "bool", "zip": "str", "list": "str"}
    assert types_of(source) == types
    assert rows_of(source) == [
        {"id": 1, "score": 0.5, "name": 'x, "y"\nz', "flag": True, "zip": "007", "list": "[1,2]"},
        {"id": -2, "score": 1000.0, "name": "", "flag": False, "zip": "010", "list": "[3]"},
    ]


def test_types_are_chosen(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text(TEXT)
    rows = rows_of(open_source([tmp_path / "rows.csv"]), {"list": "int32[*]", "id": "int8", "zip": "uint16", "score": "str"})
    assert rows == [{"list": [1, 2], "id": 1, "zip": 7, "score": "0.5"}, {"list": [3], "id": -2, "zip": 10, "score": "1e3"}]
    assert rows_of(open_source([tmp_path / "rows.csv"]), {"list": "json"}) == [{"list": [1, 2]}, {"list": [3]}]


def test_files_are_read_in_pieces_and_follow_each_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source_csv, "PIECE_BYTES", 300)
    for part in range(2):
        lines = "".join(f"{number},text {number}\n" for number in range(part * 500, part * 500 + 500))
        (tmp_path / f"{part}.csv").write_text("n,t\n" + lines)
    rows = rows_of(open_source([tmp_path]))
    assert rows == [{"n": number, "t": f"text {number}"} for number in range(1000)]
    lines = (tmp_path / "1.csv").read_text().replace("\n743,", "\nseven,")
    (tmp_path / "1.csv").write_text(lines)
    with pytest.raises(LoaderError, match=r"1\.csv, row 243: column 'n': expected int64, found str of length 5"):
        rows_of(open_source([tmp_path]))


@pytest.mark.parametrize(
    ("text", "columns", "words"),
    [
        ("a,b\n1,2\n3\n", None, "can't be read as CSV: .*Expected 2 columns, got 1"),
        ("a,b\n1,\n", {"b": "int64"}, "row 0: column 'b': expected int64, found str of length 0"),
        ("a,b\n1,300\n", {"b": "uint8"}, "row 0: column 'b': expected uint8, found int 300"),
        ("a,b\n1,1e300\n", {"b": "float32"}, "row 0: column 'b'"),
        ("a,b\n1,x\n", {"b": "bool"}, "row 0: column 'b': expected bool, found str"),
        ("a,b\n1,x\n", {"b": "json"}, "row 0: column 'b': expected json, as JSON, found 'x'"),
        ("a,b\n1,2\n", {"c": "int64"}, "column 'c': expected int64, found only the columns a, b"),
        ("a,a\n1,2\n", None, "two columns are called 'a'"),
        ("a,b\n", None, "no rows to infer columns from"),
        ("", None, "can't be read as CSV"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path: Path, text: str, columns: Any, words: str) -> None:
    (tmp_path / "rows.csv").write_text(text)
    with pytest.raises(LoaderError, match=words) as caught:
        rows_of(open_source([tmp_path / "rows.csv"]), columns)
    assert "rows.csv" in caught.value.message


def test_a_packed_file_that_was_cut_short_is_named(tmp_path: Path) -> None:
    data = gzip.compress(("n\n" + "\n".join(map(str, range(10_000)))).encode())
    (tmp_path / "rows.csv.gz").write_bytes(data[:-20])
    with pytest.raises(LoaderError, match=r"rows\.csv\.gz: can't be read"):
        rows_of(open_source([tmp_path / "rows.csv.gz"]))
