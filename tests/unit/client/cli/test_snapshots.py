"""forebay snapshot, and reading at one."""

from __future__ import annotations

from pathlib import Path

from tests.support.fake_store import FakeStore
from tests.unit.client.cli.conftest import Forebay


def test_a_snapshot_is_made_listed_read_and_given_up(forebay: Forebay, store: FakeStore, tmp_path: Path) -> None:
    store.buckets.create("demo", versions=5)
    store.put("demo", "a", b"old")
    store.put("demo", "dir/b", b"old too")
    assert forebay("snapshot", "create", "demo", "monday").out == "snapshot monday of bucket demo, up to version 2\n"
    assert forebay("snapshot", "ls", "demo").lines[0].split("\t")[:2] == ["monday", "2"]
    store.put("demo", "a", b"new")
    store.delete("demo", "dir/b")
    assert store.get("demo", "a", snapshot="monday") == b"old" and store.get("demo", "a") == b"new"
    assert store.open("demo", "dir/b", snapshot="monday").read() == b"old too"
    buffer = bytearray(3)
    assert store.get_into("demo", "a", buffer, snapshot="monday") == 3 and bytes(buffer) == b"old"
    assert forebay("stat", "demo/a", "--snapshot", "monday", "--json").document["version"] == 1
    assert forebay("get", "demo/a", "-", "--snapshot", "monday").out == "old"
    assert [line.split("\t")[-1] for line in forebay("ls", "-r", "demo", "--snapshot", "monday").lines] == ["a", "dir/b"]
    forebay("get", "-r", "demo/dir", str(tmp_path / "dir"), "--snapshot", "monday")
    assert (tmp_path / "dir" / "b").read_bytes() == b"old too"
    assert forebay("snapshot", "rm", "demo", "monday", "--json").document == {
        "action": "rm",
        "bucket": "demo",
        "snapshot": "monday",
        "pruned": 0,
    }
    assert "no snapshot 'monday'" in forebay("stat", "demo/a", "--snapshot", "monday", code=1).err


def test_a_version_and_a_snapshot_are_one_too_many(forebay: Forebay, store: FakeStore) -> None:
    store.buckets.create("demo")
    store.put("demo", "a", b"x")
    assert "not both" in forebay("stat", "demo/a", "--snapshot", "s", "--version", "1", code=1).err
