"""The metadata engine against a dict: any calls, by two openers of one file, across expiries, reboots and compaction."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from client.errors import Conflict, CursorExpired
from storenode.metastore import Change, Compare, Delete, Event, KeyValue, Put, Range, Txn, TxnResult, prefix_end
from storenode.sqlite import SqliteMetaStore
from tests.support.filesystem import FAST_DISK

KEYS = ["a", "a\0", "a/", "a/b", "b", "é", "e\u0301", "鍵", "\ud7ff", "\ue000", "🗝"]
HISTORY = 12
TTL_S = 10.0
GONE = 10**9  # A lease that was never granted.

keys = st.sampled_from(KEYS)
values = st.binary(max_size=4)
openers = st.integers(0, 1)


@dataclass
class Model:
    """What the store should be: the present, every past state, and every event."""

    revision: int = 1
    now_s: float = 0.0
    present: dict[str, KeyValue] = field(default_factory=dict)
    past: dict[int, dict[str, KeyValue]] = field(default_factory=lambda: {1: {}})
    events: list[Event] = field(default_factory=list)
    leases: dict[int, float] = field(default_factory=dict)

    @property
    def oldest(self) -> int:
        return max(0, self.revision - HISTORY)

    def apply(self, changes: Sequence[Change]) -> None:
        revision = self.revision + 1
        for change in sorted(changes, key=lambda change: change.key):
            found = self.present.pop(change.key, None)
            if isinstance(change, Put):
                created = found.create_revision if found else revision
                self.present[change.key] = KeyValue(
                    key=change.key, value=change.value, create_revision=created, mod_revision=revision, lease=change.lease
                )
                self.events.append(Event(key=change.key, revision=revision, value=change.value))
            elif found:
                self.events.append(Event(key=change.key, revision=revision, value=None))
        if self.events and self.events[-1].revision == revision:
            self.revision = revision
            self.past[revision] = dict(self.present)

    def txn(self, txn: Txn) -> TxnResult:
        holds = all(compare.mod_revision == self.mod_revision(compare.key) for compare in txn.compares)
        if holds:
            self.apply(txn.changes)
        return TxnResult(ok=holds, revision=self.revision)

    def mod_revision(self, key: str) -> int:
        found = self.present.get(key)
        return found.mod_revision if found else 0

    def drop(self, lease: int) -> None:
        self.leases.pop(lease, None)
        self.apply([Delete(key=key) for key, found in self.present.items() if found.lease == lease])

    def expire(self) -> None:
        for lease in sorted(lease for lease, end_s in self.leases.items() if end_s <= self.now_s):
            self.drop(lease)


class MetaStoreMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.root = Path(tempfile.mkdtemp(dir=FAST_DISK))
        self.model = Model()
        self.boot = 0
        self.stores: list[SqliteMetaStore] = []

    @initialize()
    def open(self) -> None:
        for _ in range(2):
            store = SqliteMetaStore(
                self.root / "meta.db",
                history_revisions=HISTORY,
                clock=lambda: self.model.now_s,
                boot_id=str(self.boot),
                wait=lambda seconds: None,
            )
            self.stores.append(store)

    def teardown(self) -> None:
        for store in self.stores:
            store.close()
        shutil.rmtree(self.root)

    @rule(by=openers, data=st.data(), num_txns=st.integers(0, 4))
    def txn_many(self, by: int, data: st.DataObject, num_txns: int) -> None:
        self.model.expire()
        txns = [self.drawn_txn(data) for _ in range(num_txns)]
        results = self.stores[by].txn_many(txns)
        assert results == [self.model.txn(txn) for txn in txns]

    @rule(by=openers, data=st.data(), num_calls=st.integers(1, 3))
    def group(self, by: int, data: st.DataObject, num_calls: int) -> None:
        self.model.expire()
        calls = [[self.drawn_txn(data, gone=True) for _ in range(data.draw(st.integers(0, 2)))] for _ in range(num_calls)]
        for txns, outcome in zip(calls, self.stores[by]._commit(calls), strict=True):
            if any(isinstance(change, Put) and change.lease == GONE for txn in txns for change in txn.changes):
                assert isinstance(outcome, Conflict)
            else:
                assert outcome == [self.model.txn(txn) for txn in txns]

    @rule(by=openers, key=keys, also=st.lists(keys, max_size=4))
    def get(self, by: int, key: str, also: list[str]) -> None:
        self.model.expire()
        assert self.stores[by].get_many([key, *also]) == [self.model.present.get(asked) for asked in (key, *also)]
        assert self.stores[by].get_now(key) == self.model.present.get(
            key
        )  # Nobody is in the way, and nothing is to be cleared.

    @rule(by=openers, start=keys, end=keys, limit=st.integers(1, 4), back=st.integers(0, HISTORY + 2))
    def range(self, by: int, start: str, end: str, limit: int, back: int) -> None:
        self.model.expire()
        revision = max(1, self.model.revision - back)
        if revision < self.model.oldest:
            with pytest.raises(CursorExpired):
                self.stores[by].range(start, end, limit=limit, revision=revision)
            return
        state = self.model.past[revision]
        expected = [state[key] for key in sorted(state, key=str.encode) if start.encode() <= key.encode() < end.encode()]
        page = self.stores[by].range(start, end, limit=limit, revision=revision if back else None)
        assert page == Range(items=tuple(expected[:limit]), more=len(expected) > limit, revision=revision)

    @rule(by=openers, prefix=keys, limit=st.integers(1, 6), back=st.integers(0, HISTORY + 2))
    def watch(self, by: int, prefix: str, limit: int, back: int) -> None:
        self.model.expire()
        after = max(0, self.model.revision - back)
        end = prefix_end(prefix)
        if after < self.model.oldest:
            with pytest.raises(CursorExpired):
                self.stores[by].watch(prefix, end, after_revision=after, timeout_s=0)
            return
        expected = [event for event in self.model.events if event.revision > after and event.key.startswith(prefix)]
        found: list[Event] = []
        while after < self.model.revision:
            part = self.stores[by].watch(prefix, end, after_revision=after, timeout_s=0, limit=limit)
            assert part.revision > after
            assert len(part.events) < limit + len(KEYS)
            found += part.events
            after = part.revision
        assert found == expected

    @rule(by=openers)
    def grant(self, by: int) -> None:
        self.model.expire()
        lease = self.stores[by].grant(TTL_S)
        assert lease not in self.model.leases
        self.model.leases[lease] = self.model.now_s + TTL_S

    @precondition(lambda self: self.model.leases)
    @rule(by=openers, data=st.data())
    def keep_alive(self, by: int, data: st.DataObject) -> None:
        lease = data.draw(st.sampled_from(sorted(self.model.leases)))
        self.model.expire()
        assert self.stores[by].keep_alive(lease) == (lease in self.model.leases)
        if lease in self.model.leases:
            self.model.leases[lease] = self.model.now_s + TTL_S

    @precondition(lambda self: self.model.leases)
    @rule(by=openers, data=st.data())
    def revoke(self, by: int, data: st.DataObject) -> None:
        lease = data.draw(st.sampled_from(sorted(self.model.leases)))
        self.model.expire()
        self.stores[by].revoke(lease)
        self.model.drop(lease)

    @rule(seconds=st.sampled_from([1.0, TTL_S / 2, TTL_S]))
    def time_passes(self, seconds: float) -> None:
        self.model.now_s += seconds

    @rule(reboot=st.booleans())
    def reopen(self, reboot: bool) -> None:
        for store in self.stores:
            store.close()
        self.stores.clear()
        if reboot:
            self.boot += 1
            self.model.now_s = 0.0
            self.model.leases = dict.fromkeys(self.model.leases, -1.0)
        self.open()

    @invariant()
    def present_is_the_same(self) -> None:
        self.model.expire()
        page = self.stores[-1].range("", "\U0010ffff", limit=100)
        assert {item.key: item for item in page.items} == self.model.present
        assert [item.key for item in page.items] == sorted(self.model.present, key=str.encode)
        assert (page.revision, page.more) == (self.model.revision, False)

    def drawn_txn(self, data: st.DataObject, *, gone: bool = False) -> Txn:
        leases: list[int | None] = [None, *self.model.leases, *([GONE] if gone else [])]
        # The revision that a key has now, or will have if an earlier one of the same call puts it, or a wrong one.
        compares = [
            Compare(key=key, mod_revision=self.model.mod_revision(key))
            if data.draw(st.booleans())
            else Compare(key=key, mod_revision=self.model.revision + data.draw(st.integers(1, 3)))
            for key in data.draw(st.lists(keys, max_size=2))
        ]
        changes: list[Change] = [
            Put(key=key, value=data.draw(values), lease=data.draw(st.sampled_from(leases)))
            if data.draw(st.booleans())
            else Delete(key=key)
            for key in data.draw(st.lists(keys, unique=True, max_size=4))
        ]
        return Txn(compares=compares, changes=changes)


TestMetaStoreMachine = MetaStoreMachine.TestCase
TestMetaStoreMachine.settings = settings(stateful_step_count=40)
