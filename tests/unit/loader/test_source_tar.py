"""WebDataset archives: a row for each basename, and archives that are damaged, cut or joined are named."""

from __future__ import annotations

import gzip
import io
import pickle
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
import zstandard

from loader import source_tar
from loader.source_rows import RowError, SourceError
from loader.sources import open_source
from tests.unit.loader.read_source import rows_of, types_of


def npy(values: object, *, allow_pickle: bool = False) -> bytes:
    out = io.BytesIO()
    np.save(out, np.asarray(values), allow_pickle=allow_pickle)
    return out.getvalue()


def tar_bytes(files: Mapping[str, bytes], *, layout: int = tarfile.USTAR_FORMAT) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=layout) as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.type = tarfile.DIRTYPE if name.endswith("/") else tarfile.REGTYPE
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return out.getvalue()


def row_files(num_rows: int) -> dict[str, bytes]:
    files: dict[str, bytes] = {"set/": b""}
    for number in range(num_rows):
        key = f"set/{number:03}"
        files[f"{key}.JPG"] = b"\xff\xd8\xff" + bytes([number])
        files[f"{key}.cls"] = str(number).encode()
        files[f"{key}.meta.json"] = b'{"n": %d}' % number
        files[f"{key}.seg.npy"] = npy([[number, 1]])
        files[f"{key}.raw"] = bytes(number)
    return files


@pytest.mark.parametrize("layout", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("name", ["set.tar", "set.tar.gz", "set.tgz", "set.tar.zst"])
def test_files_of_one_basename_are_a_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layout: int, name: str) -> None:
    monkeypatch.setattr(source_tar, "PIECE_BYTES", 1000)
    data = tar_bytes({"/".join([*["deep" * 15] * 2, path]): data for path, data in row_files(20).items()}, layout=layout)
    packers: dict[str, Callable[[bytes], bytes]] = {"gz": gzip.compress, "tgz": gzip.compress, "zst": zstandard.compress}
    pack = packers.get(name.rpartition(".")[2])
    (tmp_path / name).write_bytes(data if pack is None else pack(data))
    source = open_source([tmp_path / name])
    assert types_of(source) == {
        "__key__": "str",
        "jpg": "jpeg",
        "cls": "int64",
        "meta.json": "json",
        "seg.npy": "int64[1,2]",
        "raw": "bytes",
    }
    rows = rows_of(source)
    assert [row["cls"] for row in rows] == list(range(20))
    assert rows[7] == {
        "__key__": "deep" * 15 + "/" + "deep" * 15 + "/set/007",
        "jpg": b"\xff\xd8\xff\x07",
        "cls": 7,
        "meta.json": {"n": 7},
        "seg.npy": [[7, 1]],
        "raw": bytes(7),
    }


def test_columns_are_chosen_and_narrowed(tmp_path: Path) -> None:
    (tmp_path / "set.tar").write_bytes(tar_bytes(row_files(3)))
    rows = rows_of(open_source([tmp_path / "set.tar"]), {"seg.npy": "uint8[1,2]", "cls": "int8", "raw": "bytes"})
    assert rows[2] == {"seg.npy": [[2, 1]], "cls": 2, "raw": b"\0\0"}


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        ({"set/002.cls": b"two"}, r"row 2 \(set/002\): column 'cls': expected what .cls files hold, found b'two'"),
        ({"set/002.meta.json": b"{"}, r"row 2 \(set/002\): column 'meta.json': expected what .meta.json files hold"),
        ({"set/002.new": b""}, r"row 2 \(set/002\): column 'new': expected only the columns .*, found one more"),
        ({"set/003.cls": b"3"}, r"row 3 \(set/003\): column 'jpg': expected jpeg, found only cls"),
        ({"set/002.seg.npy": npy([1.5, 2])}, r"row 2 \(set/002\): column 'seg.npy': expected int64\[1,2\]"),
        ({"set/002.seg.npy": npy([{}], allow_pickle=True)}, "column 'seg.npy'.*allow_pickle=False"),
    ],
)
def test_a_row_that_does_not_fit_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, extra: dict[str, bytes], words: str
) -> None:
    monkeypatch.setattr(source_tar, "SAMPLE_ROWS", 2)
    (tmp_path / "set.tar").write_bytes(tar_bytes({**row_files(3), **extra}))
    with pytest.raises(RowError, match=words):
        rows_of(open_source([tmp_path / "set.tar"]))


def test_pickles_are_never_loaded_but_may_be_kept(tmp_path: Path) -> None:
    held = pickle.dumps(1)
    (tmp_path / "set.tar").write_bytes(tar_bytes({"a.x.pkl": held}))
    source = open_source([tmp_path / "set.tar"])
    with pytest.raises(SourceError, match=r"holds pickles.*--columns x.pkl=bytes"):
        rows_of(source)
    assert rows_of(source, {"x.pkl": "bytes"}) == [{"x.pkl": held}]


def break_header(data: bytes) -> bytes:
    return data[:1600] + b"x" + data[1601:]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda data: data[:2000], "of 1 bytes; the archive was cut short|ends without the mark"),
        (lambda data: data[: len(data) // 512 * 512 - 20 * 512], "ends without the mark of an archive's end"),
        (lambda data: data[:-10240] + bytes(0), "cut short|without the mark"),
        (break_header, "a header whose checksum is wrong"),
        (lambda data: data + data, "something follows its end"),
        (lambda data: b"no archive at all" * 100, "a header whose checksum is wrong"),
        (lambda data: b"", "ends without the mark"),
    ],
)
def test_a_damaged_archive_is_named(tmp_path: Path, change: Callable[[bytes], bytes], words: str) -> None:
    (tmp_path / "set.tar").write_bytes(change(tar_bytes(row_files(30))))
    with pytest.raises(SourceError, match=words):
        rows_of(open_source([tmp_path / "set.tar"]), {"cls": "int64"})


def test_what_is_twice_is_named(tmp_path: Path) -> None:
    (tmp_path / "set.tar").write_bytes(tar_bytes({"a.txt": b"1", "a.TXT": b"2"}))
    with pytest.raises(SourceError, match=r"a\.TXT is there twice"):
        rows_of(open_source([tmp_path / "set.tar"]))
