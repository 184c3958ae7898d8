"""Names to records: the protocol that the client's data path needs of the metadata, and its values.

There are two implementations. `client.http_catalog` asks a node; `storenode.catalog` is the one that a node answers from.
The upload and the verified read are written once, against this protocol.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeVar

from client.cluster import Anchor
from client.errors import MetadataCorrupt, StoreError
from client.manifest import Ref
from client.record import BucketPolicy, Condition, ObjectInfo, ObjectRecord
from client.snapshots import Snapshot

__all__ = [
    "CONSISTENCY_LEVELS",
    "MAX_BATCH_BYTES",
    "MAX_BATCH_ITEMS",
    "MAX_LIST_LIMIT",
    "Catalog",
    "Commit",
    "Consistency",
    "Listing",
    "Opened",
    "Proof",
    "Source",
    "Watched",
    "parts",
]

MAX_LIST_LIMIT = 1000
# Of one request for many records; who has more sends several.
MAX_BATCH_ITEMS = 1024
MAX_BATCH_BYTES = 4 * 1024 * 1024
T = TypeVar("T")
_NONE_ASKED = Condition()
Consistency = Literal["strong", "session", "eventual"]
CONSISTENCY_LEVELS: tuple[Consistency, ...] = ("strong", "session", "eventual")


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing:
    """One page of a listing, ordered by the UTF-8 bytes of the keys.

    Attributes
    ----------
    objects : tuple of ObjectInfo
        Objects, and with ``versions`` also their older versions and tombstones, newest first.
    prefixes : tuple of str
        With a delimiter: what keys have in common up to and including it.
    cursor : str or None
        Where the next page begins; None after the last one.
    revision : int
        The revision that all pages of this listing show.
    """

    objects: tuple[ObjectInfo, ...]
    prefixes: tuple[str, ...]
    cursor: str | None
    revision: int

    def to_json(self) -> dict[str, Any]:
        """The page as a JSON object."""
        return {
            "objects": [info.to_json() for info in self.objects],
            "prefixes": list(self.prefixes),
            "cursor": self.cursor,
            "revision": self.revision,
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Listing:
        """The inverse of `to_json`; raises `MetadataCorrupt`."""
        try:
            objects = tuple(ObjectInfo.from_json(item) for item in value["objects"])
            prefixes = tuple(map(str, value["prefixes"]))
            return cls(objects=objects, prefixes=prefixes, cursor=value["cursor"], revision=int(value["revision"]))
        except (KeyError, TypeError, ValueError) as exc:
            raise MetadataCorrupt(f"a listing can't be read: {exc!r}") from exc


@dataclass(frozen=True, slots=True, kw_only=True)
class Watched:
    """Keys of a bucket that changed, in order of change, and the revision that this covers.

    ``changes`` pairs a key with its new info, or with None where it was deleted.
    """

    changes: tuple[tuple[str, ObjectInfo | None], ...]
    revision: int

    def to_json(self) -> dict[str, Any]:
        """The changes as a JSON object."""
        changes = [[key, info.to_json() if info else None] for key, info in self.changes]
        return {"changes": changes, "revision": self.revision}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Watched:
        """The inverse of `to_json`; raises `MetadataCorrupt`."""
        try:
            changes = tuple((str(k), ObjectInfo.from_json(v) if v else None) for k, v in value["changes"])
            return cls(changes=changes, revision=int(value["revision"]))
        except (KeyError, TypeError, ValueError) as exc:
            raise MetadataCorrupt(f"a list of changes can't be read: {exc!r}") from exc


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A version of an object from which a write takes its content; as long as it exists, so do its chunks."""

    bucket: str
    key: str
    version: int

    def to_json(self) -> dict[str, Any]:
        """The source as a JSON object."""
        return {"bucket": self.bucket, "key": self.key, "version": self.version}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Source:
        """The inverse of `to_json`; raises `MetadataCorrupt`."""
        try:
            return cls(bucket=str(value["bucket"]), key=str(value["key"]), version=int(value["version"]))
        except (KeyError, TypeError, ValueError) as exc:
            raise MetadataCorrupt(f"the source of a write can't be read: {exc!r} in {str(value)[:200]}") from exc


Proof = Anchor | Source


@dataclass(frozen=True, slots=True, kw_only=True)
class Commit:
    """One logical write, the same in all its requests.

    Attributes
    ----------
    record : ObjectRecord
        What is to be the current version. Its write id makes repeats this same write.
    condition : Condition
        What must hold for that.
    proof : Anchor, Source or None
        Why the chunks of the record are there and stay until it is committed. What has no chunks needs none.
    """

    bucket: str
    key: str
    record: ObjectRecord
    condition: Condition = _NONE_ASKED
    proof: Proof | None = None

    @property
    def name(self) -> str:
        """What it writes to, for messages."""
        return f"{self.bucket}/{self.key}"

    def to_json(self) -> dict[str, Any]:
        """The write as a JSON object; a condition that asks for nothing is left out."""
        asked = {"if_match": self.condition.if_match, "if_none_match": self.condition.if_none_match}
        value = {"bucket": self.bucket, "key": self.key, "record": self.record.to_json(), **self.proof_json()}
        return {**value, **{name: tag for name, tag in asked.items() if tag is not None}}

    def proof_json(self) -> dict[str, Any]:
        """The proof as a member of a JSON object, ``anchor`` or ``source``; nothing for none."""
        if self.proof is None:
            return {}
        return {"anchor" if isinstance(self.proof, Anchor) else "source": self.proof.to_json()}


def parts(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    """`items` in order, at most `size` of them at a time."""
    return (items[start : start + size] for start in range(0, len(items), size))


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """A read that began with a name.

    Attributes
    ----------
    buffer : memoryview
        For all that is read.
    filled : int
        How many bytes at its beginning are there already, verified.
    corrupt : Ref or None
        A chunk of which bytes came that were not right; some node's copy is bad.
    """

    info: ObjectInfo
    buffer: memoryview
    filled: int = 0
    corrupt: Ref | None = None


class Catalog(Protocol):
    """What the metadata does for the data path. All calls block and are linearizable, but for the levels of `lookup`."""

    def create_bucket(self, bucket: str, policy: BucketPolicy) -> None:
        """Create a bucket; `BucketExists` if it exists with another policy (the same one is a repeat)."""

    def bucket(self, bucket: str) -> BucketPolicy:
        """The policy of a bucket; `BucketNotFound` prints the command that creates it."""

    def buckets(self) -> dict[str, BucketPolicy]:
        """All buckets, by name."""

    def set_bucket(self, bucket: str, policy: BucketPolicy) -> None:
        """Change the policy; it holds for objects written from now on."""

    def delete_bucket(self, bucket: str) -> None:
        """Delete an empty bucket; `BucketNotEmpty` names one of its keys."""

    def lookup(
        self,
        bucket: str,
        key: str,
        *,
        version: int | None = None,
        snapshot: str | None = None,
        consistency: Consistency = "strong",
    ) -> ObjectInfo:
        """The current (or the given) version; `ObjectNotFound` for none, a tombstone or a pruned one.

        With `snapshot`: the version that this one of the bucket's shows, always as of its moment; raises `SnapshotNotFound`.
        ``strong``: as of now. ``session``: as of some moment that is not before anything this catalog has written or read.
        ``eventual``: as of some moment. See docs/CONSISTENCY.md.
        """

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
        """What `lookup` gives, for a read that begins at byte `start`, and perhaps its first bytes.

        Parameters
        ----------
        end : int or None
            Where the read ends; None: with the object.
        most : int or None
            No more bytes than this are wanted along.
        place : callable
            Makes the buffer of the read once the record is known; may be called again, by a repeat.
        """

    def lookup_many(self, names: Sequence[tuple[str, str]]) -> list[ObjectInfo | StoreError]:
        """What `lookup` gives or raises for the current version of each name, in order."""

    def commit(self, write: Commit) -> ObjectInfo:
        """Make the record of `write` the current version. A repeat of its write id returns the first result.

        Raises
        ------
        StaleAnchor
            Its proof is an anchor that no longer holds. Nothing is decided: touch the chunks and commit again, with the
            same write id and a new anchor.
        PreconditionFailed, BucketNotFound, ObjectNotFound, Conflict
        """

    def commit_many(self, writes: Sequence[Commit]) -> list[ObjectInfo | StoreError]:
        """What `commit` gives or raises for each write, in order: each is by itself, and many cost little more than one.

        Writes to one key happen in the order of the sequence. An error that is raised instead of returned (the engine does not
        answer) says nothing of any of them: call again with the same writes, and those that happened give their first results.
        """

    def delete(self, bucket: str, key: str, *, write_id: str, condition: Condition) -> int:
        """Remove the key, or add a tombstone where the bucket keeps versions; returns its version. Repeats as `commit` does.

        Raises `ObjectNotFound`, `PreconditionFailed`, `BucketNotFound`.
        """

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
        """One page of at most `limit` objects and prefixes; `CursorExpired` once its revision is gone.

        With `snapshot`: as this one of the bucket's shows them; older versions are not shown then.
        """

    def create_snapshot(self, bucket: str, name: str, *, snapshot_id: str) -> Snapshot:
        """Keep a bucket readable as it is now. A repeat with the same id gets the first result.

        Raises `SnapshotExists`, `TooManySnapshots`.
        """

    def snapshots(self, bucket: str) -> tuple[Snapshot, ...]:
        """A bucket's snapshots, oldest first."""

    def delete_snapshot(self, bucket: str, name: str) -> None:
        """Give a snapshot up; raises `SnapshotNotFound`."""

    def prune(self, bucket: str, *, after: str | None) -> tuple[int, str | None]:
        """Remove versions that nothing keeps, of a bounded number of objects behind the key `after`.

        Returns how many, and the key to go on behind; None at the end.
        """

    def watch(self, bucket: str, *, prefix: str, after: int | None, timeout_s: float) -> Watched:
        """Wait for changes after revision `after` (None: only tell the current revision), at most `timeout_s`."""
