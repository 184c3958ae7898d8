"""put, get and sync: which side is which, what appears where, and nothing half-written."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from client.errors import AllReplicasFailed
from tests.support.fake_store import FakeStore
from tests.unit.client.cli.conftest import Forebay

CONTENT = os.urandom(200_000)


@pytest.fixture(autouse=True)
def bucket(store: FakeStore) -> None:
    store.buckets.create("demo")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "photo.jpg"
    path.write_bytes(CONTENT)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    top = tmp_path / "folder"
    for name in ("a.txt", "a/x", "a-b/y", "ü/z"):
        (top / name).parent.mkdir(parents=True, exist_ok=True)
        (top / name).write_bytes(name.encode() * 30_000)
    return top


def test_put_then_get_gives_the_same_bytes(forebay: Forebay, store: FakeStore, file: Path, tmp_path: Path) -> None:
    put = forebay("put", str(file), "demo/photos/1")
    assert put.out == f"put\t{file}\tdemo/photos/1\t{len(CONTENT)}\n"
    got = forebay("get", "forebay://demo/photos/1", str(tmp_path / "copy"))
    assert got.out == f"get\tdemo/photos/1\t{tmp_path}/copy\t{len(CONTENT)}\n"
    assert (tmp_path / "copy").read_bytes() == CONTENT


def test_json_of_put_and_get(forebay: Forebay, file: Path, tmp_path: Path) -> None:
    put = forebay("put", str(file), "demo/photo", "--json").document
    assert (put["bucket"], put["key"], put["size_bytes"], put["replicas"]) == ("demo", "photo", len(CONTENT), 3)
    got = forebay("get", "demo/photo", str(tmp_path / "copy"), "--json").document
    assert got == {**put, "path": str(tmp_path / "copy")}


@pytest.mark.parametrize(
    ("target", "key"), [("demo", "photo.jpg"), ("demo/", "photo.jpg"), ("demo/a/", "a/photo.jpg"), ("demo/a", "a")]
)
def test_a_folder_in_the_store_takes_the_name_of_the_file(
    forebay: Forebay, store: FakeStore, file: Path, target: str, key: str
) -> None:
    forebay("put", str(file), target)
    assert store.stat("demo", key).size == len(CONTENT)


def test_a_local_folder_takes_the_name_of_the_object(forebay: Forebay, store: FakeStore, tmp_path: Path) -> None:
    store.put("demo", "a/name", CONTENT)
    forebay("get", "demo/a/name", str(tmp_path))
    forebay("get", "demo/a/name", f"{tmp_path}/new/")
    assert (tmp_path / "name").read_bytes() == (tmp_path / "new" / "name").read_bytes() == CONTENT


def test_a_url_is_percent_decoded_and_a_plain_path_is_not(forebay: Forebay, store: FakeStore, file: Path) -> None:
    forebay("put", str(file), "forebay://demo/a%20b")
    forebay("put", str(file), "demo/a%20b")
    assert [info.key for info in store.walk("demo")] == ["a b", "a%20b"]


def test_streams(forebay: Forebay, store: FakeStore) -> None:
    forebay("put", "-", "demo/stream", stdin=CONTENT)
    assert store.get("demo", "stream") == CONTENT
    assert forebay("get", "demo/stream", "-").out_bytes == CONTENT
    assert "names no object" in forebay("put", "-", "demo/", stdin=b"x", code=1).err
    assert "leaves no room" in forebay("get", "demo/stream", "-", "--json", code=2).err


def test_get_of_an_older_version(forebay: Forebay, store: FakeStore, tmp_path: Path) -> None:
    store.buckets.set("demo", versions=3)
    first = store.put("demo", "key", b"first")
    store.put("demo", "key", b"second")
    forebay("get", "demo/key", str(tmp_path / "old"), "--version", str(first.version))
    assert (tmp_path / "old").read_bytes() == b"first"


def test_put_into_an_unknown_bucket_prints_the_create_command(forebay: Forebay, file: Path, folder: Path) -> None:
    for source in ([str(file)], ["-r", str(folder)]):
        assert "`forebay bucket create other`" in forebay("put", *source, "other/key", code=1).err


def test_a_folder_needs_r_and_a_file_must_not_have_it(forebay: Forebay, file: Path, folder: Path) -> None:
    assert f"`forebay put -r {folder} demo/x`" in forebay("put", str(folder), "demo/x", code=2).err
    assert "leave out -r" in forebay("put", "-r", str(file), "demo/x", code=2).err


def test_put_r_and_get_r_are_inverse(forebay: Forebay, store: FakeStore, folder: Path, tmp_path: Path) -> None:
    put = forebay("put", "-r", str(folder), "demo/up", "--parallel", "2")
    keys = ["up/a-b/y", "up/a.txt", "up/a/x", "up/ü/z"]
    assert [line.split("\t")[2] for line in put.lines] == [f"demo/{key}" for key in keys]
    assert [info.key for info in store.walk("demo")] == keys
    forebay("get", "-r", "demo/up", str(tmp_path / "down"))
    assert _tree(tmp_path / "down") == _tree(folder)


def test_get_r_takes_the_folder_and_not_what_only_begins_like_it(forebay: Forebay, store: FakeStore, tmp_path: Path) -> None:
    for key in ("run1/x", "run10/x"):
        store.put("demo", key, b"x")
    assert [item["key"] for item in forebay("get", "-r", "demo/run1", str(tmp_path / "down"), "--json").documents] == ["run1/x"]
    assert "nothing below demo/run2/" in forebay("get", "-r", "demo/run2", str(tmp_path), code=1).err


def test_put_r_sends_nothing_if_a_name_can_not_be_a_key(forebay: Forebay, store: FakeStore, folder: Path) -> None:
    (folder / "zz\n").write_bytes(b"x")
    assert "zz\\n' can't become an object" in forebay("put", "-r", str(folder), "demo", code=1).err
    assert list(store.walk("demo")) == []


def test_put_r_names_what_it_skips(forebay: Forebay, folder: Path) -> None:
    (folder / "loop").symlink_to(folder)
    (folder / "gone").symlink_to(folder / "nothing")
    (folder / "link").symlink_to(folder / "a.txt")
    ran = forebay("put", "-r", str(folder), "demo")
    assert ran.err.splitlines() == [
        f"warning: skipped {folder}/gone: a broken link",
        f"warning: skipped {folder}/loop: a link to a folder",
    ]
    assert len(ran.lines) == 5
    skipped = [item for item in forebay("put", "-r", str(folder), "demo", "--json").documents if item["action"] == "skip"]
    assert [item["detail"] for item in skipped] == ["a broken link", "a link to a folder"]


def test_a_download_that_fails_leaves_what_was_there(
    forebay: Forebay, store: FakeStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.put("demo", "key", CONTENT)
    target = tmp_path / "target"
    target.write_bytes(b"old")
    fetch, fetched = store.fake_chunks.fetch_into, 0

    def break_off(*args: object, **options: object) -> None:
        nonlocal fetched
        fetched += 1
        if fetched > 2:
            raise AllReplicasFailed("the last chunk is lost")
        fetch(*args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(store.fake_chunks, "fetch_into", break_off)
    forebay("get", "demo/key", str(target), code=1)
    assert target.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["target"]


def test_a_download_keeps_permissions_follows_links_and_replaces_no_device(
    forebay: Forebay, store: FakeStore, tmp_path: Path
) -> None:
    store.put("demo", "key", CONTENT)
    target, link = tmp_path / "target", tmp_path / "link"
    target.write_bytes(b"old")
    target.chmod(0o640)
    link.symlink_to(target)
    forebay("get", "demo/key", str(link))
    assert target.read_bytes() == CONTENT
    assert link.is_symlink()
    assert stat.S_IMODE(target.stat().st_mode) == 0o640
    forebay("get", "demo/key", "/dev/null")
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)


# sync


def test_sync_wants_to_be_told_which_side_is_the_store(forebay: Forebay, folder: Path) -> None:
    for pair in ((str(folder), "demo/x"), ("forebay://demo/x", "forebay://demo/y")):
        assert "exactly one of SRC and DST" in forebay("sync", *pair, code=2).err
    assert "there is no folder" in forebay("sync", str(folder / "none"), "forebay://demo", code=2).err


def test_sync_moves_only_what_differs(forebay: Forebay, store: FakeStore, folder: Path) -> None:
    url = "forebay://demo/mirror"
    assert len(forebay("sync", str(folder), url).lines) == 4
    versions = {info.key: info.version for info in store.walk("demo")}
    (folder / "a/x").write_bytes(b"changed")
    changed = forebay("sync", str(folder), url, "--json").documents
    assert [(item["action"], item["key"]) for item in changed] == [("put", "mirror/a/x")]
    assert store.get("demo", "mirror/a/x") == b"changed"
    assert {i.key for i in store.walk("demo") if i.version != versions[i.key]} == {"mirror/a/x"}


def test_sync_sees_a_change_that_keeps_size_and_time(forebay: Forebay, store: FakeStore, folder: Path) -> None:
    forebay("sync", str(folder), "forebay://demo")
    path = folder / "a.txt"
    before, data = path.stat(), bytearray(path.read_bytes())
    data[-1] ^= 1  # in the last of several chunks
    path.write_bytes(data)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert [item["key"] for item in forebay("sync", str(folder), "forebay://demo", "--json").documents] == ["a.txt"]


def test_sync_deletes_only_if_asked_and_a_dry_run_changes_nothing(forebay: Forebay, store: FakeStore, folder: Path) -> None:
    store.put("demo", "extra", b"x")
    store.put("demo", "m/extra", b"x")
    dry = forebay("sync", str(folder), "forebay://demo/m", "--delete", "--dry-run")
    assert dry.lines[3] == "would delete\tdemo/m/extra"
    assert dry.lines[4] == f"would put\t{folder}/ü/z\tdemo/m/ü/z\t{len('ü/z'.encode()) * 30_000}"
    assert [info.key for info in store.walk("demo")] == ["extra", "m/extra"]
    forebay("sync", str(folder), "forebay://demo/m")
    assert store.stat("demo", "m/extra")
    forebay("sync", str(folder), "forebay://demo/m", "--delete")
    assert [info.key for info in store.walk("demo")] == ["extra", "m/a-b/y", "m/a.txt", "m/a/x", "m/ü/z"]


def test_sync_deletes_no_object_that_was_written_meanwhile(
    forebay: Forebay, store: FakeStore, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.put("demo", "extra", b"old")
    delete = store.delete

    def write_then_delete(bucket: str, key: str, **options: str) -> None:
        store.put(bucket, key, b"new")
        delete(bucket, key, **options)

    monkeypatch.setattr(store, "delete", write_then_delete)
    assert "run the command again" in forebay("sync", str(folder), "forebay://demo", "--delete", code=1).err
    assert store.get("demo", "extra") == b"new"


def test_sync_from_the_store(forebay: Forebay, store: FakeStore, folder: Path, tmp_path: Path) -> None:
    forebay("put", "-r", str(folder), "demo/m")
    down = tmp_path / "down"
    forebay("sync", "forebay://demo/m", str(down))
    assert _tree(down) == _tree(folder)
    (down / "old").mkdir()
    (down / "old/file").write_bytes(b"x")
    (down / "a.txt").write_bytes(b"wrong")
    ran = forebay("sync", "forebay://demo/m", str(down), "--delete", "--json").documents
    assert [(item["action"], item["key"]) for item in ran] == [("get", "m/a.txt"), ("delete-file", "m/old/file")]
    assert _tree(down) == _tree(folder)
    assert not (down / "old").exists()


def _tree(top: Path) -> dict[str, bytes]:
    return {str(path.relative_to(top)): path.read_bytes() for path in top.rglob("*") if path.is_file()}
