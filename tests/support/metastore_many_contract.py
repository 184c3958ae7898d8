"""What every `MetaStore` must do when it is asked for many things by one call: a part of `MetaStoreContract`."""

from __future__ import annotations

import threading
from abc import abstractmethod
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pytest

from client.errors import BodyTooLarge, Conflict, InvalidRequest
from storenode.metastore import (
    MAX_GET_KEYS,
    MAX_TXN_BYTES,
    MAX_TXN_OPERATIONS,
    MAX_TXNS,
    MAX_TXNS_BYTES,
    Compare,
    Delete,
    MetaStore,
    Put,
    Txn,
    WouldWait,
    prefix_end,
)

__all__ = ["TIMEOUT_S", "TTL_S", "ManyAtOnceContract", "keys", "put"]

TIMEOUT_S = 60.0
TTL_S = 5.0


def put(store: MetaStore, key: str, value: bytes = b"v", lease: int | None = None) -> int:
    """Put one key; returns the revision."""
    return store.txn([], [Put(key=key, value=value, lease=lease)]).revision


def keys(store: MetaStore, prefix: str, revision: int | None = None, limit: int = 1000) -> list[str]:
    """All keys with the prefix, page by page."""
    found: list[str] = []
    start = prefix
    while True:
        page = store.range(start, prefix_end(prefix), limit=limit, revision=revision)
        found += [item.key for item in page.items]
        if not page.more:
            return found
        start, revision = found[-1] + "\0", page.revision


def create(key: str, value: bytes = b"v", lease: int | None = None) -> Txn:
    """Put a key that does not exist."""
    return Txn(compares=[Compare(key=key, mod_revision=0)], changes=[Put(key=key, value=value, lease=lease)])


class ManyAtOnceContract:
    """Inherited through `MetaStoreContract`, which has the fixtures."""

    @abstractmethod
    def pass_time(self, seconds: float) -> None: ...

    def test_many_keys_are_read_as_one_by_one(self, store: MetaStore) -> None:
        lease = store.grant(TTL_S)
        put(store, "a", b"1")
        put(store, "b", b"2", lease=lease)
        put(store, "gone")
        store.txn([], [Delete(key="gone")])
        asked = ["b", "absent", "a", "gone", "b"]
        assert store.get_many(asked) == [store.get(key) for key in asked]
        assert store.get_many([]) == []
        self.pass_time(TTL_S)
        assert store.get_many(["a", "b"]) == [store.get("a"), None]

    def test_many_keys_are_read_at_one_moment(self, store: MetaStore, opener: Callable[[], MetaStore]) -> None:
        names = [f"k{n}" for n in range(50)]
        # More than a transaction may name, with what changes at both ends.
        asked = [*names[:25], *(f"absent{n}" for n in range(MAX_TXN_OPERATIONS)), *names[25:]]
        writer, stop = opener(), threading.Event()

        def put_all(value: bytes) -> None:
            writer.txn([], [Put(key=name, value=value) for name in names])

        def write() -> None:
            n = 0
            while not stop.is_set():
                n += 1
                put_all(b"%d" % n)

        put_all(b"0")

        with ThreadPoolExecutor(1) as pool:
            writing = pool.submit(write)
            try:
                for _ in range(50):
                    found = [item for item in store.get_many(asked) if item is not None]
                    assert (len(found), len({item.value for item in found})) == (len(names), 1)
            finally:
                stop.set()
            writing.result(TIMEOUT_S)
        writer.close()

    def test_one_key_more_than_fits_is_refused(self, store: MetaStore) -> None:
        put(store, "k")
        assert store.get_many(["k"] * MAX_GET_KEYS).count(store.get("k")) == MAX_GET_KEYS
        with pytest.raises(InvalidRequest, match=f"at most {MAX_GET_KEYS}"):
            store.get_many(["k"] * (MAX_GET_KEYS + 1))

    def test_what_is_known_at_once_is_what_a_get_answers(self, store: MetaStore) -> None:
        lease = store.grant(TTL_S)
        put(store, "free")
        put(store, "bound", lease=lease)
        for key in ("free", "bound", "absent"):
            try:
                assert store.get_now(key) == store.get(key)
            except WouldWait:
                continue
        self.pass_time(TTL_S)
        with suppress(WouldWait):
            assert store.get_now("bound") is None

    def test_of_many_transactions_a_later_one_sees_what_an_earlier_one_changed(self, store: MetaStore) -> None:
        before = put(store, "k", b"0")
        free = [Compare(key="new", mod_revision=0)]
        results = store.txn_many(
            [
                Txn(compares=free, changes=[Put(key="new", value=b"first")]),
                Txn(compares=free, changes=[Put(key="new", value=b"second"), Put(key="k", value=b"1")]),
                Txn(compares=[Compare(key="k", mod_revision=before)], changes=[Put(key="k", value=b"2")]),
                Txn(changes=[Delete(key="new")]),
                Txn(compares=free, changes=[Put(key="new", value=b"third")]),
            ]
        )
        assert [result.ok for result in results] == [True, False, True, True, True]
        new, k = store.get_many(["new", "k"])
        assert new is not None
        assert k is not None
        assert (new.value, new.create_revision, k.value) == (b"third", new.mod_revision, b"2")
        assert (results[4].revision, results[2].revision) == (new.mod_revision, k.mod_revision)
        revisions = [result.revision for result in results]
        assert before < revisions[0]
        assert revisions == sorted(revisions)
        assert store.revision() == revisions[-1]

    def test_many_transactions_make_the_events_of_each(self, store: MetaStore) -> None:
        start = store.revision()
        results = store.txn_many([create(f"p/{n}") for n in range(5)])
        seen = store.watch("p/", "p0", after_revision=start, timeout_s=TIMEOUT_S)
        expected = {f"p/{n}": result.revision for n, result in enumerate(results)}
        assert {event.key: event.revision for event in seen.events} == expected

    def test_a_transaction_under_a_lease_that_is_gone_changes_nothing_among_many_either(self, store: MetaStore) -> None:
        gone = store.grant(TTL_S)
        store.revoke(gone)
        bad = Txn(changes=[Put(key="free", value=b""), Put(key="bound", value=b"", lease=gone)])
        with pytest.raises(Conflict, match=str(gone)):
            store.txn_many([create("before"), bad, create("after")])
        assert store.get_many(["free", "bound"]) == [None, None]
        # The others were done, or can be now.
        store.txn_many([create("before"), create("after")])
        assert None not in store.get_many(["before", "after"])

    def test_the_most_transactions_are_accepted_and_one_more_is_not(self, store: MetaStore) -> None:
        assert store.txn_many([]) == []
        assert all(result.ok for result in store.txn_many([create(f"p/{n:04}") for n in range(MAX_TXNS)]))
        assert len(keys(store, "p/")) == MAX_TXNS
        before = store.revision()
        with pytest.raises(InvalidRequest, match=f"at most {MAX_TXNS}"):
            store.txn_many([create(f"q/{n:04}") for n in range(MAX_TXNS + 1)])
        large = [create(f"q/{n}", bytes(MAX_TXN_BYTES // 2)) for n in range(2 * MAX_TXNS_BYTES // MAX_TXN_BYTES + 1)]
        with pytest.raises(BodyTooLarge, match=str(MAX_TXNS_BYTES)):
            store.txn_many(large)
        with pytest.raises(InvalidRequest, match="one key twice"):
            store.txn_many([create("q/1"), Txn(changes=[Put(key="k", value=b""), Delete(key="k")])])
        assert store.revision() == before

    def test_exactly_one_of_many_threads_creates_each_of_many_keys(self, store: MetaStore) -> None:
        def race(n: int) -> list[str]:
            won: list[str] = []
            for first in range(0, 40, 4):
                names = [f"k{number}" for number in range(first, first + 4)]
                results = store.txn_many([create(name, b"%d" % n) for name in names])
                won += [name for name, result in zip(names, results, strict=True) if result.ok]
            return won

        with ThreadPoolExecutor(8) as pool:
            won = list(pool.map(race, range(8)))
        winners = {name: b"%d" % n for n, names in enumerate(won) for name in names}
        assert sum(map(len, won)) == len(winners) == 40
        assert winners == {item.key: item.value for item in store.get_many(list(winners)) if item}
