"""Repair by following: this node reads the metadata's change log and holds what the records say that it has to hold.

Theory of operation
-------------------
One durable cursor says "complete to metadata revision r under layout v" (`storenode.cursor`). From there the follower watches
the records. For each one that changed it makes sure that every chunk that placement gives this node is here, and fetches what
is missing. Without a usable cursor (a new node, an empty disk, another layout, history compacted away, another incarnation of
the metadata) it goes through all records first, page by page, and follows the changes between two pages, so that a long sweep
never falls behind.

A write is acknowledged by a quorum, so the last replica may still be receiving when the record shows up here. A record that is
seen for the first time is therefore only looked at; what is still missing after a grace is fetched.

What can't be had now waits in a bounded set and is tried again with backoff, while newer records go on. The cursor never
passes the oldest revision that waits, and a sweep yields one only when none of its records waits. A record whose manifest can't
be read is such a record: nothing is concluded about it and it is never passed over. It does not hold up the repair of others,
because nothing is ever deleted here. If the set overflows, what was turned away is found again by going back to the durable
cursor.

Under a new layout all records are gone through again. When this node is complete under it, it says so to all
(`storenode.held`). Copies elsewhere are given up because of that, so the cursor is durable before.

So the state that survives a crash is the cursor alone, and it may be too old but never too new. It is saved at most once a
second: what a crash loses of it costs some looking at files.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, islice

from client.cluster import Cluster
from client.errors import CursorExpired, StoreError
from client.record import ObjectRecord
from storenode.cursor import Cursor, CursorFile
from storenode.desired import (
    RECORDS_END,
    RECORDS_START,
    DesiredSet,
    Shortfall,
    is_record_key,
    scan_records,
)
from storenode.held import Holdings
from storenode.history import decode_record
from storenode.metastore import KeyValue, MetaStore
from storenode.outage import Outages
from storenode.repair import Repair
from storenode.retry_queue import RetryQueue
from storenode.worker import Worker

__all__ = ["Follower", "Progress"]

log = logging.getLogger(__name__)

# What a sweep found incomplete is older than any revision, so there is no cursor until it is complete.
_SWEPT = 0
# Records in one step, and how long it takes them up, so that following and saving get their turn. Not short: what the records
# of a step lack is fetched together, and on a busy machine short ones would have groups of a few.
_MAX_SWEPT_PER_STEP = 1024
_MAX_SWEEP_S = 5.0
_MAX_RETRIES_PER_STEP = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """What was done for one layout.

    Attributes
    ----------
    layout : int
        Its version; 0 before any is known.
    fetched_chunks, fetched_bytes, rehashed_bytes : int
        Chunks that were missing and are here now, and copies that were here and are sound.
    """

    layout: int = 0
    fetched_chunks: int = 0
    fetched_bytes: int = 0
    rehashed_bytes: int = 0

    def plus(self, shortfall: Shortfall) -> Progress:
        """The same after one more record."""
        return Progress(
            layout=self.layout,
            fetched_chunks=self.fetched_chunks + shortfall.num_fetched,
            fetched_bytes=self.fetched_bytes + shortfall.fetched_bytes,
            rehashed_bytes=self.rehashed_bytes + shortfall.rehashed_bytes,
        )


class Follower:
    """Makes this node's copies follow the records, in a thread of its own.

    Parameters
    ----------
    store : MetaStore
        The records.
    cluster : Cluster
        The layout.
    desired : DesiredSet
        Looks and fetches.
    repair : Repair
        Mends single copies that were found bad.
    cursor_file : CursorFile
        How far this node has come, durably.
    holdings : Holdings
        Where others learn of it.
    incarnation : callable
        Which metadata this is at present.
    max_pending : int
        Most records that wait to be tried again.
    grace_s : float
        How long after a record was first seen missing chunks are fetched.
    base_s, max_s : float
        Backoff of a record that can't be completed.
    watch_s : float
        Longest wait for changes; also how quickly a stop and a new layout are noticed.
    save_s : float
        Shortest time between two saves of the cursor.
    """

    def __init__(
        self,
        store: MetaStore,
        *,
        cluster: Cluster,
        desired: DesiredSet,
        repair: Repair,
        cursor_file: CursorFile,
        holdings: Holdings,
        incarnation: Callable[[], str],
        max_pending: int,
        grace_s: float,
        base_s: float,
        max_s: float,
        watch_s: float,
        save_s: float = 1.0,
        clock: Callable[[], float] = time.monotonic,
        uniform: Callable[[float, float], float] = random.uniform,
    ) -> None:
        self._store = store
        self._cluster = cluster
        self._desired = desired
        self._repair = repair
        self._file = cursor_file
        self._holdings = holdings
        self._incarnation_now = incarnation
        self._grace_s = grace_s
        self._max_s = max_s
        self._watch_s = watch_s
        self._save_s = save_s
        self._clock = clock
        self._lock = threading.Lock()
        self._pending: RetryQueue[str] = RetryQueue(limit=max_pending, base_s=base_s, max_s=max_s, uniform=uniform)
        self._max_fresh = max_pending // 2
        self._turned_away: int | None = None  # the oldest revision that found no place in the set
        self._go_back_s = 0.0  # when to look for it
        self._durable: Cursor | None = None
        self._position: int | None = None  # followed to here; None: go back to the durable cursor
        self._layout_version = -1
        self._incarnation: str | None = None
        self._seen = 0  # The highest revision of this incarnation.
        self._swept_to: str | None = None  # The last key that the sweep has done; None: there is no sweep.
        self._progress = Progress()
        self._saved_s = float("-inf")
        self._outages = Outages(log)
        self._worker = Worker("follower", self.step, base_s=base_s, max_s=max_s, uniform=uniform)

    def load(self) -> None:
        """Take up the durable cursor."""
        self._durable = self._file.load()

    def start(self) -> None:
        """Begin at the durable cursor."""
        self.load()
        self._repair.start()
        self._worker.start()

    def stop(self) -> None:
        """End after the record in hand, and save the cursor."""
        self._worker.stop()
        self._repair.stop()
        try:
            self._save(now=True)
        except StoreError as error:
            self._outages.failed("saving the cursor", error)

    def repair(self, partition: int, chunk_id: bytes) -> None:
        """Have this node's copy of a chunk checked and, if need be, replaced. Returns at once."""
        self._repair.enqueue(partition, chunk_id)

    def fetch(self, partition: int, chunk_id: bytes) -> None:
        """Fetch a copy that is not here, or is not sound, now; raises what `Copies.mend` does."""
        self._repair.mend_now(partition, chunk_id)

    def forget(self, partition: int, chunk_id: bytes) -> None:
        """Do not have this node's copy of a chunk replaced after all."""
        self._repair.forget(partition, chunk_id)

    def postpone(self, key: str, *, revision: int) -> None:
        """Have the record at `key` completed; the cursor stays before `revision` until it is."""
        self._add(key, revision=revision, due_s=self._clock())
        self._worker.wake()

    @property
    def complete_to(self) -> int | None:
        """The revision up to which this node holds everything, None while it does not know of one."""
        cursor = self._cursor()
        return cursor.revision if cursor else None

    @property
    def progress(self) -> Progress:
        """What this node has done for the current layout, in this life."""
        return self._progress

    @property
    def num_pending(self) -> int:
        """Records and single copies that wait to be completed."""
        with self._lock:
            return len(self._pending) + self._repair.num_pending

    def step(self) -> float | None:
        """A part of a sweep, what is due again, and the changes since the last step."""
        self._find_position()
        if self._swept_to is not None:
            self._sweep_on(self._swept_to)
        self._retry()
        pause_s = self._patience_s()
        if self._has_room() and not self._worker.stopping:
            self._follow(pause_s)
            pause_s = 0.0
        self._save(now=False)
        return pause_s

    def _find_position(self) -> None:
        """Decide where to go on: from where it was, from the durable cursor, or from a new sweep."""
        layout_version, incarnation = self._cluster.layout.version, self._incarnation_now()
        go_back = self._turned_away is not None and self._clock() >= self._go_back_s
        same = (self._layout_version, self._incarnation) == (layout_version, incarnation)
        if self._position is not None and same and not go_back:
            return
        durable = self._durable
        if self._incarnation != incarnation:
            self._seen = durable.seen if durable is not None and durable.incarnation == incarnation else 0
        if not same:
            self._holdings.follow(layout=layout_version, incarnation=incarnation)
            self._progress = Progress(layout=layout_version)
        self._layout_version, self._incarnation = layout_version, incarnation
        with self._lock:
            self._turned_away = None
        if durable is not None and (durable.layout, durable.incarnation) == (layout_version, incarnation):
            self._position, self._swept_to = durable.revision, None
        else:
            self._begin_sweep()

    def _begin_sweep(self) -> None:
        self._holdings.begin_again()
        # Read before the first page: what changes from here on is followed, see `scan_records`.
        self._position = self._store.revision()
        log.info("going through all records: this node has no usable cursor for revision %d", self._position)
        self._swept_to = ""

    def _sweep_on(self, after: str) -> None:
        """Go through some more records: what a new layout moves comes at a rate, and what changes meanwhile wants its turn."""
        records = chain.from_iterable(scan_records(self._store, after=after))
        done = self._complete(self._in_time(islice(records, _MAX_SWEPT_PER_STEP)), revision=_SWEPT)
        if len(done) == _MAX_SWEPT_PER_STEP or next(records, None) is not None:
            # Only now: what fails in the middle of a step takes no record out of the sweep.
            self._swept_to = done[-1]
        else:
            self._swept_to = None
            log.info("went through all records; %d wait for chunks that could not be had", len(self._pending))

    def _in_time(self, items: Iterable[KeyValue]) -> Iterator[KeyValue]:
        end_s = self._clock() + _MAX_SWEEP_S
        for item in items:
            yield item
            if self._worker.stopping or self._clock() > end_s:
                return

    def _has_room(self) -> bool:
        """Whether to look for further changes. Those not tried yet come first, so that only what fails can fill the set."""
        with self._lock:
            return self._pending.num_fresh <= self._max_fresh

    def _follow(self, timeout_s: float) -> None:
        assert self._position is not None
        try:
            watched = self._store.watch(RECORDS_START, RECORDS_END, after_revision=self._position, timeout_s=timeout_s)
        except CursorExpired:
            # The log no longer reaches back to here, or it is another one, for a backup was restored: nobody can say which
            # records changed.
            self._begin_sweep()
            return
        due_s = self._clock() + self._grace_s
        for event in watched.events:
            if event.value is not None and is_record_key(event.key):
                # Only noted. A burst of writes to one key, or a delete right after, costs one look.
                self._add(event.key, revision=event.revision, due_s=due_s)
        self._position = watched.revision

    def _patience_s(self) -> float:
        if self._swept_to is not None or self._worker.stopping:
            return 0.0
        with self._lock:
            next_s = self._pending.next_due_s()
        return self._watch_s if next_s is None else min(self._watch_s, max(0.0, next_s - self._clock()))

    def _retry(self) -> None:
        with self._lock:
            due = self._pending.due(self._clock())[:_MAX_RETRIES_PER_STEP]
        items = self._store.get_many(due) if due else []
        for key, item in zip(due, items, strict=True):
            if item is None:
                # Deleted, or moved aside as an older version, which is a change of its own.
                self._settle(key)
        self._complete((item for item in items if item is not None), revision=None)

    def _complete(self, items: Iterable[KeyValue], *, revision: int | None) -> list[str]:
        """Bring this node up to records, whose keys are returned; those for which that fails wait and hold back `revision`."""
        taken: list[str] = []
        keys: list[str] = []  # Of those that could be decoded.

        def records() -> Iterator[ObjectRecord]:
            for item in items:
                taken.append(item.key)
                try:
                    record = decode_record(item)
                except StoreError as error:
                    self._put_off(item.key, error, revision=revision)
                    continue
                keys.append(item.key)
                yield record

        shortfalls = self._desired.ensure(records(), stopping=lambda: self._worker.stopping)
        for key, shortfall in zip(keys, shortfalls, strict=True):
            self._progress = self._progress.plus(shortfall)
            if shortfall.num_missing:
                self._put_off(key, shortfall.error, revision=revision)
            else:
                self._settle(key)
        if num_fetched := sum(shortfall.num_fetched for shortfall in shortfalls):
            size_bytes = sum(shortfall.fetched_bytes for shortfall in shortfalls)
            log.info("fetched %d chunks, %d bytes, for %d records up to %s", num_fetched, size_bytes, len(keys), keys[-1])
        return taken

    def _put_off(self, key: str, error: StoreError | None, *, revision: int | None) -> None:
        if error is not None:
            self._outages.failed(f"completing {key}", error)
        now_s = self._clock()
        if revision is not None:
            self._add(key, revision=revision, due_s=now_s)
        with self._lock:
            self._pending.failed(key, now_s=now_s)

    def _settle(self, key: str) -> None:
        self._outages.succeeded(f"completing {key}")
        with self._lock:
            self._pending.done(key)

    def _add(self, key: str, *, revision: int, due_s: float) -> None:
        with self._lock:
            if self._pending.add(key, revision=revision, due_s=due_s):
                return
            if self._turned_away is None:
                self._go_back_s = self._clock() + self._max_s
            self._turned_away = revision if self._turned_away is None else min(self._turned_away, revision)

    def _cursor(self) -> Cursor | None:
        """The newest cursor that is true now, None if there is none."""
        with self._lock:
            if self._position is None or self._swept_to is not None:
                return None
            position = self._position
            held_back = [self._pending.oldest_revision(), self._turned_away]
            revision = min([position, *(oldest - 1 for oldest in held_back if oldest is not None)])
        if revision < 0:
            return None
        self._seen = max(self._seen, position)
        return Cursor(revision=revision, layout=self._layout_version, incarnation=self._incarnation or "", seen=self._seen)

    def _save(self, *, now: bool) -> None:
        cursor = self._cursor()
        if cursor is None:
            return
        if cursor != self._durable:
            if not now and self._clock() - self._saved_s < self._save_s:
                return
            self._desired.make_durable()
            self._file.save(cursor)
            self._durable, self._saved_s = cursor, self._clock()
        # Only now: copies elsewhere are given up because of it, and a crash must not make it untrue.
        self._holdings.complete_to(cursor.revision)
