"""Many names in one call: each is as if it were alone, and together they cost little more."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from client.catalog import MAX_BATCH_ITEMS, Commit
from client.errors import (
    BucketNotFound,
    Conflict,
    InvalidName,
    InvalidRequest,
    MetadataCorrupt,
    MetadataUnavailable,
    ObjectNotFound,
    PreconditionFailed,
    StoreError,
)
from client.record import BucketPolicy, Condition, ObjectInfo, ObjectRecord
from storenode.catalog import MetaCatalog
from storenode.keyspace import bucket_key, object_key, write_key
from storenode.metastore import MAX_GET_KEYS, Change, Put, WouldWait
from tests.support.catalogs import ANY, NEW, Clock, make_catalog, open_meta, put, record, versions, write
from tests.support.hooked_meta import HookedMeta, LossyMeta


@pytest.fixture
def boot_clock() -> Clock:
    return Clock()


@pytest.fixture
def meta(boot_clock: Clock) -> Iterator[HookedMeta]:
    with open_meta(boot_clock=boot_clock) as opened:
        yield opened


@pytest.fixture
def catalog(meta: HookedMeta) -> MetaCatalog:
    return make_catalog(meta)


def made(outcomes: Sequence[ObjectInfo | StoreError]) -> list[ObjectInfo]:
    infos = [outcome for outcome in outcomes if isinstance(outcome, ObjectInfo)]
    assert len(infos) == len(outcomes)
    return infos


# Writing many


def test_many_writes_are_one_read_and_one_commit(catalog: MetaCatalog, meta: HookedMeta) -> None:
    put(catalog, "old")
    meta.calls.clear()
    infos = made(catalog.commit_many([write("old"), *(write(f"k{n}") for n in range(100))]))
    assert (meta.calls["get_many"], meta.calls["txn_many"], meta.calls["get"]) == (1, 1, 0)
    assert [info.key for info in infos] == ["old", *(f"k{n}" for n in range(100))]
    assert infos == [catalog.lookup("data", info.key) for info in infos]


def test_more_writes_than_one_call_takes_go_in_several(catalog: MetaCatalog, meta: HookedMeta) -> None:
    meta.calls.clear()
    num_writes = MAX_GET_KEYS // 2 + 1  # Each write reads two keys of its own.
    assert len(made(catalog.commit_many([write(f"k{n}") for n in range(num_writes)]))) == num_writes
    assert meta.calls["txn_many"] == -(-num_writes // MAX_BATCH_ITEMS)
    assert len(catalog.lookup_many([("data", f"k{n}") for n in range(MAX_GET_KEYS + 1)])) == MAX_GET_KEYS + 1


def test_more_bytes_than_one_call_takes_go_in_several(catalog: MetaCatalog, meta: HookedMeta) -> None:
    # Each lies at its key and in its marker.
    large = [write(f"k{n}", write_id=f"w{n}") for n in range(20)]
    large = [Commit(bucket="data", key=item.key, record=record_of_bytes(item.record.write_id, 500_000)) for item in large]
    meta.calls.clear()
    assert len(made(catalog.commit_many(large))) == 20
    assert meta.calls["txn_many"] == 2


def record_of_bytes(write_id: str, num_bytes: int) -> ObjectRecord:
    return replace(record(write_id=write_id), content_type="x" * num_bytes)


def test_one_bad_write_does_not_hurt_the_others(catalog: MetaCatalog, meta: HookedMeta) -> None:
    put(catalog, "there", write_id="used")
    meta.txn([], [Put(key=object_key("data", "broken"), value=b"{}"), Put(key=bucket_key("ruined"), value=b"{}")])
    outcomes = catalog.commit_many(
        [
            write("before"),
            write("a//b"),
            write("there", condition=NEW),
            write("k", bucket="none"),
            write("k", bucket="ruined"),
            write("broken"),
            write("other", write_id="used"),
            Commit(bucket="data", key="k", record=record(tombstone=True)),
            write("after"),
        ]
    )
    kinds = [ObjectInfo, InvalidName, PreconditionFailed, BucketNotFound, MetadataCorrupt, MetadataCorrupt, InvalidRequest]
    assert [type(outcome) for outcome in outcomes] == [*kinds, InvalidRequest, ObjectInfo]
    assert {key for key, _, _ in versions(catalog, "a")} == {"after"}


def test_writes_to_one_key_happen_in_their_order(catalog: MetaCatalog) -> None:
    catalog.set_bucket("data", BucketPolicy(versions=10))
    writes = [
        write(write_id="w1", condition=NEW),
        write("other"),
        write(write_id="w2", condition=NEW),
        write(write_id="w3", condition=Condition(if_match="w1")),
        write(write_id="w1", condition=NEW),
        write(write_id="w4", condition=Condition(if_match="w3")),
    ]
    outcomes = catalog.commit_many(writes)
    assert isinstance(outcomes[2], PreconditionFailed)
    infos = made([*outcomes[:2], *outcomes[3:]])
    assert [info.etag for info in infos if info.key == "k"] == ["w1", "w3", "w1", "w4"]
    shown = catalog.list("data", prefix="k", delimiter="", cursor=None, limit=10, versions=True).objects
    assert [info.etag for info in shown] == ["w4", "w3", "w1"]


def test_the_same_writes_again_get_their_first_answers(catalog: MetaCatalog, meta: HookedMeta) -> None:
    put(catalog, "taken")
    writes = [write(f"k{n}", condition=NEW) for n in range(5)] + [write("taken", condition=NEW)]
    first = catalog.commit_many(writes)
    catalog.delete("data", "taken", write_id="gone", condition=ANY)
    put(catalog, "k0")
    again = catalog.commit_many(writes)
    assert again[:5] == first[:5]
    assert isinstance(first[5], PreconditionFailed)
    assert str(again[5]) == str(first[5])


def test_only_those_that_lost_a_race_are_decided_anew(catalog: MetaCatalog, meta: HookedMeta) -> None:
    txns: list[str] = []

    def somebody_is_faster(changes: Sequence[Change]) -> None:
        txns.append(changes[0].key)
        if len(txns) == 1:
            put(catalog, "k1", write_id="faster")

    meta.before_txn = somebody_is_faster
    outcomes = catalog.commit_many([write(f"k{n}", condition=NEW) for n in range(3)])
    assert [type(outcome) for outcome in outcomes] == [ObjectInfo, PreconditionFailed, ObjectInfo]
    assert txns.count(object_key("data", "k0")) == txns.count(object_key("data", "k2")) == 1
    assert catalog.lookup("data", "k1").etag == "faster"


def test_who_loses_every_race_takes_those_behind_it_along_and_no_others(catalog: MetaCatalog, meta: HookedMeta) -> None:
    def somebody_is_faster(changes: Sequence[Change]) -> None:
        if any(change.key == write_key("slow") for change in changes):
            put(catalog)

    meta.before_txn = somebody_is_faster
    outcomes = catalog.commit_many([write(write_id="slow"), write("other"), write(write_id="behind")])
    assert [type(outcome) for outcome in outcomes] == [Conflict, ObjectInfo, Conflict]
    assert catalog.lookup("data", "k").etag not in ("slow", "behind")


def test_many_writes_reopen_a_bucket_that_is_being_deleted(catalog: MetaCatalog, meta: HookedMeta) -> None:
    def writes_come_first(changes: Sequence[Change]) -> None:
        if changes[0].key == bucket_key("data") and not isinstance(changes[0], Put):
            meta.before_txn = lambda _: None
            made(catalog.commit_many([write(f"k{n}") for n in range(3)]))

    meta.before_txn = writes_come_first
    with pytest.raises(StoreError, match="holds 'k0'"):
        catalog.delete_bucket("data")
    assert len(versions(catalog)) == 3


def test_many_writes_take_a_new_lease_when_the_engine_lost_the_old_one(
    catalog: MetaCatalog, meta: HookedMeta, boot_clock: Clock
) -> None:
    put(catalog)
    boot_clock.now_s += 1000.0
    writes = [write(f"k{n}") for n in range(3)]
    assert catalog.commit_many(writes) == made(catalog.commit_many(writes))


def test_writes_whose_reply_was_lost_happen_once(meta: HookedMeta) -> None:
    lossy = LossyMeta(meta, seed=3, lost=0.0)
    catalog = make_catalog(lossy)
    catalog.set_bucket("data", BucketPolicy(versions=100))
    lossy._lost = 0.5
    for n in range(20):
        writes = [write(write_id=f"w{n}-{i}") for i in range(2)]
        while True:
            try:
                made(catalog.commit_many(writes))
                break
            except MetadataUnavailable:
                continue
    lossy._lost = 0.0
    shown = catalog.list("data", prefix="", delimiter="", cursor=None, limit=100, versions=True).objects
    assert [info.etag for info in reversed(shown)] == [f"w{n}-{i}" for n in range(20) for i in range(2)]


def test_of_racing_batches_one_wins_each_key_and_knows_it(catalog: MetaCatalog) -> None:
    keys = [f"k{n}" for n in range(30)]

    def race(racer: int) -> list[str]:
        mine = keys[racer:] + keys[:racer]
        outcomes = catalog.commit_many([write(key, write_id=f"{racer}-{key}", condition=NEW) for key in mine])
        assert all(isinstance(outcome, (ObjectInfo, PreconditionFailed)) for outcome in outcomes)
        return [outcome.etag for outcome in outcomes if isinstance(outcome, ObjectInfo)]

    with ThreadPoolExecutor(8) as threads:
        won = [etag for etags in threads.map(race, range(8)) for etag in etags]
    assert sorted(won) == sorted(info.etag for info in made(catalog.lookup_many([("data", key) for key in keys])))


# Reading many


def test_many_names_are_looked_up_at_once_with_errors_in_their_places(catalog: MetaCatalog, meta: HookedMeta) -> None:
    first, second = put(catalog, "a"), put(catalog, "b")
    catalog.set_bucket("data", BucketPolicy(versions=1))
    put(catalog, "deleted")
    catalog.delete("data", "deleted", write_id="w", condition=ANY)
    meta.txn([], [Put(key=object_key("data", "broken"), value=b"{}")])
    names = [
        ("data", "b"),
        ("data", "absent"),
        ("none", "a"),
        ("data", "../a"),
        ("data", "deleted"),
        ("data", "broken"),
        ("data", "a"),
    ]
    found = catalog.lookup_many(names)
    kinds = [ObjectNotFound, BucketNotFound, InvalidName, ObjectNotFound, MetadataCorrupt]
    assert (found[0], found[-1]) == (second, first)
    assert [type(error) for error in found[1:-1]] == kinds
    meta.calls.clear()
    assert catalog.lookup_many([("data", "a"), ("data", "b")]) == [first, second]
    assert meta.calls == {"get_many": 1}


def test_a_lookup_at_once_answers_for_what_is_there_and_for_nothing_else(catalog: MetaCatalog, meta: HookedMeta) -> None:
    catalog.set_bucket("data", BucketPolicy(versions=1))
    info = put(catalog)
    meta.calls.clear()
    assert catalog.lookup_now("data", "k") == info
    assert meta.calls == {"get_now": 1}
    catalog.delete("data", "k", write_id="w", condition=ANY)
    for bucket, key in (("data", "k"), ("data", "absent"), ("none", "k")):
        with pytest.raises(WouldWait):
            catalog.lookup_now(bucket, key)
    with pytest.raises(InvalidName):
        catalog.lookup_now("data", "../k")
