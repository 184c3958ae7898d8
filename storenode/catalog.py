"""Names to records on a `MetaStore`: what a node answers for buckets and objects. Blocking; it knows nothing of HTTP.

Theory of operation
-------------------
Every write is one transaction that compares the revisions of all it was decided on: the bucket's record, the key's newest
version, and that the write has no marker yet. If any of them changed meanwhile, nothing happens and the write is decided
anew. An object's version is the revision of the transaction that wrote it. `storenode.history` says what happens to older
versions, `storenode.markers` how a repeat learns its first answer, `storenode.buckets` how a bucket goes away.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from client.catalog import Consistency, Listing, Watched
from client.errors import (
    BucketNotFound,
    Conflict,
    InvalidRequest,
    ObjectNotFound,
    PreconditionFailed,
    StoreError,
)
from client.names import check_bucket, check_key, check_prefix
from client.record import BucketPolicy, Condition, Content, ObjectInfo, ObjectRecord
from client.retry import Backoff, Deadline
from client.wire import encode_json
from storenode.buckets import MAX_TURNS, Bucket, Buckets, lost_races
from storenode.history import Head, decode_older, next_step
from storenode.keyspace import object_key, objects_of, version_key, versions_of, write_key
from storenode.listing import ListQuery, list_page
from storenode.markers import Markers, Write
from storenode.metastore import Change, Compare, Delete, Event, KeyValue, MetaStore, Put, prefix_end

__all__ = ["MetaCatalog"]

# Answers that end a write for good, so that its later requests must get them as well.
_REFUSALS = (PreconditionFailed, ObjectNotFound, BucketNotFound)
_RACE_BACKOFF = Backoff(base_s=0.001, max_s=0.05)


class MetaCatalog:
    """Implements `client.catalog.Catalog` on a metadata engine. Thread-safe.

    Parameters
    ----------
    meta : MetaStore
        The engine.
    marker_ttl_s : float
        Shortest life of a write's marker; longer than any request can be on its way.
    clock : callable
        Seconds since the epoch, for tombstones.
    monotonic : callable
        Monotonic seconds.
    backoff : Backoff
        Pauses of a write that lost a race.
    """

    def __init__(
        self,
        meta: MetaStore,
        *,
        marker_ttl_s: float,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
        backoff: Backoff = _RACE_BACKOFF,
    ) -> None:
        self._meta = meta
        self._buckets = Buckets(meta)
        self._markers = Markers(meta, ttl_s=marker_ttl_s, clock=monotonic)
        self._clock = clock
        self._backoff = backoff

    def create_bucket(self, bucket: str, policy: BucketPolicy) -> None:
        """See `Catalog.create_bucket`."""
        self._buckets.create(bucket, policy)

    def bucket(self, bucket: str) -> BucketPolicy:
        """See `Catalog.bucket`."""
        return self._buckets.get(bucket).policy

    def buckets(self) -> dict[str, BucketPolicy]:
        """See `Catalog.buckets`."""
        return self._buckets.all()

    def set_bucket(self, bucket: str, policy: BucketPolicy) -> None:
        """See `Catalog.set_bucket`."""
        self._buckets.set(bucket, policy)

    def delete_bucket(self, bucket: str) -> None:
        """See `Catalog.delete_bucket`."""
        self._buckets.delete(bucket)

    def lookup(self, bucket: str, key: str, *, version: int | None = None, consistency: Consistency = "strong") -> ObjectInfo:
        """See `Catalog.lookup`. Every read is linearizable, which is more than ``session`` and ``eventual`` ask for."""
        # The newest version first: one that is moved aside between the two reads is then seen by the second.
        item = self._meta.get(object_key(check_bucket(bucket), check_key(key)))
        info = Head.decode(item).info(bucket, key) if item is not None else None
        if version is not None and (info is None or info.version != version):
            older = self._meta.get(version_key(bucket, key, version))
            info = decode_older(older, bucket=bucket, key=key) if older is not None else None
        if info is not None and not info.record.tombstone:
            return info
        self._buckets.get(bucket)
        if version is not None:
            raise ObjectNotFound(f"{bucket}/{key} has no version {version}, or no longer", key=f"{bucket}/{key}")
        raise _not_found(bucket, key)

    def lookup_many(self, names: Sequence[tuple[str, str]]) -> list[ObjectInfo | StoreError]:
        """The current version of each (bucket, key), or why there is none."""
        found: list[ObjectInfo | StoreError] = []
        for bucket, key in names:
            try:
                found.append(self.lookup(bucket, key))
            except StoreError as error:
                found.append(error)
        return found

    def commit(self, bucket: str, key: str, record: ObjectRecord, *, condition: Condition) -> ObjectInfo:
        """See `Catalog.commit`."""
        if record.tombstone:
            raise InvalidRequest("a record to commit can't be a tombstone; delete the object instead", key=f"{bucket}/{key}")
        return self._write(Write(bucket=check_bucket(bucket), key=check_key(key), record=record), condition)

    def delete(self, bucket: str, key: str, *, write_id: str, condition: Condition) -> None:
        """See `Catalog.delete`."""
        content = Content(size=0, digest="")
        tombstone = ObjectRecord(write_id=write_id, content=content, created_s=self._clock(), tombstone=True)
        self._write(Write(bucket=check_bucket(bucket), key=check_key(key), record=tombstone), condition)

    def list(self, bucket: str, *, prefix: str, delimiter: str, cursor: str | None, limit: int, versions: bool) -> Listing:
        """See `Catalog.list`."""
        self._buckets.get(bucket)
        query = ListQuery(bucket=bucket, prefix=check_prefix(prefix), delimiter=check_prefix(delimiter), versions=versions)
        return list_page(self._meta, query, cursor=cursor, limit=limit)

    def watch(self, bucket: str, *, prefix: str, after: int | None, timeout_s: float) -> Watched:
        """See `Catalog.watch`."""
        self._buckets.get(bucket)
        newest = self._meta.revision()
        if after is None:
            return Watched(changes=(), revision=newest)
        if not 0 <= after <= newest:
            raise InvalidRequest(f"revision {after} is not one of this cluster, which is at {newest}")
        start = objects_of(bucket) + check_prefix(prefix)
        watched = self._meta.watch(start, prefix_end(start), after_revision=after, timeout_s=timeout_s)
        changes = tuple(_change(bucket, event) for event in watched.events)
        return Watched(changes=changes, revision=watched.revision)

    def _write(self, write: Write, condition: Condition) -> ObjectInfo:
        unending = Deadline(float("inf"))  # The turns are counted, not timed.
        for turn in range(MAX_TURNS):
            # These reads may be of different moments, with this very write's first request between them. No harm: whatever is
            # decided on them, a refusal too, takes effect only if there is still no marker then.
            item = self._meta.get(object_key(write.bucket, write.key))
            marker = self._meta.get(write_key(write.record.write_id))
            if marker is not None:
                version, record = self._markers.answer(marker, write)
                return ObjectInfo(bucket=write.bucket, key=write.key, version=version, record=record)
            refusal: StoreError | None = None
            try:
                compares, changes = self._decide(write, condition, Head.decode(item) if item is not None else None)
            except _REFUSALS as error:
                compares, changes, refusal = [], [], error
            revision = self._apply(write, compares, changes, refusal=refusal)
            if revision is not None and refusal is not None:
                raise refusal
            if revision is not None:
                return ObjectInfo(bucket=write.bucket, key=write.key, version=revision, record=write.record)
            # A pause with jitter: writers that lost together would otherwise meet again together.
            self._backoff.wait(min(turn, 16), error=lost_races(write.name), deadline=unending)
        raise lost_races(write.name)

    def _decide(self, write: Write, condition: Condition, head: Head | None) -> tuple[Sequence[Compare], Sequence[Change]]:
        """What has to hold for `write` to happen after `head`, and what it then changes."""
        bucket = self._buckets.get(write.bucket)
        etag = head.record.write_id if head is not None and not head.record.tombstone else None
        if not condition.holds(etag):
            raise _precondition_failed(write, condition, etag)
        if write.record.tombstone and etag is None:
            raise _not_found(write.bucket, write.key)
        key = object_key(write.bucket, write.key)
        compares = [Compare(key=key, mod_revision=head.version if head is not None else 0), bucket.unchanged]
        step = next_step(head, record=write.record, keep=bucket.policy.versions)
        changes: Sequence[Change] = [Delete(key=key) if step.head is None else Put(key=key, value=step.head.encode())]
        if step.aside and head is not None:
            moved = version_key(write.bucket, write.key, head.version)
            changes = [*changes, Put(key=moved, value=encode_json(head.record.to_json()))]
        if step.num_pruned:
            oldest = self._meta.range(*versions_of(write.bucket, write.key), limit=step.num_pruned)
            changes = [*changes, *(Delete(key=version.key) for version in oldest.items)]
        if bucket.closing:
            # Somebody found the bucket empty and is about to delete it. This write puts an end to that.
            changes = [*changes, Bucket(name=bucket.name, revision=0, policy=bucket.policy).put()]
        return compares, changes

    def _apply(
        self, write: Write, compares: Sequence[Compare], changes: Sequence[Change], *, refusal: StoreError | None
    ) -> int | None:
        """Make the changes and leave the marker; the revision, or None if the write has to be decided anew."""
        unmarked = Compare(key=write_key(write.record.write_id), mod_revision=0)
        try:
            marker = self._markers.put(write, refusal=refusal)
            result = self._meta.txn([*compares, unmarked], [*changes, marker])
        except Conflict:
            # The markers' lease is gone, because this process or its host was suspended for as long as it lives.
            self._markers.renew()
            return None
        return result.revision if result.ok else None


def _change(bucket: str, event: Event) -> tuple[str, ObjectInfo | None]:
    key = event.key.removeprefix(objects_of(bucket))
    if event.value is None:
        return key, None
    item = KeyValue(key=event.key, value=event.value, create_revision=event.revision, mod_revision=event.revision, lease=None)
    info = Head.decode(item).info(bucket, key)
    return key, None if info.record.tombstone else info


def _not_found(bucket: str, key: str) -> ObjectNotFound:
    name = f"{bucket}/{key}"
    return ObjectNotFound(f"there is no object {name}; `forebay ls {bucket}` lists those that exist", key=name)


def _precondition_failed(write: Write, condition: Condition, etag: str | None) -> PreconditionFailed:
    asked = " and ".join(
        f"{name} {value!r}"
        for name, value in (("If-Match", condition.if_match), ("If-None-Match", condition.if_none_match))
        if value is not None
    )
    found = f"it has ETag {etag!r}" if etag is not None else "there is no such object"
    return PreconditionFailed(f"{write.name}: {asked} was asked for, but {found}", key=write.name)
