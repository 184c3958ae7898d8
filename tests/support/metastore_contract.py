"""What every `MetaStore` must do, as one suite that each backend's tests inherit.

A backend derives from `MetaStoreContract` and says how to open its engine, how time passes for leases, and how history is
compacted. Nothing here assumes at which revision a store begins, that revisions of other keys are absent, or how fast an
engine is; waits end at events or deadlines.
"""

from __future__ import annotations

import pickle
import subprocess
import sys
import threading
import time
from abc import abstractmethod
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from client.errors import BodyTooLarge, InvalidRequest, MetadataUnavailable
from storenode.metastore import (
    MAX_ANSWER_BYTES,
    MAX_KEY_BYTES,
    MAX_TXN_BYTES,
    MAX_TXN_OPERATIONS,
    OPERATION_BYTES,
    Change,
    Compare,
    Delete,
    Event,
    MetaStore,
    Put,
)
from tests.support.metastore_history_contract import HistoryContract
from tests.support.metastore_lease_contract import LeaseContract
from tests.support.metastore_many_contract import TIMEOUT_S, ManyAtOnceContract, keys, put

__all__ = ["MetaStoreContract", "put"]

REPOSITORY = Path(__file__).resolve().parents[2]
# Started in the repository's root, which is where `python -c` looks for modules first.
_IN_PROCESS = (
    "import pickle, sys; from tests.support.metastore_contract import increment; increment(*pickle.load(sys.stdin.buffer))"
)


def increment(opener: Callable[[], MetaStore], key: str, count: int) -> None:
    """Add to a counter by compare-and-swap, in a store of one's own."""
    store = opener()
    try:
        for _ in range(count):
            while True:
                found = store.get(key)
                value, revision = (int(found.value), found.mod_revision) if found else (0, 0)
                if store.txn([Compare(key=key, mod_revision=revision)], [Put(key=key, value=b"%d" % (value + 1))]).ok:
                    break
    finally:
        store.close()


class MetaStoreContract(ManyAtOnceContract, HistoryContract, LeaseContract):
    """Derive a class named ``Test…`` and implement the three abstract methods."""

    @pytest.fixture
    @abstractmethod
    def opener(self) -> Callable[[], MetaStore]:
        """Opens the same engine each time it is called; it can be pickled, for other processes to call."""

    @abstractmethod
    def pass_time(self, seconds: float) -> None:
        """Let leases that have no more than `seconds` left expire."""

    @abstractmethod
    def compact(self, store: MetaStore) -> None:
        """Compact all history before the revision that the store has when this is called."""

    @pytest.fixture
    def store(self, opener: Callable[[], MetaStore]) -> Iterator[MetaStore]:
        store = opener()
        yield store
        store.close()

    # --- keys, values, revisions

    def test_a_key_comes_back_as_it_was_put(self, store: MetaStore) -> None:
        assert store.get("k") is None
        created = put(store, "k", b"one")
        changed = put(store, "k", b"two")
        assert changed > created
        found = store.get("k")
        assert found is not None
        assert (found.key, found.value, found.lease) == ("k", b"two", None)
        assert (found.create_revision, found.mod_revision) == (created, changed)
        assert store.revision() == changed

    @pytest.mark.parametrize("value", [b"", b"\0", bytes(range(256)), b"x" * 100_000], ids=["empty", "nul", "all", "large"])
    def test_values_are_any_bytes(self, store: MetaStore, value: bytes) -> None:
        put(store, "k", value)
        found = store.get("k")
        assert found is not None
        assert found.value == value

    @pytest.mark.parametrize("key", ["a", "\0", "obj/b/ключ/鍵/🗝", "a\0b", " ", "\U0010ffff", "x" * MAX_KEY_BYTES])
    def test_keys_are_any_text(self, store: MetaStore, key: str) -> None:
        put(store, key)
        found = store.get(key)
        assert found is not None
        assert found.key == key

    def test_a_local_read_has_all_keys_as_they_stood_at_the_revision_that_it_tells(self, store: MetaStore) -> None:
        keys = ["a", "missing", "b"]
        store.txn([], [Put(key="a", value=b"1"), Put(key="b", value=b"1")])
        written = store.txn([], [Put(key="a", value=b"2"), Put(key="b", value=b"2")]).revision
        end_s = time.monotonic() + TIMEOUT_S
        while (local := store.get_local(keys)).revision < written:
            assert time.monotonic() < end_s, "a member does not come to hear of a revision"
        assert written <= local.revision <= store.revision()
        assert list(local.items) == store.get_many(keys) and local.items[1] is None
        assert store.get_local([]).items == ()

    def test_a_key_created_again_is_a_new_one(self, store: MetaStore) -> None:
        put(store, "k")
        deleted = store.txn([], [Delete(key="k")])
        assert deleted.ok
        assert store.get("k") is None
        again = put(store, "k")
        found = store.get("k")
        assert found is not None
        assert found.create_revision == found.mod_revision == again > deleted.revision

    def test_what_changes_nothing_takes_no_revision(self, store: MetaStore) -> None:
        before = put(store, "k")
        assert store.txn([], [Delete(key="absent")]).revision == before
        assert store.txn([], []).ok
        assert not store.txn([Compare(key="k", mod_revision=before + 1)], [Put(key="k", value=b"")]).ok
        assert store.revision() == before

    def test_what_was_written_is_there_after_opening_again(self, opener: Callable[[], MetaStore]) -> None:
        first = opener()
        revision = put(first, "k", b"kept")
        first.close()
        second = opener()
        found = second.get("k")
        assert found is not None
        assert (found.value, second.revision()) == (b"kept", revision)
        second.close()

    def test_a_closed_store_says_so(self, opener: Callable[[], MetaStore]) -> None:
        store = opener()
        store.close()
        store.close()
        for call in (store.revision, lambda: store.get("k"), lambda: store.txn([], [])):
            with pytest.raises(MetadataUnavailable, match="closed"):
                call()

    # --- order and pages

    def test_order_is_that_of_utf8_bytes(self, store: MetaStore) -> None:
        names = [
            "p/a",
            "p/a\0",
            "p/a/b",
            "p/B",
            "p/z",
            "p/é",
            "p/e\u0301",
            "p/\ud7ff",
            "p/\uffff",
            "p/\U00010000",
            "p/\U0010ffff",
        ]
        store.txn([], [Put(key=name, value=b"") for name in names])
        assert keys(store, "p/", limit=3) == sorted(names, key=str.encode)

    def test_a_range_includes_its_start_and_excludes_its_end(self, store: MetaStore) -> None:
        for name in "abcd":
            put(store, name)
        assert [item.key for item in store.range("b", "d", limit=10).items] == ["b", "c"]
        assert store.range("b", "b", limit=10).items == ()
        assert store.range("c", "b", limit=10).items == ()
        assert [item.key for item in store.range("", "b", limit=10).items] == ["a"]

    def test_the_end_of_a_prefix_is_where_other_keys_begin(self, store: MetaStore) -> None:
        names = ["a", "a/", "a/\U0010ffff", "a0", "b", "\ud7ff/x", "\ue000"]
        store.txn([], [Put(key=name, value=b"") for name in names])
        assert keys(store, "a/") == ["a/", "a/\U0010ffff"]
        assert keys(store, "a/\U0010ffff") == ["a/\U0010ffff"]
        assert keys(store, "\ud7ff") == ["\ud7ff/x"]

    def test_more_says_whether_keys_follow(self, store: MetaStore) -> None:
        for n in range(5):
            put(store, f"p/{n}")
        assert store.range("p/", "p0", limit=4).more
        assert not store.range("p/", "p0", limit=5).more
        page = store.range("p/", "p0", limit=1)
        assert [item.key for item in page.items] == ["p/0"]

    def test_pages_show_one_revision_whatever_happens_between_them(self, store: MetaStore) -> None:
        for n in range(10):
            put(store, f"p/{n}", b"old")
        first = store.range("p/", "p0", limit=3)
        store.txn([], [Put(key="p/4", value=b"new"), Delete(key="p/5"), Put(key="p/45", value=b"new")])
        rest = store.range("p/3", "p0", limit=100, revision=first.revision)
        assert rest.revision == first.revision
        assert [(item.key, item.value) for item in first.items + rest.items] == [(f"p/{n}", b"old") for n in range(10)]
        assert keys(store, "p/") == ["p/0", "p/1", "p/2", "p/3", "p/4", "p/45", "p/6", "p/7", "p/8", "p/9"]

    def test_old_revisions_show_what_was(self, store: MetaStore) -> None:
        revisions = [put(store, "k", b"%d" % n) for n in range(4)]
        deleted = store.txn([], [Delete(key="k")]).revision
        for n, revision in enumerate(revisions):
            (item,) = store.range("k", "l", limit=1, revision=revision).items
            assert (item.value, item.mod_revision, item.create_revision) == (b"%d" % n, revision, revisions[0])
        assert store.range("k", "l", limit=1, revision=deleted).items == ()

    def test_a_large_answer_comes_in_parts(self, store: MetaStore) -> None:
        value = bytes(1 << 20)
        names = [f"p/{n:02}" for n in range(2 * MAX_ANSWER_BYTES // len(value) + 1)]
        before = store.revision()
        for name in names:
            put(store, name, value)
        assert store.range("p/", "p0", limit=1000).more
        assert keys(store, "p/") == names
        events: list[Event] = []
        while len(events) < len(names):
            part = store.watch("p/", "p0", after_revision=before, timeout_s=TIMEOUT_S)
            assert sum(len(event.value or b"") for event in part.events) <= MAX_ANSWER_BYTES + len(value)
            events += part.events
            before = part.revision
        assert [event.key for event in events] == names

    # --- transactions

    def test_all_compares_hold_or_nothing_is_done(self, store: MetaStore) -> None:
        a, b = put(store, "a"), put(store, "b")
        good, stale, absent = (
            Compare(key="a", mod_revision=a),
            Compare(key="b", mod_revision=a),
            Compare(key="c", mod_revision=0),
        )
        changes: list[Change] = [Put(key="a", value=b"new"), Put(key="new", value=b"new"), Delete(key="b")]
        for compares in ([good, stale], [stale, good], [absent, stale], [Compare(key="a", mod_revision=0)]):
            result = store.txn(compares, changes)
            assert (result.ok, result.revision) == (False, b)
            assert store.get("new") is None
        result = store.txn([good, Compare(key="b", mod_revision=b), absent], changes)
        assert (result.ok, result.revision) == (True, b + 1)
        found = store.get("a")
        assert found is not None
        assert (found.value, found.mod_revision) == (b"new", result.revision)
        assert store.get("b") is None

    def test_absent_means_never_there_or_deleted(self, store: MetaStore) -> None:
        create = [Compare(key="k", mod_revision=0)]
        assert store.txn(create, [Put(key="k", value=b"")]).ok
        assert not store.txn(create, [Put(key="k", value=b"")]).ok
        store.txn([], [Delete(key="k")])
        assert store.txn(create, [Put(key="k", value=b"")]).ok

    def test_a_compare_may_guard_other_keys(self, store: MetaStore) -> None:
        owner = put(store, "owner")
        guard = [Compare(key="owner", mod_revision=owner)]
        assert store.txn(guard, [Put(key="progress", value=b"1")]).ok
        store.txn([], [Delete(key="owner")])
        assert not store.txn(guard, [Put(key="progress", value=b"2")]).ok

    def test_the_largest_transaction_is_accepted_and_one_more_is_not(self, store: MetaStore) -> None:
        compares = [Compare(key=f"c{n}", mod_revision=0) for n in range(MAX_TXN_OPERATIONS)]
        changes = [Put(key=f"k{n:03}", value=b"") for n in range(MAX_TXN_OPERATIONS)]
        assert store.txn(compares, changes).ok
        assert len(keys(store, "k")) == MAX_TXN_OPERATIONS
        before = store.revision()
        with pytest.raises(InvalidRequest, match=f"{MAX_TXN_OPERATIONS + 1} compares"):
            store.txn([*compares, Compare(key="x", mod_revision=0)], [])
        with pytest.raises(InvalidRequest, match=f"{MAX_TXN_OPERATIONS + 1} changes"):
            store.txn([], [*changes, Put(key="x", value=b"")])
        assert store.revision() == before

    def test_the_most_bytes_are_accepted_and_one_more_is_not(self, store: MetaStore) -> None:
        value = bytes(MAX_TXN_BYTES - OPERATION_BYTES - 1)
        assert store.txn([], [Put(key="k", value=value)]).ok
        with pytest.raises(BodyTooLarge, match=str(MAX_TXN_BYTES)):
            store.txn([], [Put(key="k", value=value + b"x")])
        found = store.get("k")
        assert found is not None
        assert len(found.value) == len(value)

    def test_malformed_transactions_are_refused(self, store: MetaStore) -> None:
        with pytest.raises(InvalidRequest, match="one key twice"):
            store.txn([], [Put(key="k", value=b""), Delete(key="k")])
        with pytest.raises(InvalidRequest, match="empty key"):
            store.txn([], [Put(key="", value=b"")])
        with pytest.raises(InvalidRequest, match="not valid Unicode"):
            store.txn([], [Put(key="\ud800", value=b"")])
        with pytest.raises(InvalidRequest, match=f"at most {MAX_KEY_BYTES}"):
            store.get("x" * (MAX_KEY_BYTES + 1))

    # --- concurrency

    def test_exactly_one_of_many_threads_creates_a_key(self, store: MetaStore) -> None:
        start = threading.Barrier(8)

        def race(n: int) -> bool:
            start.wait(TIMEOUT_S)
            return store.txn([Compare(key="k", mod_revision=0)], [Put(key="k", value=b"%d" % n)]).ok

        with ThreadPoolExecutor(8) as pool:
            won = list(pool.map(race, range(8)))
        assert won.count(True) == 1
        found = store.get("k")
        assert found is not None
        assert int(found.value) == won.index(True)

    def test_no_increment_is_lost_between_threads(self, opener: Callable[[], MetaStore], store: MetaStore) -> None:
        with ThreadPoolExecutor(4) as pool:
            for done in [pool.submit(increment, opener, "counter", 15) for _ in range(4)]:
                done.result(TIMEOUT_S)
        found = store.get("counter")
        assert found is not None
        assert int(found.value) == 60

    def test_no_increment_is_lost_between_processes(self, opener: Callable[[], MetaStore], store: MetaStore) -> None:
        start = store.revision()
        command = [sys.executable, "-c", _IN_PROCESS]
        processes = [subprocess.Popen(command, cwd=REPOSITORY, stdin=subprocess.PIPE) for _ in range(3)]
        for process in processes:
            assert process.stdin is not None
            with process.stdin as stdin:
                pickle.dump((opener, "counter", 20), stdin)
        assert [process.wait(TIMEOUT_S) for process in processes] == [0, 0, 0]
        found = store.get("counter")
        assert found is not None
        assert int(found.value) == 60
        assert len(store.watch("counter", "countes", after_revision=start, timeout_s=TIMEOUT_S).events) == 60

    def test_watchers_see_every_change_once_and_in_order(self, opener: Callable[[], MetaStore], store: MetaStore) -> None:
        start, watcher = store.revision(), opener()

        def follow() -> list[Event]:
            after, found = start, list[Event]()
            while len(found) < 60:
                part = watcher.watch("p/", "p0", after_revision=after, timeout_s=TIMEOUT_S, limit=7)
                found += part.events
                after = part.revision
            return found

        def write(writer: int) -> None:
            for n in range(20):
                put(store, f"p/{writer}", b"%d" % n)

        with ThreadPoolExecutor(4) as pool:
            following = pool.submit(follow)
            list(pool.map(write, range(3), timeout=TIMEOUT_S))
            events = following.result(TIMEOUT_S)
        assert [event.revision for event in events] == sorted(event.revision for event in events)
        # Writers that meet may share a revision; no key has two changes in one.
        assert len({(event.revision, event.key) for event in events}) == len(events)
        for writer in range(3):
            assert [int(event.value or b"") for event in events if event.key == f"p/{writer}"] == list(range(20))
        watcher.close()
