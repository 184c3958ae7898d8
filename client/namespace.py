"""Names and records of objects, without their bytes: what needs the catalog alone."""

from __future__ import annotations

from collections.abc import Iterator

from client.buckets import Buckets
from client.catalog import MAX_LIST_LIMIT, Catalog, Consistency, Listing
from client.errors import InvalidRequest
from client.names import check_bucket, check_key
from client.record import Condition, ObjectInfo
from client.snapshots import Snapshots
from client.write_id import new_write_id

__all__ = ["Namespace"]


class Namespace:
    """Look up, list, watch and delete. Thread-safe.

    Parameters
    ----------
    catalog : Catalog
        Names to records.
    """

    def __init__(self, catalog: Catalog) -> None:
        self.catalog = catalog

    def stat(
        self,
        bucket: str,
        key: str,
        *,
        version: int | None = None,
        snapshot: str | None = None,
        consistency: Consistency = "strong",
    ) -> ObjectInfo:
        """What is known of an object without its bytes. Raises `ObjectNotFound`.

        Parameters
        ----------
        version : int, optional
            An older version.
        snapshot : str, optional
            Instead: the version that this snapshot of the bucket shows.
        consistency : str
            How fresh the answer has to be: strong, session or eventual; see docs/CONSISTENCY.md.
        """
        if version is not None and snapshot is not None:
            raise InvalidRequest(f"{bucket}/{key}: a version or a snapshot, not both")
        return self.catalog.lookup(
            check_bucket(bucket), check_key(key), version=version, snapshot=snapshot, consistency=consistency
        )

    def delete(self, bucket: str, key: str, *, if_match: str | None = None) -> None:
        """Remove an object; in a bucket that keeps versions, add a tombstone. Raises `ObjectNotFound`."""
        self.catalog.delete(bucket, key, write_id=new_write_id(), condition=Condition(if_match=if_match))

    def list(
        self,
        bucket: str,
        *,
        prefix: str = "",
        delimiter: str = "",
        cursor: str | None = None,
        limit: int = MAX_LIST_LIMIT,
        versions: bool = False,
        snapshot: str | None = None,
    ) -> Listing:
        """One page of a listing, ordered by key and complete at one revision, or of a snapshot; see `Listing`."""
        if not 1 <= limit <= MAX_LIST_LIMIT:
            raise InvalidRequest(f"a page holds 1 to {MAX_LIST_LIMIT} entries, asked for {limit}")
        return self.catalog.list(
            bucket,
            prefix=prefix,
            delimiter=delimiter,
            cursor=cursor,
            limit=limit,
            versions=versions,
            snapshot=snapshot,
        )

    def walk(
        self, bucket: str, *, prefix: str = "", versions: bool = False, snapshot: str | None = None
    ) -> Iterator[ObjectInfo]:
        """Every object below `prefix`, page after page, all at one revision."""
        cursor = None
        while True:
            page = self.list(bucket, prefix=prefix, cursor=cursor, versions=versions, snapshot=snapshot)
            yield from page.objects
            if page.cursor is None:
                return
            cursor = page.cursor

    def watch(
        self, bucket: str, *, prefix: str = "", after: int | None = None, timeout_s: float = 30.0
    ) -> Iterator[tuple[str, ObjectInfo | None]]:
        """Changes of a bucket as they happen, without end: key and new info, or None where it was deleted.

        Parameters
        ----------
        after : int, optional
            A revision, such as `ObjectInfo.version`; by default only what comes from now on.
        timeout_s : float
            How long one request waits before it is repeated.
        """
        while True:
            watched = self.catalog.watch(bucket, prefix=prefix, after=after, timeout_s=timeout_s)
            yield from watched.changes
            after = watched.revision

    @property
    def buckets(self) -> Buckets:
        """Create, list, set and delete buckets."""
        return Buckets(self.catalog)

    @property
    def snapshots(self) -> Snapshots:
        """Create, list and delete snapshots of buckets."""
        return Snapshots(self.catalog)
