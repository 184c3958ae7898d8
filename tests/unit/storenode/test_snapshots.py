"""Snapshots of buckets: exact, repeatable, bounded, and given up with all that only they kept."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from client.errors import (
    BucketNotEmpty,
    InvalidName,
    InvalidRequest,
    MetadataFrozen,
    ObjectNotFound,
    SnapshotExists,
    SnapshotNotFound,
    TooManySnapshots,
)
from client.record import BucketPolicy
from client.snapshots import MAX_SNAPSHOTS
from storenode.catalog import MetaCatalog
from storenode.keyspace import write_key
from storenode.lineage import create_cluster, freeze
from storenode.migration import export_metadata, import_metadata
from storenode.snapshots import MAX_LOOKED_AT
from tests.support.asgi import call
from tests.support.catalogs import ANY, MARKER_TTL_S, make_catalog, open_meta, put, versions, write
from tests.support.hooked_meta import HookedMeta
from tests.support.nodes import open_node


@pytest.fixture
def meta() -> Iterator[HookedMeta]:
    with open_meta() as opened:
        create_cluster(opened)
        yield opened


@pytest.fixture
def catalog(meta: HookedMeta) -> MetaCatalog:
    return make_catalog(meta)


def shown(catalog: MetaCatalog, snapshot: str) -> list[tuple[str, int]]:
    page = catalog.list("data", prefix="", delimiter="", cursor=None, limit=1000, versions=False, snapshot=snapshot)
    return [(info.key, info.version) for info in page.objects]


def test_a_snapshot_shows_what_was_there_whatever_comes_later(catalog: MetaCatalog) -> None:
    kept, gone = put(catalog, "kept"), put(catalog, "gone")
    made = catalog.create_snapshot("data", "s", snapshot_id="1")
    put(catalog, "kept"), put(catalog, "new")
    catalog.delete("data", "gone", write_id="d", condition=ANY)
    put(catalog, "gone")
    assert gone.version < made.version
    assert shown(catalog, "s") == [("gone", gone.version), ("kept", kept.version)]
    assert catalog.lookup("data", "kept", snapshot="s") == kept and catalog.lookup("data", "gone", snapshot="s") == gone
    with pytest.raises(ObjectNotFound, match="no data/new in snapshot 's'"):
        catalog.lookup("data", "new", snapshot="s")


def test_a_write_that_was_decided_before_the_snapshot_is_decided_anew(catalog: MetaCatalog, meta: HookedMeta) -> None:
    before = put(catalog)

    def snapshot_first(_: object) -> None:
        meta.before_txn = lambda changes: None
        MetaCatalog(meta.meta, marker_ttl_s=MARKER_TTL_S).create_snapshot("data", "s", snapshot_id="1")

    meta.before_txn = snapshot_first
    after = put(catalog)
    assert catalog.lookup("data", "k", snapshot="s") == before and catalog.lookup("data", "k") == after


def test_versions_of_snapshots_stay_what_they_are_when_the_record_changes(catalog: MetaCatalog) -> None:
    info = put(catalog)
    made = catalog.create_snapshot("data", "one", snapshot_id="1")
    later = catalog.create_snapshot("data", "two", snapshot_id="2")
    catalog.set_bucket("data", BucketPolicy(versions=2))
    put(catalog)
    assert catalog.snapshots("data") == (made, later) and made.version < later.version
    assert catalog.lookup("data", "k", snapshot="one") == info


def test_a_repeat_gets_the_first_snapshot_and_another_request_is_refused(catalog: MetaCatalog) -> None:
    made = catalog.create_snapshot("data", "s", snapshot_id="1")
    assert catalog.create_snapshot("data", "s", snapshot_id="1") == made
    with pytest.raises(SnapshotExists, match="snapshot rm data s"):
        catalog.create_snapshot("data", "s", snapshot_id="2")


def test_a_request_that_arrives_after_its_snapshot_was_given_up_does_not_make_it_again(catalog: MetaCatalog) -> None:
    made = catalog.create_snapshot("data", "s", snapshot_id="1")
    catalog.delete_snapshot("data", "s")
    assert catalog.create_snapshot("data", "s", snapshot_id="1") == made
    assert catalog.snapshots("data") == ()
    assert catalog.create_snapshot("data", "s", snapshot_id="2").version > made.version


def test_a_lost_lease_of_markers_does_not_stop_a_snapshot(catalog: MetaCatalog, meta: HookedMeta) -> None:
    first = catalog.create_snapshot("data", "one", snapshot_id="1")
    lease = meta.meta.get(write_key("1/data/one"))
    assert lease is not None and lease.lease is not None
    meta.revoke(lease.lease)
    assert catalog.create_snapshot("data", "two", snapshot_id="2").version > first.version


def test_what_is_not_there_or_not_allowed_is_named(catalog: MetaCatalog, meta: HookedMeta) -> None:
    for ask in (
        lambda: catalog.lookup("data", "k", snapshot="none"),
        lambda: shown(catalog, "none"),
        lambda: catalog.delete_snapshot("data", "none"),
    ):
        with pytest.raises(SnapshotNotFound, match="snapshot ls data"):
            ask()
    with pytest.raises(InvalidName):
        catalog.create_snapshot("data", "../x", snapshot_id="1")
    for number in range(MAX_SNAPSHOTS):
        catalog.create_snapshot("data", f"s{number}", snapshot_id="1")
    with pytest.raises(TooManySnapshots, match="snapshot rm data s0"):
        catalog.create_snapshot("data", "more", snapshot_id="1")
    with pytest.raises(InvalidRequest, match="leave versions out"):
        catalog.list("data", prefix="", delimiter="", cursor=None, limit=1, versions=True, snapshot="s1")
    with pytest.raises(BucketNotEmpty, match="snapshot rm data"):
        catalog.delete_bucket("data")
    freeze(meta, who="me")
    with pytest.raises(MetadataFrozen):
        catalog.create_snapshot("data", "frozen", snapshot_id="1")
    with pytest.raises(MetadataFrozen):
        catalog.delete_snapshot("data", "s1")


def test_pruning_removes_what_only_a_snapshot_kept_and_what_a_lower_policy_gives_up(catalog: MetaCatalog) -> None:
    catalog.set_bucket("data", BucketPolicy(versions=150))
    catalog.commit_many([write("many") for _ in range(150)])
    put(catalog, "gone")
    catalog.create_snapshot("data", "s", snapshot_id="1")
    catalog.delete("data", "gone", write_id="d", condition=ANY)
    put(catalog, "many")
    catalog.set_bucket("data", BucketPolicy(versions=0))
    num_pruned, after = catalog.prune("data", after=None)
    assert (num_pruned, after) == (149, None)
    assert len(versions(catalog, "many")) == 2 and len(versions(catalog, "gone")) == 2
    catalog.delete_snapshot("data", "s")
    assert catalog.prune("data", after=None) == (2, None)
    assert len(versions(catalog, "many")) == 1 and versions(catalog, "gone") == []
    assert catalog.prune("data", after=None) == (0, None)


def test_a_write_removes_what_a_snapshot_kept_that_was_given_up(catalog: MetaCatalog) -> None:
    put(catalog)
    catalog.create_snapshot("data", "s", snapshot_id="1")
    put(catalog)
    assert len(versions(catalog)) == 2
    catalog.delete_snapshot("data", "s")
    put(catalog)
    assert len(versions(catalog)) == 1


def test_pruning_goes_page_by_page(catalog: MetaCatalog) -> None:
    catalog.set_bucket("data", BucketPolicy(versions=1))
    names = [f"k{number:04d}" for number in range(MAX_LOOKED_AT + 5)]
    catalog.commit_many([write(name) for name in names])
    catalog.commit_many([write(names[0]), write(names[-1])])
    catalog.set_bucket("data", BucketPolicy(versions=0))
    assert catalog.prune("data", after=None) == (1, names[MAX_LOOKED_AT - 1])
    assert catalog.prune("data", after=names[MAX_LOOKED_AT - 1]) == (1, None)


def test_a_listing_of_a_snapshot_folds_and_goes_on_like_any_other(catalog: MetaCatalog) -> None:
    for name in ("a", "b/1", "b/2", "c"):
        put(catalog, name)
    catalog.create_snapshot("data", "s", snapshot_id="1")
    catalog.create_snapshot("data", "t", snapshot_id="2")
    for name in ("a", "b/1", "b/2", "b/3", "d/1"):
        put(catalog, name)
    first = catalog.list("data", prefix="", delimiter="/", cursor=None, limit=2, versions=False, snapshot="s")
    assert ([info.key for info in first.objects], first.prefixes) == (["a"], ("b/",))
    rest = catalog.list("data", prefix="", delimiter="/", cursor=first.cursor, limit=9, versions=False, snapshot="s")
    assert ([info.key for info in rest.objects], rest.prefixes, rest.cursor) == (["c"], (), None)
    with pytest.raises(InvalidRequest, match="another listing"):
        catalog.list("data", prefix="", delimiter="/", cursor=first.cursor, limit=9, versions=False, snapshot="t")


def test_snapshots_move_with_the_metadata(catalog: MetaCatalog, meta: HookedMeta, tmp_path: Path) -> None:
    info = put(catalog)
    made = catalog.create_snapshot("data", "s", snapshot_id="1")
    put(catalog)
    freeze(meta, who="me")
    export_metadata(meta, tmp_path / "file")
    with open_meta() as new:
        import_metadata(new, tmp_path / "file")
        moved = MetaCatalog(new, marker_ttl_s=MARKER_TTL_S)
        assert moved.snapshots("data") == (made,)
        put(moved)
        assert moved.lookup("data", "k", snapshot="s") == info


def test_snapshots_over_http() -> None:
    with open_node() as bed:
        bed.node.catalog.create_bucket("data", BucketPolicy(replicas=1))
        old = put(bed.node.catalog)
        headers = {"x-forebay-write-id": "w1"}
        made = call(bed.app, "PUT", "/v1/snapshots/data/s", headers=headers)
        assert made.status == 201 and made.json()["version"] > old.version
        assert call(bed.app, "PUT", "/v1/snapshots/data/s", headers=headers).json() == made.json()
        assert call(bed.app, "PUT", "/v1/snapshots/data/s").status == 409
        assert call(bed.app, "GET", "/v1/snapshots/data").json() == {"snapshots": [made.json()]}
        put(bed.node.catalog)
        assert call(bed.app, "GET", "/v1/records/data/k?snapshot=s").json()["version"] == old.version
        assert call(bed.app, "HEAD", "/v1/objects/data/k?snapshot=s").headers["x-forebay-version"] == str(old.version)
        assert call(bed.app, "GET", "/v1/records/data/k?snapshot=none").status == 404
        (listed,) = call(bed.app, "GET", "/v1/objects/data?snapshot=s").json()["objects"]
        assert listed["version"] == old.version
        assert call(bed.app, "DELETE", "/v1/snapshots/data/s").status == 204
        assert call(bed.app, "POST", "/v1/prune/data").json() == {"pruned": 1, "after": None}
