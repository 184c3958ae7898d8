"""The layouts and the anchor in the metadata: read by all, changed only by compare-and-swap.

    layout          the layouts that are not retired, newest first (client.placement.Layouts)
    layout/anchor   {"layout", "epoch"}: the newest layout's version, and the epoch of garbage collection
    layout/request  {"id"}: who asked for the last change, so that its repeat is not taken for another one

The anchor repeats the version so that a commit, which compares both, has one small key to read however many nodes there are.
Whoever changes the layout changes it in the same transaction. Nothing here changes while commits are frozen
(`storenode.lineage`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from client.cluster import Anchor
from client.placement import Layout, Layouts
from client.wire import encode_json
from storenode.history import decode_json, decode_json_object
from storenode.lineage import read_lineage
from storenode.metastore import Compare, KeyValue, MetaStore, Put

__all__ = [
    "ANCHOR_KEY",
    "LAYOUT_KEY",
    "KnownAnchor",
    "KnownLayouts",
    "change_epoch",
    "change_layouts",
    "create_layout",
    "decode_anchor",
    "last_request",
    "read_anchor",
    "read_layouts",
]

LAYOUT_KEY = "layout"
ANCHOR_KEY = "layout/anchor"
REQUEST_KEY = "layout/request"
# Before there is a layout. Nothing can be stored then, so that nothing can be anchored to it but what has no chunks.
_NOTHING = Anchor(layout=0, epoch=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownLayouts:
    """The layouts as they were read, and the revision that a change of them compares."""

    layouts: Layouts
    revision: int

    @property
    def unchanged(self) -> Compare:
        """Holds while the record is as it was read."""
        return Compare(key=LAYOUT_KEY, mod_revision=self.revision)


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownAnchor:
    """The anchor as it was read, and the revision that whoever relies on it compares."""

    anchor: Anchor
    revision: int

    @property
    def unchanged(self) -> Compare:
        """Holds while the anchor is as it was read."""
        return Compare(key=ANCHOR_KEY, mod_revision=self.revision)


def create_layout(store: MetaStore, layout: Layout) -> Layouts:
    """Make `layout` the cluster's first one; returns the layouts that are in force, which may be older ones."""
    first = Anchor(layout=layout.version, epoch=0)
    store.txn([Compare(key=LAYOUT_KEY, mod_revision=0)], _puts(Layouts(current=layout), first))
    found = read_layouts(store)
    assert found is not None
    return found.layouts


def read_layouts(store: MetaStore) -> KnownLayouts | None:
    """The layouts in force, None before there are any."""
    item = store.get(LAYOUT_KEY)
    return None if item is None else KnownLayouts(layouts=Layouts.from_json(decode_json(item)), revision=item.mod_revision)


def read_anchor(store: MetaStore) -> KnownAnchor:
    """The anchor that new uploads get."""
    return decode_anchor(store.get(ANCHOR_KEY))


def decode_anchor(item: KeyValue | None) -> KnownAnchor:
    """The anchor in a metadata item; raises `MetadataCorrupt`."""
    if item is None:
        return KnownAnchor(anchor=_NOTHING, revision=0)
    return KnownAnchor(anchor=Anchor.from_json(decode_json(item)), revision=item.mod_revision)


def change_layouts(
    store: MetaStore, found: KnownLayouts, layouts: Layouts, *, also: Sequence[Compare] = (), request_id: str = ""
) -> int | None:
    """Replace the layouts, if they are still as `found` and `also` holds; returns the revision, or None.

    Parameters
    ----------
    request_id : str
        Of who asked for it, kept until the next change: a request whose answer was lost is repeated.
    """
    lineage, anchor = read_lineage(store), read_anchor(store)
    lineage.require_writable()
    now = Anchor(layout=layouts.current.version, epoch=anchor.anchor.epoch)
    puts = [*_puts(layouts, now), Put(key=REQUEST_KEY, value=encode_json({"id": request_id}))]
    result = store.txn([lineage.unchanged, found.unchanged, anchor.unchanged, *also], puts)
    return result.revision if result.ok else None


def last_request(store: MetaStore) -> str:
    """Who asked for the last change of the layouts; empty if that is not known."""
    item = store.get(REQUEST_KEY)
    return "" if item is None else str(decode_json_object(item).get("id", ""))


def change_epoch(store: MetaStore, found: KnownAnchor, *, epoch: int, also: Sequence[Compare] = ()) -> int | None:
    """Set the epoch, if the anchor is still as `found` and `also` holds; returns the revision, or None."""
    lineage = read_lineage(store)
    lineage.require_writable()
    now = Anchor(layout=found.anchor.layout, epoch=epoch)
    result = store.txn([lineage.unchanged, found.unchanged, *also], [Put(key=ANCHOR_KEY, value=encode_json(now.to_json()))])
    return result.revision if result.ok else None


def _puts(layouts: Layouts, anchor: Anchor) -> list[Put]:
    return [
        Put(key=LAYOUT_KEY, value=encode_json(layouts.to_json())),
        Put(key=ANCHOR_KEY, value=encode_json(anchor.to_json())),
    ]
