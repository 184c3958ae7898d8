"""Which metadata this is: one record that every commit compares. It names the cluster and says whether commits are frozen.

    cluster   {"cluster_id", "created_s", "incarnation", "base", "frozen", "imported"}

Theory of operation
-------------------
A revision means something only in the history that it was taken in. The cluster may outlive that: its metadata moves to another
engine, or comes back from an older backup. Each such life of the metadata is an *incarnation*, with a random name. What is only
valid within one (cursors of listings, how far a node follows) names it and is worthless in another.

Versions must outlive it. So an object's version is ``base`` + the revision of its commit, and a new incarnation raises the base
above every version that was ever given out (`storenode.history.version_at`). What was committed before keeps its version.

While the record says ``frozen``, nothing is committed: writers read the record, and compare it in the transaction that writes.
It is frozen by an operator who moves the metadata, or by a node that finds it older than it was (`storenode.lineage_watch`).
The second kind ends only with a new incarnation (`storenode.incarnation`), because until then revisions would be given out a
second time.
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from client.errors import Conflict, InvalidRequest, MetadataCorrupt, MetadataFrozen, Misconfigured
from client.wire import encode_json
from storenode.metastore import Compare, KeyValue, MetaStore, Put

__all__ = [
    "CLUSTER_KEY",
    "Frozen",
    "Lineage",
    "create_cluster",
    "decode_lineage",
    "freeze",
    "mark_restored",
    "new_incarnation",
    "read_cluster_id",
    "read_lineage",
    "require_cluster",
    "thaw",
]

CLUSTER_KEY = "cluster"
_MAX_TURNS = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Frozen:
    """That nothing may be committed.

    Attributes
    ----------
    who : str
        Who asked for it.
    since_s : float
        Since when, in seconds since 1970.
    restored : bool
        The metadata is older than it was.
    detail : str
        What was found.
    """

    who: str
    since_s: float
    restored: bool = False
    detail: str = ""

    def to_json(self) -> dict[str, Any]:
        """The same as a JSON object."""
        return {"who": self.who, "since_s": self.since_s, "restored": self.restored, "detail": self.detail}

    def error(self) -> MetadataFrozen:
        """What a writer is told."""
        if self.restored:
            return MetadataFrozen(
                f"the metadata is older than it was, so nothing is committed or deleted ({self.detail}). If it was restored on "
                "purpose, `forebay meta accept-restore` goes on from here; else bring the newer metadata back"
            )
        return MetadataFrozen(f"commits are frozen by {self.who}; `forebay meta thaw` lets them go on")


@dataclass(frozen=True, slots=True, kw_only=True)
class Lineage:
    """The cluster's record as it was read.

    Attributes
    ----------
    incarnation : str
        Of the metadata; empty in clusters of releases that knew none.
    base : int
        What is added to a revision to make a version.
    imported : str
        Digest of the export that this incarnation was made from, if it was.
    revision : int
        When the record was put; 0 if there is none.
    """

    cluster_id: str = ""
    created_s: float = 0.0
    incarnation: str = ""
    base: int = 0
    frozen: Frozen | None = None
    imported: str = ""
    revision: int = field(default=0, compare=False)

    @property
    def unchanged(self) -> Compare:
        """Holds while the record is as it was read."""
        return Compare(key=CLUSTER_KEY, mod_revision=self.revision)

    @property
    def went_back(self) -> bool:
        """Whether the metadata is older than it was, and nobody has accepted that yet."""
        return self.frozen is not None and self.frozen.restored

    def require_writable(self) -> None:
        """Raise `MetadataFrozen` unless commits are allowed."""
        if self.frozen is not None:
            raise self.frozen.error()

    def put(self) -> Put:
        """The change that makes this the record."""
        value: dict[str, Any] = {
            "cluster_id": self.cluster_id,
            "created_s": self.created_s,
            "incarnation": self.incarnation,
            "base": self.base,
        }
        if self.frozen is not None:
            value["frozen"] = self.frozen.to_json()
        if self.imported:
            value["imported"] = self.imported
        return Put(key=CLUSTER_KEY, value=encode_json(value))


def decode_lineage(item: KeyValue | None) -> Lineage:
    """The record in a metadata item; raises `MetadataCorrupt`. Without one: a cluster without a name, which is never frozen."""
    if item is None:
        return Lineage()
    try:
        value = json.loads(item.value)
        frozen = value.get("frozen")
        return Lineage(
            cluster_id=str(value["cluster_id"]),
            created_s=float(value.get("created_s", 0.0)),
            incarnation=str(value.get("incarnation", "")),
            base=int(value.get("base", 0)),
            frozen=None if frozen is None else Frozen(**frozen),
            imported=str(value.get("imported", "")),
            revision=item.mod_revision,
        )
    except (ValueError, KeyError, TypeError, AttributeError) as exc:
        raise MetadataCorrupt(f"the cluster's record at {item.key!r} can't be read: {exc!r}", key=item.key) from exc


def read_lineage(store: MetaStore) -> Lineage:
    """The cluster's record as it is now."""
    return decode_lineage(store.get(CLUSTER_KEY))


def new_incarnation() -> str:
    """A name that no other life of the metadata has."""
    return secrets.token_hex(8)


def create_cluster(store: MetaStore, *, clock: Callable[[], float] = time.time) -> str:
    """The id of the cluster in `store`, which becomes a cluster now if it was none."""
    fresh = Lineage(cluster_id=secrets.token_hex(8), created_s=clock(), incarnation=new_incarnation())
    store.txn([fresh.unchanged], [fresh.put()])
    return read_lineage(store).cluster_id


def read_cluster_id(store: MetaStore) -> str | None:
    """The id of the cluster in `store`, None if it holds none."""
    return read_lineage(store).cluster_id or None


def freeze(store: MetaStore, *, who: str, clock: Callable[[], float] = time.time) -> Lineage:
    """Have all commits refused from now on; returns the record that says so. Repeatable."""

    def frozen(found: Lineage) -> Lineage:
        return found if found.frozen is not None else replace(found, frozen=Frozen(who=who, since_s=clock()))

    return _change(store, frozen)


def thaw(store: MetaStore) -> Lineage:
    """Let commits go on. Repeatable.

    Raises
    ------
    InvalidRequest
        If they are refused because the metadata is older than it was.
    """

    def thawed(found: Lineage) -> Lineage:
        if found.went_back:
            assert found.frozen is not None
            raise InvalidRequest(found.frozen.error().message)
        return replace(found, frozen=None)

    return _change(store, thawed)


def mark_restored(
    store: MetaStore, *, incarnation: str, who: str, detail: str, clock: Callable[[], float] = time.time
) -> Lineage:
    """Note for all nodes that this incarnation is older than it was, unless that is noted or another one has begun."""

    def marked(found: Lineage) -> Lineage:
        if found.incarnation != incarnation or found.went_back:
            return found
        return replace(found, frozen=Frozen(who=who, since_s=clock(), restored=True, detail=detail))

    return _change(store, marked)


def _change(store: MetaStore, change: Callable[[Lineage], Lineage]) -> Lineage:
    for _ in range(_MAX_TURNS):
        found = read_lineage(store)
        require_cluster(found)
        changed = change(found)
        if changed == found:
            return found
        result = store.txn([found.unchanged], [changed.put()])
        if result.ok:
            return replace(changed, revision=result.revision)
    raise Conflict(f"the cluster's record changed {_MAX_TURNS} times meanwhile; try again", key=CLUSTER_KEY)


def require_cluster(found: Lineage) -> None:
    """Raise `Misconfigured` unless there is a cluster."""
    if not found.cluster_id:
        raise Misconfigured("there is no cluster in this metadata; name the engine of one")
