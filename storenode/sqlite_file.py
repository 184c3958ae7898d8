"""One connection to the metadata file: opened for durability, used by one thread at a time, patient with other processes.

Durability: journal mode TRUNCATE with synchronous=FULL. The commit is the truncation of the journal, which SQLite then syncs.
In its default mode, DELETE, the commit is an unlink that only synchronous=EXTRA syncs; with FULL a power cut could bring the
journal back and so undo an acknowledged commit. WAL is avoided for its shared memory, and for the corruption that releases
before 3.51.3 allow when several processes write.

Errors of SQLite leave here with the names of `client.errors`. What is read and written is `storenode.sqlite_tables`'s.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from client.errors import DiskFull, MetadataCorrupt, MetadataUnavailable, Misconfigured, StoreError
from storenode.metastore import WouldWait
from storenode.sqlite_tables import APPLICATION_ID, SCHEMA, SCHEMA_VERSION

__all__ = ["SqliteFile"]

_BUSY_WAIT_S = 0.001
_CORRUPT = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
_UNUSABLE = (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM)


class SqliteFile:
    """A connection and its lock. SQLite itself keeps the connections of one process apart, as it does processes.

    Parameters
    ----------
    path : Path
        The file, made if it is missing.
    busy_timeout_s : float
        How long a call waits for other threads, and then for other processes.
    boot_id : str
        What names the present run of the clock that leases count on.
    clock : callable
        Seconds.
    wait : callable
        Sleeps for the given seconds.
    """

    def __init__(
        self,
        path: Path,
        *,
        busy_timeout_s: float,
        boot_id: str,
        clock: Callable[[], float],
        wait: Callable[[float], None],
    ) -> None:
        self._path = path
        self._busy_timeout_s = busy_timeout_s
        self._clock = clock
        self._wait = wait
        self._closed = False
        self.lock = threading.Lock()
        self.db = _open(path, busy_timeout_s=busy_timeout_s, boot_id=boot_id)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keep other threads from this connection. A transaction that is left by an error is rolled back."""
        if not self.lock.acquire(timeout=self._busy_timeout_s):
            raise self.busy_with_threads()
        try:
            self._require_open()
            yield
        except BaseException as exc:
            # Where SQLite has rolled back by itself there is nothing to do, and the first error is the one to report.
            with suppress(sqlite3.Error):
                self.db.execute("ROLLBACK")
            if isinstance(exc, sqlite3.Error):
                raise _named(exc, path=self._path, busy_timeout_s=self._busy_timeout_s) from exc
            raise
        finally:
            self.lock.release()

    def patiently(self, statement: str, values: Sequence[Any] = ()) -> list[Any]:
        """The rows of a statement that needs a lock of the file, as soon as no other process is in the way."""
        end_s = self._clock() + self._busy_timeout_s
        while True:
            try:
                # To the end, because a statement that was not read to its end keeps the file locked.
                return self.db.execute(statement, values).fetchall()
            except sqlite3.OperationalError as exc:
                if _code(exc) != sqlite3.SQLITE_BUSY or self._clock() >= end_s:
                    raise
            # SQLite's own handler waits longer the longer it has waited, so under steady load whoever came last wins and
            # the others starve: up to 1.9 s among six writers. Short, equal waits are fair.
            self._wait(_BUSY_WAIT_S)

    def at_once(self, statement: str, values: Sequence[Any]) -> list[Any]:
        """The rows of a statement; raises `WouldWait` if another thread or process is in the way."""
        if not self.lock.acquire(blocking=False):
            raise WouldWait
        try:
            self._require_open()
            return self.db.execute(statement, values).fetchall()
        except sqlite3.Error as exc:
            if _code(exc) == sqlite3.SQLITE_BUSY:
                raise WouldWait from exc
            raise _named(exc, path=self._path, busy_timeout_s=self._busy_timeout_s) from exc
        finally:
            self.lock.release()

    def busy_with_threads(self) -> MetadataUnavailable:
        """The error of a call that other threads of this process let wait too long."""
        return MetadataUnavailable(f"{self._path}: other threads kept it busy for {self._busy_timeout_s:g} s")

    def close(self) -> None:
        """Close the connection once nobody uses it."""
        with self.lock:
            self._closed = True
            self.db.close()

    def _require_open(self) -> None:
        if self._closed:
            raise MetadataUnavailable(f"{self._path} was closed")


def _open(path: Path, *, busy_timeout_s: float, boot_id: str) -> sqlite3.Connection:
    db: sqlite3.Connection | None = None
    try:
        db = sqlite3.connect(path, timeout=busy_timeout_s, isolation_level=None, check_same_thread=False)
        (mode,) = db.execute("PRAGMA journal_mode = TRUNCATE").fetchone()
        if mode != "truncate":
            raise Misconfigured(f"{path} can't be used with a rollback journal; its journal mode is {mode!r}")
        db.execute("PRAGMA synchronous = FULL")
        # A transaction is held in memory, bounded as it is, and reaches the file in its commit: with one round of syncs, and
        # with readers kept out for no longer than that.
        db.execute("PRAGMA cache_spill = OFF")
        # The lock makes "is it empty?" and the schema one step: of several processes that open a new file, one creates it.
        db.execute("BEGIN IMMEDIATE")
        _prepare(db, path=path, boot_id=boot_id)
        db.execute("COMMIT")
        # From here on waiting is `SqliteFile.patiently`'s.
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
