"""Snapshots in the metadata: made, given up, read, and what they kept removed afterwards. Blocking.

A snapshot is a version in the bucket's record (`storenode.buckets`). What it shows of an object is the newest version up to
there, which commits do not remove as long as it lies in the record (`storenode.history`).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

from client.errors import Conflict, SnapshotExists, SnapshotNotFound, TooManySnapshots
from client.record import ObjectInfo
from client.snapshots import MAX_SNAPSHOTS, Snapshot
from storenode.buckets import MAX_TURNS, Bucket, Buckets, change_unfrozen, lost_races
from storenode.history import Head, decode_json_object, decode_older, num_to_look_at, prune_step, version_at
from storenode.keyspace import after as just_after
from storenode.keyspace import object_key, objects_of, version_key, version_of, versions_of, write_key
from storenode.lineage import read_lineage
from storenode.markers import Markers
from storenode.metastore import Change, Compare, Delete, KeyValue, MetaStore, Put, prefix_end

__all__ = ["MAX_LOOKED_AT", "BucketSnapshots", "named", "version_shown"]

MAX_LOOKED_AT = 1000
_PAGE = 256


class BucketSnapshots:
    """The snapshots of buckets on a metadata engine. Thread-safe."""

    def __init__(self, meta: MetaStore, markers: Markers, *, clock: Callable[[], float] = time.time) -> None:
        self._meta = meta
        self._markers = markers
        self._buckets = Buckets(meta)
        self._clock = clock

    def create(self, bucket: str, name: str, *, snapshot_id: str) -> Snapshot:
        """See `client.catalog.Catalog.create_snapshot`."""
        # A request that was held up may arrive after its repeat was answered, and after the snapshot was given up again.
        key = write_key(f"{snapshot_id}/{bucket}/{name}")
        for _ in range(MAX_TURNS):
            marker = self._meta.get(key)
            if marker is not None:
                return _marked(marker)
            lineage = read_lineage(self._meta)
            lineage.require_writable()
            found = self._buckets.get(bucket)
            existing = found.snapshots.get(name)
            if existing is not None and existing.id == snapshot_id:
                return existing
            _require_room(found, name)
            made = Snapshot(name=name, version=0, created_s=self._clock(), id=snapshot_id)
            put = replace(found, snapshots={**found.snapshots, name: made}).put(base=lineage.base)
            mark = self._markers.mark(key, {"snapshot": made.to_json(), "base": lineage.base})
            try:
                result = self._meta.txn([lineage.unchanged, found.unchanged, Compare(key=key, mod_revision=0)], [put, mark])
            except Conflict:  # The markers' lease is gone; see `storenode.commits`.
                self._markers.renew()
                continue
            if result.ok:
                return replace(made, version=lineage.base + result.revision)
        raise lost_races(bucket)

    def all(self, bucket: str) -> tuple[Snapshot, ...]:
        """See `client.catalog.Catalog.snapshots`."""
        return tuple(sorted(self._buckets.get(bucket).snapshots.values(), key=lambda snapshot: snapshot.version))

    def delete(self, bucket: str, name: str) -> None:
        """See `client.catalog.Catalog.delete_snapshot`."""
        for _ in range(MAX_TURNS):
            found = self._buckets.get(bucket)
            named(found, name)
            left = {other: snapshot for other, snapshot in found.snapshots.items() if other != name}
            if change_unfrozen(self._meta, [found.unchanged], [replace(found, snapshots=left).put()]) is not None:
                return
        raise lost_races(bucket)

    def lookup(self, bucket: str, key: str, name: str) -> ObjectInfo | None:
        """The object as a snapshot shows it, None if it shows none."""
        at = named(self._buckets.get(bucket), name).version
        item = self._meta.get(object_key(bucket, key))
        head = Head.decode(item) if item is not None else None
        if head is not None and head.version <= at:
            info: ObjectInfo | None = head.info(bucket, key)
        else:
            info = version_shown(self._meta, bucket, key, at=at, revision=None)
        return None if info is None or info.record.tombstone else info

    def prune(self, bucket: str, *, after: str | None) -> tuple[int, str | None]:
        """See `client.catalog.Catalog.prune`."""
        found = self._buckets.get(bucket)
        prefix = objects_of(bucket)
        start = prefix if after is None else just_after(prefix + after)
        page = self._meta.range(start, prefix_end(prefix), limit=MAX_LOOKED_AT)
        num_pruned = sum(self._prune(item, found) for item in page.items)
        return num_pruned, page.items[-1].key.removeprefix(prefix) if page.more else None

    def _prune(self, item: KeyValue, bucket: Bucket) -> int:
        """Remove what nothing keeps of one object; it ends at a change by somebody else, who prunes as well."""
        keep, pins, num_pruned = bucket.policy.versions, bucket.pins, 0
        key = item.key.removeprefix(objects_of(bucket.name))
        head, revision = Head.decode(item), item.mod_revision
        while head.older > keep or (head.record.tombstone and keep == 0):
            oldest: list[int] = []
            if limit := num_to_look_at(head, keep=keep, pins=pins):
                versions = self._meta.range(*versions_of(bucket.name, key), limit=limit)
                oldest = [version_of(older.key) for older in versions.items]
            step = prune_step(head, keep=keep, pins=pins, oldest=oldest)
            if step.head == head:
                break
            changes: list[Change] = [Delete(key=version_key(bucket.name, key, version)) for version in step.pruned]
            changes.append(Delete(key=item.key) if step.head is None else Put(key=item.key, value=step.head.encode()))
            changed = change_unfrozen(self._meta, [bucket.unchanged, Compare(key=item.key, mod_revision=revision)], changes)
            if changed is None:
                break
            num_pruned += len(step.pruned)
            if step.head is None:
                break
            head, revision = step.head, changed
        return num_pruned


def version_shown(meta: MetaStore, bucket: str, key: str, *, at: int, revision: int | None) -> ObjectInfo | None:
    """The newest of the older versions of an object up to version `at`, tombstones too; None if there is none."""
    start, _ = versions_of(bucket, key)
    end, newest, more = version_key(bucket, key, at + 1), None, True
    # They are kept oldest first, so that all up to it have to be read.
    while more:
        page = meta.range(start, end, limit=_PAGE, revision=revision)
        more = page.more
        if page.items:
            newest, start = page.items[-1], just_after(page.items[-1].key)
    return None if newest is None else decode_older(newest, bucket=bucket, key=key)


def _marked(marker: KeyValue) -> Snapshot:
    """What the first request made, whether it is there still or not."""
    value = decode_json_object(marker)
    return replace(Snapshot.from_json(value["snapshot"]), version=version_at(value, marker.mod_revision))


def _require_room(bucket: Bucket, name: str) -> None:
    """Raise unless the bucket can have a snapshot of this name."""
    if name in bucket.snapshots:
        raise SnapshotExists(
            f"bucket {bucket.name} has a snapshot {name!r} already; "
            f"take another name, or `forebay snapshot rm {bucket.name} {name}`",
            key=f"{bucket.name}@{name}",
        )
    if len(bucket.snapshots) >= MAX_SNAPSHOTS:
        oldest = min(bucket.snapshots.values(), key=lambda snapshot: snapshot.version).name
        raise TooManySnapshots(
            f"bucket {bucket.name} has {len(bucket.snapshots)} snapshots, and no more are kept; "
            f"`forebay snapshot rm {bucket.name} {oldest}` gives up the oldest",
            key=bucket.name,
        )


def named(bucket: Bucket, name: str) -> Snapshot:
    """One of a bucket's; raises `SnapshotNotFound`."""
    found = bucket.snapshots.get(name)
    if found is None:
        raise SnapshotNotFound(
            f"bucket {bucket.name} has no snapshot {name!r}; `forebay snapshot ls {bucket.name}` lists those it has",
            key=f"{bucket.name}@{name}",
        )
    return found
