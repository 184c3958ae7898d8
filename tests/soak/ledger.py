"""Keys that are written once, with bytes that their names tell, and the account of what was acknowledged.

An acknowledged entry must be found by every read and every listing from then on, until its delete is asked for; an acknowledged
delete must hold for ever. What was not acknowledged may be there or not, but if it is, its bytes are right.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal

from client.client import Client
from client.errors import CursorExpired, ObjectNotFound, StoreError
from client.record import ObjectInfo
from tests.soak.clients import BUCKET
from tests.soak.history import NOTHING_NAMED, History
from tests.soak.values import WrongBytes, read, size_of, value

__all__ = ["PREFIX", "Entry", "Ledger", "LedgerReader", "LedgerWriter", "Lister"]

PREFIX = "ledger/"
State = Literal["asked", "held", "leaving", "gone"]
MAX_BATCH = 12
MAX_HELD = 2000  # What there is to read again and again does not grow with the length of a soak.


@dataclass(slots=True, kw_only=True)
class Entry:
    """One key.

    Attributes
    ----------
    state : str
        asked: not acknowledged; held: acknowledged; leaving: a delete was asked for; gone: that was acknowledged.
    version : int
        Once it is acknowledged.
    """

    key: str
    size_bytes: int
    state: State = "asked"
    version: int = 0

    @property
    def data(self) -> bytes:
        return value(self.key, self.size_bytes)


@dataclass(kw_only=True)
class Ledger:
    """All entries. Thread-safe."""

    history: History
    entries: dict[str, Entry] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def ask(self, entry: Entry) -> None:
        """Before an entry is sent."""
        with self._lock:
            self.entries[entry.key] = entry

    def hold(self, entry: Entry, info: ObjectInfo) -> None:
        """It was acknowledged."""
        with self._lock:
            entry.state, entry.version = "held", info.version

    def leave(self, rng: random.Random) -> Entry | None:
        """An entry that is held, for somebody who is about to delete it; None if there are few."""
        with self._lock:
            held = [entry for entry in self.entries.values() if entry.state == "held"]
            if len(held) < 2 * MAX_BATCH:
                return None
            entry = rng.choice(held)
            entry.state = "leaving"
            return entry

    def gone(self, entry: Entry) -> None:
        """Its delete was acknowledged."""
        with self._lock:
            entry.state = "gone"

    def some(self, rng: random.Random, number: int) -> list[Entry]:
        """Some of all entries, more of the newest."""
        with self._lock:
            every = list(self.entries.values())
        recent = every[-50:] if rng.random() < 0.5 else every
        return rng.sample(recent, min(number, len(recent)))

    def held(self) -> list[Entry]:
        """All that must be there now."""
        with self._lock:
            return [entry for entry in self.entries.values() if entry.state == "held"]

    def all_gone(self) -> frozenset[str]:
        """The keys of which an acknowledged delete says that they are there no more."""
        with self._lock:
            return frozenset(entry.key for entry in self.entries.values() if entry.state == "gone")

    def num_held(self) -> int:
        return len(self.held())

    def found(self, entry: Entry, data: bytes, *, was: State, who: str) -> None:
        """Somebody read it, and it was in this state before the read began."""
        if was == "gone":
            self.history.violation(f"{who} found {entry.key}, which was acknowledged as deleted or not written")
        try:
            name = read(data)
        except WrongBytes as error:
            self.history.violation(f"{who} read {entry.key}: {error}")
            return
        if len(data) != entry.size_bytes or name not in (None, entry.key):
            self.history.violation(f"{who} read {entry.key} of {entry.size_bytes} bytes and got {len(data)} of {name}")

    def missed(self, entry: Entry, *, was: State, who: str) -> None:
        """Somebody was told that there is no such object; it was in this state before."""
        if was == "held" and entry.state == "held":
            self.history.violation(f"{who} did not find {entry.key}, acknowledged as version {entry.version}")


class LedgerWriter:
    """Writes entries, one by one and in batches, and deletes some."""

    def __init__(self, clients: Callable[[], Client], ledger: Ledger, *, name: str, rng: random.Random) -> None:
        self._clients = clients
        self._client = clients()
        self._ledger = ledger
        self._history = ledger.history
        self._name = name
        self._rng = rng
        self._num = 0

    def step(self) -> None:
        """One call."""
        self._client = self._clients()
        kind = self._rng.random()
        if kind >= 0.85 or self._ledger.num_held() > MAX_HELD:
            self._delete()
        elif kind < 0.6:
            self._put()
        else:
            self._put_many()

    def _entry(self) -> Entry:
        self._num += 1
        size_bytes = size_of(self._rng, chunk_bytes=self._client.config.chunk_size_bytes)
        # Keys of several writers lie between each other in a listing, some deep, some not of ASCII.
        place = self._rng.choice(("", "a/", "a/b/", "ü/", "z-"))
        return Entry(key=f"{PREFIX}{place}{self._rng.randrange(10_000):04d}-{self._name}-{self._num}", size_bytes=size_bytes)

    def _put(self) -> None:
        entry = self._entry()
        self._ledger.ask(entry)
        new = "*" if self._rng.random() < 0.3 else None
        try:
            info = self._client.put(BUCKET, entry.key, entry.data, if_none_match=new)
        except (StoreError, OSError) as error:
            self._history.failed("ledger put", error)
            if isinstance(error, NOTHING_NAMED):
                self._ledger.gone(entry)
        else:
            self._ledger.hold(entry, info)
            self._history.count("ledger put ok")

    def _put_many(self) -> None:
        entries = [self._entry() for _ in range(self._rng.randint(2, MAX_BATCH))]
        for entry in entries:
            self._ledger.ask(entry)
        try:
            infos = self._client.put_many((BUCKET, entry.key, entry.data) for entry in entries)
        except (StoreError, OSError) as error:
            self._history.failed("ledger put_many", error)
            return
        for entry, info in zip(entries, infos, strict=True):
            self._ledger.hold(entry, info)
        self._history.count("ledger put_many ok")

    def _delete(self) -> None:
        entry = self._ledger.leave(self._rng)
        if entry is None:
            return
        try:
            self._client.delete(BUCKET, entry.key)
        except ObjectNotFound:
            self._history.violation(f"{self._name} deletes {entry.key}, which only it deletes, and it is not there")
        except (StoreError, OSError) as error:
            self._history.failed("ledger delete", error)
        else:
            self._ledger.gone(entry)
            self._history.count("ledger delete ok")


class LedgerReader:
    """Reads entries, whole or in part, one by one and in batches."""

    def __init__(self, clients: Callable[[], Client], ledger: Ledger, *, name: str, rng: random.Random) -> None:
        self._clients = clients
        self._client = clients()
        self._ledger = ledger
        self._history = ledger.history
        self._name = name
        self._rng = rng

    def step(self) -> None:
        """One call."""
        self._client = self._clients()
        entries = self._ledger.some(self._rng, self._rng.choice((1, 1, 1, MAX_BATCH)))
        before = [(entry, entry.state) for entry in entries]
        if len(entries) == 1:
            self._get(*before[0])
        elif entries:
            self._get_many(before)

    def _get(self, entry: Entry, was: State) -> None:
        start = self._rng.randrange(entry.size_bytes) if entry.size_bytes and self._rng.random() < 0.3 else 0
        try:
            data = self._client.get(BUCKET, entry.key, start=start)
        except ObjectNotFound:
            self._ledger.missed(entry, was=was, who=self._name)
        except (StoreError, OSError) as error:
            self._history.failed("ledger get", error)
        else:
            if start and data != entry.data[start:]:
                self._history.violation(f"{self._name} read {entry.key} from byte {start} and got wrong bytes")
            elif not start:
                self._ledger.found(entry, data, was=was, who=self._name)
            self._history.count("ledger get ok")

    def _get_many(self, before: Iterable[tuple[Entry, State]]) -> None:
        held = [(entry, was) for entry, was in before if was == "held"]
        try:
            found = self._client.get_many((BUCKET, entry.key, 0, None) for entry, _ in held)
        except ObjectNotFound as error:
            for entry, was in held:
                if error.key == f"{BUCKET}/{entry.key}":
                    self._ledger.missed(entry, was=was, who=self._name)
        except (StoreError, OSError) as error:
            self._history.failed("ledger get_many", error)
        else:
            for (entry, was), data in zip(held, found, strict=True):
                self._ledger.found(entry, data, was=was, who=self._name)
            self._history.count("ledger get_many ok")


class Lister:
    """Lists, page after page, and checks that nothing is missing, twice or out of order."""

    def __init__(self, clients: Callable[[], Client], ledger: Ledger, *, name: str, rng: random.Random) -> None:
        self._clients = clients
        self._client = clients()
        self._ledger = ledger
        self._history = ledger.history
        self._name = name
        self._rng = rng

    def step(self) -> None:
        """One listing."""
        self._client = self._clients()
        limit = self._rng.choice((3, 50, 1000)) if self._ledger.num_held() < 500 else self._rng.choice((200, 1000))
        try:
            infos, revision = self._pages(limit)
        except CursorExpired:
            self._history.count("list expired")
        except (StoreError, OSError) as error:
            self._history.failed("list", error)
        else:
            self._check(infos, revision)
            self._history.count("list ok")

    def _pages(self, limit: int) -> tuple[list[ObjectInfo], int]:
        infos, cursor, revisions = list[ObjectInfo](), None, set[int]()
        while True:
            page = self._client.list(BUCKET, prefix=PREFIX, cursor=cursor, limit=limit)
            infos += page.objects
            revisions.add(page.revision)
            cursor = page.cursor
            if cursor is None:
                break
        if len(revisions) != 1:
            self._history.violation(f"the pages of one listing are of the revisions {sorted(revisions)}")
        return infos, min(revisions)

    def _check(self, infos: list[ObjectInfo], revision: int) -> None:
        keys = [info.key.encode() for info in infos]
        if any(first >= second for first, second in pairwise(keys)):
            self._history.violation(f"a listing at revision {revision} is out of order or has a key twice")
        found = {info.key: info.version for info in infos}
        # Held after the listing was made: no delete of it was asked for before.
        for entry in self._ledger.held():
            if entry.version <= revision and found.get(entry.key) != entry.version:
                self._history.violation(
                    f"a listing at revision {revision} has {entry.key} at version {found.get(entry.key)}, acknowledged as "
                    f"{entry.version}"
                )
        late = [key for key, version in found.items() if version > revision or key not in self._ledger.entries]
        if late:
            self._history.violation(f"a listing at revision {revision} has what is not of it: {late[:5]}")
