"""Snapshots against a model that keeps everything: each shows what was current at its moment, and nothing else is kept."""

from __future__ import annotations

from contextlib import ExitStack
from itertools import count, pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from client.errors import ObjectNotFound
from client.record import BucketPolicy, Content, ObjectInfo, ObjectRecord
from storenode.history import Head, next_step, num_to_look_at, prune_step
from storenode.incarnation import accept_restore
from storenode.lineage import create_cluster
from tests.support.catalogs import ANY, make_catalog, open_meta, put

KEYS = st.sampled_from(["a", "b/c"])
NAMES = st.sampled_from(["one", "two", "three"])


class SnapshotMachine(RuleBasedStateMachine):
    """Writes, policies and snapshots of one bucket; what ever was, is remembered with its version."""

    def __init__(self) -> None:
        super().__init__()
        self._stack = ExitStack()
        self.meta = self._stack.enter_context(open_meta())
        create_cluster(self.meta)
        self.catalog = make_catalog(self.meta)
        self.keep = 0
        # Of each key all versions in order; None: a deletion, or that the object was taken away with all that it had.
        self.history: dict[str, list[tuple[int, ObjectInfo | None]]] = {"a": [], "b/c": []}
        self.snapshots: dict[str, int] = {}
        self.ids = count()

    def teardown(self) -> None:
        self._stack.close()

    def shown(self, key: str, at: int) -> ObjectInfo | None:
        return next((info for version, info in reversed(self.history[key]) if version <= at), None)

    @rule(key=KEYS)
    def put(self, key: str) -> None:
        info = put(self.catalog, key)
        self.history[key].append((info.version, info))

    @rule(key=KEYS)
    def delete(self, key: str) -> None:
        exists = bool(self.history[key]) and self.history[key][-1][1] is not None
        try:
            version = self.catalog.delete("data", key, write_id=f"d{next(self.ids)}", condition=ANY)
        except ObjectNotFound:
            assert not exists
            return
        assert exists
        self.history[key].append((version, None))

    @rule(versions=st.integers(0, 2))
    def set_policy(self, versions: int) -> None:
        self.catalog.set_bucket("data", BucketPolicy(versions=versions))
        self.keep = versions

    @rule(name=NAMES)
    def make_snapshot(self, name: str) -> None:
        if name not in self.snapshots:
            made = self.catalog.create_snapshot("data", name, snapshot_id=f"s{next(self.ids)}")
            self.snapshots[name] = made.version

    @rule(name=NAMES)
    def give_snapshot_up(self, name: str) -> None:
        if self.snapshots.pop(name, None) is not None:
            self.catalog.delete_snapshot("data", name)

    @rule()
    def begin_another_incarnation(self) -> None:
        accept_restore(self.meta)

    @rule()
    def prune(self) -> None:
        self.catalog.prune("data", after=None)
        for key, history in self.history.items():
            page = self.catalog.list("data", prefix=key, delimiter="", cursor=None, limit=1000, versions=True)
            held = [info.version for info in page.objects]
            versions = [version for version, _ in history]
            pinned = {
                version
                for version, end in pairwise([*versions, 1 << 62])
                if any(version <= pin < end for pin in self.snapshots.values())
            }
            newest, older = versions[-1:], versions[:-1]
            kept = set(older[len(older) - self.keep :]) | pinned | set(newest)
            # What an earlier policy gave up is not there any more; but beyond what counts now there must be nothing.
            assert set(held) <= kept
            assert pinned - set(newest) <= set(held) | {version for version, info in history if info is None}

    @invariant()
    def each_snapshot_shows_what_was_current(self) -> None:
        assert {made.name: made.version for made in self.catalog.snapshots("data")} == self.snapshots
        for name, at in self.snapshots.items():
            expected = {key: info for key in self.history if (info := self.shown(key, at)) is not None}
            listing = self.catalog.list("data", prefix="", delimiter="", cursor=None, limit=1000, versions=False, snapshot=name)
            assert {info.key: info for info in listing.objects} == expected
            for key in self.history:
                try:
                    assert self.catalog.lookup("data", key, snapshot=name) == expected[key]
                except ObjectNotFound:
                    assert key not in expected

    @invariant()
    def the_newest_is_what_it_is(self) -> None:
        for key, history in self.history.items():
            newest = history[-1][1] if history else None
            try:
                assert self.catalog.lookup("data", key) == newest
            except ObjectNotFound:
                assert newest is None


TestSnapshots = SnapshotMachine.TestCase
TestSnapshots.settings = settings(max_examples=40, stateful_step_count=25, deadline=None)


RECORD = ObjectRecord(write_id="w", content=Content(size=0, digest=""))


@pytest.mark.parametrize("keep", [0, 1, 3])
@given(
    older=st.sets(st.integers(1, 400), max_size=150),
    pins=st.lists(st.integers(1, 500), max_size=8),
    newest=st.integers(401, 450),
)
def test_a_step_removes_the_oldest_of_what_nothing_keeps_and_counts_what_is_left(
    keep: int, older: set[int], pins: list[int], newest: int
) -> None:
    versions = sorted(older)
    head = Head(version=newest, record=RECORD, older=len(versions))
    pinned = {v for v, end in pairwise([*versions, newest]) if any(v <= pin < end for pin in pins)}
    oldest = versions[: num_to_look_at(head, keep=keep, pins=pins)]

    step = next_step(head, record=RECORD, keep=keep, pins=pins, oldest=oldest)
    assert step.aside == (keep > 0 or any(pin >= newest for pin in pins))
    assert step.head is not None and step.head.older == len(versions) + step.aside - len(step.pruned)
    free = [version for version in versions[: max(0, len(versions) + step.aside - keep)] if version not in pinned]
    assert list(step.pruned) == free[: len(step.pruned)]
    assert len(step.pruned) == min(len(free), 64) or len(oldest) < len(versions)
    assert bool(step.pruned) == bool(free), "it always gets on"

    left = set(versions)
    while True:
        present = sorted(left)
        known = present[: num_to_look_at(head, keep=keep, pins=pins)]
        pruning = prune_step(head, keep=keep, pins=pins, oldest=known)
        if pruning.head == head:
            break
        assert pruning.head is not None
        left -= set(pruning.pruned)
        head = pruning.head
    assert left == pinned | set(versions[max(0, len(versions) - keep) :] if keep else ()), "all that is kept, and nothing else"
    assert head.older == len(left)
