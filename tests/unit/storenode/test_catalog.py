"""Writes by name: conditions, repeats and races."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest

from client.catalog import Commit
from client.errors import (
    BucketNotFound,
    Conflict,
    InvalidName,
    InvalidRequest,
    MetadataCorrupt,
    ObjectNotFound,
    PreconditionFailed,
    StoreError,
)
from client.record import BucketPolicy, Condition, ObjectInfo
from storenode.catalog import MetaCatalog
from storenode.keyspace import bucket_key, object_key, write_key
from storenode.metastore import Change, Put
from tests.support.catalogs import ANY, NEW, Clock, make_catalog, open_meta, put, record, retried, versions
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


# Writing and reading


def test_commit_is_seen_by_lookup_and_its_version_is_its_revision(catalog: MetaCatalog, meta: HookedMeta) -> None:
    first, second = put(catalog), put(catalog)
    assert catalog.lookup("data", "k") == second
    assert second.version > first.version
    item = meta.get(object_key("data", "k"))
    assert item is not None
    assert item.mod_revision == second.version


def test_unknown_bucket_names_the_command_that_creates_it(catalog: MetaCatalog) -> None:
    calls: list[Callable[[], object]] = [
        lambda: catalog.bucket("none"),
        lambda: catalog.lookup("none", "k"),
        lambda: catalog.commit(Commit(bucket="none", key="k", record=record())),
        lambda: catalog.delete("none", "k", write_id="w", condition=ANY),
        lambda: catalog.list("none", prefix="", delimiter="", cursor=None, limit=1, versions=False),
        lambda: catalog.watch("none", prefix="", after=None, timeout_s=0.0),
        lambda: catalog.set_bucket("none", BucketPolicy()),
        lambda: catalog.delete_bucket("none"),
    ]
    for call in calls:
        with pytest.raises(BucketNotFound, match="`forebay bucket create none`"):
            call()


def test_unknown_key_and_unknown_version_are_not_found(catalog: MetaCatalog) -> None:
    info = put(catalog)
    with pytest.raises(ObjectNotFound, match="no object data/other"):
        catalog.lookup("data", "other")
    with pytest.raises(ObjectNotFound, match="no version"):
        catalog.lookup("data", "k", version=info.version + 1)
    assert catalog.lookup("data", "k", version=info.version) == info


@pytest.mark.parametrize("key", ["../x", "a//b", "", "a\x00b", "a\nb", "x" * 1025, "a\ud800"])
def test_bad_keys_are_refused_before_anything_is_read(catalog: MetaCatalog, meta: HookedMeta, key: str) -> None:
    meta.calls.clear()
    with pytest.raises(InvalidName):
        catalog.commit(Commit(bucket="data", key=key, record=record()))
    with pytest.raises(InvalidName):
        catalog.lookup("data", key)
    assert not meta.calls


def test_a_committed_tombstone_is_refused(catalog: MetaCatalog) -> None:
    with pytest.raises(InvalidRequest, match="delete the object"):
        catalog.commit(Commit(bucket="data", key="k", record=record(tombstone=True)))


def test_records_that_do_not_decode_name_their_key(catalog: MetaCatalog, meta: HookedMeta) -> None:
    for value in (b"no json", b"[]", b"{}", b'{"policy": {"replicas": "x"}, "closing": false}'):
        meta.txn([], [Put(key=object_key("data", "k"), value=value)])
        with pytest.raises(MetadataCorrupt, match="obj/data/k"):
            catalog.lookup("data", "k")
        meta.txn([], [Put(key=bucket_key("broken"), value=value)])
        with pytest.raises(MetadataCorrupt, match="bucket/broken"):
            catalog.bucket("broken")


# Conditions


def test_if_none_match_any_succeeds_once(catalog: MetaCatalog) -> None:
    first = put(catalog, condition=NEW)
    with pytest.raises(PreconditionFailed, match=f"If-None-Match '\\*' was asked for, but it has ETag '{first.etag}'"):
        put(catalog, condition=NEW)
    assert catalog.lookup("data", "k") == first


def test_if_match_needs_the_current_etag(catalog: MetaCatalog) -> None:
    first = put(catalog)
    second = put(catalog, condition=Condition(if_match=first.etag))
    with pytest.raises(PreconditionFailed, match=f"If-Match '{first.etag}' was asked for, but it has ETag '{second.etag}'"):
        put(catalog, condition=Condition(if_match=first.etag))
    with pytest.raises(PreconditionFailed, match="but there is no such object"):
        put(catalog, "other", condition=Condition(if_match="*"))


def test_delete_obeys_its_condition(catalog: MetaCatalog) -> None:
    info = put(catalog)
    with pytest.raises(PreconditionFailed):
        catalog.delete("data", "k", write_id="w1", condition=Condition(if_match="else"))
    catalog.delete("data", "k", write_id="w2", condition=Condition(if_match=info.etag))
    with pytest.raises(ObjectNotFound):
        catalog.lookup("data", "k")
    with pytest.raises(ObjectNotFound):
        catalog.delete("data", "k", write_id="w3", condition=ANY)


# Repeats


def test_repeat_returns_the_first_result_even_after_others_have_written(catalog: MetaCatalog) -> None:
    first = put(catalog, write_id="mine", condition=NEW)
    put(catalog)
    assert put(catalog, write_id="mine", condition=NEW) == first
    assert catalog.lookup("data", "k").etag != "mine"


def test_repeat_through_another_node_returns_the_first_result(catalog: MetaCatalog, meta: HookedMeta) -> None:
    first = put(catalog, write_id="mine", condition=NEW)
    assert put(make_catalog(meta), write_id="mine", condition=NEW) == first


def test_repeated_delete_does_not_remove_what_was_written_since(catalog: MetaCatalog) -> None:
    put(catalog)
    catalog.delete("data", "k", write_id="w", condition=ANY)
    later = put(catalog)
    catalog.delete("data", "k", write_id="w", condition=ANY)
    assert catalog.lookup("data", "k") == later


def test_refused_write_stays_refused_when_its_condition_comes_true(catalog: MetaCatalog) -> None:
    other = put(catalog)
    with pytest.raises(PreconditionFailed) as told:
        put(catalog, write_id="mine", condition=NEW)
    catalog.delete("data", "k", write_id="w", condition=Condition(if_match=other.etag))
    # The first request of "mine", held up somewhere, arrives only now.
    with pytest.raises(PreconditionFailed) as late:
        put(catalog, write_id="mine", condition=NEW)
    assert late.value.message == told.value.message
    with pytest.raises(ObjectNotFound):
        catalog.lookup("data", "k")


def test_refused_delete_stays_refused_when_the_object_comes_to_be(catalog: MetaCatalog) -> None:
    with pytest.raises(ObjectNotFound):
        catalog.delete("data", "k", write_id="w", condition=ANY)
    info = put(catalog)
    with pytest.raises(ObjectNotFound):
        catalog.delete("data", "k", write_id="w", condition=ANY)
    assert catalog.lookup("data", "k") == info


def test_a_write_id_is_good_for_one_write_only(catalog: MetaCatalog) -> None:
    put(catalog, write_id="mine")
    with pytest.raises(InvalidRequest, match="asks to put data/other, but was used to put data/k"):
        put(catalog, "other", write_id="mine")
    with pytest.raises(InvalidRequest, match="asks to delete data/k, but was used to put data/k"):
        catalog.delete("data", "k", write_id="mine", condition=ANY)


def test_repeat_that_overtakes_its_own_first_request_learns_that_it_won(catalog: MetaCatalog, meta: HookedMeta) -> None:
    firsts: list[ObjectInfo] = []

    def first_request_gets_through(changes: Sequence[Change]) -> None:
        meta.before_txn = lambda _: None
        firsts.append(put(catalog, write_id="mine", condition=NEW))

    # The repeat has found neither a marker nor an object, and is about to write.
    meta.before_txn = first_request_gets_through
    assert [put(catalog, write_id="mine", condition=NEW)] == firsts


def test_refusal_that_overtakes_its_own_first_request_learns_that_it_won(catalog: MetaCatalog, meta: HookedMeta) -> None:
    firsts: list[ObjectInfo] = []
    other = put(catalog)

    def first_request_gets_through(changes: Sequence[Change]) -> None:
        meta.before_txn = lambda _: None
        catalog.delete("data", "k", write_id="w", condition=Condition(if_match=other.etag))
        firsts.append(put(catalog, write_id="mine", condition=NEW))

    # The repeat has found the condition false and is about to leave the marker that says so.
    meta.before_txn = first_request_gets_through
    assert [put(catalog, write_id="mine", condition=NEW)] == firsts


def test_write_whose_reply_was_lost_is_done_once(meta: HookedMeta) -> None:
    lossy = LossyMeta(meta, seed=1, lost=0.0)
    catalog = make_catalog(lossy)
    catalog.set_bucket("data", BucketPolicy(versions=10))
    lossy._lost = 0.5
    for number in range(30):
        retried(lambda number=number: put(catalog, write_id=f"w{number}"))  # type: ignore[misc]
    lossy._lost = 0.0
    assert len(versions(catalog)) == 11
    assert catalog.lookup("data", "k").etag == "w29"


def test_markers_of_a_window_share_one_lease(meta: HookedMeta) -> None:
    clock = Clock()
    catalog = make_catalog(meta, monotonic=clock)
    for number in range(5):
        put(catalog, f"k{number}")
    assert meta.calls["grant"] == 1
    clock.now_s += 60.0
    put(catalog)
    assert meta.calls["grant"] == 2


def test_marker_outlives_its_ttl_whenever_in_its_window_it_was_put(meta: HookedMeta, boot_clock: Clock) -> None:
    clock = Clock()
    catalog = make_catalog(meta, monotonic=clock)
    put(catalog, "early", write_id="early")
    clock.now_s += 59.9
    boot_clock.now_s += 59.9
    put(catalog, "late", write_id="late")
    boot_clock.now_s += 60.0
    assert meta.get(write_key("late")) is not None
    boot_clock.now_s += 61.0
    assert meta.get(write_key("early")) is meta.get(write_key("late")) is None


def test_catalog_takes_a_new_lease_when_the_engine_lost_the_old_one(
    catalog: MetaCatalog, meta: HookedMeta, boot_clock: Clock
) -> None:
    put(catalog)
    boot_clock.now_s += 1000.0  # The machine was suspended; the catalog's own clock stood still.
    info = put(catalog, write_id="mine")
    assert put(catalog, write_id="mine") == info


# Races


def race(racers: Sequence[Callable[[], ObjectInfo]]) -> list[ObjectInfo | StoreError]:
    """Run all racers over 8 threads, each until it knows its outcome."""

    def run(racer: Callable[[], ObjectInfo]) -> ObjectInfo | StoreError:
        try:
            return retried(racer)
        except PreconditionFailed as error:
            return error

    with ThreadPoolExecutor(8) as threads:
        return list(threads.map(run, racers))


@pytest.mark.parametrize("kind", ["if_none_match", "if_match"])
def test_of_a_thousand_racers_with_lost_replies_one_for_each_key_wins_and_knows_it(meta: HookedMeta, kind: str) -> None:
    num_keys, num_racers = 40, 25
    lossy = LossyMeta(meta, seed=2, lost=0.0)
    catalog = make_catalog(lossy)
    conditions = {f"k{number}": NEW for number in range(num_keys)}
    if kind == "if_match":
        conditions = {key: Condition(if_match=put(catalog, key).etag) for key in conditions}
    names = [(key, f"w{racer}-{key}") for racer in range(num_racers) for key in conditions]
    lossy._lost = 0.25
    outcomes = race(
        [
            lambda key=key, write_id=write_id: put(catalog, key, write_id=write_id, condition=conditions[key])  # type: ignore[misc]
            for key, write_id in names
        ]
    )
    lossy._lost = 0.0
    won = [info for info in outcomes if isinstance(info, ObjectInfo)]
    assert len(won) == num_keys
    assert {info.key: info for info in won} == {key: catalog.lookup("data", key) for key in conditions}
    assert all((info.key, info.etag) in names for info in won)
    # And every loser is told the same when it asks again.
    losers = [name for name, outcome in zip(names, outcomes, strict=True) if not isinstance(outcome, ObjectInfo)]
    for key, write_id in losers[:: num_racers - 1]:
        with pytest.raises(PreconditionFailed):
            put(catalog, key, write_id=write_id, condition=conditions[key])


def test_unconditional_writers_all_succeed_and_none_is_lost(catalog: MetaCatalog) -> None:
    catalog.set_bucket("data", BucketPolicy(versions=1000))
    with ThreadPoolExecutor(8) as threads:
        infos = list(threads.map(lambda number: put(catalog, write_id=f"w{number}"), range(120)))
    assert sorted(info.version for info in infos) == sorted(version for _, version, _ in versions(catalog))


def test_write_that_loses_every_race_is_a_conflict(catalog: MetaCatalog, meta: HookedMeta) -> None:
    def somebody_is_faster(changes: Sequence[Change]) -> None:
        if any(change.key == write_key("mine") for change in changes):
            put(catalog)

    meta.before_txn = somebody_is_faster
    with pytest.raises(Conflict, match="data/k"):
        put(catalog, write_id="mine")
