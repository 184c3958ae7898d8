"""The port to the metadata engine: an ordered map with revisions, transactions, watches and leases. Values and protocol.

Theory of operation
-------------------
The engine keeps keys in the order of their UTF-8 bytes, which for `str` is the order of code points. Every transaction that
changes something takes the next *revision*, one number for the whole store; those that an engine commits together and that
touch different keys may share one. A key carries the revision that created it and the one that changed it last. History is
kept for a while, so a range can be read at an older revision and a watch can go on from one; what is older is *compacted*,
and asking for it is `CursorExpired`: begin again from the present.

A *lease* is a promise to come back. Keys put under it are deleted when it expires or is revoked; that takes revisions and
makes events like any other deletion, and no read returns such a key afterwards.

Everything here exists in etcd v3 as it is: compares on ``mod_revision`` with 0 for an absent key, ranges and watches at a
revision, leases by number. `tests.support.metastore_contract` holds every backend to the same behaviour.

All calls block, may be made from any thread, and are linearizable, but for `get_local`. Each may raise

- `MetadataUnavailable`: the engine did not answer in time. A transaction's outcome is then unknown: it may have committed.
- `MetadataCorrupt`: the engine's data is damaged.
- `DiskFull`: the engine has no room. Nothing was changed.
- `InvalidRequest`, `BodyTooLarge`: the request breaks a bound named here. Nothing was changed.

It knows nothing of buckets, records or nodes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from client.errors import BodyTooLarge, InvalidRequest

__all__ = [
    "MAX_ANSWER_BYTES",
    "MAX_GET_KEYS",
    "MAX_KEY_BYTES",
    "MAX_TXNS",
    "MAX_TXNS_BYTES",
    "MAX_TXN_BYTES",
    "MAX_TXN_OPERATIONS",
    "Change",
    "Compare",
    "Delete",
    "Event",
    "KeyValue",
    "Local",
    "MetaStore",
    "Put",
    "Range",
    "Txn",
    "TxnResult",
    "Watch",
    "WouldWait",
    "check_txns",
    "encode_key",
    "num_fitting",
    "prefix_end",
    "txn_bytes",
]

# etcd's default bounds: operations a transaction, and bytes of the request that carries it.
MAX_TXN_OPERATIONS = 128
MAX_TXN_BYTES = 1536 * 1024
# What one operation is counted on top of its key and value, so that the encoded request stays below the bound too.
OPERATION_BYTES = 64
MAX_KEY_BYTES = 4096
# What one call may carry: enough to decide and to commit a thousand records, and little enough to hold in memory.
MAX_GET_KEYS = 4096
MAX_TXNS = 1024
MAX_TXNS_BYTES = 16 * 1024 * 1024
# A range or watch ends early, at this many bytes of keys and values, so that large values can't fill the memory.
MAX_ANSWER_BYTES = 8 * 1024 * 1024

_SURROGATES = (0xD800, 0xDFFF)
_MAX_CODE_POINT = 0x10FFFF


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyValue:
    """A key as it stood at the revision of the read.

    Attributes
    ----------
    key : str
        Any text; NUL is allowed.
    value : bytes
        Opaque.
    create_revision, mod_revision : int
        When it came to be (again, after a deletion), and when it was put last.
    lease : int or None
        What it is bound to.
    """

    key: str
    value: bytes
    create_revision: int
    mod_revision: int
    lease: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Range:
    """Keys in order, as they all stood at `revision`; `more` says that others follow in the range."""

    items: tuple[KeyValue, ...]
    more: bool
    revision: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Local:
    """Keys as one member of the engine has them, all at `revision`, which may be behind the newest."""

    items: tuple[KeyValue | None, ...]
    revision: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Compare:
    """Holds if the key was last put at `mod_revision`; 0 if it does not exist."""

    key: str
    mod_revision: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Put:
    """Set a key. It is bound to `lease`, or to none, whatever it was bound to before."""

    key: str
    value: bytes
    lease: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Delete:
    """Remove a key; nothing happens if it does not exist."""

    key: str


Change = Put | Delete


@dataclass(frozen=True, slots=True, kw_only=True)
class Txn:
    """All of `changes`, if all of `compares` hold."""

    compares: Sequence[Compare] = ()
    changes: Sequence[Change] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class TxnResult:
    """Whether all compares held, and the store's revision afterwards: with `ok`, that of the changes if there were any."""

    ok: bool
    revision: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """A key was put, or, with `value` None, deleted."""

    key: str
    revision: int
    value: bytes | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Watch:
    """Events by revision, all of one revision together; nothing is missing up to `revision`, where to go on from."""

    events: tuple[Event, ...]
    revision: int


class WouldWait(Exception):
    """`MetaStore.get_now` can't answer at once; `MetaStore.get` will. It never leaves the node."""


class MetaStore(Protocol):
    """An ordered, transactional, watchable map. See the module for the model and the errors that every call may raise."""

    def get(self, key: str) -> KeyValue | None:
        """The key as it is now, None if it does not exist."""

    def get_now(self, key: str) -> KeyValue | None:
        """What `get` answers, if no thread, process or network has to be waited for; for callers that must not block.

        Raises
        ------
        WouldWait
            If somebody is in the way, or there is something to be done first. An engine elsewhere always raises it.
        """

    def get_many(self, keys: Sequence[str]) -> list[KeyValue | None]:
        """What `get` answers for each of up to `MAX_GET_KEYS` keys, all at one moment."""

    def get_local(self, keys: Sequence[str]) -> Local:
        """What `get_many` answered a while ago, perhaps just now, for up to `MAX_TXN_OPERATIONS` keys.

        It asks one member and waits for no others, so that it needs no majority of them. How old the answer is, its revision
        tells. It may be of an older revision than the last one, if another member gave that.
        """

    def range(self, start: str, end: str, *, limit: int, revision: int | None = None) -> Range:
        """Keys from `start` to `end` (exclusive), in order.

        Parameters
        ----------
        start, end : str
            The empty string is before all keys; `prefix_end` gives the end of a prefix.
        limit : int
            Most keys in the answer, at least 1. `MAX_ANSWER_BYTES` may end it sooner: trust `Range.more`, not the count.
        revision : int, optional
            Read as of this revision, so that many calls see one state.

        Raises
        ------
        CursorExpired
            If the revision is compacted, or unknown because it is another store's.
        """

    def txn(self, compares: Sequence[Compare], changes: Sequence[Change]) -> TxnResult:
        """Apply all changes if all compares hold, else none.

        The changes name distinct keys, and neither sequence is longer than `MAX_TXN_OPERATIONS`. No revision is taken by a
        transaction that changes nothing: a failed compare, or only deletions of keys that do not exist.

        Raises
        ------
        Conflict
            If a lease has expired or was revoked. Nothing was changed; grant another and try again.
        """

    def txn_many(self, txns: Sequence[Txn]) -> list[TxnResult]:
        """Each transaction by itself, in order, as `txn` would do it: a later one sees what an earlier one changed.

        Each is atomic; together they are not, and others may come between them. They become durable together, so many cost
        little more than one. Those that touch different keys may share a revision; it never decreases from one to the next.

        Parameters
        ----------
        txns : sequence of Txn
            At most `MAX_TXNS`, and `MAX_TXNS_BYTES` in all; see `num_fitting`.

        Raises
        ------
        Conflict
            If a lease of any of them has expired or was revoked. That one changed nothing; each other one may have been done.
        MetadataUnavailable
            The outcome of each is unknown.
        """

    def watch(self, start: str, end: str, *, after_revision: int, timeout_s: float, limit: int = 1000) -> Watch:
        """Wait for changes of keys in the range after a revision.

        Returns as soon as there are any, or without events at the timeout; `Watch.revision` is never below
        `after_revision`, and as far beyond it as is certain. `limit` is rounded up to whole revisions.

        Raises
        ------
        CursorExpired
            If changes after `after_revision` may have been compacted, or it is another store's.
        """

    def grant(self, ttl_s: float) -> int:
        """A new lease, which lives for at least `ttl_s` from now (an engine may round up)."""

    def keep_alive(self, lease: int) -> bool:
        """Let a lease live for its time from now on; False if it is gone."""

    def revoke(self, lease: int) -> None:
        """End a lease and delete its keys. Nothing happens if it is gone."""

    def revision(self) -> int:
        """The newest revision."""

    def close(self) -> None:
        """Let go of the engine. Calls under way and later ones raise `MetadataUnavailable`."""


def encode_key(key: str) -> bytes:
    """The key's UTF-8; raises `InvalidRequest` if it has none (a lone surrogate) or it is too long."""
    try:
        encoded = key.encode()
    except UnicodeEncodeError as exc:
        raise InvalidRequest(f"metadata key {key!r} is not valid Unicode: {exc.reason}") from exc
    if len(encoded) > MAX_KEY_BYTES:
        raise InvalidRequest(f"metadata key {key[:40]!r}... has {len(encoded)} bytes of UTF-8; at most {MAX_KEY_BYTES} fit")
    return encoded


def check_txns(txns: Sequence[Txn]) -> int:
    """Hold transactions to the bounds that every backend has; returns their `txn_bytes`, summed.

    Raises
    ------
    InvalidRequest
        Too many of them, or in one too many operations, an empty key, or one key changed twice.
    BodyTooLarge
        Too many bytes.
    """
    if len(txns) > MAX_TXNS:
        raise InvalidRequest(f"{len(txns)} transactions in one call; at most {MAX_TXNS} are allowed")
    size_bytes = sum(map(_checked_bytes, txns))
    if size_bytes > MAX_TXNS_BYTES:
        raise BodyTooLarge(f"{len(txns)} transactions of {size_bytes} bytes; at most {MAX_TXNS_BYTES} are allowed in one call")
    return size_bytes


def _checked_bytes(txn: Txn) -> int:
    for what, operations in (("compares", txn.compares), ("changes", txn.changes)):
        if len(operations) > MAX_TXN_OPERATIONS:
            raise InvalidRequest(f"a transaction with {len(operations)} {what}; at most {MAX_TXN_OPERATIONS} are allowed")
    size_bytes = txn_bytes(txn)
    if not all(operation.key for operation in (*txn.compares, *txn.changes)):
        raise InvalidRequest("a transaction names the empty key")
    if len({change.key for change in txn.changes}) < len(txn.changes):
        raise InvalidRequest("a transaction changes one key twice; which change is the last would depend on the engine")
    if size_bytes > MAX_TXN_BYTES:
        raise BodyTooLarge(
            f"a transaction of {size_bytes} bytes, counting {OPERATION_BYTES} an operation; at most {MAX_TXN_BYTES} are allowed"
        )
    return size_bytes


def txn_bytes(txn: Txn) -> int:
    """What a transaction counts towards the bounds on bytes; raises `InvalidRequest` as `encode_key` does."""
    size_bytes = sum(OPERATION_BYTES + len(encode_key(operation.key)) for operation in (*txn.compares, *txn.changes))
    return size_bytes + sum(len(change.value) for change in txn.changes if isinstance(change, Put))


def num_fitting(sizes: Iterable[tuple[int, int]]) -> int:
    """How many of the first items, given by their numbers of transactions and bytes, fit one call; at least the first does."""
    num_items = num_txns = num_bytes = 0
    for txns, size_bytes in sizes:
        num_txns, num_bytes = num_txns + txns, num_bytes + size_bytes
        if num_items and (num_txns > MAX_TXNS or num_bytes > MAX_TXNS_BYTES):
            break
        num_items += 1
    return num_items


def prefix_end(prefix: str) -> str:
    """The first string after all strings that begin with `prefix`, in the order of their UTF-8 bytes."""
    kept = prefix.rstrip(chr(_MAX_CODE_POINT))
    assert kept, f"no string comes after all that begin with {prefix!r}"
    point = ord(kept[-1]) + 1
    # Surrogates have no UTF-8; the next code point that has is behind them.
    if _SURROGATES[0] <= point <= _SURROGATES[1]:
        point = _SURROGATES[1] + 1
    return kept[:-1] + chr(point)
