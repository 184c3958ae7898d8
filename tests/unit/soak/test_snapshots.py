"""Who watches snapshots finds one that changes, one that lacks what was acknowledged, and one that outlives its end."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from client.errors import ObjectNotFound, SnapshotNotFound
from client.record import Content, ObjectInfo
from tests.soak.history import History
from tests.soak.ledger import Entry, Ledger
from tests.soak.snapshots import Snapshotter, check_snapshots
from tests.soak.values import value
from tests.support.catalogs import record


class FakeBucket:
    """A bucket with one entry, and snapshots that show what a test says."""

    def __init__(self) -> None:
        self.current = ObjectInfo(
            bucket="soak", key="ledger/a", version=5, record=replace(record(), content=Content(size=100, digest=""))
        )
        self.shown = {"ledger/a": self.current}
        self.named: set[str] = set()
        self.forgets = True
        self.older: list[ObjectInfo] = []
        self.snapshots = SimpleNamespace(create=self._create, delete=self._delete, prune=lambda bucket: 0)

    def _create(self, bucket: str, name: str) -> Any:
        self.named.add(name)
        return SimpleNamespace(name=name, version=9)

    def _delete(self, bucket: str, name: str) -> int:
        if self.forgets:
            self.named.remove(name)
        return 0

    def walk(self, bucket: str, *, snapshot: str | None = None, versions: bool = False) -> Iterator[ObjectInfo]:
        yield from self.shown.values() if snapshot else [self.current, *(self.older if versions else [])]

    def list(self, bucket: str, *, limit: int, snapshot: str) -> None:
        if snapshot not in self.named:
            raise SnapshotNotFound("it is gone")

    def stat(self, bucket: str, key: str, *, snapshot: str) -> ObjectInfo:
        if key not in self.shown:
            raise ObjectNotFound("it is not there")
        return self.shown[key]

    def get(self, bucket: str, key: str, *, snapshot: str) -> bytes:
        return value(key, 100)


def make(bucket: FakeBucket, *, state: Any = "held") -> tuple[Snapshotter, Ledger]:
    """One who has made a snapshot of this bucket, with its entry in the ledger."""
    client: Any = bucket
    ledger = Ledger(history=History())
    ledger.ask(Entry(key="ledger/a", size_bytes=100, state=state, version=5))
    snapshotter = Snapshotter(lambda: client, ledger, name="s", rng=random.Random(1))
    while not ledger.history.counts["snapshot create ok"]:
        snapshotter.step()
    return snapshotter, ledger


def finish(bucket: FakeBucket, snapshotter: Snapshotter, ledger: Ledger) -> list[str]:
    client: Any = bucket
    check_snapshots(client, snapshotter, ledger.history)
    return ledger.history.violations


def test_a_snapshot_that_stays_the_same_until_its_end_passes() -> None:
    bucket = FakeBucket()
    snapshotter, ledger = make(bucket)
    assert finish(bucket, snapshotter, ledger) == []
    assert ledger.history.counts["snapshot read ok"] == 1 and not bucket.named


def test_one_that_shows_another_version_later_is_found() -> None:
    bucket = FakeBucket()
    snapshotter, ledger = make(bucket)
    bucket.shown["ledger/a"] = replace(bucket.current, version=4)
    assert "shows 1 keys otherwise than before" in finish(bucket, snapshotter, ledger)[0]


def test_one_that_loses_a_key_is_found() -> None:
    bucket = FakeBucket()
    snapshotter, ledger = make(bucket)
    del bucket.shown["ledger/a"]
    found = finish(bucket, snapshotter, ledger)
    assert "shows 1 keys otherwise" in found[0] and "does not find ledger/a" in found[1]


@pytest.mark.parametrize(
    ("version", "state", "message"),
    [(4, "held", "is not as it was acknowledged"), (12, "asked", "is newer"), (5, "gone", "was deleted")],
)
def test_one_that_does_not_show_its_moment_is_found(version: int, state: str, message: str) -> None:
    bucket = FakeBucket()
    bucket.shown = {"ledger/a": replace(bucket.current, version=version)}
    _, ledger = make(bucket, state=state)
    assert message in ledger.history.violations[0]


def test_one_that_can_be_read_after_its_end_is_found() -> None:
    bucket = FakeBucket()
    snapshotter, ledger = make(bucket)
    bucket.forgets = False
    assert "was given up and can still be read" in finish(bucket, snapshotter, ledger)[0]


def test_versions_that_no_snapshot_shows_any_more_are_found() -> None:
    bucket = FakeBucket()
    snapshotter, ledger = make(bucket)
    bucket.older = [replace(bucket.current, version=3)]
    assert "1 versions are kept for no snapshot" in finish(bucket, snapshotter, ledger)[0]
