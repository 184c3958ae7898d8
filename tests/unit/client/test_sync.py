"""The merge of a folder with a listing, and the walk over a folder that it relies on."""

from __future__ import annotations

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from client.folder import LocalFile, walk_folder
from client.record import Content, ObjectInfo, ObjectRecord
from client.sync import merge

NAMES = st.sets(st.lists(st.text("aäz-./0", min_size=1, max_size=3), min_size=1, max_size=3).map("/".join), max_size=12)


def _file(name: str) -> LocalFile:
    return LocalFile(path=Path(name), name=name, size_bytes=0)


def _info(key: str) -> ObjectInfo:
    record = ObjectRecord(write_id="w", content=Content(size=0, digest=""))
    return ObjectInfo(bucket="demo", key=key, version=1, record=record)


@given(left=NAMES, right=NAMES)
def test_merge_is_an_outer_join_in_the_order_of_bytes(left: set[str], right: set[str]) -> None:
    files = [_file(name) for name in sorted(left, key=str.encode)]
    infos = [_info("p/" + name) for name in sorted(right, key=str.encode)]
    pairs = list(merge(files, infos, prefix="p/"))
    assert [pair.name for pair in pairs] == sorted(left | right, key=str.encode)
    assert {pair.name for pair in pairs if pair.file is not None} == left
    assert {pair.name for pair in pairs if pair.info is not None} == right
    assert all(pair.file is None or pair.file.name == pair.name for pair in pairs)
    assert all(pair.info is None or pair.info.key == "p/" + pair.name for pair in pairs)


def test_a_folder_is_walked_in_the_order_of_a_listing(tmp_path: Path) -> None:
    names = ["a", "a-b/x", "a.txt", "a0", "ab/c/d", "b/é", "b/z", "c/x", "ü"]
    for name in (*names, "c-/y"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"12345")
    (tmp_path / "empty").mkdir()
    found = list(walk_folder(tmp_path))
    assert [file.name for file in found] == sorted([*names, "c-/y"], key=str.encode)
    assert {file.size_bytes for file in found} == {5}
