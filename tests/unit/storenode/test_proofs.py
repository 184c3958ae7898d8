"""Commits say what holds their chunks in place, and happen only while it does."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import pytest

from client.catalog import MAX_BATCH_ITEMS, Commit, Proof, Source
from client.cluster import Anchor
from client.errors import ObjectNotFound, StaleAnchor
from client.placement import Layout, Layouts, Node
from client.record import BucketPolicy, ObjectInfo
from client.write_id import new_write_id
from storenode.catalog import MetaCatalog
from storenode.layouts import change_epoch, change_layouts, create_layout, read_anchor, read_layouts
from storenode.metastore import Change
from tests.support.catalogs import make_catalog, open_meta, put, write
from tests.support.hooked_meta import HookedMeta

FIRST = Layout(version=1, partitions=16, nodes=(Node(id="a"),))


@pytest.fixture
def meta() -> Iterator[HookedMeta]:
    with open_meta() as meta:
        create_layout(meta, FIRST)
        yield meta


@pytest.fixture
def catalog(meta: HookedMeta) -> MetaCatalog:
    return make_catalog(meta)


def to_epoch(meta: HookedMeta, epoch: int) -> None:
    assert change_epoch(meta, read_anchor(meta), epoch=epoch) is not None


def to_layout(meta: HookedMeta, version: int) -> None:
    found = read_layouts(meta)
    assert found is not None
    assert change_layouts(meta, found, Layouts(current=replace(FIRST, version=version), older=(FIRST,))) is not None


def proven(proof: Proof, *, key: str = "k", write_id: str = "") -> Commit:
    return replace(write(key, write_id=write_id), proof=proof)


def copied(info: ObjectInfo, to_key: str) -> Commit:
    source = Source(bucket=info.bucket, key=info.key, version=info.version)
    return Commit(bucket="data", key=to_key, record=replace(info.record, write_id=new_write_id()), proof=source)


@pytest.mark.parametrize(("epoch", "anchor", "holds"), [(4, 4, True), (5, 4, True), (6, 4, False), (4, 6, False)])
def test_an_anchor_holds_for_its_epoch_and_the_next(
    meta: HookedMeta, catalog: MetaCatalog, epoch: int, anchor: int, *, holds: bool
) -> None:
    to_epoch(meta, epoch)
    (outcome,) = catalog.commit_many([proven(Anchor(layout=1, epoch=anchor))])
    assert isinstance(outcome, ObjectInfo if holds else StaleAnchor)


def test_an_anchor_holds_under_its_layout_alone(meta: HookedMeta, catalog: MetaCatalog) -> None:
    to_layout(meta, 2)
    with pytest.raises(StaleAnchor, match=r"under layout 1 in epoch 0, and the cluster is at layout 2"):
        catalog.commit(proven(Anchor(layout=1, epoch=0)))
    catalog.commit(proven(Anchor(layout=2, epoch=0)))


def test_a_stale_write_is_not_decided_and_may_happen_under_its_id_later(meta: HookedMeta, catalog: MetaCatalog) -> None:
    to_epoch(meta, 2)
    with pytest.raises(StaleAnchor):
        catalog.commit(proven(Anchor(layout=1, epoch=0), write_id="w"))
    info = catalog.commit(proven(Anchor(layout=1, epoch=2), write_id="w"))
    # A repeat of the first request, which was held up somewhere, is answered as the write that it is.
    assert catalog.commit(proven(Anchor(layout=1, epoch=0), write_id="w")) == info


def once(meta: HookedMeta, act: Callable[[], object]) -> None:
    """Do something right before the next transaction."""

    def hook(changes: Sequence[Change]) -> None:
        meta.before_txn = lambda changes: None
        act()

    meta.before_txn = hook


@pytest.mark.parametrize("change", [to_epoch, to_layout])
def test_what_changes_between_decision_and_commit_is_noticed(
    meta: HookedMeta, catalog: MetaCatalog, change: Callable[[HookedMeta, int], None]
) -> None:
    once(meta, lambda: change(meta, 2))
    with pytest.raises(StaleAnchor):
        catalog.commit(proven(Anchor(layout=1, epoch=0)))
    with pytest.raises(ObjectNotFound):
        catalog.lookup("data", "k")


def test_a_copy_needs_its_source(catalog: MetaCatalog) -> None:
    info = put(catalog, "k")
    assert catalog.commit(copied(info, "copy")).record.content == info.record.content
    catalog.delete("data", "k", write_id="gone", condition=write().condition)
    with pytest.raises(ObjectNotFound, match=f"no version {info.version}"):
        catalog.commit(copied(info, "late"))


def test_a_source_that_was_moved_aside_is_one_still(catalog: MetaCatalog) -> None:
    catalog.set_bucket("data", BucketPolicy(versions=1))
    info = put(catalog, "k")
    put(catalog, "k")
    catalog.commit(copied(info, "copy"))
    put(catalog, "k")
    with pytest.raises(ObjectNotFound):
        catalog.commit(copied(info, "late"))


def test_a_source_may_be_what_is_replaced(catalog: MetaCatalog) -> None:
    info = put(catalog, "k")
    newer = catalog.commit(copied(info, "k"))
    assert catalog.lookup("data", "k") == newer
    assert newer.version > info.version


def test_a_source_has_the_content_that_is_taken_from_it(catalog: MetaCatalog) -> None:
    info = put(catalog, "k")
    forged = copied(info, "copy")
    content = replace(forged.record.content, digest="e" * 64)
    with pytest.raises(ObjectNotFound, match="with this content"):
        catalog.commit(replace(forged, record=replace(forged.record, content=content)))


def test_a_source_that_goes_between_decision_and_commit_is_noticed(meta: HookedMeta, catalog: MetaCatalog) -> None:
    info = put(catalog, "k")
    once(meta, lambda: catalog.delete("data", "k", write_id="gone", condition=write().condition))
    with pytest.raises(ObjectNotFound):
        catalog.commit(copied(info, "copy"))


def test_as_many_copies_as_fit_a_request_are_decided(catalog: MetaCatalog) -> None:
    info = put(catalog, "k")
    outcomes = catalog.commit_many([copied(info, f"copy-{number}") for number in range(MAX_BATCH_ITEMS)])
    assert all(isinstance(outcome, ObjectInfo) for outcome in outcomes)
