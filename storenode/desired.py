"""The desired set: which chunks this node has to hold, derived from the committed records, and how to come to hold them.

A record names its chunks, directly or through a tree of manifests, and how many replicas each has; placement says on which
nodes they lie. Nothing else counts: what peers report is a hint, and what this disk holds beyond the set is not looked at here.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from client.errors import StoreError
from client.manifest import Ref
from client.manifest_cache import ManifestCache
from client.reader import ContentReader
from client.record import ObjectRecord
from client.retry import Backoff
from storenode.fetching import Fetching
from storenode.metastore import KeyValue, MetaStore
from storenode.pace import Pace
from storenode.repair import Copies

__all__ = ["RECORDS_END", "RECORDS_START", "DesiredSet", "Shortfall", "is_record_key", "scan_records"]

# Current versions lie under obj/, older ones under ver/. One range spans both, so that one watch sees a version move.
_PREFIXES = ("obj/", "ver/")
RECORDS_START, RECORDS_END = "obj/", "ver0"  # "0" is the successor of "/"
_MAX_PAGE = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Shortfall:
    """What this node was found to lack of one record.

    Attributes
    ----------
    num_missing : int
        Chunks that ought to be here and are not, after the attempt.
    num_fetched : int
        Chunks that were missing and are here now.
    fetched_bytes : int
        Their bytes.
    rehashed_bytes : int
        Of copies that were re-hashed where they lie, because others are about to be given up for them.
    error : StoreError or None
        Why one of them could not be had, or looked for; None if nothing was tried.
    """

    num_missing: int = 0
    num_fetched: int = 0
    fetched_bytes: int = 0
    rehashed_bytes: int = 0
    error: StoreError | None = None


class DesiredSet:
    """Brings this node's disk up to records.

    Parameters
    ----------
    copies : Copies
        This node's disk and its peers.
    num_threads : int
        Chunks, or groups of small ones, fetched at once; memory is as many.
    pace : Pace
        What chunks keep to that a change of the layout moves.
    """

    def __init__(self, copies: Copies, *, num_threads: int, pace: Pace) -> None:
        self._copies = copies
        self._pace = pace
        self._num_threads = num_threads
        self._pool = ThreadPoolExecutor(num_threads, thread_name_prefix="forebay-restore")
        self._lock = threading.Lock()
        self._seen: dict[int, bytes] = {}  # one chunk for each directory of the store in which copies were seen

    def close(self) -> None:
        """Stop the threads; fetches in progress end first."""
        self._pool.shutdown()

    def ensure(self, records: Iterable[ObjectRecord], *, stopping: Callable[[], bool] = lambda: False) -> list[Shortfall]:
        """Look for every chunk of `records` that placement gives this node, and fetch those that are not here.

        Small ones are fetched in groups, across records. Where layouts that are not retired disagree about the holders of a
        chunk, that it is here is not enough: copies elsewhere are given up because of what this node says, so that it is
        re-hashed.

        Parameters
        ----------
        stopping : callable
            True ends the walk; what was not looked at of a record counts as one missing chunk.

        Returns
        -------
        list of Shortfall
            One for each of `records`. Of one with a manifest that can't be read, nothing may be concluded.
        """
        fetching = Fetching(self._copies, self._pool, max_in_flight=self._num_threads)
        tallies = []
        try:
            for record in records:
                tallies.append(tally := _Tally())
                try:
                    self._look(record, tally, fetching, stopping=stopping)
                except StoreError as error:
                    tally.missing(error)
        finally:
            fetching.finish()
        return [tally.shortfall() for tally in tallies]

    def _look(self, record: ObjectRecord, tally: _Tally, fetching: Fetching, *, stopping: Callable[[], bool]) -> None:
        for ref in self.refs(record):
            if stopping():
                tally.missing(None)
                return
            if not self._copies.belongs_here(ref, replicas=record.replicas):
                continue
            moving = self._copies.is_moving(ref, replicas=record.replicas)
            if moving:
                self._pace.take(ref.size)
            # Tagged, because from here on this node answers for the copy.
            if self._copies.chunks.touch(ref.partition, ref.id, epoch=self._copies.epoch, rehash=moving):
                tally.rehashed_bytes += ref.size if moving else 0
                with self._lock:
                    self._seen[ref.id[0]] = ref.id
            else:
                fetching.add(ref, replicas=record.replicas, then=tally.fetched)

    def make_durable(self) -> None:
        """Make durable what `ensure` has found to be here; whoever notes durably that it is here calls this before.

        Otherwise a power cut could take back a copy that was still being written when it was seen, and the note would hide
        that. Raises `DiskFailed`.
        """
        with self._lock:
            seen, self._seen = self._seen, {}
        try:
            self._copies.chunks.make_durable(seen.values())
        except StoreError:
            with self._lock:
                self._seen = seen | self._seen
            raise

    def refs(self, record: ObjectRecord) -> Iterator[Ref]:
        """All chunks of a record, manifests too, which are read verified; raises `AllReplicasFailed`, `MetadataCorrupt`."""
        # One attempt per manifest: whoever calls this tries the whole record again later.
        reader = ContentReader(
            record.content,
            replicas=record.replicas,
            reader=self._copies.reader,
            manifests=ManifestCache(),
            executor=self._pool,
            max_in_flight=1,
            backoff=Backoff(base_s=1.0, max_s=1.0),
            deadline_s=0.0,
        )
        return reader.refs()


class _Tally:
    """Counts outcomes while a record is walked."""

    def __init__(self) -> None:
        self.rehashed_bytes = 0
        self._num_missing = 0
        self._num_fetched = 0
        self._fetched_bytes = 0
        self._error: StoreError | None = None

    def missing(self, error: StoreError | None) -> None:
        self._num_missing += 1
        self._error = self._error or error

    def fetched(self, ref: Ref, error: StoreError | None) -> None:
        if error is not None:
            self.missing(error)
            return
        self._num_fetched += 1
        self._fetched_bytes += ref.size

    def shortfall(self) -> Shortfall:
        return Shortfall(
            num_missing=self._num_missing,
            num_fetched=self._num_fetched,
            fetched_bytes=self._fetched_bytes,
            rehashed_bytes=self.rehashed_bytes,
            error=self._error,
        )


def is_record_key(key: str) -> bool:
    """Whether `key` holds a version of an object."""
    return key.startswith(_PREFIXES)


def scan_records(store: MetaStore, *, after: str = "") -> Iterator[list[KeyValue]]:
    """All records in pages, ordered by key; `after` continues behind a key.

    The pages are not of one revision, on purpose. Whoever notes the store's revision first and afterwards follows the changes
    from there misses nothing: a record that changes during the scan shows up in both. And no scan is ever too slow for
    the history that is kept.
    """
    start = after + "\0" if after else RECORDS_START
    while True:
        page = store.range(start, RECORDS_END, limit=_MAX_PAGE)
        yield [item for item in page.items if is_record_key(item.key)]
        if not page.more:
            return
        start = page.items[-1].key + "\0"
