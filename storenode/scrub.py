"""The scrub of a node: every copy on its disk is re-hashed where it lies, then every record is checked for missing copies.

The first half finds what went bad, at a limited rate: a bad copy is set aside and repair replaces it. The second half finds
what is not there at all, whatever the reason: it goes through all records as a node without a cursor does, and fetches. It
runs as a job (`storenode.jobs`), whose cursor holds the half, the place in it and what was found so far.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Literal

from client.errors import ChunkCorrupt, ChunkNotFound, StoreError
from client.record import ObjectRecord
from storenode.chunkstore import ChunkStore
from storenode.desired import DesiredSet, scan_records
from storenode.follower import Follower
from storenode.history import decode_record
from storenode.jobs import JobRun
from storenode.metastore import KeyValue, MetaStore

__all__ = ["Scrub", "ScrubCursor"]

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class ScrubCursor:
    """Where a scrub is, and what it found.

    Attributes
    ----------
    half : str
        chunks or records.
    after : str
        The last ``partition/id``, or the last key of a record; empty at the start of the half.
    num_corrupt, num_unreadable, num_fetched, num_waiting : int
        Copies set aside; copies that the disk failed to read; missing copies fetched; records that wait for a chunk.
    """

    half: Literal["chunks", "records"] = "chunks"
    after: str = ""
    num_corrupt: int = 0
    num_unreadable: int = 0
    num_fetched: int = 0
    num_waiting: int = 0

    def encode(self) -> str:
        """The cursor as a job's record keeps it."""
        return json.dumps(asdict(self))

    @classmethod
    def decode(cls, text: str) -> ScrubCursor:
        """The inverse of `encode`; what it can't read means from the start."""
        try:
            return cls(**json.loads(text))
        except (ValueError, TypeError):
            return cls()

    def describe(self) -> str:
        """What was found, for people."""
        found = f"{self.num_corrupt} corrupt, {self.num_fetched} missing and fetched"
        if self.num_unreadable:
            found += f", {self.num_unreadable} could not be read (see the node's log)"
        if self.num_waiting:
            found += f", {self.num_waiting} objects wait for chunks that no node can give now"
        return found


class Scrub:
    """The work of a scrub job on one node.

    Parameters
    ----------
    chunks : ChunkStore
        The copies to re-hash.
    store : MetaStore
        The records.
    desired : DesiredSet
        Looks for missing copies and fetches them.
    follower : Follower
        Takes over what can't be put right at once.
    rate_bytes_per_s : float
        How fast copies are read.
    clock : callable
        Monotonic seconds.
    """

    def __init__(
        self,
        *,
        chunks: ChunkStore,
        store: MetaStore,
        desired: DesiredSet,
        follower: Follower,
        rate_bytes_per_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._chunks = chunks
        self._store = store
        self._desired = desired
        self._follower = follower
        self._rate_bytes_per_s = rate_bytes_per_s
        self._clock = clock

    def __call__(self, run: JobRun) -> None:
        """Do both halves, from the job's cursor on."""
        at = ScrubCursor.decode(run.job.cursor)
        if at.half == "chunks":
            at = self._rehash_copies(run, at)
        self._look_for_missing(run, at)

    def _rehash_copies(self, run: JobRun, at: ScrubCursor) -> ScrubCursor:
        run.expect(sum(1 for _ in self._chunks.scan()))
        began_s, read_bytes = self._clock(), 0
        for partition, chunk_id in self._chunks.scan(after=_parse_place(at.after)):
            size_bytes, at = self._rehash(partition, chunk_id, replace(at, after=f"{partition}/{chunk_id.hex()}"))
            run.advance(cursor=at.encode(), detail=at.describe(), num_chunks=1, size_bytes=size_bytes)
            read_bytes += size_bytes
            run.pause(began_s + read_bytes / self._rate_bytes_per_s - self._clock())
        return replace(at, half="records", after="")

    def _rehash(self, partition: int, chunk_id: bytes, at: ScrubCursor) -> tuple[int, ScrubCursor]:
        try:
            return self._chunks.verify(partition, chunk_id), at
        except ChunkNotFound:
            return 0, at  # Gone since the directory was listed.
        except ChunkCorrupt as error:
            log.warning("scrub: %s", error.message)
            self._chunks.quarantine(partition, chunk_id)
            self._follower.repair(partition, chunk_id)
            return 0, replace(at, num_corrupt=at.num_corrupt + 1)
        except StoreError as error:
            # A disk that fails on one file may well read the next.
            log.warning("scrub: chunk %d/%s: %s", partition, chunk_id.hex(), error.message)
            return 0, replace(at, num_unreadable=at.num_unreadable + 1)

    def _look_for_missing(self, run: JobRun, at: ScrubCursor) -> None:
        for page in scan_records(self._store, after=at.after):
            if page:
                at = self._complete(page, replace(at, after=page[-1].key))
                run.advance(cursor=at.encode(), detail=at.describe())

    def _complete(self, page: list[KeyValue], at: ScrubCursor) -> ScrubCursor:
        """Fetch together what the records of a page lack."""
        records: list[tuple[KeyValue, ObjectRecord]] = []
        num_waiting = 0
        for item in page:
            try:
                records.append((item, decode_record(item)))
            except StoreError as error:
                num_waiting += self._postpone(item, error)
        shortfalls = self._desired.ensure(record for _, record in records)
        for (item, _), shortfall in zip(records, shortfalls, strict=True):
            if shortfall.num_missing:
                num_waiting += self._postpone(item, shortfall.error)
        num_fetched = sum(shortfall.num_fetched for shortfall in shortfalls)
        return replace(at, num_fetched=at.num_fetched + num_fetched, num_waiting=at.num_waiting + num_waiting)

    def _postpone(self, item: KeyValue, error: StoreError | None) -> int:
        if error is not None:
            log.warning("scrub: %s can't be completed now: %s", item.key, error.message)
        self._follower.postpone(item.key, revision=item.mod_revision)
        return 1


def _parse_place(text: str) -> tuple[int, bytes] | None:
    if not text:
        return None
    partition, _, chunk_id = text.partition("/")
    return int(partition), bytes.fromhex(chunk_id)
