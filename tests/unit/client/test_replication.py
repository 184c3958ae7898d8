"""Changing the number of replicas while others change the objects."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from client.errors import Conflict
from client.record import ObjectInfo
from client.replication import replicate
from tests.support.fake_store import FakeStore


@pytest.fixture
def store() -> Iterator[FakeStore]:
    store = FakeStore()
    store.buckets.create("demo", replicas=2)
    yield store
    store.close()


class _Clock:
    def __init__(self) -> None:
        self.now_s = 0.0
        self.pauses_s: list[float] = []

    def __call__(self) -> float:
        return self.now_s

    def sleep(self, seconds: float) -> None:
        self.pauses_s.append(seconds)
        self.now_s += seconds


def test_waits_until_the_deadline_with_growing_pauses(store: FakeStore) -> None:
    store.put("demo", "key", b"x")
    clock = _Clock()
    result = replicate(store, lambda: store.walk("demo"), replicas=3, timeout_s=10.0, clock=clock, sleep=clock.sleep)
    assert (result.objects, result.changed, result.counted, len(result.missing)) == (1, 1, 0, 1)
    assert clock.now_s == 10.0
    assert clock.pauses_s[:4] == [0.1, 0.2, 0.4, 0.8]
    assert max(clock.pauses_s) == 2.0


def test_an_object_deleted_meanwhile_is_not_waited_for(store: FakeStore) -> None:
    store.put("demo", "key", b"x")
    clock = _Clock()

    def delete_then_sleep(seconds: float) -> None:
        store.delete("demo", "key")

    result = replicate(store, lambda: store.walk("demo"), replicas=3, timeout_s=10.0, clock=clock, sleep=delete_then_sleep)
    assert result.missing == ()


def test_an_object_written_meanwhile_still_gets_its_number(store: FakeStore, monkeypatch: pytest.MonkeyPatch) -> None:
    store.put("demo", "key", b"old")
    set_replicas, raced = store.set_replicas, False

    def lose_the_first_race(info: ObjectInfo, replicas: int) -> ObjectInfo:
        nonlocal raced
        if not raced:
            raced = True
            store.put("demo", "key", b"new")
        return set_replicas(info, replicas)

    monkeypatch.setattr(store, "set_replicas", lose_the_first_race)
    store.fake_chunks.before_verify = store.repair
    result = replicate(store, lambda: store.walk("demo"), replicas=3, timeout_s=10.0)
    assert (result.changed, result.missing) == (1, ())
    assert store.get("demo", "key") == b"new"
    assert store.stat("demo", "key").record.replicas == 3


def test_an_object_that_never_rests_is_a_conflict(store: FakeStore, monkeypatch: pytest.MonkeyPatch) -> None:
    store.put("demo", "key", b"0")
    set_replicas = store.set_replicas

    def always_late(info: ObjectInfo, replicas: int) -> ObjectInfo:
        store.put("demo", "key", b"n")
        return set_replicas(info, replicas)

    monkeypatch.setattr(store, "set_replicas", always_late)
    with pytest.raises(Conflict, match="demo/key changed 8 times"):
        replicate(store, lambda: store.walk("demo"), replicas=3, timeout_s=10.0)


def test_fewer_replicas_are_there_at_once(store: FakeStore) -> None:
    store.put("demo", "key", b"x")
    assert replicate(store, lambda: store.walk("demo"), replicas=1, timeout_s=0.0).counted == 1
