"""Garbage collection on one node: copies that no record refers to are removed once they are old enough.

Theory of operation
-------------------
The cluster counts epochs (`storenode.epochs`). An upload reads the epoch, e, and every copy that it relies on is tagged with e
or a later one, new or found. Its commit happens only while the epoch is at most e + 1; a longer upload reads the epoch anew and
touches all of its chunks again. A sweep at epoch E removes copies that no record refers to and whose tags are at most E - 2:

- A commit before the sweep has looked at the records: the sweep sees the record. It notes the metadata's revision, goes through
  the records page by page, and follows the changes since then up to a revision that it reads afterwards.
- A commit later than that is one of an epoch of E - 1 or later, and so are the tags of its chunks. They may be given at any
  time until the very removal, because tagging and removing exclude each other (`storenode.screening`).
- A commit that takes its content from a version that exists: that version was seen, or is of the second kind itself.

What a record refers to is known only if its manifests can be read. If one can't, or a record itself, nothing is removed in
this sweep at all, and it is tried again later. A record that changed since it was seen is no such obstacle: what it is
now is among the changes.

Copies that records refer to and that belong to other nodes go in the same sweep, by the same rule, when these nodes have
re-hashed theirs (`storenode.surplus`).

Before the records are looked at the node's own view of the cluster is made as new as the epoch, for what its repair tags
(`storenode.repair.Copies`). Removing stops while this node holds no lease or its metadata are older than they were.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace

from client.catalog import parts
from client.errors import StoreError
from client.manifest import Ref
from client.placement import Layout
from client.record import ObjectRecord
from storenode.desired import RECORDS_END, RECORDS_START, is_record_key, scan_records
from storenode.garbage import Garbage, Removed
from storenode.history import decode_record
from storenode.marks import Chunk, Marks
from storenode.metastore import KeyValue, MetaStore
from storenode.surplus import Surplus

__all__ = ["Collector", "Swept"]

_NUM_DIRECTORIES = 256
# Each look at the changes may cost the engine a write; what is seen later is held back in its history meanwhile.
_PAGES_PER_LOOK = 16
# Removed between two looks at whether this node still may; and re-hashed by others in one call.
_BATCH_CHUNKS = 256
_BATCH_SURPLUS = 64
_ANY_TAG = 2**31


@dataclass(frozen=True, slots=True, kw_only=True)
class Swept:
    """What a sweep has done so far.

    Attributes
    ----------
    epoch : int
        At which it was made.
    removed : Removed
        Garbage.
    num_kept : int
        Copies that were old enough, and that records refer to.
    given_up : Removed
        Of these, those that belong elsewhere and that others have.
    num_left : int
        Those that belong elsewhere and were not given up; on a draining node, all that is left.
    """

    epoch: int
    removed: Removed = field(default_factory=Removed)
    num_kept: int = 0
    given_up: Removed = field(default_factory=Removed)
    num_left: int = 0


class Collector:
    """Sweeps one disk. For one thread at a time.

    Parameters
    ----------
    store : MetaStore
        The records.
    garbage : Garbage
        The copies.
    refs : callable
        All chunks of a record, manifests included; raises `StoreError` if a manifest can't be read.
    reach : callable
        Makes this node's view of the cluster at least as new as an epoch, or raises.
    require_may_remove : callable
        Raises `StoreError` while nothing may be removed.
    surplus : Surplus
        Says which copies that records refer to may go.
    forget : callable
        Told of chunks whose bad copies nobody has to replace any more.
    max_chunks : int
        Copies that are remembered at once, 9 bytes each. Of a disk that holds more, parts are swept one after another, each
        with a look at all records.
    """

    def __init__(
        self,
        store: MetaStore,
        *,
        garbage: Garbage,
        refs: Callable[[ObjectRecord], Iterable[Ref]],
        reach: Callable[[int], object],
        require_may_remove: Callable[[], object],
        surplus: Surplus,
        forget: Callable[[int, bytes], object],
        max_chunks: int,
    ) -> None:
        self._store = store
        self._garbage = garbage
        self._refs = refs
        self._reach = reach
        self._require_may_remove = require_may_remove
        self._surplus = surplus
        self._forget = forget
        self._max_chunks = max_chunks
        self._until = 0

    def sweep(self, epoch: int) -> Iterator[Swept]:
        """Sweep at an epoch that the cluster has reached, a bounded piece of work at each step; the last value is the outcome.

        Raises
        ------
        StoreError
            A record or a manifest can't be read, the metadata or the disk does not answer, or nothing may be removed now.
        """
        swept, first = Swept(epoch=epoch), 0
        layout = self._surplus.layout()
        aside = self._garbage.set_aside(below=epoch - 1)
        while first < _NUM_DIRECTORIES:
            marks, last = Marks(), first
            while last < _NUM_DIRECTORIES and (last == first or len(marks) < self._max_chunks):
                found = [chunk for chunk in aside.values() if chunk[1][0] == last]
                marks.expect(last, [*self._garbage.older(last, below=epoch - 1), *found])
                last += 1
                yield swept
            if marks:
                for _ in self._mark(marks, epoch=epoch):
                    yield swept
                swept = replace(swept, num_kept=swept.num_kept + marks.num_kept)
                for removed in self._remove(marks, range(first, last), below=epoch - 1):
                    swept = replace(swept, removed=swept.removed + removed)
                    yield swept
                for given_up, num_left in self._give_up(layout, marks, range(first, last), below=epoch - 1):
                    swept = replace(swept, given_up=swept.given_up + given_up, num_left=swept.num_left + num_left)
                    yield swept
                self._discard(item for item in aside.items() if marks.is_garbage(item[1]))
            first = last
        if layout is not None:
            if self._surplus.gives_up_all(layout):
                # Also what was not old enough to be looked at.
                num_left = sum(len(self._garbage.older(first, below=_ANY_TAG)) for first in range(_NUM_DIRECTORIES))
                swept = replace(swept, num_left=num_left)
            self._surplus.tell(layout, left=swept.num_left)
        yield swept

    def _mark(self, marks: Marks, *, epoch: int) -> Iterator[None]:
        """Tick off every copy that a record refers to, as the records are when it ends."""
        self._reach(epoch)
        # Read before the first page: what changes from here on is followed, see `scan_records`.
        position = self._store.revision()
        for number, page in enumerate(scan_records(self._store), start=1):
            for item in page:
                self._keep(marks, item)
            if number % _PAGES_PER_LOOK == 0:
                position = self._follow(marks, position)
            yield
        self._until = self._store.revision()
        while position < self._until:
            position = self._follow(marks, position)
            yield

    def _follow(self, marks: Marks, position: int) -> int:
        watched = self._store.watch(RECORDS_START, RECORDS_END, after_revision=position, timeout_s=0.0)
        for event in watched.events:
            if event.value is not None and is_record_key(event.key):
                revision = event.revision
                item = KeyValue(key=event.key, value=event.value, create_revision=revision, mod_revision=revision, lease=None)
                self._keep(marks, item)
        return watched.revision

    def _keep(self, marks: Marks, item: KeyValue) -> None:
        try:
            record = decode_record(item)
            for ref in self._refs(record):
                marks.keep((ref.partition, ref.id), copies=record.replicas)
        except StoreError:
            now = self._store.get(item.key)
            if now is not None and now.mod_revision == item.mod_revision:
                raise
            # Deleted, replaced or moved aside since, and its manifests may be gone. What became of it is a change that has yet
            # to be followed, for it may have come after the revision up to which changes were to be followed so far.
            self._until = max(self._until, self._store.revision())

    def _remove(self, marks: Marks, directories: range, *, below: int) -> Iterator[Removed]:
        for first in directories:
            found = [chunk for chunk in self._garbage.older(first, below=below) if marks.is_garbage(chunk)]
            for batch in parts(found, _BATCH_CHUNKS):
                self._require_may_remove()
                yield self._garbage.remove(first, batch, below=below)

    def _give_up(self, layout: Layout | None, marks: Marks, directories: range, *, below: int) -> Iterator[tuple[Removed, int]]:
        """Remove copies that belong elsewhere, once others have re-hashed theirs; what was removed, and how many stay."""
        if layout is None:
            return
        for first in directories:
            wanted = {chunk: marks.copies_of(chunk) for chunk in self._garbage.older(first, below=below)}
            misplaced = [chunk for chunk, copies in wanted.items() if self._surplus.is_misplaced(layout, chunk, copies=copies)]
            for batch in parts(misplaced, _BATCH_SURPLUS):
                size_bytes = self._garbage.size_bytes(first, batch)
                replaced = self._surplus.replaced(layout, {chunk: wanted[chunk] for chunk in batch}, size_bytes=size_bytes)
                self._require_may_remove()
                removed = self._garbage.remove(first, replaced, below=below)
                yield removed, len(batch) - removed.num_chunks

    def _discard(self, aside: Iterable[tuple[str, Chunk]]) -> None:
        for name, chunk in aside:
            self._require_may_remove()
            self._garbage.discard(name)
            self._forget(*chunk)
