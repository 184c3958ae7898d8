"""cat, cp, mv, rm, ls, stat, du and bucket: objects by name."""

from __future__ import annotations

import pytest

from client.errors import PreconditionFailed
from tests.support.fake_store import FakeStore
from tests.unit.client.cli.conftest import Forebay


@pytest.fixture(autouse=True)
def bucket(store: FakeStore) -> None:
    store.buckets.create("demo")


def _fill(store: FakeStore, *keys: str) -> None:
    for key in keys:
        store.put("demo", key, key.encode())


def _keys(store: FakeStore) -> list[str]:
    return [info.key for info in store.walk("demo")]


def test_cat_joins_objects(forebay: Forebay, store: FakeStore) -> None:
    _fill(store, "a", "b")
    assert forebay("cat", "demo/a", "demo/b").out == "ab"
    assert "names no object" in forebay("cat", "demo/", code=1).err
    assert "belongs to one object" in forebay("cat", "demo/a", "demo/b", "--version", "1", code=2).err


def test_cp_gives_a_second_name(forebay: Forebay, store: FakeStore) -> None:
    _fill(store, "a")
    assert forebay("cp", "demo/a", "demo/b").out == "cp demo/a → demo/b\n"
    assert forebay("cp", "demo/a", "demo/folder/", "--json").document["key"] == "folder/a"
    assert _keys(store) == ["a", "b", "folder/a"]
    assert store.get("demo", "folder/a") == b"a"


def test_cp_of_a_local_file_points_to_put(forebay: Forebay) -> None:
    assert "`forebay put data/file BUCKET/KEY`" in forebay("cp", "data/file", "demo/a", code=1).err


def test_mv_leaves_only_the_new_name(forebay: Forebay, store: FakeStore) -> None:
    _fill(store, "a")
    forebay("mv", "demo/a", "demo/b")
    assert _keys(store) == ["b"]


def test_mv_onto_itself_is_refused(forebay: Forebay, store: FakeStore) -> None:
    _fill(store, "a/b")
    assert "the same object" in forebay("mv", "demo/a/b", "forebay://demo/a/b", code=2).err
    assert "the same object" in forebay("mv", "demo/a/b", "demo/a/", code=2).err
    for target in ("demo/a", "demo/a/c", "demo"):
        assert "inside the other" in forebay("mv", "-r", "demo/a", target, code=2).err
    assert _keys(store) == ["a/b"]


def test_mv_keeps_what_somebody_writes_meanwhile(forebay: Forebay, store: FakeStore, monkeypatch: pytest.MonkeyPatch) -> None:
    _fill(store, "a")
    copy = store.copy

    def copy_then_write(*args: str) -> object:
        made = copy(*args)
        store.put("demo", "a", b"new")
        return made

    monkeypatch.setattr(store, "copy", copy_then_write)
    forebay("mv", "demo/a", "demo/b", code=1)
    assert store.get("demo", "a") == b"new"


def test_cp_r_and_mv_r_move_a_folder_and_not_its_namesakes(forebay: Forebay, store: FakeStore) -> None:
    _fill(store, "run1/x", "run1/y/z", "run10/x")
    assert len(forebay("cp", "-r", "demo/run1", "demo/copy").lines) == 2
    moved = forebay("mv", "-r", "demo/run1/", "demo/moved", "--json").documents
    assert [(item["source"], item["key"]) for item in moved] == [("demo/run1/x", "moved/x"), ("demo/run1/y/z", "moved/y/z")]
    assert _keys(store) == ["copy/x", "copy/y/z", "moved/x", "moved/y/z", "run10/x"]
    assert "nothing below demo/none/" in forebay("cp", "-r", "demo/none", "demo/copy", code=1).err


def test_rm_prints_what_it_removed(forebay: Forebay, store: FakeStore) -> None:
    _fill(store, "run1", "run1/x", "run1/y", "run10", "z")
    assert forebay("rm", "demo/z").out == "rm demo/z\n"
    assert forebay("rm", "-r", "demo/run1").lines == ["rm demo/run1", "rm demo/run1/x", "rm demo/run1/y"]
    assert _keys(store) == ["run10"]
    assert "names no object" in forebay("rm", "demo/", code=1).err
    assert "nothing at or below demo/run1" in forebay("rm", "-r", "demo/run1", code=1).err
    assert "no object demo/z" in forebay("rm", "demo/z", code=1).err
    assert forebay("rm", "-r", "demo", "--json").documents == [{"action": "rm", "bucket": "demo", "key": "run10"}]


def test_ls_shows_one_level_in_the_order_of_names(forebay: Forebay, store: FakeStore) -> None:
    _fill(store, "a", "a/x", "a/y", "a-b", "b")
    store.fake_catalog.page_size = 2
    assert [line.split("\t")[-1] for line in forebay("ls", "demo").lines] == ["a", "a-b", "a/", "b"]
    assert [line.split("\t")[-1] for line in forebay("ls", "demo/a/").lines] == ["a/x", "a/y"]
    assert [line.split("\t")[-1] for line in forebay("ls", "-r", "demo").lines] == ["a", "a-b", "a/x", "a/y", "b"]
    assert [item["key"] for item in forebay("ls", "demo/a", "--json").documents] == ["a", "a-b", "a/"]


def test_ls_without_a_path_shows_the_buckets(forebay: Forebay, store: FakeStore) -> None:
    store.buckets.create("other", replicas=1, ack="one", versions=5)
    assert forebay("ls").lines == ["demo\t3\tquorum\t0", "other\t1\tone\t5"]
    assert forebay("bucket", "ls").lines == forebay("ls").lines
    assert forebay("ls", "--json").documents[1] == {"bucket": "other", "replicas": 1, "ack": "one", "versions": 5}


def test_ls_versions_and_stat_of_one(forebay: Forebay, store: FakeStore) -> None:
    store.buckets.set("demo", versions=5)
    first = store.put("demo", "key", b"one")
    store.put("demo", "key", b"three")
    store.delete("demo", "key")
    assert forebay("ls", "demo").out == ""
    rows = forebay("ls", "--versions", "demo", "--json").documents
    assert [(row["size_bytes"], row["deleted"]) for row in rows] == [(0, True), (5, False), (3, False)]
    assert "no object" in forebay("stat", "demo/key", code=1).err
    assert forebay("stat", "demo/key", "--version", str(first.version), "--json").document["size_bytes"] == 3


def test_stat_shows_fields_as_lines(forebay: Forebay, store: FakeStore) -> None:
    store.put("demo", "a key", b"abc", metadata={"who": "me"})
    fields = dict(line.split("\t") for line in forebay("stat", "demo/a key").lines)
    assert fields["size"] == "3"
    assert fields["url"] == "forebay://demo/a%20key"
    assert fields["metadata"] == "who=me"


def test_du_sums_bytes_and_replicas(forebay: Forebay, store: FakeStore) -> None:
    _fill(store, "run1", "run1/x", "run10/x")
    assert forebay("du", "demo/run1").out == "10\t30\t2\tdemo/run1\n"
    store.buckets.create("other")
    assert [line.split("\t")[-1] for line in forebay("du").lines] == ["demo/", "other/"]


def test_du_r_sums_every_folder_into_the_one_around_it(forebay: Forebay, store: FakeStore) -> None:
    _fill(store, "a/b/1", "a/b/c/2", "a/d/3", "e", "f/g/4")
    rows = {row["path"]: (row["objects"], row["size_bytes"]) for row in forebay("du", "-r", "demo", "--json").documents}
    assert rows == {
        "demo/a/b/c/": (1, 7),
        "demo/a/b/": (2, 12),
        "demo/a/d/": (1, 5),
        "demo/a/": (3, 17),
        "demo/f/g/": (1, 5),
        "demo/f/": (1, 5),
        "demo/": (5, 23),
    }


# bucket


def test_bucket_create_set_and_rm(forebay: Forebay, store: FakeStore) -> None:
    created = forebay("bucket", "create", "runs", "--replicas", "2", "--ack", "all", "--versions", "1")
    assert created.out == "bucket runs: 2 replicas, ack all, 1 older version kept\n"
    changed = forebay("bucket", "set", "runs", "--replicas", "1", "--json").document
    assert changed == {"bucket": "runs", "replicas": 1, "ack": "all", "versions": 1}
    assert forebay("bucket", "rm", "runs").out == "rm runs\n"
    assert list(store.buckets.list()) == ["demo"]


def test_bucket_usage(forebay: Forebay) -> None:
    assert "at least one of --replicas" in forebay("bucket", "set", "demo", code=2).err
    assert "most" in forebay("bucket", "create", "other", "--ack", "most", code=2).err
    assert "a bucket's name alone would be 'demo'" in forebay("bucket", "rm", "demo/key", code=1).err
    assert "exists" in forebay("bucket", "create", "demo", "--replicas", "1", code=1).err


def test_bucket_rm_of_a_full_one_says_how_to_empty_it(forebay: Forebay, store: FakeStore) -> None:
    _fill(store, "a")
    assert forebay("bucket", "rm", "demo", code=1).err.endswith("hint: `forebay rm -r demo` removes its objects\n")


def test_bucket_create_warns_of_more_replicas_than_nodes(forebay: Forebay) -> None:
    assert "copies will be missing" in forebay("bucket", "create", "four", "--replicas", "4").err
    assert "writes will fail" in forebay("bucket", "create", "seven", "--replicas", "7").err
    assert forebay("bucket", "create", "three").err == ""


def test_precondition_hint(forebay: Forebay, store: FakeStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object, **options: object) -> None:
        raise PreconditionFailed("the object is another one by now")

    _fill(store, "a")
    monkeypatch.setattr(store, "delete", fail)
    assert "run the command again" in forebay("rm", "demo/a", code=1).err
