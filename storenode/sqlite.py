"""The metadata engine for one machine: a `MetaStore` in an SQLite file that several node processes share.

Theory of operation
-------------------
Every call is one SQLite transaction (its SQL is in `storenode.sqlite_tables`), with no other I/O inside. Writers begin
IMMEDIATE: a transaction that reads first and upgrades later can deadlock with its like. There is one connection in a process,
behind a lock; other processes are kept out by SQLite's own locks. Both waits end after ``busy_timeout_s``.

Durability: journal mode TRUNCATE with synchronous=FULL. The commit is the truncation of the journal, which SQLite then syncs.
In its default mode, DELETE, the commit is an unlink that only synchronous=EXTRA syncs; with FULL a power cut could bring the
journal back and so undo an acknowledged commit. WAL is avoided for its shared memory, and for the corruption that releases
before 3.51.3 allow when several processes write.

Leases count on the boot clock, which all processes of a machine share and nobody sets. The file names the boot that its
times belong to: after a reboot all leases are expired. Whoever comes first, reader or writer, deletes the keys of expired
leases before it looks at anything else.

A watch polls the revision every ``poll_interval_s``, for there is no signal between processes; an idle poll reads two rows.

Never carry an instance across a fork, nor open the file by other means in the same process: closing any descriptor of it
drops SQLite's locks (a rule of POSIX).
"""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TypeVar

from client.errors import DiskFull, MetadataCorrupt, MetadataUnavailable, Misconfigured, StoreError
from storenode.metastore import Change, Compare, KeyValue, Range, TxnResult, Watch, check_txn, encode_key
from storenode.sqlite_tables import APPLICATION_ID, SCHEMA, SCHEMA_VERSION, Tables

__all__ = ["SqliteMetaStore", "boot_clock"]

T = TypeVar("T")

_READ, _WRITE = "BEGIN", "BEGIN IMMEDIATE"
_BUSY_WAIT_S = 0.001
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_CORRUPT = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
_UNUSABLE = (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM)


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
        self._path = path
        self._history_revisions = history_revisions
        self._busy_timeout_s = busy_timeout_s
        self._poll_interval_s = poll_interval_s
        self._clock = clock
        self._wait = wait
        self._lock = threading.Lock()
        self._closed = False
        self._db = _open(path, busy_timeout_s=busy_timeout_s, boot_id=boot_id or _BOOT_ID.read_text().strip())

    def get(self, key: str) -> KeyValue | None:
        encoded = encode_key(key)
        return self._reading(partial(Tables.get, key=encoded))

    def range(self, start: str, end: str, *, limit: int, revision: int | None = None) -> Range:
        assert limit >= 1 and (revision is None or revision >= 1), (limit, revision)
        first, last = encode_key(start), encode_key(end)
        return self._reading(partial(Tables.range, start=first, end=last, limit=limit, revision=revision))

    def txn(self, compares: Sequence[Compare], changes: Sequence[Change]) -> TxnResult:
        check_txn(compares, changes)
        with self._writing() as tables:
            for compare in compares:
                found = tables.get(compare.key.encode())
                if (found.mod_revision if found else 0) != compare.mod_revision:
                    return TxnResult(ok=False, revision=tables.revision)
            tables.apply(changes)
            return TxnResult(ok=True, revision=tables.revision)

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
            with self._writing():
                pass

    def revision(self) -> int:
        return self._reading(lambda tables: tables.revision)

    def close(self) -> None:
        with self._lock:
            self._closed = True
            self._db.close()

    def _reading(self, query: Callable[[Tables], T]) -> T:
        while True:
            with self._transaction(_READ):
                tables = Tables(self._db)
                if not tables.any_expired(self._clock()):
                    return query(tables)
            # A read can't delete, and must not show what has expired: a write does it, then the read begins again.
            with self._writing():
                pass

    @contextmanager
    def _writing(self) -> Iterator[Tables]:
        while True:
            with self._transaction(_WRITE):
                tables = Tables(self._db)
                # A lease may hold more keys than one transaction should delete; nobody gets further until all are gone.
                clear = tables.expire(self._clock())
                if clear:
                    yield tables
                tables.save(history_revisions=self._history_revisions)
            if clear:
                return

    @contextmanager
    def _transaction(self, begin: str) -> Iterator[None]:
        # One connection at a time: SQLite would serialise the threads of a process anyway, and without this lock their
        # statements would end up in each other's transactions.
        if not self._lock.acquire(timeout=self._busy_timeout_s):
            raise MetadataUnavailable(f"{self._path}: other threads kept it busy for {self._busy_timeout_s:g} s")
        try:
            if self._closed:
                raise MetadataUnavailable(f"{self._path} was closed")
            self._patiently(begin)
            if begin == _READ:
                # Only the first look at the file takes the lock; from there on the transaction can't be turned away.
                self._patiently("SELECT revision FROM state")
            yield
            self._patiently("COMMIT")
        except BaseException as exc:
            # Where SQLite has rolled back by itself there is nothing to do, and the first error is the one to report.
            with suppress(sqlite3.Error):
                self._db.execute("ROLLBACK")
            if isinstance(exc, sqlite3.Error):
                raise _named(exc, path=self._path, busy_timeout_s=self._busy_timeout_s) from exc
            raise
        finally:
            self._lock.release()

    def _patiently(self, statement: str) -> None:
        """Execute a statement that needs a lock of the file, as soon as no other process is in the way."""
        end_s = self._clock() + self._busy_timeout_s
        while True:
            try:
                self._db.execute(statement).close()
                return
            except sqlite3.OperationalError as exc:
                if _code(exc) != sqlite3.SQLITE_BUSY or self._clock() >= end_s:
                    raise
            # SQLite's own handler waits longer the longer it has waited, so under steady load whoever came last wins and
            # the others starve: up to 1.9 s among six writers. Short, equal waits are fair.
            self._wait(_BUSY_WAIT_S)


def _open(path: Path, *, busy_timeout_s: float, boot_id: str) -> sqlite3.Connection:
    db: sqlite3.Connection | None = None
    try:
        db = sqlite3.connect(path, timeout=busy_timeout_s, isolation_level=None, check_same_thread=False)
        (mode,) = db.execute("PRAGMA journal_mode = TRUNCATE").fetchone()
        if mode != "truncate":
            raise Misconfigured(f"{path} can't be used with a rollback journal; its journal mode is {mode!r}")
        db.execute("PRAGMA synchronous = FULL")
        # The lock makes "is it empty?" and the schema one step: of several processes that open a new file, one creates it.
        db.execute("BEGIN IMMEDIATE")
        _prepare(db, path=path, boot_id=boot_id)
        db.execute("COMMIT")
        # From here on waiting is `SqliteMetaStore._patiently`'s.
        db.execute("PRAGMA busy_timeout = 0")
        return db
    except BaseException as exc:
        if db is not None:
            db.close()
        if not isinstance(exc, sqlite3.Error):
            raise
        if _code(exc) in _UNUSABLE:
            raise Misconfigured(f"{path} can't be opened as a metadata file: {exc}") from exc
        raise _named(exc, path=path, busy_timeout_s=busy_timeout_s) from exc


def _prepare(db: sqlite3.Connection, *, path: Path, boot_id: str) -> None:
    (application,) = db.execute("PRAGMA application_id").fetchone()
    (version,) = db.execute("PRAGMA user_version").fetchone()
    (num_tables,) = db.execute("SELECT count(*) FROM sqlite_master").fetchone()
    if (application, version, num_tables) == (0, 0, 0):
        for statement in SCHEMA:
            db.execute(statement)
    elif application != APPLICATION_ID:
        raise Misconfigured(f"{path} is the SQLite database of another program; name another file for the metadata")
    elif version != SCHEMA_VERSION:
        raise Misconfigured(
            f"{path} has schema {version}, and this program knows {SCHEMA_VERSION}; use the release that wrote it"
        )
    # Times of another boot mean nothing on this one's clock, which began again at zero.
    db.execute("UPDATE leases SET expires_s = -1 WHERE (SELECT boot_id FROM state) <> ?", (boot_id,))
    db.execute("UPDATE state SET boot_id = :boot WHERE boot_id <> :boot", {"boot": boot_id})


def _code(exc: sqlite3.Error) -> int:
    # The low byte is the primary code; some errors are Python's own and have none.
    return int(getattr(exc, "sqlite_errorcode", 0)) & 0xFF


def _named(exc: sqlite3.Error, *, path: Path, busy_timeout_s: float) -> StoreError:
    code = _code(exc)
    if code == sqlite3.SQLITE_FULL:
        return DiskFull(f"{path}: {exc}; free space on its disk")
    if code in _CORRUPT:
        return MetadataCorrupt(f"{path}: {exc}; restore it from a copy")
    if code == sqlite3.SQLITE_BUSY:
        return MetadataUnavailable(f"{path}: other processes kept it locked for {busy_timeout_s:g} s")
    return MetadataUnavailable(f"{path}: {exc} ({getattr(exc, 'sqlite_errorname', type(exc).__name__)})")
