"""Counting copies: every reference times its holders, and nothing that was not seen."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence

import pytest

from client import verify as verify_module
from client.errors import Busy, DiskFailed
from client.health import Health
from client.manifest import Ref
from client.record import ObjectInfo
from client.verify import verify
from tests.support.fake_store import FakeStore

CHUNK = 64 * 1024


@pytest.fixture
def store() -> Iterator[FakeStore]:
    store = FakeStore(num_nodes=4)
    store.buckets.create("demo")
    yield store
    store.close()


def _put(store: FakeStore, key: str, *, chunks: int = 1) -> ObjectInfo:
    return store.put("demo", key, os.urandom(chunks * CHUNK))


def _refs(store: FakeStore, info: ObjectInfo) -> list[Ref]:
    return list(store.reader(info).refs())


def _holders(store: FakeStore, info: ObjectInfo, ref: Ref) -> tuple[str, ...]:
    return store.cluster.layout.replicas(ref.partition, count=info.record.replicas)


def _verify(store: FakeStore) -> Health:
    return verify(store, store.walk("demo", versions=True))


def test_manifests_count_as_chunks(store: FakeStore) -> None:
    _put(store, "small", chunks=8)
    _put(store, "large", chunks=9)  # too many for the record: one manifest
    health = _verify(store)
    assert health.clean
    assert (health.objects, health.chunks, health.copies_expected, health.copies_ok) == (2, 18, 54, 54)


def test_an_object_without_bytes_has_all_its_copies(store: FakeStore) -> None:
    store.put("demo", "empty", b"")
    health = _verify(store)
    assert (health.clean, health.objects, health.chunks) == (True, 1, 0)


def test_each_way_of_lacking_a_copy_is_counted_as_what_it_is(store: FakeStore) -> None:
    info = _put(store, "key", chunks=3)
    missing, corrupt, _ = _refs(store, info)
    del store.fake_chunks.nodes[_holders(store, info, missing)[0]][missing.partition, missing.id]
    for node_id in _holders(store, info, corrupt):
        store.fake_chunks.nodes[node_id][corrupt.partition, corrupt.id] = b"rot"
    health = _verify(store)
    assert (health.copies_ok, health.copies_missing, health.copies_corrupt) == (5, 1, 3)
    (found,) = health.shortfalls
    assert (found.chunks, found.short_chunks, found.least_copies, found.replicas) == (3, 2, 0, 3)


def test_copies_on_a_dead_node_are_unreachable_and_it_is_asked_once(store: FakeStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verify_module, "CALL_REFS", 1)
    info = _put(store, "key", chunks=8)
    store.fake_chunks.down.add("node-1")
    asked = 0

    def count() -> None:
        nonlocal asked
        asked += 1

    store.fake_chunks.before_verify = count
    health = _verify(store)
    on_node_1 = sum("node-1" in _holders(store, info, ref) for ref in _refs(store, info))
    assert health.copies_unreachable == on_node_1 > 1
    assert health.copies_ok == 24 - on_node_1
    assert list(health.silent_nodes) == ["node-1"]
    assert asked == 24 - on_node_1 + 1


def test_more_replicas_than_nodes_are_missing_copies(store: FakeStore) -> None:
    store.buckets.set("demo", replicas=6)
    store.put("demo", "key", b"x", ack="one")
    health = _verify(store)
    assert (health.clean, health.copies_expected, health.copies_ok, health.copies_missing) == (False, 6, 4, 2)


def test_a_shared_chunk_counts_once_but_for_every_object_that_lacks_it(store: FakeStore) -> None:
    first = store.put("demo", "a", b"same")
    store.put("demo", "b", b"same")
    (ref,) = _refs(store, first)
    del store.fake_chunks.nodes[_holders(store, first, ref)[1]][ref.partition, ref.id]
    health = _verify(store)
    assert (health.chunks, health.copies_expected, health.copies_missing) == (1, 3, 1)
    assert [found.info.key for found in health.shortfalls] == ["a", "b"]


def test_objects_may_span_batches_of_any_size(store: FakeStore, monkeypatch: pytest.MonkeyPatch) -> None:
    infos = [_put(store, f"{number}", chunks=number) for number in (1, 12, 3)]
    lost = _refs(store, infos[1])[5]
    del store.fake_chunks.nodes[_holders(store, infos[1], lost)[0]][lost.partition, lost.id]
    results = []
    for batch_steps in (1, 2, 3, 7, 1000):
        monkeypatch.setattr(verify_module, "BATCH_STEPS", batch_steps)
        results.append(_verify(store))
    assert all(result == results[0] for result in results)
    assert (results[0].objects, results[0].objects_clean, results[0].copies_ok) == (3, 2, 50)


def test_calls_are_bounded_in_chunks_and_bytes(store: FakeStore, monkeypatch: pytest.MonkeyPatch) -> None:
    _put(store, "key", chunks=40)
    monkeypatch.setattr(verify_module, "CALL_REFS", 4)
    _verify(store)
    assert max(count for _, count in store.fake_chunks.verified) == 4
    store.fake_chunks.verified.clear()
    monkeypatch.setattr(verify_module, "CALL_BYTES", 2 * CHUNK)
    _verify(store)
    assert {count for _, count in store.fake_chunks.verified} <= {1, 2, 3}  # three: two chunks and the small manifest


def test_an_object_whose_manifest_is_lost_is_not_clean(store: FakeStore) -> None:
    info = _put(store, "large", chunks=20)
    root = info.record.content.manifest
    assert root is not None
    for node in store.fake_chunks.nodes.values():
        node.pop((root.partition, root.id), None)
    _put(store, "other")
    health = _verify(store)
    (found,) = health.shortfalls
    assert (found.info.key, found.chunks, found.least_copies) == ("large", 1, 0)
    assert "No replica could be read" in found.problem
    assert (health.objects, health.objects_clean) == (2, 1)


def test_a_busy_node_is_asked_again_and_a_bad_sector_costs_one_copy(store: FakeStore, monkeypatch: pytest.MonkeyPatch) -> None:
    info = _put(store, "key", chunks=8)
    bad, busy_once = _refs(store, info)[3], {"node-2"}
    ask = store.fake_chunks.verify

    def broken(node_id: str, refs: Sequence[Ref]) -> list[str]:
        if node_id in busy_once:
            busy_once.clear()
            raise Busy("too much to do")
        if node_id == _holders(store, info, bad)[0] and bad in refs:
            raise DiskFailed("input/output error")
        return ask(node_id, refs)

    monkeypatch.setattr(store.fake_chunks, "verify", broken)
    health = _verify(store)
    assert (health.copies_ok, health.copies_corrupt, health.copies_unreachable) == (23, 1, 0)
    assert health.silent_nodes == {}


def test_progress_tells_every_copy(store: FakeStore) -> None:
    _put(store, "key", chunks=8)
    told: list[int] = []
    verify(store, store.walk("demo"), on_copies=told.append)
    assert sum(told) == 24
