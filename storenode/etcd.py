"""The metadata engine for clusters of several machines: a `MetaStore` in etcd v3, through the JSON gateway of its members.

Theory of operation
-------------------
A call is one request to any member. Reads are linearizable, local ones serializable, as etcd calls them. What is read in
several requests is read at the first one's revision. What a request is and what an answer says is `storenode.etcd_wire`'s, who
is asked and for how long `storenode.etcd_gateway`'s, how a watch knows what it knows `storenode.etcd_watch`'s.

Transactions of threads that meet are committed together (`storenode.group_commit`), as many in one request as etcd takes.
A request that etcd refuses for one of them has changed nothing, so each is then asked for by itself.

etcd deletes the keys of an expired lease a moment after its time, and then it is gone to all at once. History is compacted by
etcd, as its owner has set up (``--auto-compaction-retention``), not by nodes: who shares an etcd also shares its history.

Never carry an instance across a fork.
"""

from __future__ import annotations

import math
import ssl
from collections.abc import Sequence
from itertools import islice

from client.errors import Conflict, CursorExpired, InvalidRequest, MetadataUnavailable, StoreError
from client.retry import Deadline
from storenode.etcd_address import EtcdAddress
from storenode.etcd_gateway import Gateway, Stream
from storenode.etcd_watch import Gathering
from storenode.etcd_wire import (
    INVALID_ARGUMENT,
    MAX_RANGE_BODY_BYTES,
    NOT_FOUND,
    OUT_OF_RANGE,
    Json,
    Keyspace,
    Rejected,
    runs,
)
from storenode.group_commit import GroupCommit, Outcome
from storenode.metastore import (
    MAX_ANSWER_BYTES,
    MAX_GET_KEYS,
    MAX_TXN_OPERATIONS,
    Change,
    Compare,
    KeyValue,
    Local,
    Put,
    Range,
    Txn,
    TxnResult,
    Watch,
    WouldWait,
    check_txns,
)

__all__ = ["EtcdMetaStore"]

# Behind by more than this, a watch makes itself certain of where it is: etcd reads all that lies between for each new watch.
_MAX_LAG = 1000
# A watch from the past hears of nothing before etcd's next look at those, every 100 ms. One that is to end sooner asks for a
# sign that it has heard all.
_MIN_WAIT_S = 0.3


class EtcdMetaStore:
    """A `MetaStore` in etcd. Thread-safe.

    Parameters
    ----------
    address : EtcdAddress
        The members, and the prefix of all keys.
    timeout_s : float
        How long a call waits for etcd, and before that for the calls it is grouped with.
    max_connections : int
        Most connections; each call under way has one, and each watch.
    user, password : str
        Who may read and write under the prefix; empty if etcd asks nobody.
    tls : ssl.SSLContext, optional
        For an address that says TLS.
    """

    def __init__(
        self,
        address: EtcdAddress,
        *,
        timeout_s: float = 5.0,
        max_connections: int = 64,
        user: str = "",
        password: str = "",
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._timeout_s = timeout_s
        self._keyspace = Keyspace(address.prefix)
        self._gateway = Gateway(
            address, timeout_s=timeout_s, max_connections=max_connections, user=user, password=password, tls=tls
        )
        self._group = GroupCommit(self._commit, timeout_s=timeout_s, too_slow=lambda: _busy(address, timeout_s=timeout_s))

    def get(self, key: str) -> KeyValue | None:
        (found,) = self.get_many((key,))
        return found

    def get_now(self, key: str) -> KeyValue | None:
        raise WouldWait

    def get_many(self, keys: Sequence[str]) -> list[KeyValue | None]:
        if len(keys) > MAX_GET_KEYS:
            raise InvalidRequest(f"{len(keys)} keys in one call; at most {MAX_GET_KEYS} are allowed")
        found: list[KeyValue | None] = []
        revision = 0
        deadline = Deadline(self._timeout_s)
        while len(found) < len(keys):
            part = keys[len(found) : len(found) + MAX_TXN_OPERATIONS]
            answer = self._ask("/v3/kv/txn", self._keyspace.get_all(part, revision=revision), deadline=deadline)
            revision = revision or int(answer["header"]["revision"])
            for response in answer["responses"]:
                kvs = response["response_range"].get("kvs")
                found.append(self._keyspace.key_value(kvs[0]) if kvs else None)
        return found

    def get_local(self, keys: Sequence[str]) -> Local:
        assert len(keys) <= MAX_TXN_OPERATIONS, len(keys)
        try:
            answer = self._gateway.call("/v3/kv/txn", self._keyspace.get_all(keys, revision=0, local=True), leader=False)
        except Rejected as exc:
            raise exc.named() from exc
        found = (response["response_range"].get("kvs") for response in answer.get("responses", ()))
        items = tuple(self._keyspace.key_value(kvs[0]) if kvs else None for kvs in found)
        return Local(items=items, revision=int(answer["header"]["revision"]))

    def range(self, start: str, end: str, *, limit: int, revision: int | None = None) -> Range:
        assert limit >= 1 and (revision is None or revision >= 1), (limit, revision)
        message = self._keyspace.range(start, end, limit=limit, revision=revision)
        try:
            page = self._gateway.call("/v3/kv/range", message, limit=MAX_RANGE_BODY_BYTES)
        except Rejected as exc:
            if exc.code == OUT_OF_RANGE:
                raise CursorExpired(f"revision {revision} can't be read: {exc.message}; begin again") from exc
            raise exc.named() from exc
        items: list[KeyValue] = []
        size_bytes = 0
        kvs = page.get("kvs", ())
        for kv in kvs:
            if size_bytes >= MAX_ANSWER_BYTES:
                break
            items.append(self._keyspace.key_value(kv))
            size_bytes += len(kv["key"]) + len(items[-1].value)
        more = len(items) < len(kvs) or bool(page.get("more"))
        return Range(items=tuple(items), more=more, revision=revision or int(page["header"]["revision"]))

    def txn(self, compares: Sequence[Compare], changes: Sequence[Change]) -> TxnResult:
        (result,) = self.txn_many([Txn(compares=compares, changes=changes)])
        return result

    def txn_many(self, txns: Sequence[Txn]) -> list[TxnResult]:
        return self._group.run(txns, size_bytes=check_txns(txns))

    def watch(self, start: str, end: str, *, after_revision: int, timeout_s: float, limit: int = 1000) -> Watch:
        assert limit >= 1, limit
        deadline = Deadline(timeout_s)
        broken: MetadataUnavailable | None = None
        # A member that ends in the middle is no reason to end a watch; that one after another does is.
        for _ in range(self._gateway.num_members + 1):
            gathering = Gathering(self._keyspace, start, end, after=after_revision, limit=limit)
            stream = self._begin_watch(end, after=after_revision)
            try:
                self._gather(gathering, stream, deadline=deadline)
                return gathering.watched()
            except MetadataUnavailable as exc:
                broken = exc
            finally:
                stream.close()
        assert broken is not None
        raise broken

    def grant(self, ttl_s: float) -> int:
        return int(self._ask("/v3/lease/grant", {"TTL": str(math.ceil(ttl_s))})["ID"])

    def keep_alive(self, lease: int) -> bool:
        return int(self._ask("/v3/lease/keepalive", {"ID": str(lease)}).get("TTL", 0)) > 0

    def revoke(self, lease: int) -> None:
        try:
            self._gateway.call("/v3/lease/revoke", {"ID": str(lease)})
        except Rejected as exc:
            if exc.code != NOT_FOUND:
                raise exc.named() from exc

    def revision(self) -> int:
        return int(self._ask("/v3/kv/range", {"key": self._keyspace.mark, "count_only": True})["header"]["revision"])

    def close(self) -> None:
        self._gateway.close()

    def _ask(self, path: str, message: Json, *, deadline: Deadline | None = None) -> Json:
        try:
            return self._gateway.call(path, message, deadline=deadline)
        except Rejected as exc:
            raise exc.named() from exc

    def _commit(self, calls: Sequence[Sequence[Txn]]) -> list[Outcome]:
        """All transactions of all calls, in as few requests as etcd allows."""
        done: list[TxnResult | Conflict] = []
        deadline = Deadline(self._timeout_s)
        for run in runs((txn, self._keyspace.run_bytes(txn)) for call in calls for txn in call):
            done += self._apply(run, deadline=deadline)
        rest = iter(done)
        return [_outcome(list(islice(rest, len(call)))) for call in calls]

    def _apply(self, run: Sequence[Txn], *, deadline: Deadline) -> list[TxnResult | Conflict]:
        try:
            answer = self._gateway.call("/v3/kv/txn", self._keyspace.transaction(run), repeatable=False, deadline=deadline)
        except Rejected as exc:
            if len(run) > 1 and exc.code in (NOT_FOUND, INVALID_ARGUMENT):
                return [result for txn in run for result in self._apply([txn], deadline=deadline)]
            if exc.code == NOT_FOUND:
                return [_lease_gone(run[0])]
            raise exc.named() from exc
        revision = int(answer["header"]["revision"])
        parts = [answer] if len(run) == 1 else [part["response_txn"] for part in answer["responses"]]
        return [TxnResult(ok=bool(part.get("succeeded")), revision=revision) for part in parts]

    def _begin_watch(self, end: str, *, after: int) -> Stream:
        try:
            return self._gateway.watch(self._keyspace.watch(end, revision=max(1, after)))
        except Rejected as exc:
            raise exc.named() from exc

    def _gather(self, gathering: Gathering, stream: Stream, *, deadline: Deadline) -> None:
        """Until there are events, or the time is up."""
        after = gathering.certain
        # What this member knows; it may be behind the others.
        behind = int(stream.first["header"]["revision"]) - after
        if behind < 0 and (newest := self.revision()) < after:
            raise CursorExpired(f"revision {after} can't be watched from: the store has come to {newest}; begin again")
        mark = self._put_mark() if behind > _MAX_LAG or (behind > 0 and deadline.remaining_s() < _MIN_WAIT_S) else 0
        for_mark = Deadline(self._timeout_s)
        while message := stream.next(deadline=for_mark if gathering.certain < mark else deadline):
            if message.get("canceled"):
                raise _canceled(message, after=after)
            if gathering.add(message):
                return

    def _put_mark(self) -> int:
        return int(self._ask("/v3/kv/txn", self._keyspace.marking())["header"]["revision"])


def _busy(address: EtcdAddress, *, timeout_s: float) -> MetadataUnavailable:
    return MetadataUnavailable(f"{address}: the transactions of other threads took longer than {timeout_s:g} s")


def _canceled(message: Json, *, after: int) -> StoreError:
    compacted = message.get("compact_revision")
    if compacted is None:
        return MetadataUnavailable(f"etcd canceled a watch: {message.get('cancel_reason', 'it gave no reason')}")
    return CursorExpired(f"revision {after} can't be watched from: history is compacted up to {compacted}; begin again")


def _lease_gone(txn: Txn) -> Conflict:
    leases = sorted({change.lease for change in txn.changes if isinstance(change, Put) and change.lease is not None})
    which = ", ".join(map(str, leases))
    return Conflict(f"lease {which} has expired or was revoked, or one of these; grant another and try again")


def _outcome(results: Sequence[TxnResult | Conflict]) -> Outcome:
    done = [result for result in results if isinstance(result, TxnResult)]
    return done if len(done) == len(results) else next(result for result in results if isinstance(result, Conflict))
