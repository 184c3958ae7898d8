"""Numpy files as a source: columns of files or of archives, read in pieces; pickles and cut files are errors."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from loader import source_numpy
from loader.source_rows import RowError, SourceError
from loader.sources import open_source
from tests.unit.loader.read_source import rows_of, types_of


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source_numpy, "PIECE_ROWS", 7)


def arrays() -> dict[str, np.ndarray]:
    return {
        "big": np.arange(100, dtype=">i4"),
        "grid": np.arange(600, dtype=np.float32).reshape(100, 2, 3),
        "text": np.array([f"text {number}" for number in range(100)]),
    }


EXPECTED = [{"big": number, "grid": arrays()["grid"][number].tolist(), "text": f"text {number}"} for number in range(100)]


def test_each_file_is_a_column(tmp_path: Path) -> None:
    for name, array in arrays().items():
        np.save(tmp_path / f"{name}.npy", array)
    source = open_source([tmp_path])
    assert types_of(source) == {"big": "int32", "grid": "float32[2,3]", "text": "str"}
    assert rows_of(source) == EXPECTED
    named = open_source({"x": tmp_path / "big.npy", "y": str(tmp_path / "grid.npy")})
    assert rows_of(named, {"y": "float64[2,3]", "x": "uint8"})[99] == {"y": EXPECTED[99]["grid"], "x": 99}
    assert [row["big"] for row in rows_of(open_source([tmp_path / "big.npy"]))] == list(range(100))


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_each_archive_is_rows(tmp_path: Path, save: object) -> None:
    for part in range(2):
        save(tmp_path / f"{part}.npz", **{name: array[part * 50 : part * 50 + 50] for name, array in arrays().items()})  # type: ignore[operator]
    source = open_source([tmp_path])
    assert types_of(source) == {"big": "int32", "grid": "float32[2,3]", "text": "str"}
    assert rows_of(source) == EXPECTED
    with pytest.raises(RowError, match=r"1\.npz, row 0: column 'big': expected int8, found|0\.npz, row 0"):
        rows_of(source, {"grid": "int8[2,3]"})


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.array([{}, 1], object), "holds Python objects as a pickle"),
        (np.array(3), "an array without dimensions"),
        (np.asfortranarray(np.ones((3, 2))), "in Fortran order"),
        (np.zeros(3, "datetime64[s]"), "column 'bad': expected one dtype of"),
        (np.zeros(3, [("a", "i4")]), "column 'bad': expected one dtype of"),
        (np.zeros((0, 2)), "no rows"),
        (np.arange(5), "5 rows, but .*a.npy has 3"),
    ],
)
def test_an_array_that_is_no_column_is_named(tmp_path: Path, array: np.ndarray, words: str) -> None:
    np.save(tmp_path / "bad.npy", array, allow_pickle=True)
    inputs = [tmp_path / "bad.npy"]
    if words.endswith("3"):
        np.save(tmp_path / "a.npy", np.arange(3))
        inputs = [tmp_path]
    with pytest.raises((SourceError, RowError), match=words):
        types_of(open_source(inputs))


def test_files_that_are_cut_short_or_something_else_are_named(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.arange(100))
    with (tmp_path / "a.npy").open("r+b") as file:
        file.truncate(500)
    with pytest.raises(SourceError, match=r"a\.npy: ends [0-9]+ bytes too early for 100 rows"):
        rows_of(open_source([tmp_path / "a.npy"]))
    (tmp_path / "b.npy").write_bytes(b"something else")
    with pytest.raises(SourceError, match=r"b\.npy: no \.npy file"):
        open_source([tmp_path / "b.npy"])
    (tmp_path / "c.npz").write_bytes(b"something else")
    with pytest.raises(SourceError, match=r"c\.npz: can't be read as \.npz"):
        types_of(open_source([tmp_path / "c.npz"]))
    np.savez(tmp_path / "d.npz", x=np.arange(3), y=np.arange(4))
    with pytest.raises(SourceError, match=r"d\.npz: arrays of \{'x': 3, 'y': 4\} rows"):
        types_of(open_source([tmp_path / "d.npz"]))
    with pytest.raises(SourceError, match=r"the column 'x' is one \.npy file"):
        open_source({"x": tmp_path})
