"""What every `MetaStore` must do with leases: a part of `MetaStoreContract`."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from client.errors import Conflict
from storenode.metastore import MAX_TXN_OPERATIONS, Compare, MetaStore, Put
from tests.support.metastore_many_contract import TIMEOUT_S, TTL_S, keys, put

__all__ = ["LeaseContract"]


class LeaseContract:
    """Inherited through `MetaStoreContract`, which has the fixtures."""

    @abstractmethod
    def pass_time(self, seconds: float) -> None: ...

    def test_keys_go_with_their_lease_and_make_events(self, store: MetaStore) -> None:
        lease = store.grant(TTL_S)
        put(store, "p/free")
        start = put(store, "p/bound", lease=lease)
        found = store.get("p/bound")
        assert found is not None
        assert found.lease == lease
        self.pass_time(TTL_S)
        assert store.get("p/bound") is None
        assert keys(store, "p/") == ["p/free"]
        assert not store.keep_alive(lease)
        seen = store.watch("p/", "p0", after_revision=start, timeout_s=TIMEOUT_S)
        assert [(event.key, event.value) for event in seen.events] == [("p/bound", None)]
        assert seen.events[0].revision > start
        assert store.txn([Compare(key="p/bound", mod_revision=0)], [Put(key="p/bound", value=b"")]).ok

    def test_a_lease_that_is_kept_alive_lives(self, store: MetaStore) -> None:
        lease = store.grant(TTL_S)
        put(store, "k", lease=lease)
        for _ in range(3):
            self.pass_time(TTL_S * 0.6)
            assert store.keep_alive(lease)
        assert store.get("k") is not None

    def test_a_watch_hears_of_an_expiry(self, store: MetaStore) -> None:
        lease = store.grant(TTL_S)
        start = put(store, "k", lease=lease)
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(store.watch, "k", "l", after_revision=start, timeout_s=TIMEOUT_S)
            self.pass_time(TTL_S)
            events = waiting.result(TIMEOUT_S).events
        assert [(event.key, event.value) for event in events] == [("k", None)]

    def test_expiry_is_seen_by_every_kind_of_call(self, store: MetaStore) -> None:
        last: list[int] = []
        checks: list[Callable[[], bool]] = [
            lambda: store.get("k") is None,
            lambda: store.range("k", "l", limit=1).items == (),
            lambda: store.txn([Compare(key="k", mod_revision=0)], []).ok,
            lambda: store.revision() > last[-1],
        ]
        for check in checks:
            last.append(put(store, "k", lease=store.grant(TTL_S)))
            self.pass_time(TTL_S)
            assert check()

    def test_revoking_deletes_at_once_and_again_does_nothing(self, store: MetaStore) -> None:
        lease = store.grant(TTL_S)
        put(store, "k", lease=lease)
        store.revoke(lease)
        assert store.get("k") is None
        revision = store.revision()
        store.revoke(lease)
        assert store.revision() == revision

    def test_a_put_moves_a_key_to_another_lease_or_to_none(self, store: MetaStore) -> None:
        first, second = store.grant(TTL_S), store.grant(TTL_S)
        for key, lease in (("moved", second), ("freed", None)):
            put(store, key, lease=first)
            put(store, key, lease=lease)
        put(store, "left", lease=first)
        store.revoke(first)
        assert store.get("left") is None
        assert store.get("moved") is not None
        assert store.get("freed") is not None
        store.revoke(second)
        assert store.get("moved") is None

    def test_a_put_under_a_lease_that_is_gone_changes_nothing(self, store: MetaStore) -> None:
        revoked, expired = store.grant(TTL_S), store.grant(TTL_S)
        store.revoke(revoked)
        self.pass_time(TTL_S)
        before = store.revision()
        for lease in (revoked, expired):
            with pytest.raises(Conflict, match=str(lease)):
                store.txn([], [Put(key="free", value=b""), Put(key="bound", value=b"", lease=lease)])
        assert store.get("free") is None
        assert store.revision() == before

    def test_a_lease_may_hold_more_keys_than_a_transaction(self, store: MetaStore) -> None:
        lease = store.grant(TTL_S)
        names = [f"p/{n:04}" for n in range(2 * MAX_TXN_OPERATIONS + 10)]
        for at in range(0, len(names), 100):
            store.txn([], [Put(key=name, value=b"", lease=lease) for name in names[at : at + 100]])
        start = store.revision()
        self.pass_time(TTL_S)
        assert keys(store, "p/") == []
        gone: list[str] = []
        while len(gone) < len(names):
            part = store.watch("p/", "p0", after_revision=start, timeout_s=TIMEOUT_S, limit=10)
            gone += [event.key for event in part.events]
            start = part.revision
        assert sorted(gone) == names
