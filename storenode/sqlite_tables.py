"""The SQL of the metadata file: its schema, and what one open transaction can do. It knows neither locks nor clocks.

One table of changes holds a row for each key that each revision put or deleted. The newest row of a key is its present
state, the rows below are its history, and all rows by revision are the log that watches read. Compaction moves one mark
forward and drops the rows that no read at or after the mark can see; every transaction moves it by what it added itself, and
by a bounded number of revisions more where it lags, so no call ever pays for a large clean-up.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from contextlib import closing

from client.errors import Conflict, CursorExpired
from storenode.metastore import (
    MAX_ANSWER_BYTES,
    MAX_TXN_OPERATIONS,
    Change,
    Event,
    KeyValue,
    Put,
    Range,
    Txn,
    TxnResult,
    Watch,
)

__all__ = ["APPLICATION_ID", "GET", "SCHEMA", "SCHEMA_VERSION", "STATE", "Tables"]

APPLICATION_ID = 0x46424D53  # "FBMS"
SCHEMA_VERSION = 1
# A fresh store is at revision 1, as etcd is, so that 0 is before everything and free to mean "absent".
SCHEMA = (
    """
    CREATE TABLE changes (
        key BLOB NOT NULL,
        revision INTEGER NOT NULL,
        create_revision INTEGER NOT NULL,
        value BLOB,  -- NULL: deleted
        lease INTEGER,
        PRIMARY KEY (key, revision)
    ) WITHOUT ROWID
    """,
    "CREATE INDEX changes_by_revision ON changes (revision)",
    "CREATE INDEX changes_by_lease ON changes (lease) WHERE lease IS NOT NULL",
    """
    CREATE TABLE leases (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        ttl_s REAL NOT NULL,
        expires_s REAL NOT NULL,
        dropped_to BLOB NOT NULL DEFAULT x''  -- once expired: its keys up to this one are deleted
    )
    """,
    "CREATE INDEX leases_by_expiry ON leases (expires_s)",
    "CREATE TABLE state (revision INTEGER NOT NULL, compacted INTEGER NOT NULL, boot_id TEXT NOT NULL)",
    "INSERT INTO state VALUES (1, 0, '')",
    f"PRAGMA application_id = {APPLICATION_ID}",
    f"PRAGMA user_version = {SCHEMA_VERSION}",
)
STATE = "SELECT revision, compacted FROM state"
# All that a read of one key asks, so that it needs no transaction around it: the key, and when its lease expires.
GET = """
    SELECT value, create_revision, revision, lease, (SELECT expires_s FROM leases WHERE id = changes.lease)
    FROM changes WHERE key = ? ORDER BY revision DESC LIMIT 1
"""
_REVISIONS = "SELECT value IS NULL, create_revision, revision FROM changes WHERE key = ? ORDER BY revision DESC LIMIT 1"
# A loose index scan: each step jumps to the next key, whatever history lies between, and stops when enough rows were read.
_RANGE = """
    WITH RECURSIVE keys (key) AS (
        SELECT min(key) FROM changes WHERE key >= :start AND key < :end
        UNION ALL
        SELECT (SELECT min(key) FROM changes WHERE key > keys.key AND key < :end) FROM keys WHERE keys.key IS NOT NULL
    )
    SELECT found.key, found.value, found.create_revision, found.revision, found.lease
    FROM keys CROSS JOIN changes AS found ON found.key = keys.key AND found.revision =
        (SELECT max(revision) FROM changes AS older WHERE older.key = keys.key AND older.revision <= :revision)
    WHERE found.value IS NOT NULL
    LIMIT :limit
"""
_EVENTS = """
    SELECT key, revision, value FROM changes INDEXED BY changes_by_revision
    WHERE revision > :after AND +key >= :start AND +key < :end ORDER BY revision, key
"""
_LEASED = """
    SELECT key FROM changes AS bound WHERE lease = :lease AND key > :after
    AND NOT EXISTS (SELECT 1 FROM changes AS newer WHERE newer.key = bound.key AND newer.revision > bound.revision)
    ORDER BY key LIMIT :limit
"""
# Of each key that changed in these revisions: what was before, and a deletion itself.
_COMPACT = """
    DELETE FROM changes WHERE (key, revision) IN (
        SELECT older.key, older.revision FROM changes AS newer INDEXED BY changes_by_revision
        CROSS JOIN changes AS older ON older.key = newer.key AND older.revision <= newer.revision
        WHERE newer.revision > :start AND newer.revision <= :end
        AND (older.revision < newer.revision OR newer.value IS NULL)
    )
"""
# Bounds of one SQLite transaction: how much history it forgets, and how many keys of expired leases it deletes.
_MAX_COMPACTED_REVISIONS = 256
_MAX_EXPIRED_KEYS = 1024
# Before any time on the boot clock.
_PAST_S = -1.0


class Tables:
    """The metadata inside one open transaction; `save` ends a writing one."""

    def __init__(self, db: sqlite3.Connection, *, revision: int, compacted: int) -> None:
        self._db = db
        self.revision = self._saved_revision = revision
        self._compacted = compacted
        # What a writing transaction knows of keys: one is often compared, changed, and compared again by the next.
        self._known: dict[bytes, tuple[int, int]] = {}

    def range(self, start: bytes, end: bytes, *, limit: int, revision: int | None) -> Range:
        if revision is None:
            revision = self.revision
        self._require(revision)
        items: list[KeyValue] = []
        size_bytes = 0
        bounds = {"start": start, "end": end, "revision": revision, "limit": limit + 1}
        # Closed, because a statement that was not read to its end keeps the file locked.
        with closing(self._db.execute(_RANGE, bounds)) as rows:
            for row in rows:
                if len(items) == limit or size_bytes >= MAX_ANSWER_BYTES:
                    return Range(items=tuple(items), more=True, revision=revision)
                items.append(_key_value(row))
                size_bytes += len(row[0]) + len(row[1])
        return Range(items=tuple(items), more=False, revision=revision)

    def events(self, start: bytes, end: bytes, *, after: int, limit: int) -> Watch:
        self._require(after)
        events: list[Event] = []
        size_bytes = 0
        with closing(self._db.execute(_EVENTS, {"start": start, "end": end, "after": after})) as rows:
            for key, revision, value in rows:
                # Only between revisions: who goes on from a revision has seen all of it.
                if (len(events) >= limit or size_bytes >= MAX_ANSWER_BYTES) and revision != events[-1].revision:
                    return Watch(events=tuple(events), revision=events[-1].revision)
                events.append(Event(key=key.decode(), revision=revision, value=value))
                size_bytes += len(key) + len(value or b"")
        return Watch(events=tuple(events), revision=self.revision)

    def txn(self, txn: Txn) -> TxnResult:
        """If the compares hold: all changes at the next revision, which is taken only if one of them changes something."""
        if any(self._revisions(compare.key.encode())[1] != compare.mod_revision for compare in txn.compares):
            return TxnResult(ok=False, revision=self.revision)
        revision = self.revision + 1
        for change in txn.changes:
            key = change.key.encode()
            created, _ = self._revisions(key)
            if isinstance(change, Put):
                self._insert(key, revision, created or revision, change.value, change.lease)
            elif created:
                self._insert(key, revision, 0, None, None)
        return TxnResult(ok=True, revision=self.revision)

    def require_leases(self, changes: Iterable[Change]) -> None:
        """Raise `Conflict` unless all leases that `changes` name are there; they then are until this transaction ends."""
        for lease in {change.lease for change in changes if isinstance(change, Put) and change.lease is not None}:
            if self._db.execute("SELECT 1 FROM leases WHERE id = ?", (lease,)).fetchone() is None:
                raise Conflict(f"lease {lease} has expired or was revoked; grant another and try again")

    def grant(self, ttl_s: float, *, now_s: float) -> int:
        lease = self._db.execute("INSERT INTO leases (ttl_s, expires_s) VALUES (?, ?)", (ttl_s, now_s + ttl_s)).lastrowid
        assert lease is not None
        return lease

    def keep_alive(self, lease: int, *, now_s: float) -> bool:
        return self._db.execute("UPDATE leases SET expires_s = ? + ttl_s WHERE id = ?", (now_s, lease)).rowcount == 1

    def revoke(self, lease: int) -> bool:
        """Let a lease expire now; returns whether all of its keys are deleted already."""
        self._db.execute("UPDATE leases SET expires_s = ? WHERE id = ?", (_PAST_S, lease))
        return self.expire(_PAST_S)

    def any_expired(self, now_s: float) -> bool:
        return self._db.execute("SELECT 1 FROM leases WHERE expires_s <= ? LIMIT 1", (now_s,)).fetchone() is not None

    def expire(self, now_s: float) -> bool:
        """Delete the keys of expired leases, up to the bound of one transaction; returns whether that was all of them."""
        rest = _MAX_EXPIRED_KEYS
        query = "SELECT id, dropped_to FROM leases WHERE expires_s <= ? ORDER BY id"
        for lease, dropped_to in self._db.execute(query, (now_s,)).fetchall():
            # No revision is larger than a transaction may be, so that a watch, which never divides one, stays bounded.
            while keys := self._leased(lease, after=dropped_to, limit=MAX_TXN_OPERATIONS):
                if rest < len(keys):
                    self._db.execute("UPDATE leases SET dropped_to = ? WHERE id = ?", (dropped_to, lease))
                    return False
                revision = self.revision + 1
                for key in keys:
                    self._insert(key, revision, 0, None, None)
                rest, dropped_to = rest - len(keys), keys[-1]
            self._db.execute("DELETE FROM leases WHERE id = ?", (lease,))
        return True

    def save(self, *, history_revisions: int) -> None:
        """Record the revision, and forget about as much history as was added."""
        if self.revision == self._saved_revision:
            return
        end = min(self.revision - history_revisions, self._compacted + _MAX_COMPACTED_REVISIONS)
        if end > self._compacted:
            self._db.execute(_COMPACT, {"start": self._compacted, "end": end})
            self._compacted = end
        self._db.execute("UPDATE state SET revision = ?, compacted = ?", (self.revision, self._compacted))

    def _leased(self, lease: int, *, after: bytes, limit: int) -> list[bytes]:
        rows = self._db.execute(_LEASED, {"lease": lease, "after": after, "limit": limit})
        return [key for (key,) in rows]

    def _revisions(self, key: bytes) -> tuple[int, int]:
        """When `key` was created and put last; zeros if it does not exist."""
        found = self._known.get(key)
        if found is None:
            row = self._db.execute(_REVISIONS, (key,)).fetchone()
            found = self._known[key] = (0, 0) if row is None or row[0] else row[1:]
        return found

    def _insert(self, key: bytes, revision: int, created: int, value: bytes | None, lease: int | None) -> None:
        self.revision = revision
        self._known[key] = (0, 0) if value is None else (created, revision)
        self._db.execute(
            "INSERT INTO changes (key, revision, create_revision, value, lease) VALUES (?, ?, ?, ?, ?)",
            (key, revision, created, value, lease),
        )

    def _require(self, revision: int) -> None:
        if not self._compacted <= revision <= self.revision:
            raise CursorExpired(
                f"revision {revision} can't be read: the store knows {self._compacted} to {self.revision}; begin again"
            )


def _key_value(row: tuple[bytes, bytes, int, int, int | None]) -> KeyValue:
    key, value, create_revision, mod_revision, lease = row
    return KeyValue(key=key.decode(), value=value, create_revision=create_revision, mod_revision=mod_revision, lease=lease)
