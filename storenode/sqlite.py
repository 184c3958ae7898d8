"""The metadata engine for one machine: a `MetaStore` in an SQLite file that several node processes share.

Theory of operation
-------------------
Every call is one SQLite transaction (its SQL is in `storenode.sqlite_tables`), with no other I/O inside. Writers begin
IMMEDIATE: a transaction that reads first and upgrades later can deadlock with its like. Those of this process that wait
are committed as one by the next (`storenode.group_commit`); other processes are kept out by SQLite's own locks.

There are two connections in a process (`storenode.sqlite_file` has what is durable about them), each behind a lock, for SQLite
lets readers see the state before a transaction until that commits. The writer takes the reader's lock for its commit: a
reader of this process that looked again and again would otherwise hold it up. Nobody takes the locks in the other order.
All waits, for threads and then for processes, end after ``busy_timeout_s``.

Leases count on the boot clock, which all processes of a machine share and nobody sets. The file names the boot that its
times belong to: after a reboot all leases are expired. Whoever comes first, reader or writer, deletes the keys of expired
leases before it looks at anything else; who reads single keys needs that only for the leases of these.

A watch polls the revision every ``poll_interval_s``, for there is no signal between processes; an idle poll reads two rows.

Never carry an instance across a fork, nor open the file by other means than this library in the same process: closing any
descriptor of it drops SQLite's locks (a rule of POSIX, which the library knows of its own descriptors).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from client.errors import Conflict, InvalidRequest
from storenode.group_commit import GroupCommit, Outcome
from storenode.metastore import (
    MAX_GET_KEYS,
    Change,
    Compare,
    KeyValue,
    Local,
    Range,
    Txn,
    TxnResult,
    Watch,
    WouldWait,
    check_txns,
    encode_key,
)
from storenode.sqlite_file import SqliteFile
from storenode.sqlite_tables import GET, STATE, Tables

__all__ = ["SqliteMetaStore", "boot_clock"]

T = TypeVar("T")
Row = tuple[Any, ...]

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def boot_clock() -> float:
    """Seconds since the machine started, suspended time included; the same for all processes."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class SqliteMetaStore:
    """A `MetaStore` in one file. Thread-safe; several processes may open the same file.

    Parameters
    ----------
    path : Path
        The file, made if it is missing; its directory must exist and be on a local file system.
    history_revisions : int
        How far back ranges and watches reach.
    busy_timeout_s : float
        How long a call waits for other threads, and then for other processes.
    poll_interval_s : float
        How often a watch looks; its events are this much late at worst.
    clock : callable
        Seconds on a clock that all processes share, for leases and timeouts.
    boot_id : str, optional
        What names the present run of that clock; by default the kernel's.
    wait : callable
        Sleeps for the given seconds.

    Raises
    ------
    Misconfigured
        If the path can't be opened, is no database of Forebay, or was written by a later program.
    """

    def __init__(
        self,
        path: Path,
        *,
        history_revisions: int = 100_000,
        busy_timeout_s: float = 10.0,
        poll_interval_s: float = 0.02,
        clock: Callable[[], float] = boot_clock,
        boot_id: str | None = None,
        wait: Callable[[float], None] = time.sleep,
    ) -> None:
        self._history_revisions = history_revisions
        self._poll_interval_s = poll_interval_s
        self._clock = clock
        self._wait = wait
        boot_id = boot_id or _BOOT_ID.read_text().strip()
        opened = partial(SqliteFile, path, busy_timeout_s=busy_timeout_s, boot_id=boot_id, clock=clock, wait=wait)
        self._writer = opened()
        self._reader = opened()
        self._group = GroupCommit(self._commit, timeout_s=busy_timeout_s, too_slow=self._writer.busy_with_threads)

    def get(self, key: str) -> KeyValue | None:
        (found,) = self.get_many((key,))
        return found

    def get_now(self, key: str) -> KeyValue | None:
        rows = self._reader.at_once(GET, (encode_key(key),))
        if self._any_expired(rows):
            raise WouldWait
        return _key_value(key, rows)

    def get_many(self, keys: Sequence[str]) -> list[KeyValue | None]:
        if len(keys) > MAX_GET_KEYS:
            raise InvalidRequest(f"{len(keys)} keys in one call; at most {MAX_GET_KEYS} are allowed")
        encoded = [encode_key(key) for key in keys]
        while True:
            found = self._rows(encoded)
            if not self._any_expired(row for rows in found for row in rows):
                return [_key_value(key, rows) for key, rows in zip(keys, found, strict=True)]
            self._clear_expired()

    def get_local(self, keys: Sequence[str]) -> Local:
        """The present state: there is one copy of it."""
        encoded = [encode_key(key) for key in keys]

        def query(tables: Tables) -> Local:
            rows = [self._reader.db.execute(GET, (key,)).fetchall() for key in encoded]
            return Local(items=tuple(map(_key_value, keys, rows)), revision=tables.revision)

        return self._reading(query)

    def range(self, start: str, end: str, *, limit: int, revision: int | None = None) -> Range:
        assert limit >= 1 and (revision is None or revision >= 1), (limit, revision)
        first, last = encode_key(start), encode_key(end)
        return self._reading(partial(Tables.range, start=first, end=last, limit=limit, revision=revision))

    def txn(self, compares: Sequence[Compare], changes: Sequence[Change]) -> TxnResult:
        (result,) = self.txn_many([Txn(compares=compares, changes=changes)])
        return result

    def txn_many(self, txns: Sequence[Txn]) -> list[TxnResult]:
        return self._group.run(txns, size_bytes=check_txns(txns))

    def watch(self, start: str, end: str, *, after_revision: int, timeout_s: float, limit: int = 1000) -> Watch:
        assert limit >= 1, limit
        first, last = encode_key(start), encode_key(end)
        end_s = self._clock() + timeout_s
        after = after_revision
        while True:
            seen = self._reading(partial(Tables.events, start=first, end=last, after=after, limit=limit))
            rest_s = end_s - self._clock()
            if seen.events or rest_s <= 0:
                return seen
            after = seen.revision
            self._wait(min(self._poll_interval_s, rest_s))

    def grant(self, ttl_s: float) -> int:
        with self._writing() as tables:
            return tables.grant(ttl_s, now_s=self._clock())

    def keep_alive(self, lease: int) -> bool:
        with self._writing() as tables:
            return tables.keep_alive(lease, now_s=self._clock())

    def revoke(self, lease: int) -> None:
        with self._writing() as tables:
            clear = tables.revoke(lease)
        if not clear:
            self._clear_expired()

    def revision(self) -> int:
        return self._reading(lambda tables: tables.revision)

    def close(self) -> None:
        self._writer.close()
        self._reader.close()

    def _rows(self, keys: Sequence[bytes]) -> list[list[Row]]:
        """The rows of `GET` for each key, as they all stand at one moment."""
        with self._reader.held():
            if len(keys) == 1:  # One statement is a transaction by itself, at half the cost.
                return [self._reader.patiently(GET, keys)]
            execute = self._reader.db.execute
            execute("BEGIN")
            self._reader.patiently(STATE)  # As in `_tables`.
            found = [execute(GET, (key,)).fetchall() for key in keys]
            execute("COMMIT")
        return found

    def _any_expired(self, rows: Iterable[Row]) -> bool:
        return any(expires_s is not None and expires_s <= self._clock() for *_, expires_s in rows)

    def _reading(self, query: Callable[[Tables], T]) -> T:
        while True:
            with self._reader.held():
                self._reader.db.execute("BEGIN")
                tables = self._tables(self._reader)
                answer = None if tables.any_expired(self._clock()) else (query(tables),)
                self._reader.db.execute("COMMIT")
            if answer is not None:
                return answer[0]
            self._clear_expired()

    def _commit(self, calls: Sequence[Sequence[Txn]]) -> list[Outcome]:
        """All transactions of all calls in one of the file; a call that names a lease that is gone changes nothing."""
        with self._writing() as tables:
            return [_apply(tables, txns) for txns in calls]

    def _clear_expired(self) -> None:
        """Delete the keys of expired leases: a read can't, and must not show them."""
        with self._writing():
            pass

    @contextmanager
    def _writing(self) -> Iterator[Tables]:
        while True:
            with self._writer.held():
                self._writer.patiently("BEGIN IMMEDIATE")
                tables = self._tables(self._writer)
                # A lease may hold more keys than one transaction should delete; nobody gets further until all are gone.
                clear = tables.expire(self._clock())
                if clear:
                    yield tables
                tables.save(history_revisions=self._history_revisions)
                with self._reader.held():
                    self._writer.patiently("COMMIT")
            if clear:
                return

    def _tables(self, file: SqliteFile) -> Tables:
        # The first look at the file, which takes a lock of it; from there on a reading transaction can't be turned away.
        ((revision, compacted),) = file.patiently(STATE)
        return Tables(file.db, revision=revision, compacted=compacted)


def _apply(tables: Tables, txns: Sequence[Txn]) -> Outcome:
    try:
        # Looked for before anything is changed, so that there is nothing to undo.
        tables.require_leases(change for txn in txns for change in txn.changes)
    except Conflict as error:
        return error
    return [tables.txn(txn) for txn in txns]


def _key_value(key: str, rows: Sequence[Row]) -> KeyValue | None:
    if not rows or rows[0][0] is None:
        return None
    value, create_revision, mod_revision, lease, _ = rows[0]
    return KeyValue(key=key, value=value, create_revision=create_revision, mod_revision=mod_revision, lease=lease)
