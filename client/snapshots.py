"""Snapshots of buckets: names under which a bucket can be read as it was at one moment."""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from client.errors import InvalidName, MetadataCorrupt
from client.names import check_bucket

if TYPE_CHECKING:
    from client.catalog import Catalog

__all__ = ["MAX_SNAPSHOTS", "Snapshot", "Snapshots", "check_snapshot"]

# Of one bucket. They lie in its record, which every commit reads.
MAX_SNAPSHOTS = 64
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """A bucket as it was at `version`: of each object its newest version up to there.

    Attributes
    ----------
    id : str
        Tells a repeated request to create it from another one's.
    """

    name: str
    version: int
    created_s: float
    id: str

    def to_json(self) -> dict[str, Any]:
        """The same as a JSON object."""
        return {"name": self.name, "version": self.version, "created_s": self.created_s, "id": self.id}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Snapshot:
        """The inverse of `to_json`; raises `MetadataCorrupt`."""
        try:
            return cls(
                name=str(value["name"]),
                version=int(value["version"]),
                created_s=float(value["created_s"]),
                id=str(value["id"]),
            )
        except (KeyError, TypeError, ValueError) as exc:
            raise MetadataCorrupt(f"a snapshot can't be read: {exc!r}") from exc


def check_snapshot(name: str) -> str:
    """Return `name` if a snapshot may have it; raises `InvalidName`."""
    if not _NAME.fullmatch(name):
        raise InvalidName(
            f"snapshot name {name[:80]!r}: use 1 to 63 of a-z, A-Z, 0-9, '.', '_' and '-', first a letter or digit"
        )
    return name


class Snapshots:
    """The snapshots of a store's buckets."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog

    def create(self, bucket: str, name: str) -> Snapshot:
        """Keep a bucket readable as it is now, under a name; no byte is copied, and what it shows is not removed.

        Raises
        ------
        SnapshotExists
            There is one of this name.
        TooManySnapshots
            The bucket has `MAX_SNAPSHOTS`.
        """
        return self._catalog.create_snapshot(check_bucket(bucket), check_snapshot(name), snapshot_id=secrets.token_hex(8))

    def list(self, bucket: str) -> tuple[Snapshot, ...]:
        """A bucket's snapshots, oldest first. Raises `BucketNotFound`."""
        return self._catalog.snapshots(check_bucket(bucket))

    def delete(self, bucket: str, name: str, *, on_pruned: Callable[[int], None] = lambda count: None) -> int:
        """Give a snapshot up, and remove the versions that nothing else keeps; returns how many. Raises `SnapshotNotFound`.

        If it is broken off, `prune` does the rest, or the next write to each object.
        """
        self._catalog.delete_snapshot(check_bucket(bucket), check_snapshot(name))
        return self.prune(bucket, on_pruned=on_pruned)

    def prune(self, bucket: str, *, on_pruned: Callable[[int], None] = lambda count: None) -> int:
        """Remove the versions that neither the bucket's policy nor a snapshot keeps; returns how many."""
        total, after = 0, None
        while True:
            count, after = self._catalog.prune(check_bucket(bucket), after=after)
            total += count
            on_pruned(count)
            if after is None:
                return total
