"""What every `MetaStore` must do with its past, watches and compaction: a part of `MetaStoreContract`."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from client.errors import CursorExpired, MetadataUnavailable
from storenode.metastore import Delete, Event, MetaStore, Put
from tests.support.metastore_many_contract import TIMEOUT_S, put

__all__ = ["HistoryContract"]


class HistoryContract:
    """Inherited through `MetaStoreContract`, which has the fixtures."""

    @abstractmethod
    def compact(self, store: MetaStore) -> None: ...

    # --- watches

    def test_a_watch_gives_what_happened_after_its_revision(self, store: MetaStore) -> None:
        put(store, "p/before")
        start = store.revision()
        one = put(store, "p/a", b"1")
        put(store, "q/other")
        two = store.txn([], [Delete(key="p/a"), Put(key="p/b", value=b"2")]).revision
        seen = store.watch("p/", "p0", after_revision=start, timeout_s=TIMEOUT_S)
        assert [event for event in seen.events if event.revision == one] == [Event(key="p/a", revision=one, value=b"1")]
        last = {event.key: event.value for event in seen.events if event.revision == two}
        assert last == {"p/a": None, "p/b": b"2"}
        assert len(seen.events) == 3
        assert seen.revision >= two
        assert store.watch("p/", "p0", after_revision=one, timeout_s=TIMEOUT_S).events == seen.events[1:]

    def test_a_watch_without_events_ends_at_its_timeout(self, store: MetaStore) -> None:
        start = put(store, "other")
        seen = store.watch("p/", "p0", after_revision=start, timeout_s=0.05)
        assert seen.events == ()
        assert seen.revision >= start
        put(store, "p/late")
        assert len(store.watch("p/", "p0", after_revision=seen.revision, timeout_s=TIMEOUT_S).events) == 1

    def test_a_waiting_watch_hears_of_a_change_by_another(self, store: MetaStore, opener: Callable[[], MetaStore]) -> None:
        start, other = store.revision(), opener()
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(store.watch, "p/", "p0", after_revision=start, timeout_s=TIMEOUT_S)
            put(other, "elsewhere")
            revision = put(other, "p/k", b"heard")
            seen = waiting.result(TIMEOUT_S)
        assert seen.events == (Event(key="p/k", revision=revision, value=b"heard"),)
        other.close()

    def test_a_waiting_watch_ends_when_the_store_is_closed(self, opener: Callable[[], MetaStore]) -> None:
        store = opener()
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(store.watch, "p/", "p0", after_revision=store.revision(), timeout_s=TIMEOUT_S)
            store.close()
            with pytest.raises(MetadataUnavailable):
                waiting.result(TIMEOUT_S)

    def test_limits_never_divide_a_revision(self, store: MetaStore) -> None:
        start = store.revision()
        expected = []
        for n in range(4):
            store.txn([], [Put(key=f"p/{n}/{i}", value=b"") for i in range(3)])
            expected += [f"p/{n}/{i}" for i in range(3)]
        for limit in (1, 2, 4, 100):
            after, found = start, list[str]()
            while len(found) < len(expected):
                part = store.watch("p/", "p0", after_revision=after, timeout_s=TIMEOUT_S, limit=limit)
                assert len(part.events) % 3 == 0
                found += [event.key for event in part.events]
                after = part.revision
            assert sorted(found) == expected

    # --- compaction

    def test_compacted_revisions_are_gone_and_the_present_is_not(self, store: MetaStore) -> None:
        put(store, "p/stays", b"1")
        put(store, "p/changes", b"old")
        old = put(store, "p/goes")
        store.txn([], [Put(key="p/changes", value=b"new"), Delete(key="p/goes")])
        self.compact(store)
        with pytest.raises(CursorExpired, match=str(old)):
            store.range("p/", "p0", limit=10, revision=old)
        with pytest.raises(CursorExpired):
            store.watch("p/", "p0", after_revision=old, timeout_s=0)
        assert [(item.key, item.value) for item in store.range("p/", "p0", limit=10).items] == [
            ("p/changes", b"new"),
            ("p/stays", b"1"),
        ]

    def test_a_key_created_again_survives_the_compaction_of_its_deletion(self, store: MetaStore) -> None:
        put(store, "k", b"first")
        store.txn([], [Delete(key="k")])
        revision = put(store, "k", b"second")
        self.compact(store)
        found = store.get("k")
        assert found is not None
        assert (found.value, found.create_revision) == (b"second", revision)

    def test_a_watch_that_is_up_to_date_survives_compaction(self, store: MetaStore) -> None:
        put(store, "p/a")
        self.compact(store)
        now = store.revision()
        revision = put(store, "p/b")
        seen = store.watch("p/", "p0", after_revision=now, timeout_s=TIMEOUT_S)
        assert [(event.key, event.revision) for event in seen.events] == [("p/b", revision)]

    def test_a_revision_of_the_future_is_another_stores(self, store: MetaStore) -> None:
        future = store.revision() + 1
        with pytest.raises(CursorExpired, match=str(future)):
            store.range("a", "b", limit=1, revision=future)
        with pytest.raises(CursorExpired, match=str(future)):
            store.watch("a", "b", after_revision=future, timeout_s=0)
