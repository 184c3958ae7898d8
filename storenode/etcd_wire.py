"""etcd's messages as its JSON gateway has them, and ours: what is sent, what came, how much fits one request. Pure.

Keys and values are base64, 64-bit numbers are strings, and what is zero or empty is left out. Each of our keys begins with
the address's prefix. The prefix alone, the empty key that no caller may name, is before all of them: the *mark*, see
`storenode.etcd_watch`.

Many transactions go as one whose operations are transactions. etcd evaluates the compares of all, the nested ones too, before
it applies anything, and takes each key only once among the changes. So one request carries a *run*, in which no transaction
names a key that an earlier one changes. etcd holds a request to 128 operations at each level, and those of a level and of the
largest one below it together.
"""

from __future__ import annotations

from base64 import b64decode, b64encode
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from client.errors import (
    BodyTooLarge,
    DiskFull,
    InvalidRequest,
    MetadataCorrupt,
    MetadataUnavailable,
    Misconfigured,
    StoreError,
)
from storenode.metastore import (
    MAX_ANSWER_BYTES,
    MAX_TXN_BYTES,
    MAX_TXN_OPERATIONS,
    Change,
    Event,
    KeyValue,
    Put,
    Txn,
    encode_key,
    txn_bytes,
)

__all__ = ["MAX_RANGE_BODY_BYTES", "MAX_TXN_BODY_BYTES", "Keyspace", "Rejected", "close_page", "runs"]

Json = Mapping[str, Any]

# gRPC's codes.
INVALID_ARGUMENT, NOT_FOUND, PERMISSION_DENIED, RESOURCE_EXHAUSTED = 3, 5, 7, 8
OUT_OF_RANGE, UNAVAILABLE, DATA_LOSS, UNAUTHENTICATED = 11, 14, 15, 16
# What members say before they have done anything.
_NOT_BEGUN = ("etcdserver: no leader", "etcdserver: rpc not supported for learner")
_TOKEN_EXPIRED = ("etcdserver: invalid auth token", "etcdserver: revision of auth store is old")
# Bodies of answers: base64 makes 4 bytes of 3. A range may hold very many small keys, each with a frame of JSON around it.
MAX_RANGE_BODY_BYTES = MAX_ANSWER_BYTES * 3 // 2
MAX_TXN_BODY_BYTES = MAX_TXN_OPERATIONS * MAX_TXN_BYTES * 3 // 2


class Rejected(Exception):
    """etcd understood the request and answered with an error: gRPC's code, and what it says."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message

    @classmethod
    def of(cls, document: Json) -> Rejected:
        """The error in an answer, of a stream or of a single call."""
        error = document["error"]
        fields: Json = error if isinstance(error, dict) else document
        return cls(int(fields.get("grpc_code", fields.get("code", 0))), str(fields.get("message")))

    @property
    def not_begun(self) -> bool:
        """Whether it is certain that the request did nothing, and another member may do it."""
        return self.message in _NOT_BEGUN

    @property
    def token_expired(self) -> bool:
        """Whether a new token may help; the request did nothing."""
        return self.code == UNAUTHENTICATED or self.message in _TOKEN_EXPIRED

    def named(self) -> StoreError:
        """The same as an error of the store."""
        if self.code == RESOURCE_EXHAUSTED and "space exceeded" in self.message:
            return DiskFull(f"{self.message}: etcd is over its quota; compact and defragment it, then disarm its alarm")
        if self.message == "etcdserver: request is too large":
            return BodyTooLarge(f"{self.message}: etcd must take requests of {MAX_TXN_BYTES} bytes (--max-request-bytes)")
        if self.code in (PERMISSION_DENIED, UNAUTHENTICATED) or "user" in self.message or "auth" in self.message:
            return Misconfigured(
                f"{self.message}; FOREBAY_ETCD_USER and FOREBAY_ETCD_PASSWORD name who may write under the prefix"
            )
        if self.code == DATA_LOSS:
            return MetadataCorrupt(self.message)
        if self.code == INVALID_ARGUMENT:
            return InvalidRequest(self.message)
        return MetadataUnavailable(self.message)


class Keyspace:
    """Our keys among those that etcd holds: what is asked for them, and what comes back."""

    def __init__(self, prefix: str) -> None:
        self._prefix = f"{prefix}/".encode()
        self.mark = _text(self._prefix)

    def range(self, start: str, end: str, *, limit: int, revision: int | None) -> Json:
        """The keys from `start` to `end`."""
        # Not the mark. An end at or before the start, be it the prefix itself, is an empty range to etcd as well.
        message = {"key": self._key(start or "\0"), "range_end": self._key(end), "limit": str(limit)}
        return message if revision is None else {**message, "revision": str(revision)}

    def get_all(self, keys: Sequence[str], *, revision: int, local: bool = False) -> Json:
        """Each of `keys`, at a revision or, with 0, now; `local`: as the member has them that is asked."""
        at = {"revision": str(revision), "serializable": local}
        return {"success": [{"request_range": {"key": self._key(key), **at}} for key in keys]}

    def transaction(self, run: Sequence[Txn]) -> Json:
        """All of a run."""
        if len(run) == 1:
            return self._txn(run[0])
        return {"success": [{"request_txn": self._txn(txn)} for txn in run]}

    def marking(self) -> Json:
        """A change of the mark."""
        return {"success": [{"request_put": {"key": self.mark}}]}

    def watch(self, end: str, *, revision: int) -> Json:
        """All events from a revision on before `end`, the mark's among them, in pieces where they are many."""
        return {"key": self.mark, "range_end": self._key(end), "start_revision": str(revision), "fragment": True}

    def key_value(self, found: Json) -> KeyValue:
        """A key as etcd shows it."""
        return KeyValue(
            key=self.name(found["key"]),
            value=b64decode(found.get("value", "")),
            create_revision=int(found["create_revision"]),
            mod_revision=int(found["mod_revision"]),
            lease=int(found.get("lease", 0)) or None,
        )

    def event(self, found: Json) -> Event:
        """An event as etcd shows it."""
        kv = found["kv"]
        value = None if found.get("type") == "DELETE" else b64decode(kv.get("value", ""))
        return Event(key=self.name(kv["key"]), revision=int(kv["mod_revision"]), value=value)

    def name(self, key: str) -> str:
        """Our name of a key; empty for the mark."""
        return b64decode(key)[len(self._prefix) :].decode()

    def _txn(self, txn: Txn) -> Json:
        compares = [
            {"key": self._key(compare.key), "target": "MOD", "result": "EQUAL", "mod_revision": str(compare.mod_revision)}
            for compare in txn.compares
        ]
        return {"compare": compares, "success": [self._change(change) for change in txn.changes]}

    def _change(self, change: Change) -> Json:
        if isinstance(change, Put):
            put = {"key": self._key(change.key), "value": _text(change.value), "lease": str(change.lease or 0)}
            return {"request_put": put}
        return {"request_delete_range": {"key": self._key(change.key)}}

    def _key(self, key: str) -> str:
        return _text(self._prefix + encode_key(key))

    def run_bytes(self, txn: Txn) -> int:
        """What a transaction counts towards the bound of a request."""
        return txn_bytes(txn) + len(self._prefix) * (len(txn.compares) + len(txn.changes))


def runs(txns: Iterable[tuple[Txn, int]]) -> Iterator[list[Txn]]:
    """Transactions with their bytes, in order, cut where one request must end. What is large goes alone."""
    run: list[Txn] = []
    changed: set[str] = set()
    width = size_bytes = 0
    for txn, txn_size_bytes in txns:
        keys = {change.key for change in txn.changes}
        # The most operations on one level of a transaction, to which those of the level above are added.
        width = max(width, len(txn.compares), len(txn.changes))
        size_bytes += txn_size_bytes
        fits = len(run) + 1 + width <= MAX_TXN_OPERATIONS and size_bytes <= MAX_TXN_BYTES
        if run and not (fits and changed.isdisjoint(keys) and all(compare.key not in changed for compare in txn.compares)):
            yield run
            run, changed = [], set()
            width, size_bytes = max(len(txn.compares), len(txn.changes)), txn_size_bytes
        run.append(txn)
        changed |= keys
    if run:
        yield run


def close_page(body: bytes) -> bytes:
    """The answer of a range that was cut off in the middle, without the key at the cut, and saying that there are more."""
    # Base64 has no braces, so this is the end of a key's object.
    return body[: body.rindex(b"},{")] + b'}],"more":true}'


def _text(data: bytes) -> str:
    return b64encode(data).decode("ascii")
