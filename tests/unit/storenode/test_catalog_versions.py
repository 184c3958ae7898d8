"""What a write does to older versions, and what a watch tells of it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from client.errors import (
    InvalidRequest,
    ObjectNotFound,
)
from client.record import BucketPolicy
from storenode.catalog import MetaCatalog
from storenode.history import MAX_PRUNED
from tests.support.catalogs import ANY, NEW, make_catalog, open_meta, put, versions
from tests.support.hooked_meta import HookedMeta


@pytest.fixture
def meta() -> Iterator[HookedMeta]:
    with open_meta() as opened:
        yield opened


@pytest.fixture
def catalog(meta: HookedMeta) -> MetaCatalog:
    return make_catalog(meta)


# Versions


def test_bucket_keeps_as_many_older_versions_as_it_says(catalog: MetaCatalog) -> None:
    catalog.set_bucket("data", BucketPolicy(versions=2))
    infos = [put(catalog) for _ in range(5)]
    assert [version for _, version, _ in versions(catalog)] == [info.version for info in reversed(infos[2:])]
    assert catalog.lookup("data", "k", version=infos[3].version) == infos[3]
    with pytest.raises(ObjectNotFound):
        catalog.lookup("data", "k", version=infos[1].version)


def test_delete_with_versions_leaves_a_tombstone_that_hides_the_object(catalog: MetaCatalog) -> None:
    catalog.set_bucket("data", BucketPolicy(versions=5))
    info = put(catalog)
    catalog.delete("data", "k", write_id="w", condition=ANY)
    with pytest.raises(ObjectNotFound):
        catalog.lookup("data", "k")
    assert catalog.lookup("data", "k", version=info.version) == info
    assert [tombstone for _, _, tombstone in versions(catalog)] == [True, False]
    with pytest.raises(ObjectNotFound):
        catalog.delete("data", "k", write_id="w2", condition=ANY)
    put(catalog, condition=NEW)
    assert [tombstone for _, _, tombstone in versions(catalog)] == [False, True, False]


def test_policy_that_keeps_fewer_prunes_a_bounded_number_with_each_write(catalog: MetaCatalog) -> None:
    catalog.set_bucket("data", BucketPolicy(versions=1000))
    count = 2 * MAX_PRUNED + 10
    for _ in range(count):
        put(catalog)
    catalog.set_bucket("data", BucketPolicy(versions=0))
    left = []
    for _ in range(3):
        put(catalog)
        left.append(len(versions(catalog)))
    assert left == [count - MAX_PRUNED, count - 2 * MAX_PRUNED, 1]


def test_delete_that_can_not_prune_all_at_once_leaves_the_rest_reachable(catalog: MetaCatalog) -> None:
    catalog.set_bucket("data", BucketPolicy(versions=1000))
    for _ in range(MAX_PRUNED + 5):
        put(catalog)
    catalog.set_bucket("data", BucketPolicy(versions=0))
    catalog.delete("data", "k", write_id="w", condition=ANY)
    assert [tombstone for _, _, tombstone in versions(catalog)] == [True] + 4 * [False]
    put(catalog)
    assert len(versions(catalog)) == 1


# Watching


def test_watch_tells_changes_in_their_order_and_where_to_go_on(catalog: MetaCatalog) -> None:
    begin = catalog.watch("data", prefix="", after=None, timeout_s=0.0)
    assert begin.changes == ()
    catalog.set_bucket("data", BucketPolicy(versions=3))
    first, second = put(catalog, "a/1"), put(catalog, "b/1")
    catalog.delete("data", "a/1", write_id="w", condition=ANY)
    watched = catalog.watch("data", prefix="", after=begin.revision, timeout_s=0.0)
    assert watched.changes == (("a/1", first), ("b/1", second), ("a/1", None))
    assert catalog.watch("data", prefix="b/", after=begin.revision, timeout_s=0.0).changes == (("b/1", second),)
    assert catalog.watch("data", prefix="", after=watched.revision, timeout_s=0.0).changes == ()


def test_watch_tells_a_removal_where_nothing_is_kept(catalog: MetaCatalog) -> None:
    info = put(catalog)
    catalog.delete("data", "k", write_id="w", condition=ANY)
    assert catalog.watch("data", prefix="", after=info.version, timeout_s=0.0).changes == (("k", None),)


def test_watch_from_a_revision_that_does_not_exist_is_refused(catalog: MetaCatalog, meta: HookedMeta) -> None:
    with pytest.raises(InvalidRequest, match="is not one of this cluster"):
        catalog.watch("data", prefix="", after=meta.revision() + 1, timeout_s=0.0)
