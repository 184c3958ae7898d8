"""A metadata engine with which a test can interfere: act between two calls, lose replies, count."""

from __future__ import annotations

import random
import threading
from collections import Counter
from collections.abc import Callable, Sequence

from client.errors import MetadataUnavailable
from storenode.metastore import Change, Compare, KeyValue, Local, MetaStore, Range, Txn, TxnResult, Watch

__all__ = ["HookedMeta", "LossyMeta"]


class HookedMeta:
    """Hands every call on to `meta`.

    Attributes
    ----------
    before_get, before_txn : callable
        Called with the key, or with the changes, before the call.
    local : callable
        What answers `get_local`.
    calls : Counter
        How often each method was called.
    """

    def __init__(self, meta: MetaStore) -> None:
        self.meta = meta
        self.before_get: Callable[[str], None] = lambda key: None
        self.before_txn: Callable[[Sequence[Change]], None] = lambda changes: None
        self.calls: Counter[str] = Counter()
        self.local: Callable[[Sequence[str]], Local] = meta.get_local

    def get(self, key: str) -> KeyValue | None:
        self.calls["get"] += 1
        self.before_get(key)
        return self.meta.get(key)

    def get_now(self, key: str) -> KeyValue | None:
        self.calls["get_now"] += 1
        self.before_get(key)
        return self.meta.get_now(key)

    def get_many(self, keys: Sequence[str]) -> list[KeyValue | None]:
        self.calls["get_many"] += 1
        for key in keys:
            self.before_get(key)
        return self.meta.get_many(keys)

    def get_local(self, keys: Sequence[str]) -> Local:
        self.calls["get_local"] += 1
        return self.local(keys)

    def range(self, start: str, end: str, *, limit: int, revision: int | None = None) -> Range:
        self.calls["range"] += 1
        return self.meta.range(start, end, limit=limit, revision=revision)

    def txn(self, compares: Sequence[Compare], changes: Sequence[Change]) -> TxnResult:
        (result,) = self.txn_many([Txn(compares=compares, changes=changes)])
        return result

    def txn_many(self, txns: Sequence[Txn]) -> list[TxnResult]:
        self.calls["txn_many"] += 1
        for txn in txns:
            self.before_txn(txn.changes)
        return self.meta.txn_many(txns)

    def watch(self, start: str, end: str, *, after_revision: int, timeout_s: float, limit: int = 1000) -> Watch:
        self.calls["watch"] += 1
        return self.meta.watch(start, end, after_revision=after_revision, timeout_s=timeout_s, limit=limit)

    def grant(self, ttl_s: float) -> int:
        self.calls["grant"] += 1
        return self.meta.grant(ttl_s)

    def keep_alive(self, lease: int) -> bool:
        return self.meta.keep_alive(lease)

    def revoke(self, lease: int) -> None:
        self.meta.revoke(lease)

    def revision(self) -> int:
        return self.meta.revision()

    def close(self) -> None:
        self.meta.close()


class LossyMeta(HookedMeta):
    """Loses transactions at random: a part of the requests never arrives, a part of the replies never comes back."""

    def __init__(self, meta: MetaStore, *, seed: int, lost: float) -> None:
        super().__init__(meta)
        self._random = random.Random(seed)
        self._lost = lost
        self._lock = threading.Lock()

    def txn_many(self, txns: Sequence[Txn]) -> list[TxnResult]:
        with self._lock:
            request_lost, reply_lost = self._random.random() < self._lost, self._random.random() < self._lost
        if request_lost:
            raise MetadataUnavailable("the request was lost")
        results = super().txn_many(txns)
        if reply_lost:
            raise MetadataUnavailable("the reply was lost")
        return results
