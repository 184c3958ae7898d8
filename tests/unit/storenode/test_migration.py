"""Metadata moves between engines whole or not at all, with no version changed, and damaged files are refused unread."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from client.errors import CursorExpired, DiskFailed, MetadataCorrupt, MetadataUnavailable, Misconfigured
from client.placement import Layout, Node
from client.record import BucketPolicy
from storenode.catalog import MetaCatalog
from storenode.layouts import change_epoch, create_layout, read_anchor, read_layouts
from storenode.lineage import CLUSTER_KEY, create_cluster, freeze, read_cluster_id, read_lineage
from storenode.metastore import Put
from storenode.migration import IMPORTING_KEY, export_metadata, import_metadata
from tests.support.catalogs import ANY, MARKER_TTL_S, make_catalog, open_meta, put, versions, write
from tests.support.hooked_meta import HookedMeta

LAYOUT = Layout(version=1, partitions=16, nodes=(Node(id="a"),))


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def old(stack: ExitStack) -> HookedMeta:
    meta = stack.enter_context(open_meta())
    create_cluster(meta)
    create_layout(meta, LAYOUT)
    return meta


@pytest.fixture
def new(stack: ExitStack) -> HookedMeta:
    return stack.enter_context(open_meta())


def filled(old: HookedMeta) -> MetaCatalog:
    """A bucket with versions, a tombstone, and more objects than a page and a batch."""
    catalog = make_catalog(old)
    catalog.set_bucket("data", BucketPolicy(versions=3))
    catalog.create_bucket("plain", BucketPolicy(replicas=2))
    catalog.commit_many([write(name) for name in ("a", "a", "ключ/🗝", "gone", *(f"many/{n:04d}" for n in range(600)))])
    catalog.delete("data", "gone", write_id="d", condition=ANY)
    return catalog


def test_a_moved_cluster_has_all_that_it_had_under_the_same_versions(old: HookedMeta, new: HookedMeta, tmp_path: Path) -> None:
    catalog = filled(old)
    change_epoch(old, read_anchor(old), epoch=3)
    leased = old.grant(60.0)
    old.txn([], [Put(key="node/n1", value=b"{}", lease=leased), Put(key="held/n1", value=b"{}"), Put(key="job/j", value=b"{}")])
    before, newest = versions(catalog), old.revision()
    freeze(old, who="me")
    exported = export_metadata(old, tmp_path / "file")
    imported = import_metadata(new, tmp_path / "file")

    moved = MetaCatalog(new, marker_ttl_s=MARKER_TTL_S)
    assert versions(moved) == before and moved.buckets() == catalog.buckets()
    assert moved.lookup("data", "a") == catalog.lookup("data", "a")
    assert read_cluster_id(new) == read_cluster_id(old)
    assert read_layouts(new) is not None and read_anchor(new).anchor.epoch > 3 + 1000
    held = [item.key for item in new.range("", chr(0x10FFFF), limit=2000).items]
    assert len(held) == exported.num_items + 1 and "job/j" in held
    assert not [key for key in held if key.startswith(("node/", "write/", "held/", IMPORTING_KEY))]

    lineage = read_lineage(new)
    assert lineage == imported.lineage and lineage.frozen is None and lineage.incarnation != read_lineage(old).incarnation
    written = put(moved, "a")
    assert newest < written.version < newest + 2000, "it goes on where the frozen one has ended"
    assert versions(moved, "a")[:2] == [("a", written.version, False), *before[:1]]


def test_a_moved_cluster_can_move_on(old: HookedMeta, new: HookedMeta, stack: ExitStack, tmp_path: Path) -> None:
    catalog = filled(old)
    before = versions(catalog)
    third = stack.enter_context(open_meta())
    freeze(old, who="me")
    export_metadata(old, tmp_path / "one")
    import_metadata(new, tmp_path / "one")
    put(MetaCatalog(new, marker_ttl_s=MARKER_TTL_S), "z")
    after = versions(MetaCatalog(new, marker_ttl_s=MARKER_TTL_S))
    freeze(new, who="me")
    export_metadata(new, tmp_path / "two")
    import_metadata(third, tmp_path / "two")
    assert versions(MetaCatalog(third, marker_ttl_s=MARKER_TTL_S)) == after and set(before) < set(after)


def test_a_put_whose_answer_was_lost_in_the_move_is_not_done_again(old: HookedMeta, new: HookedMeta, tmp_path: Path) -> None:
    info = put(make_catalog(old), "k", write_id="w1")
    freeze(old, who="me")
    export_metadata(old, tmp_path / "file")
    import_metadata(new, tmp_path / "file")
    assert put(MetaCatalog(new, marker_ttl_s=MARKER_TTL_S), "k", write_id="w1") == info


def test_a_backup_imported_later_gives_out_no_version_twice(old: HookedMeta, new: HookedMeta, tmp_path: Path) -> None:
    catalog = filled(old)
    assert not export_metadata(old, tmp_path / "file").header.frozen
    later = put(catalog, "committed after the export")
    import_metadata(new, tmp_path / "file")
    assert put(MetaCatalog(new, marker_ttl_s=MARKER_TTL_S), "other").version > later.version + 1_000_000


def test_an_import_that_was_broken_off_makes_no_cluster_and_is_finished_by_the_next(
    old: HookedMeta, new: HookedMeta, tmp_path: Path
) -> None:
    catalog = filled(old)
    export_metadata(old, tmp_path / "file")

    def fail_at(number: int) -> None:
        calls = iter(range(number))
        new.before_txn = lambda changes: None if next(calls, None) is not None else _gone()

    for number in (0, 1, 5, 300, 608, 609):
        fail_at(number)
        with pytest.raises(MetadataUnavailable):
            import_metadata(new, tmp_path / "file")
        assert read_cluster_id(new) is None
    new.before_txn = lambda changes: None
    first = import_metadata(new, tmp_path / "file")
    assert not first.repeated
    again = import_metadata(new, tmp_path / "file")
    assert again.repeated and again.lineage == first.lineage
    assert versions(MetaCatalog(new, marker_ttl_s=MARKER_TTL_S)) == versions(catalog)


def test_an_import_goes_only_into_an_engine_that_is_empty(
    old: HookedMeta, new: HookedMeta, stack: ExitStack, tmp_path: Path
) -> None:
    put(make_catalog(old))
    export_metadata(old, tmp_path / "file")
    with pytest.raises(Misconfigured, match="holds cluster"):
        import_metadata(old, tmp_path / "file")
    foreign = stack.enter_context(open_meta())
    foreign.txn([], [Put(key="somebody's", value=b"")])
    with pytest.raises(Misconfigured, match=r"not empty: it holds \"somebody's\""):
        import_metadata(foreign, tmp_path / "file")
    new.before_txn = lambda changes: None if changes[0].key == IMPORTING_KEY else _gone()
    with pytest.raises(MetadataUnavailable):
        import_metadata(new, tmp_path / "file")
    new.before_txn = lambda changes: None
    put(make_catalog(old), "another")
    export_metadata(old, tmp_path / "other file")
    with pytest.raises(Misconfigured, match="another file's import"):
        import_metadata(new, tmp_path / "other file")


def _gone() -> None:
    raise MetadataUnavailable("the engine is gone")


def test_a_file_that_is_cut_short_or_damaged_is_refused_before_anything_is_written(
    old: HookedMeta, new: HookedMeta, tmp_path: Path
) -> None:
    filled(old)
    export_metadata(old, tmp_path / "file")
    whole = (tmp_path / "file").read_bytes()
    lines = gzip.decompress(whole).splitlines(keepends=True)
    changed = json.loads(lines[5])
    changed["value"] += " "
    bad = {
        "empty": b"",
        "cut in the middle": whole[: len(whole) // 2],
        "cut at the end": whole[:-9],
        "one bit": whole[:1000] + bytes([whole[1000] ^ 1]) + whole[1001:],
        "goes on": gzip.compress(b"".join([*lines, lines[5]])),
        "no trailer": gzip.compress(b"".join(lines[:-1])),
        "a line is missing": gzip.compress(b"".join(lines[:7] + lines[8:])),
        "a value is another": gzip.compress(b"".join([*lines[:5], json.dumps(changed).encode() + b"\n", *lines[6:]])),
        "no export": gzip.compress(b'{"hello": 1}\n'),
        "no JSON": gzip.compress(b"hello"),
        "a list": gzip.compress(b"[]\n"),
        "no keys": gzip.compress(lines[0] + b"{}\n" + lines[-1]),
        "no gzip": b"hello",
    }
    for name, data in bad.items():
        (tmp_path / "bad").write_bytes(data)
        with pytest.raises(MetadataCorrupt, match="nothing was imported"):
            import_metadata(new, tmp_path / "bad")
        assert new.range("", chr(0x10FFFF), limit=1).items == (), name
    (tmp_path / "bad").write_bytes(gzip.compress(lines[0].replace(b'"version":1', b'"version":2') + b"".join(lines[1:])))
    with pytest.raises(Misconfigured, match="version 2"):
        import_metadata(new, tmp_path / "bad")
    with pytest.raises(Misconfigured, match="can't be read"):
        import_metadata(new, tmp_path / "missing")


def test_an_export_that_fails_leaves_the_file_of_before(
    old: HookedMeta, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled(old)
    file = tmp_path / "file"
    file.write_text("of before")

    def expire(*args: object, **options: object) -> None:
        raise CursorExpired("compacted")

    with monkeypatch.context() as patch:
        real, calls = old.range, iter(range(2))
        patch.setattr(old, "range", lambda *a, **k: real(*a, **k) if next(calls, None) is not None else expire())
        with pytest.raises(CursorExpired):
            export_metadata(old, file)
    old.txn([], [Put(key="binary", value=b"\xff")])
    with pytest.raises(MetadataCorrupt, match="'binary' is no text"):
        export_metadata(old, file)
    with pytest.raises(DiskFailed):
        export_metadata(old, tmp_path / "no directory" / "file")
    assert file.read_text() == "of before" and [path.name for path in tmp_path.iterdir()] == ["file"]


def test_an_export_is_of_one_revision_whatever_is_written_meanwhile(old: HookedMeta, new: HookedMeta, tmp_path: Path) -> None:
    catalog = filled(old)
    before = versions(catalog)

    def write_more(_: int) -> None:
        put(catalog, "many/0001")
        put(catalog, "zzz")

    export_metadata(old, tmp_path / "file", on_items=write_more)
    import_metadata(new, tmp_path / "file")
    assert versions(MetaCatalog(new, marker_ttl_s=MARKER_TTL_S)) == before


def test_metadata_without_a_cluster_is_not_exported(new: HookedMeta, tmp_path: Path) -> None:
    with pytest.raises(Misconfigured, match="no cluster"):
        export_metadata(new, tmp_path / "file")
    assert new.get(CLUSTER_KEY) is None
