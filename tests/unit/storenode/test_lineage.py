"""The cluster's record: nothing is committed while it says frozen, and versions outlive the incarnation they were made in."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import pytest

from client.errors import (
    CursorExpired,
    InvalidRequest,
    MetadataCorrupt,
    MetadataFrozen,
    Misconfigured,
    PreconditionFailed,
    from_problem,
    to_problem,
)
from client.placement import Layout, Layouts, Node
from client.record import BucketPolicy
from storenode.catalog import MetaCatalog
from storenode.incarnation import accept_restore
from storenode.layouts import change_epoch, change_layouts, create_layout, read_anchor, read_layouts
from storenode.lineage import CLUSTER_KEY, create_cluster, freeze, mark_restored, read_lineage, thaw
from storenode.metastore import Delete, Put
from tests.support.catalogs import ANY, NEW, make_catalog, open_meta, put, versions
from tests.support.hooked_meta import HookedMeta

LAYOUT = Layout(version=1, partitions=16, nodes=(Node(id="a"),))


@pytest.fixture
def meta() -> Iterator[HookedMeta]:
    with open_meta() as opened:
        create_cluster(opened)
        create_layout(opened, LAYOUT)
        yield opened


@pytest.fixture
def catalog(meta: HookedMeta) -> MetaCatalog:
    return make_catalog(meta)


CHANGES: dict[str, Callable[[MetaCatalog], object]] = {
    "put": lambda catalog: put(catalog, "new"),
    "delete": lambda catalog: catalog.delete("data", "k", write_id="d", condition=ANY),
    "create a bucket": lambda catalog: catalog.create_bucket("more", BucketPolicy()),
    "set a bucket": lambda catalog: catalog.set_bucket("data", BucketPolicy(versions=3)),
    "delete a bucket": lambda catalog: catalog.delete_bucket("empty"),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_frozen_metadata_takes_no_change_and_is_read_as_ever(
    catalog: MetaCatalog, meta: HookedMeta, change: Callable[[MetaCatalog], object]
) -> None:
    info = put(catalog)
    catalog.create_bucket("empty", BucketPolicy())
    freeze(meta, who="the operator")
    revision = meta.revision()
    with pytest.raises(MetadataFrozen, match="frozen by the operator; `forebay meta thaw`"):
        change(catalog)
    assert meta.revision() == revision
    assert catalog.lookup("data", "k") == info and versions(catalog) == [("k", info.version, False)]
    thaw(meta)
    change(catalog)


def test_layout_and_epoch_stay_as_they_are_while_frozen(meta: HookedMeta) -> None:
    found, anchor = read_layouts(meta), read_anchor(meta)
    assert found is not None
    freeze(meta, who="me")
    with pytest.raises(MetadataFrozen):
        change_layouts(meta, found, Layouts(current=LAYOUT))
    with pytest.raises(MetadataFrozen):
        change_epoch(meta, anchor, epoch=1)


def test_a_write_that_was_decided_before_the_freeze_is_refused(catalog: MetaCatalog, meta: HookedMeta) -> None:
    def freeze_first(_: object) -> None:
        meta.before_txn = lambda changes: None
        freeze(meta.meta, who="me")

    meta.before_txn = freeze_first
    with pytest.raises(MetadataFrozen):
        put(catalog)
    assert versions(catalog) == []
    thaw(meta)
    meta.before_txn = freeze_first
    with pytest.raises(MetadataFrozen):
        catalog.create_bucket("more", BucketPolicy())


def test_a_repeat_of_what_was_decided_gets_its_answer_while_frozen(catalog: MetaCatalog, meta: HookedMeta) -> None:
    first = put(catalog, write_id="w1")
    with pytest.raises(PreconditionFailed):
        put(catalog, write_id="w2", condition=NEW)
    freeze(meta, who="me")
    assert put(catalog, write_id="w1") == first
    with pytest.raises(PreconditionFailed):
        put(catalog, write_id="w2", condition=NEW)


def test_the_refusal_reaches_clients_as_one_that_may_be_repeated() -> None:
    error = from_problem(to_problem(MetadataFrozen("frozen")), node_id="n1")
    assert isinstance(error, MetadataFrozen) and error.retryable and error.status == 503


def test_freezing_and_thawing_can_be_repeated(meta: HookedMeta) -> None:
    assert freeze(meta, who="a", clock=lambda: 1.0) == freeze(meta, who="b", clock=lambda: 2.0) == read_lineage(meta)
    assert thaw(meta) == thaw(meta) == read_lineage(meta)


def test_a_restored_backup_is_not_thawed_but_accepted(catalog: MetaCatalog, meta: HookedMeta) -> None:
    incarnation = read_lineage(meta).incarnation
    assert mark_restored(meta, incarnation="of another time", who="n1", detail="").frozen is None
    marked = mark_restored(meta, incarnation=incarnation, who="n1", detail="saw 9, finds 3")
    assert marked == mark_restored(meta, incarnation=incarnation, who="n2", detail="saw 7, finds 3") and marked.went_back
    with pytest.raises(InvalidRequest, match="accept-restore"):
        thaw(meta)
    with pytest.raises(MetadataFrozen, match=r"saw 9, finds 3.*accept-restore"):
        put(catalog)
    accepted = accept_restore(meta)
    assert accepted.incarnation != incarnation and not accepted.went_back and accepted == read_lineage(meta)
    put(catalog)


def test_no_version_changes_with_the_incarnation_and_later_ones_are_higher(catalog: MetaCatalog, meta: HookedMeta) -> None:
    catalog.set_bucket("data", BucketPolicy(versions=5))
    old = [put(catalog, "k"), put(catalog, "k")]
    newest = catalog.list("data", prefix="", delimiter="", cursor=None, limit=1, versions=False).revision
    accept_restore(meta)
    assert catalog.lookup("data", "k") == old[1]
    new = put(catalog, "k", write_id="w")
    assert new.version > newest + 1_000_000
    assert put(catalog, "k", write_id="w") == new == catalog.lookup("data", "k")
    assert [version for _, version, _ in versions(catalog)] == [new.version, old[1].version, old[0].version]
    assert [catalog.lookup("data", "k", version=info.version) for info in old] == old
    accept_restore(meta)
    assert catalog.lookup("data", "k") == new
    assert put(catalog, "k").version > new.version


def test_cursors_and_positions_of_an_earlier_incarnation_are_expired(catalog: MetaCatalog, meta: HookedMeta) -> None:
    put(catalog, "a"), put(catalog, "b")
    page = catalog.list("data", prefix="", delimiter="", cursor=None, limit=1, versions=False)
    at = catalog.watch("data", prefix="", after=None, timeout_s=0.0).revision
    accept_restore(meta)
    with pytest.raises(CursorExpired, match="replaced since"):
        catalog.list("data", prefix="", delimiter="", cursor=page.cursor, limit=1, versions=False)
    with pytest.raises(CursorExpired, match="replaced since"):
        catalog.watch("data", prefix="", after=at, timeout_s=0.0)
    # From a version on, as from the revision that a watch tells.
    first = put(catalog, "c")
    second = put(catalog, "d")
    watched = catalog.watch("data", prefix="", after=first.version, timeout_s=0.0)
    assert watched.changes == (("d", second),) and watched.revision == second.version


def test_no_upload_of_an_earlier_incarnation_is_anchored_in_the_new_one(meta: HookedMeta) -> None:
    change_epoch(meta, read_anchor(meta), epoch=7)
    accept_restore(meta)
    anchor = read_anchor(meta).anchor
    assert anchor.epoch > 7 + 1000 and anchor.layout == 1


def test_metadata_without_a_cluster_is_neither_frozen_nor_accepted(meta: HookedMeta) -> None:
    meta.txn([], [Delete(key=CLUSTER_KEY)])
    for change in (thaw, accept_restore, partial(freeze, who="me")):
        with pytest.raises(Misconfigured, match="no cluster"):
            change(meta)


def test_the_record_of_an_earlier_release_has_no_incarnation_and_no_base(catalog: MetaCatalog, meta: HookedMeta) -> None:
    meta.txn([], [Put(key=CLUSTER_KEY, value=b'{"cluster_id":"c1","created_s":1.0}')])
    lineage = read_lineage(meta)
    assert (lineage.cluster_id, lineage.incarnation, lineage.base, lineage.frozen) == ("c1", "", 0, None)
    assert put(catalog).version == meta.revision()


def test_a_record_that_cannot_be_read_stops_commits(catalog: MetaCatalog, meta: HookedMeta) -> None:
    meta.txn([], [Put(key=CLUSTER_KEY, value=b"{")])
    with pytest.raises(MetadataCorrupt, match="cluster"):
        put(catalog)
