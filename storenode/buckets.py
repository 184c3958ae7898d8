"""Buckets in the metadata: their policies, and how one is deleted while others may be writing to it. Blocking.

Theory of operation
-------------------
A bucket is deleted in two steps, because that it is empty can't be compared. The first marks its record as closing. A write
that meets the mark removes it in its own transaction; a write that was decided before the mark fails, for the record has
changed. So if the record is still as the first step left it when the second deletes it, nothing was written since the
bucket was found empty. A crash between the steps leaves a bucket that works, and the next write or delete clears the mark.

Older versions and tombstones keep a bucket that keeps versions. Where the policy keeps none (any more), what is left of
them goes with the bucket.

Snapshots lie in the record, so that making one is exact: the put of the record is the moment that it shows. A commit that was
decided on the older record fails, and is decided anew with the snapshot in sight. A snapshot's version is not known to
whoever puts it, so the record leaves it open, and it is the version of that put; whoever puts the record next fills it in.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from client.errors import BucketExists, BucketNotEmpty, BucketNotFound, Conflict, InvalidRequest, MetadataCorrupt
from client.names import check_bucket
from client.record import BucketPolicy
from client.snapshots import Snapshot
from client.wire import encode_json
from storenode.history import MAX_PRUNED, Head, version_at
from storenode.keyspace import BUCKETS, after, bucket_key, objects_of, versions_of
from storenode.lineage import read_lineage
from storenode.metastore import Change, Compare, Delete, KeyValue, MetaStore, Put, prefix_end

__all__ = ["MAX_TURNS", "Bucket", "Buckets", "bucket_not_found", "change_unfrozen", "lost_races", "scan"]

# How often a change is decided anew before it gives up. Each turn means that another change to the same key succeeded.
MAX_TURNS = 64
_PAGE = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Bucket:
    """A bucket as it was read.

    Attributes
    ----------
    revision : int
        When its record was put; what changes compare.
    policy : BucketPolicy
        What holds for new objects.
    closing : bool
        Somebody is deleting it; whoever writes to it clears this.
    snapshots : mapping of str to Snapshot
        By name; version 0 is that of the put that is about to be made.
    """

    name: str
    revision: int
    policy: BucketPolicy
    closing: bool = False
    snapshots: Mapping[str, Snapshot] = field(default_factory=dict)

    @property
    def pins(self) -> tuple[int, ...]:
        """The versions of the snapshots."""
        return tuple(snapshot.version for snapshot in self.snapshots.values())

    @property
    def unchanged(self) -> Compare:
        """Holds while the record is as it was read."""
        return Compare(key=bucket_key(self.name), mod_revision=self.revision)

    def put(self, *, base: int = 0) -> Put:
        """The change that makes this the bucket's record; a new snapshot counts from `base`."""
        value: dict[str, Any] = {"policy": self.policy.to_json(), "closing": self.closing}
        if self.snapshots:
            value["snapshots"] = [snapshot.to_json() for snapshot in self.snapshots.values()]
            value["base"] = base
        return Put(key=bucket_key(self.name), value=encode_json(value))

    @classmethod
    def decode(cls, item: KeyValue) -> Bucket:
        """The bucket in a metadata item; raises `MetadataCorrupt`."""
        try:
            value = json.loads(item.value)
            policy, closing = BucketPolicy.from_json(value["policy"]), bool(value["closing"])
            made = version_at(value, item.mod_revision)
            found = map(Snapshot.from_json, value.get("snapshots", ()))
            snapshots = {one.name: one if one.version else replace(one, version=made) for one in found}
        except (ValueError, KeyError, TypeError, InvalidRequest, MetadataCorrupt) as exc:
            raise MetadataCorrupt(f"the bucket record at {item.key!r} can't be read: {exc!r}", key=item.key) from exc
        name = item.key.removeprefix(BUCKETS)
        return cls(name=name, revision=item.mod_revision, policy=policy, closing=closing, snapshots=snapshots)


class Buckets:
    """The buckets on a metadata engine. Thread-safe."""

    def __init__(self, meta: MetaStore) -> None:
        self._meta = meta

    def get(self, name: str) -> Bucket:
        """The bucket called `name`. Raises `InvalidName`, `BucketNotFound`."""
        item = self._meta.get(bucket_key(check_bucket(name)))
        if item is None:
            raise bucket_not_found(name)
        return Bucket.decode(item)

    def all(self) -> dict[str, BucketPolicy]:
        """All policies by name, as they stood at one revision."""
        buckets = (Bucket.decode(item) for item in scan(self._meta, BUCKETS))
        return {bucket.name: bucket.policy for bucket in buckets}

    def create(self, name: str, policy: BucketPolicy) -> None:
        """See `client.catalog.Catalog.create_bucket`."""
        fresh = Bucket(name=check_bucket(name), revision=0, policy=policy)
        for _ in range(MAX_TURNS):
            if change_unfrozen(self._meta, [fresh.unchanged], [fresh.put()]) is not None:
                return
            try:
                found = self.get(name)
            except BucketNotFound:
                continue  # Deleted since, so that it can be created after all.
            if found.policy != policy:
                raise BucketExists(f"bucket {name} exists with {found.policy.to_json()}, not {policy.to_json()}", key=name)
            return
        raise lost_races(name)

    def set(self, name: str, policy: BucketPolicy) -> None:
        """See `client.catalog.Catalog.set_bucket`."""
        for _ in range(MAX_TURNS):
            found = self.get(name)
            if change_unfrozen(self._meta, [found.unchanged], [replace(found, policy=policy).put()]) is not None:
                return
        raise lost_races(name)

    def delete(self, name: str) -> None:
        """See `client.catalog.Catalog.delete_bucket`."""
        for _ in range(MAX_TURNS):
            found = self.get(name)
            # Looked at before the mark, so that a bucket in use is refused without a change to it.
            self._require_empty(found)
            marked = replace(found, closing=True)
            revision = change_unfrozen(self._meta, [found.unchanged], [marked.put()])
            if revision is None:
                continue
            marked = replace(marked, revision=revision)
            self._require_empty(marked)
            self._purge(marked)
            if change_unfrozen(self._meta, [marked.unchanged], [Delete(key=bucket_key(name))]) is not None:
                return
        raise lost_races(name)

    def _require_empty(self, bucket: Bucket) -> None:
        if bucket.snapshots:
            name = next(iter(bucket.snapshots))
            raise BucketNotEmpty(
                f"bucket {bucket.name} has snapshots, {name!r} among others; "
                f"`forebay snapshot rm {bucket.name} {name}` gives it up",
                key=bucket.name,
            )
        prefix = objects_of(bucket.name)
        for item in scan(self._meta, prefix):
            key = item.key.removeprefix(prefix)
            if not Head.decode(item).record.tombstone:
                raise BucketNotEmpty(f"bucket {bucket.name} holds {key!r}; delete its objects first", key=bucket.name)
            if bucket.policy.versions:
                raise BucketNotEmpty(
                    f"bucket {bucket.name} keeps older versions, of {key!r} among others; "
                    f"`forebay bucket set {bucket.name} --versions 0` gives them up",
                    key=bucket.name,
                )

    def _purge(self, bucket: Bucket) -> None:
        """Remove the tombstones and older versions of a marked bucket, as long as nobody writes to it."""
        prefix = objects_of(bucket.name)
        for item in scan(self._meta, prefix):
            head, unchanged = Head.decode(item), Compare(key=item.key, mod_revision=item.mod_revision)
            while True:
                start, end = versions_of(bucket.name, item.key.removeprefix(prefix))
                oldest = self._meta.range(start, end, limit=MAX_PRUNED).items
                changes: list[Change] = [Delete(key=version.key) for version in oldest]
                left = head.older - len(oldest)
                if left <= 0:
                    changes.append(Delete(key=item.key))
                else:
                    head = Head(version=head.version, record=head.record, older=left)
                    changes.append(Put(key=item.key, value=head.encode()))
                revision = change_unfrozen(self._meta, [bucket.unchanged, unchanged], changes)
                if revision is None:
                    return
                if left <= 0:
                    break
                unchanged = Compare(key=item.key, mod_revision=revision)


def change_unfrozen(meta: MetaStore, compares: Sequence[Compare], changes: Sequence[Change]) -> int | None:
    """The revision of a change, None if a compare does not hold. Raises `MetadataFrozen`."""
    lineage = read_lineage(meta)
    lineage.require_writable()
    result = meta.txn([lineage.unchanged, *compares], changes)
    return result.revision if result.ok else None


def scan(meta: MetaStore, prefix: str) -> Iterator[KeyValue]:
    """All keys that begin with `prefix`, in order, as they stood at one revision. Raises `CursorExpired`."""
    start, revision, more = prefix, None, True
    while more:
        page = meta.range(start, prefix_end(prefix), limit=_PAGE, revision=revision)
        yield from page.items
        revision, more = page.revision, page.more
        if page.items:
            start = after(page.items[-1].key)


def bucket_not_found(name: str) -> BucketNotFound:
    """The error that says how to create it."""
    return BucketNotFound(f"there is no bucket {name}; `forebay bucket create {name}` creates it", key=name)


def lost_races(name: str) -> Conflict:
    """The error of a change that was decided `MAX_TURNS` times in vain."""
    return Conflict(f"{name}: {MAX_TURNS} other changes to it came first; try again", key=name)
