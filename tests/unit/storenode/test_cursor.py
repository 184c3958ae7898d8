"""The durable cursor: it survives whole or not at all, and is never believed when in doubt."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from client.errors import DiskFull
from storenode.cursor import Cursor, CursorFile
from storenode.filesystem import FileSystem
from tests.support.filesystem import ScriptedFileSystem

CURSOR = Cursor(revision=41, layout=3, incarnation="i1", seen=77)


def cursor_file(root: Path, *, cluster_id: str = "c1", fs: FileSystem | None = None) -> CursorFile:
    return CursorFile(root, cluster_id=cluster_id, fs=fs or FileSystem())


def test_a_saved_cursor_is_loaded_again_and_replaces_the_one_before(tmp_path: Path) -> None:
    assert cursor_file(tmp_path).load() is None
    cursor_file(tmp_path).save(Cursor(revision=1, layout=1))
    cursor_file(tmp_path).save(CURSOR)
    found = cursor_file(tmp_path).load()
    assert found is not None and found == CURSOR and found.seen == 77
    assert [path.name for path in tmp_path.iterdir()] == ["follower.json"]


@pytest.mark.parametrize("call", ["create_unnamed", "write", "sync_data", "link", "rename"])
def test_a_save_that_fails_leaves_the_cursor_of_before(tmp_path: Path, call: str) -> None:
    cursor_file(tmp_path).save(CURSOR)
    fs = ScriptedFileSystem()
    fs.fail(OSError(errno.ENOSPC, "No space left on device"), method=call)
    with pytest.raises(DiskFull, match=r"follower\.json"):
        cursor_file(tmp_path, fs=fs).save(Cursor(revision=99, layout=3))
    assert cursor_file(tmp_path).load() == CURSOR
    cursor_file(tmp_path).save(Cursor(revision=99, layout=3))
    assert cursor_file(tmp_path).load() == Cursor(revision=99, layout=3)


def test_a_file_left_by_a_crash_before_the_rename_is_no_obstacle(tmp_path: Path) -> None:
    (tmp_path / "follower.json.new").write_text("half")
    cursor_file(tmp_path).save(CURSOR)
    assert cursor_file(tmp_path).load() == CURSOR


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format": 2, "cluster_id": "c1", "revision": 1, "layout": 1}', "null"])
def test_anything_else_in_the_file_counts_as_no_cursor(tmp_path: Path, text: str) -> None:
    (tmp_path / "follower.json").write_text(text)
    assert cursor_file(tmp_path).load() is None


def test_a_cursor_of_another_cluster_counts_as_none(tmp_path: Path) -> None:
    cursor_file(tmp_path).save(CURSOR)
    assert cursor_file(tmp_path, cluster_id="c2").load() is None
