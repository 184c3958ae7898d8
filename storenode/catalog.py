"""Names to records on a `MetaStore`: what a node answers for buckets and objects. Blocking; it knows nothing of HTTP.

An object's version tells the transaction that wrote it; revisions that callers see are counted as versions are.
`storenode.commits` says how writes happen, `storenode.history` what becomes of older versions, `storenode.markers` how a
repeat learns its first answer, `storenode.buckets` how a bucket goes away, and `storenode.lineage` what of this outlives the
metadata engine.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache

from client.catalog import MAX_BATCH_ITEMS, Commit, Consistency, Listing, Opened, Watched, parts
from client.errors import (
    BucketNotFound,
    CursorExpired,
    InvalidName,
    InvalidRequest,
    MetadataCorrupt,
    ObjectNotFound,
    StoreError,
)
from client.names import check_bucket, check_key, check_prefix
from client.record import BucketPolicy, Condition, Content, ObjectInfo, ObjectRecord
from client.retry import Backoff
from client.snapshots import Snapshot, check_snapshot
from storenode.buckets import Bucket, Buckets, bucket_not_found
from storenode.commits import Commits, object_not_found
from storenode.history import Head, decode_older
from storenode.keyspace import bucket_key, object_key, objects_of, version_key
from storenode.lineage import CLUSTER_KEY, decode_lineage, read_lineage
from storenode.listing import ListQuery, list_page
from storenode.markers import Markers
from storenode.metastore import MAX_GET_KEYS, Event, KeyValue, MetaStore, WouldWait, prefix_end
from storenode.snapshots import BucketSnapshots, named

__all__ = ["MetaCatalog"]

_MAX_DECODED = 4096

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
        markers = Markers(meta, ttl_s=marker_ttl_s, clock=monotonic)
        self._snapshots = BucketSnapshots(meta, markers, clock=clock)
        self._commits = Commits(meta, markers, backoff=backoff)
        self._clock = clock

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

    def lookup(
        self,
        bucket: str,
        key: str,
        *,
        version: int | None = None,
        snapshot: str | None = None,
        consistency: Consistency = "strong",
        seen: int = 0,
    ) -> ObjectInfo:
        """See `Catalog.lookup`.

        Parameters
        ----------
        seen : int
            For ``session``: the highest revision that the client knows of.
        """
        if snapshot is not None:
            shown = self._snapshots.lookup(check_bucket(bucket), check_key(key), check_snapshot(snapshot))
            if shown is None:
                raise ObjectNotFound(f"there is no {bucket}/{key} in snapshot {snapshot!r}", key=f"{bucket}/{key}")
            return shown
        if consistency != "strong":
            found = self._near(bucket, key, version=version, seen=seen if consistency == "session" else 0)
            if found is not None:
                return found
        # The newest version first: one that is moved aside between the two reads is then seen by the second.
        item = self._meta.get(object_key(check_bucket(bucket), check_key(key)))
        info = _info(bucket, key, item) if item is not None else None
        if version is not None and (info is None or info.version != version):
            older = self._meta.get(version_key(bucket, key, version))
            info = decode_older(older, bucket=bucket, key=key) if older is not None else None
        if info is not None and not info.record.tombstone:
            return info
        # Read after the object, so that the error is not about an older state than it names.
        self._buckets.get(bucket)
        raise _missing(bucket, key, version=version, revision=read_lineage(self._meta).base + self._meta.revision())

    def _near(self, bucket: str, key: str, *, version: int | None, seen: int) -> ObjectInfo | None:
        """What the nearest member of the engine has, all at one moment; None if that is before `seen`."""
        keys = [bucket_key(check_bucket(bucket)), object_key(bucket, check_key(key)), CLUSTER_KEY]
        if version is not None:
            keys.append(version_key(bucket, key, version))
        local = self._meta.get_local(keys)
        held, head, cluster, *older = local.items
        revision = decode_lineage(cluster).base + local.revision
        if revision < seen:
            return None
        info = _info(bucket, key, head) if head is not None else None
        if version is not None and (info is None or info.version != version):
            info = decode_older(older[0], bucket=bucket, key=key) if older[0] is not None else None
        if info is None or info.record.tombstone:
            raise _missing(bucket, key, version=version, revision=revision) if held is not None else bucket_not_found(bucket)
        return info

    def lookup_now(self, bucket: str, key: str) -> ObjectInfo:
        """What `lookup` gives for the newest version, if it can be told at once; the same object for the same version.

        Raises
        ------
        WouldWait
            If not; for an object that does not exist, always. `lookup` then has the answer.
        """
        item = self._meta.get_now(object_key(check_bucket(bucket), check_key(key)))
        info = _info(bucket, key, item) if item is not None else None
        if info is None or info.record.tombstone:
            raise WouldWait
        return info

    def bucket_now(self, bucket: str) -> BucketPolicy:
        """What `bucket` gives, if it can be told at once; raises `WouldWait` if not, and for one that does not exist."""
        item = self._meta.get_now(bucket_key(check_bucket(bucket)))
        if item is None:
            raise WouldWait
        return Bucket.decode(item).policy

    def lookup_many(self, names: Sequence[tuple[str, str]]) -> list[ObjectInfo | StoreError]:
        """See `Catalog.lookup_many`. Up to `MAX_GET_KEYS` names are looked up at one moment."""
        return [outcome for part in parts(names, MAX_GET_KEYS) for outcome in self._lookup_part(part)]

    def begin_read(
        self,
        bucket: str,
        key: str,
        *,
        start: int,
        end: int | None,
        most: int | None,
        version: int | None,
        consistency: Consistency,
        place: Callable[[ObjectInfo], memoryview],
    ) -> Opened:
        """See `Catalog.begin_read`. No bytes lie here."""
        info = self.lookup(bucket, key, version=version, consistency=consistency)
        return Opened(info=info, buffer=place(info))

    def commit(self, write: Commit) -> ObjectInfo:
        """See `Catalog.commit`."""
        (outcome,) = self.commit_many([write])
        return _made(outcome)

    def commit_many(self, writes: Sequence[Commit]) -> list[ObjectInfo | StoreError]:
        """See `Catalog.commit_many`."""
        refused = [_refusal(write) for write in writes]
        valid = [write for write, error in zip(writes, refused, strict=True) if error is None]
        outcomes = iter([outcome for part in parts(valid, MAX_BATCH_ITEMS) for outcome in self._commits.run(part)])
        return [next(outcomes) if error is None else error for error in refused]

    def delete(self, bucket: str, key: str, *, write_id: str, condition: Condition) -> int:
        """See `Catalog.delete`."""
        content = Content(size=0, digest="")
        tombstone = ObjectRecord(write_id=write_id, content=content, created_s=self._clock(), tombstone=True)
        write = Commit(bucket=check_bucket(bucket), key=check_key(key), record=tombstone, condition=condition)
        (outcome,) = self._commits.run([write])
        return _made(outcome).version

    def _lookup_part(self, names: Sequence[tuple[str, str]]) -> list[ObjectInfo | StoreError]:
        refused = [_name_error(bucket, key) for bucket, key in names]
        keys = [object_key(*name) for name, error in zip(names, refused, strict=True) if error is None]
        items = iter(self._meta.get_many(keys))
        found = [_found(name, next(items)) if error is None else error for name, error in zip(names, refused, strict=True)]
        # Whether it is the bucket that is missing is asked once for each, and only where something is missing.
        buckets = {bucket for (bucket, _), info in zip(names, found, strict=True) if info is None}
        missing = {bucket: error for bucket in buckets if (error := self._bucket_error(bucket)) is not None}
        return [
            info if info is not None else missing.get(bucket) or object_not_found(bucket, key)
            for (bucket, key), info in zip(names, found, strict=True)
        ]

    def create_snapshot(self, bucket: str, name: str, *, snapshot_id: str) -> Snapshot:
        """See `Catalog.create_snapshot`."""
        return self._snapshots.create(check_bucket(bucket), check_snapshot(name), snapshot_id=snapshot_id)

    def snapshots(self, bucket: str) -> tuple[Snapshot, ...]:
        """See `Catalog.snapshots`."""
        return self._snapshots.all(check_bucket(bucket))

    def delete_snapshot(self, bucket: str, name: str) -> None:
        """See `Catalog.delete_snapshot`."""
        self._snapshots.delete(check_bucket(bucket), check_snapshot(name))

    def prune(self, bucket: str, *, after: str | None) -> tuple[int, str | None]:
        """See `Catalog.prune`."""
        return self._snapshots.prune(check_bucket(bucket), after=after if after is None else check_key(after))

    def list(
        self,
        bucket: str,
        *,
        prefix: str,
        delimiter: str,
        cursor: str | None,
        limit: int,
        versions: bool,
        snapshot: str | None = None,
    ) -> Listing:
        """See `Catalog.list`."""
        found = self._buckets.get(bucket)
        if snapshot is not None and versions:
            raise InvalidRequest("a snapshot shows one version of each object; leave versions out")
        lineage = read_lineage(self._meta)
        query = ListQuery(
            bucket=bucket,
            prefix=check_prefix(prefix),
            delimiter=check_prefix(delimiter),
            versions=versions,
            incarnation=lineage.incarnation,
            at=None if snapshot is None else named(found, check_snapshot(snapshot)).version,
        )
        page = list_page(self._meta, query, cursor=cursor, limit=limit)
        return replace(page, revision=lineage.base + page.revision)

    def watch(self, bucket: str, *, prefix: str, after: int | None, timeout_s: float) -> Watched:
        """See `Catalog.watch`."""
        self._buckets.get(bucket)
        base = read_lineage(self._meta).base
        newest = base + self._meta.revision()
        if after is None:
            return Watched(changes=(), revision=newest)
        if not 0 <= after <= newest:
            raise InvalidRequest(f"revision {after} is not one of this cluster, which is at {newest}")
        if after < base:
            raise CursorExpired(f"revision {after} is of metadata that has been replaced since; begin again at {newest}")
        start = objects_of(bucket) + check_prefix(prefix)
        watched = self._meta.watch(start, prefix_end(start), after_revision=after - base, timeout_s=timeout_s)
        changes = tuple(_change(bucket, event) for event in watched.events)
        return Watched(changes=changes, revision=base + watched.revision)

    def _bucket_error(self, bucket: str) -> StoreError | None:
        try:
            self._buckets.get(bucket)
        except (BucketNotFound, MetadataCorrupt) as error:
            return error
        return None


def _missing(bucket: str, key: str, *, version: int | None, revision: int) -> ObjectNotFound:
    error = object_not_found(bucket, key)
    if version is not None:
        error = ObjectNotFound(f"{bucket}/{key} has no version {version}, or no longer", key=f"{bucket}/{key}")
    error.revision = revision
    return error


def _found(name: tuple[str, str], item: KeyValue | None) -> ObjectInfo | StoreError | None:
    """The object in a metadata item, None for none or a tombstone."""
    try:
        info = _info(*name, item) if item is not None else None
    except MetadataCorrupt as error:
        return error
    return None if info is None or info.record.tombstone else info


def _name_error(bucket: str, key: str) -> InvalidName | None:
    try:
        check_bucket(bucket)
        check_key(key)
    except InvalidName as error:
        return error
    return None


def _refusal(write: Commit) -> StoreError | None:
    """Why a write can't be tried."""
    if write.record.tombstone:
        return InvalidRequest("a record to commit can't be a tombstone; delete the object instead", key=write.name)
    return _name_error(write.bucket, write.key)


def _made(outcome: ObjectInfo | StoreError) -> ObjectInfo:
    if isinstance(outcome, StoreError):
        raise outcome
    return outcome


def _change(bucket: str, event: Event) -> tuple[str, ObjectInfo | None]:
    key = event.key.removeprefix(objects_of(bucket))
    if event.value is None:
        return key, None
    item = KeyValue(key=event.key, value=event.value, create_revision=event.revision, mod_revision=event.revision, lease=None)
    info = Head.decode(item).info(bucket, key)
    return key, None if info.record.tombstone else info


@lru_cache(maxsize=_MAX_DECODED)
def _info(bucket: str, key: str, item: KeyValue) -> ObjectInfo:
    """A head as callers see it, remembered for the objects that are read again and again."""
    return Head.decode(item).info(bucket, key)
