"""What nodes say that they hold, durably, for who decides which layouts are still needed.

    held/{id}    {"layout", "revision", "surplus"}

"Under layout version `layout` this node holds every chunk that placement gives it, for all records up to metadata revision
`revision`; what the older layouts place elsewhere it has re-hashed where it lies." Written once for each layout, and only
after the node's own cursor says so on its disk. `surplus` counts the chunks on its disk that records refer to and that no
layout places there any more, once it has looked for them.
"""

from __future__ import annotations

from dataclasses import dataclass

from client.errors import MetadataCorrupt
from client.wire import encode_json
from storenode.history import decode_json_object
from storenode.keyspace import after
from storenode.layouts import KnownLayouts
from storenode.metastore import Delete, KeyValue, MetaStore, Put, prefix_end

__all__ = ["Held", "HeldRecord", "is_complete", "read_held"]

_HELD = "held/"
_PAGE = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """What one node holds.

    Attributes
    ----------
    layout : int
        Version of the layout under which it is complete.
    revision : int
        Of the metadata, up to which.
    surplus : int or None
        Chunks that it could give up and has not; None before it has looked.
    """

    layout: int
    revision: int
    surplus: int | None = None

    def drained(self, *, layout: int) -> bool:
        """Whether, under layout version `layout` that gives it nothing, nothing on its disk is needed any more."""
        return self.layout == layout and self.surplus == 0

    @classmethod
    def decode(cls, item: KeyValue) -> Held:
        """The inverse of `encode`; raises `MetadataCorrupt`."""
        value = decode_json_object(item)
        try:
            surplus = value["surplus"]
            return cls(
                layout=int(value["layout"]),
                revision=int(value["revision"]),
                surplus=None if surplus is None else int(surplus),
            )
        except (KeyError, TypeError, ValueError) as exc:
            raise MetadataCorrupt(f"the record at {item.key!r} can't be read: {exc!r}", key=item.key) from exc

    def encode(self) -> bytes:
        """The record as it stands in the metadata."""
        return encode_json({"layout": self.layout, "revision": self.revision, "surplus": self.surplus})


class HeldRecord:
    """The record of one node, which only that node writes."""

    def __init__(self, store: MetaStore, *, node_id: str) -> None:
        self._store = store
        self._key = _HELD + node_id

    def read(self) -> Held | None:
        """What the node said last."""
        item = self._store.get(self._key)
        return None if item is None else Held.decode(item)

    def publish(self, held: Held) -> None:
        """Say `held`, whatever was said before."""
        self._store.txn([], [Put(key=self._key, value=held.encode())])

    def withdraw(self) -> None:
        """Say nothing."""
        self._store.txn([], [Delete(key=self._key)])


def is_complete(held: Held | None, known: KnownLayouts) -> bool:
    """Whether a node holds what the current layout gives it of all that was committed before that layout."""
    return held is not None and held.layout == known.layouts.current.version and held.revision >= known.revision


def read_held(store: MetaStore) -> dict[str, Held]:
    """What all nodes say, by id; of those that were removed, too."""
    found: dict[str, Held] = {}
    start, end = _HELD, prefix_end(_HELD)
    while True:
        page = store.range(start, end, limit=_PAGE)
        found.update({item.key.removeprefix(_HELD): Held.decode(item) for item in page.items})
        if not page.more:
            return found
        start = after(page.items[-1].key)
