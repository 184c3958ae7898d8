"""Buckets: made, changed, and deleted while others write."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest

from client.errors import (
    BucketExists,
    BucketNotEmpty,
    BucketNotFound,
    Conflict,
    MetadataUnavailable,
)
from client.record import BucketPolicy, ObjectInfo
from storenode.catalog import MetaCatalog
from storenode.history import MAX_PRUNED
from storenode.metastore import Change, Put
from tests.support.catalogs import ANY, make_catalog, open_meta, put, versions
from tests.support.hooked_meta import HookedMeta


@pytest.fixture
def meta() -> Iterator[HookedMeta]:
    with open_meta() as opened:
        yield opened


@pytest.fixture
def catalog(meta: HookedMeta) -> MetaCatalog:
    return make_catalog(meta)


def test_bucket_creation_is_repeatable_and_never_changes_a_policy(catalog: MetaCatalog) -> None:
    catalog.create_bucket("data", BucketPolicy())
    with pytest.raises(BucketExists, match="'replicas': 3"):
        catalog.create_bucket("data", BucketPolicy(replicas=1))
    assert catalog.bucket("data") == BucketPolicy()


def test_buckets_lists_all_policies(catalog: MetaCatalog) -> None:
    policies = {f"bucket-{number:03}": BucketPolicy(versions=number) for number in range(300)}
    for name, policy in policies.items():
        catalog.create_bucket(name, policy)
    assert catalog.buckets() == {**policies, "data": BucketPolicy()}


def test_bucket_with_objects_is_not_deleted(catalog: MetaCatalog, meta: HookedMeta) -> None:
    put(catalog)
    before = meta.revision()
    with pytest.raises(BucketNotEmpty, match="'k'"):
        catalog.delete_bucket("data")
    assert meta.revision() == before


def test_bucket_that_keeps_versions_is_kept_by_them(catalog: MetaCatalog) -> None:
    catalog.set_bucket("data", BucketPolicy(versions=200))
    for number in range(150):
        put(catalog, f"k{number % 2}")
    for key in ("k0", "k1"):
        catalog.delete("data", key, write_id=f"d-{key}", condition=ANY)
    with pytest.raises(BucketNotEmpty, match="--versions 0"):
        catalog.delete_bucket("data")
    catalog.set_bucket("data", BucketPolicy(versions=0))
    catalog.delete_bucket("data")
    catalog.create_bucket("data", BucketPolicy())
    assert versions(catalog) == []


def test_write_just_before_a_bucket_is_marked_keeps_the_bucket(catalog: MetaCatalog, meta: HookedMeta) -> None:
    def write_meanwhile(changes: Sequence[Change]) -> None:
        meta.before_txn = lambda _: None
        put(catalog)

    meta.before_txn = write_meanwhile  # Found empty, not marked yet.
    with pytest.raises(BucketNotEmpty):
        catalog.delete_bucket("data")
    catalog.lookup("data", "k")


def test_write_between_the_steps_of_a_bucket_deletion_keeps_the_bucket(catalog: MetaCatalog, meta: HookedMeta) -> None:
    steps: list[ObjectInfo] = []

    def write_meanwhile(changes: Sequence[Change]) -> None:
        if not isinstance(changes[0], Put):
            meta.before_txn = lambda _: None
            steps.append(put(catalog))

    meta.before_txn = write_meanwhile
    with pytest.raises(BucketNotEmpty):
        catalog.delete_bucket("data")
    assert [catalog.lookup("data", "k")] == steps


def test_write_decided_before_a_bucket_deletion_does_not_outlive_it(catalog: MetaCatalog, meta: HookedMeta) -> None:
    def delete_meanwhile(changes: Sequence[Change]) -> None:
        meta.before_txn = lambda _: None
        catalog.delete_bucket("data")

    meta.before_txn = delete_meanwhile
    with pytest.raises(BucketNotFound):
        put(catalog)
    catalog.create_bucket("data", BucketPolicy())
    assert versions(catalog) == []


def test_bucket_works_after_its_deletion_was_broken_off(catalog: MetaCatalog, meta: HookedMeta) -> None:
    def die(changes: Sequence[Change]) -> None:
        if not isinstance(changes[0], Put):
            raise MetadataUnavailable("died")

    meta.before_txn = die
    with pytest.raises(MetadataUnavailable):
        catalog.delete_bucket("data")
    meta.before_txn = lambda _: None
    assert catalog.bucket("data") == BucketPolicy()
    info = put(catalog)
    assert catalog.lookup("data", "k") == info
    with pytest.raises(BucketNotEmpty):
        catalog.delete_bucket("data")


def test_purge_that_is_interrupted_by_a_write_keeps_its_counts_right(catalog: MetaCatalog, meta: HookedMeta) -> None:
    catalog.set_bucket("data", BucketPolicy(versions=1000))
    for _ in range(3 * MAX_PRUNED):
        put(catalog)
    catalog.delete("data", "k", write_id="d", condition=ANY)
    catalog.set_bucket("data", BucketPolicy(versions=0))
    purged = 0

    def write_meanwhile(changes: Sequence[Change]) -> None:
        nonlocal purged
        purged += not isinstance(changes[0], Put)
        if purged == 2:
            meta.before_txn = lambda _: None
            put(catalog, "other")

    meta.before_txn = write_meanwhile
    with pytest.raises(BucketNotEmpty):
        catalog.delete_bucket("data")
    assert len(versions(catalog, "k")) == 1 + 2 * MAX_PRUNED
    catalog.set_bucket("data", BucketPolicy(versions=2 * MAX_PRUNED))
    put(catalog)
    assert len(versions(catalog, "k")) == 1 + 2 * MAX_PRUNED


def test_creators_and_deleters_of_a_bucket_leave_it_whole_or_gone(catalog: MetaCatalog) -> None:
    stop = threading.Event()
    acknowledged: list[ObjectInfo] = []

    def write(worker: int) -> None:
        number = 0
        while not stop.is_set():
            number += 1
            try:
                catalog.create_bucket("data", BucketPolicy())
                acknowledged.append(put(catalog, f"{worker}-{number}"))
            except (BucketNotFound, Conflict):
                continue

    with ThreadPoolExecutor(3) as threads:
        writers = [threads.submit(write, worker) for worker in range(2)]
        for _ in range(40):
            try:
                catalog.delete_bucket("data")
            except (BucketNotEmpty, BucketNotFound, Conflict):
                continue
        stop.set()
        for writer in writers:
            writer.result()
    assert all(catalog.lookup("data", info.key) == info for info in acknowledged)
