"""Writes by name on a `MetaStore`, many at a time: decided together, made durable together, each by itself. Blocking.

Theory of operation
-------------------
A write is one transaction that compares the revisions of all it was decided on: the cluster's and the bucket's record, the
key's newest version, that the write has no marker yet, and what holds the record's chunks in place: the anchor (copies under
that layout count, and garbage collection has spared the chunks), or the version that they are taken from. If any of them
changed meanwhile, nothing happens and the write is decided anew. What was read may be of another moment than the last write of
the same id: whatever is decided on it, a refusal too, takes effect only if there is still no marker then.

Many writes go in rounds. A round reads what all of its writes need at once, decides each, and has the engine apply their
transactions in one go; the next round is for those that lost a race. Of the writes to one key a round has the first that is
left, for the next one is decided on what that leaves. Whoever loses too many races gives up, and those behind it with it:
their sender repeats them, in their order.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import accumulate

from client.catalog import Commit, Source
from client.cluster import Anchor
from client.errors import (
    BucketNotFound,
    Conflict,
    MetadataCorrupt,
    MetadataFrozen,
    ObjectNotFound,
    PreconditionFailed,
    StaleAnchor,
    StoreError,
)
from client.record import ObjectInfo
from client.retry import Backoff, Deadline
from client.wire import encode_json
from storenode.buckets import MAX_TURNS, Bucket, bucket_not_found, lost_races
from storenode.history import Head, decode_record, next_step, num_to_look_at
from storenode.keyspace import bucket_key, object_key, version_key, version_of, versions_of, write_key
from storenode.layouts import ANCHOR_KEY, decode_anchor
from storenode.lineage import CLUSTER_KEY, Lineage, decode_lineage
from storenode.markers import Markers
from storenode.metastore import MAX_GET_KEYS, Change, Compare, Delete, KeyValue, MetaStore, Put, Txn, num_fitting, txn_bytes

__all__ = ["Commits", "Outcome", "object_not_found"]

# Answers that end a write for good, so that its later requests must get them as well.
_REFUSALS = (PreconditionFailed, ObjectNotFound, BucketNotFound)
_MAX_BUCKETS = 256  # That are kept decoded.
_NUM_QUEUES = 1024
_COURTESY_S = 1.0
_UNENDING = Deadline(float("inf"))  # Lost races are counted, not timed.
Outcome = ObjectInfo | StoreError
_Found = dict[str, KeyValue | None]


@dataclass(slots=True, kw_only=True)
class _Pending:
    """A write on its way to its outcome."""

    write: Commit
    num_lost: int = 0
    outcome: Outcome | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Decision:
    """What the engine is asked to do for a write; `refusal` is what the write then gets if it is not to happen."""

    txn: Txn
    refusal: StoreError | None
    base: int


class Commits:
    """Makes writes happen. Thread-safe.

    Parameters
    ----------
    backoff : Backoff
        Pauses of writes that lost a race.
    """

    def __init__(self, meta: MetaStore, markers: Markers, *, backoff: Backoff) -> None:
        self._meta = meta
        self._markers = markers
        self._backoff = backoff
        self._queues = [threading.RLock() for _ in range(_NUM_QUEUES)]

    def run(self, writes: Iterable[Commit]) -> list[Outcome]:
        """The outcome of each write; at most `client.catalog.MAX_BATCH_ITEMS`, with valid names. A tombstone deletes."""
        pending = [_Pending(write=write) for write in writes]
        if len(pending) != 1:
            self._rounds(pending)
        else:
            with self._queue_up(pending[0].write.name):
                self._rounds(pending)
        return [item.outcome for item in pending if item.outcome is not None]

    @contextmanager
    def _queue_up(self, name: str) -> Iterator[None]:
        """Let this process's writers of one key come one after another: only one can win at a time, and the others would lose.

        Without this a slow one may lose for ever. It is a courtesy, on which nothing depends: who waits too long goes on.
        """
        lock = self._queues[hash(name) % _NUM_QUEUES]
        mine = lock.acquire(timeout=_COURTESY_S)
        try:
            yield
        finally:
            if mine:
                lock.release()

    def _rounds(self, pending: list[_Pending]) -> None:
        left = pending
        while left:
            first: dict[str, _Pending] = {}
            for item in left:
                first.setdefault(item.write.name, item)
            able = list(first.values())
            lost = self._round(able[: _num_readable(able)])
            for item in left:
                # Those behind it as well: they may not happen before it.
                if item.outcome is None and first[item.write.name].num_lost == MAX_TURNS:
                    item.outcome = lost_races(item.write.name)
            left = [item for item in left if item.outcome is None]
            if lost and left:
                # A pause with jitter: writers that lost together would otherwise meet again together.
                turn = max(item.num_lost for item in lost) - 1
                self._backoff.wait(min(turn, 16), error=lost_races(lost[0].write.name), deadline=_UNENDING)

    def _round(self, items: Sequence[_Pending]) -> list[_Pending]:
        """Decide and apply writes to different keys; returns those that lost a race."""
        found = self._read(items)
        decided = [(item, decision) for item in items if (decision := self._decided(item, found)) is not None]
        applied = self._apply([decision.txn for _, decision in decided])
        lost = []
        for (item, decision), revision in zip(decided, applied, strict=True):
            if revision is None:
                item.num_lost += 1
                lost.append(item)
            else:
                item.outcome = decision.refusal or _info(item.write, decision.base + revision)
        return lost

    def _read(self, items: Iterable[_Pending]) -> _Found:
        """All that is needed to decide, at one moment."""
        keys: dict[str, None] = {CLUSTER_KEY: None}
        for item in items:
            write = item.write
            keys |= dict.fromkeys(
                (object_key(write.bucket, write.key), write_key(write.record.write_id), bucket_key(write.bucket))
            )
            if isinstance(write.proof, Anchor):
                keys[ANCHOR_KEY] = None
            elif write.proof is not None:
                keys |= dict.fromkeys(_source_keys(write.proof))
        return dict(zip(keys, self._meta.get_many(list(keys)), strict=True))

    def _decided(self, item: _Pending, found: _Found) -> _Decision | None:
        """What to do; None if the write has its outcome already."""
        write, compares, changes, refusal = item.write, list[Compare](), list[Change](), None
        lineage = Lineage()
        marker = found[write_key(write.record.write_id)]
        if marker is not None:
            item.outcome = self._markers.answer(marker, write)
            return None
        try:
            lineage = decode_lineage(found[CLUSTER_KEY])
            lineage.require_writable()
            decided = self._decide(write, found, lineage)
            if isinstance(decided, ObjectInfo):
                item.outcome = decided
                return None
            compares, changes = decided
        except _REFUSALS as error:
            refusal = error
        except (MetadataCorrupt, MetadataFrozen, StaleAnchor) as error:
            # Not remembered: of the last this same write is to happen once its chunks are touched.
            item.outcome = error
            return None
        unmarked = Compare(key=write_key(write.record.write_id), mod_revision=0)
        mark = self._markers.put(write, base=lineage.base, refusal=refusal)
        txn = Txn(compares=[*compares, unmarked], changes=[*changes, mark])
        return _Decision(txn=txn, refusal=refusal, base=lineage.base)

    def _decide(self, write: Commit, found: _Found, lineage: Lineage) -> tuple[list[Compare], list[Change]] | ObjectInfo:
        """What has to hold for `write` to happen, and what it then changes; or what it has made already."""
        name = write.bucket, write.key
        key = object_key(*name)
        record, at = found[bucket_key(write.bucket)], found[key]
        if record is None:
            raise bucket_not_found(write.bucket)
        bucket, head = _bucket(record), Head.decode(at) if at is not None else None
        if head is not None and head.record.write_id == write.record.write_id:
            # Its marker is gone with the engine that it was made on, for markers do not move.
            return head.info(write.bucket, write.key)
        etag = head.record.write_id if head is not None and not head.record.tombstone else None
        if not write.condition.holds(etag):
            raise _precondition_failed(write, etag)
        if write.record.tombstone and etag is None:
            raise object_not_found(write.bucket, write.key)
        compares = self._hold_in_place(write, found)
        keep, pins = bucket.policy.versions, bucket.pins
        oldest: list[int] = []
        if limit := num_to_look_at(head, keep=keep, pins=pins):
            oldest = [version_of(item.key) for item in self._meta.range(*versions_of(*name), limit=limit).items]
        step = next_step(head, record=write.record, keep=keep, pins=pins, oldest=oldest)
        changes: list[Change] = [
            Delete(key=key) if step.head is None else Put(key=key, value=step.head.encode(base=lineage.base))
        ]
        if step.aside and head is not None:
            moved = version_key(*name, head.version)
            changes.append(Put(key=moved, value=encode_json(head.record.to_json())))
        changes += [Delete(key=version_key(*name, version)) for version in step.pruned]
        if bucket.closing:
            # Somebody found the bucket empty and is about to delete it. This write puts an end to that.
            changes.append(replace(bucket, closing=False).put())
        same_head = Compare(key=key, mod_revision=at.mod_revision if at is not None else 0)
        # A source may be the version that is replaced: one compare then does for both.
        return list(dict.fromkeys([lineage.unchanged, bucket.unchanged, same_head, *compares])), changes

    def _hold_in_place(self, write: Commit, found: _Found) -> list[Compare]:
        """What has to stay as it is for the chunks of a record to be there when it is committed."""
        proof = write.proof
        if isinstance(proof, Anchor):
            known = decode_anchor(found[ANCHOR_KEY])
            if not proof.holds(known.anchor):
                raise _stale(write, proof, known.anchor)
            return [known.unchanged]
        if isinstance(proof, Source):
            at = _find_source(proof, found)
            if at is None or decode_record(at).content != write.record.content:
                name = f"{proof.bucket}/{proof.key}"
                raise ObjectNotFound(f"{name} has no version {proof.version} with this content (any more)", key=name)
            return [Compare(key=at.key, mod_revision=at.mod_revision)]
        return []

    def _apply(self, txns: Sequence[Txn]) -> list[int | None]:
        """The revision of each transaction; None for what has to be decided anew."""
        sizes = [(1, txn_bytes(txn)) for txn in txns]
        revisions: list[int | None] = []
        try:
            while len(revisions) < len(txns):
                start = len(revisions)
                part = txns[start : start + num_fitting(sizes[start:])]
                revisions += [result.revision if result.ok else None for result in self._meta.txn_many(part)]
        except Conflict:
            # The markers' lease is gone, because this process or its host was suspended for as long as it lives. What
            # happened nevertheless left its marker, and is found by it.
            self._markers.renew()
            revisions += [None] * (len(txns) - len(revisions))
        return revisions


def _num_readable(items: Iterable[_Pending]) -> int:
    """How many of the first writes can be decided on one reading of the engine."""
    num_keys = accumulate(5 if isinstance(item.write.proof, Source) else 3 for item in items)
    return sum(count <= MAX_GET_KEYS - 2 for count in num_keys)


def _source_keys(source: Source) -> tuple[str, str]:
    return object_key(source.bucket, source.key), version_key(source.bucket, source.key, source.version)


def _find_source(source: Source, found: _Found) -> KeyValue | None:
    """Where the version lies now: it may have been moved aside since it was read."""
    newest, older = (found[key] for key in _source_keys(source))
    return newest if newest is not None and Head.decode(newest).version == source.version else older


def _stale(write: Commit, anchor: Anchor, now: Anchor) -> StaleAnchor:
    return StaleAnchor(
        f"{write.name}: its chunks were stored under layout {anchor.layout} in epoch {anchor.epoch}, and the cluster is at "
        f"layout {now.layout} in epoch {now.epoch}; touch them and commit again",
        key=write.name,
    )


@lru_cache(maxsize=_MAX_BUCKETS)
def _bucket(item: KeyValue) -> Bucket:
    """The bucket in a metadata item: the same one for most writes."""
    return Bucket.decode(item)


def _info(write: Commit, revision: int) -> ObjectInfo:
    return ObjectInfo(bucket=write.bucket, key=write.key, version=revision, record=write.record)


def object_not_found(bucket: str, key: str) -> ObjectNotFound:
    """The error that says how to find what there is."""
    name = f"{bucket}/{key}"
    return ObjectNotFound(f"there is no object {name}; `forebay ls {bucket}` lists those that exist", key=name)


def _precondition_failed(write: Commit, etag: str | None) -> PreconditionFailed:
    asked = " and ".join(
        f"{name} {value!r}"
        for name, value in (("If-Match", write.condition.if_match), ("If-None-Match", write.condition.if_none_match))
        if value is not None
    )
    found = f"it has ETag {etag!r}" if etag is not None else "there is no such object"
    return PreconditionFailed(f"{write.name}: {asked} was asked for, but {found}", key=write.name)
