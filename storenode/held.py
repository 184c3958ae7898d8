"""What nodes say that they hold, durably, for who decides which layouts are still needed.

    held/{id}    {"layout", "revision", "incarnation", "surplus"}

"Under layout version `layout` this node holds every chunk that placement gives it, for all records up to metadata revision
`revision`; what the older layouts place elsewhere it has re-hashed where it lies." Written once for each layout, and only
after the node's own cursor says so on its disk. Revisions mean something in one incarnation of the metadata only.
`surplus` counts the chunks on its disk that records refer to and that no layout places there any more, once it has looked
for them.
"""

from __future__ import annotations

import threading
from dataclasses import asdict, dataclass, replace

from client.errors import MetadataCorrupt
from client.wire import encode_json
from storenode.history import decode_json_object
from storenode.keyspace import after
from storenode.layouts import KnownLayouts, read_layouts
from storenode.metastore import Delete, KeyValue, MetaStore, Put, prefix_end

__all__ = ["Held", "Holdings", "is_complete", "read_held"]

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
    incarnation : str
        Of the metadata.
    surplus : int or None
        Chunks that it could give up and has not; None before it has looked.
    """

    layout: int
    revision: int
    incarnation: str
    surplus: int | None = None

    def drained(self, *, layout: int, incarnation: str) -> bool:
        """Whether, under the layout of this version, which gives it nothing, nothing on its disk is needed any more."""
        return (self.layout, self.incarnation, self.surplus) == (layout, incarnation, 0)

    @classmethod
    def decode(cls, item: KeyValue) -> Held:
        """The inverse of `encode`; raises `MetadataCorrupt`."""
        value = decode_json_object(item)
        try:
            surplus = value["surplus"]
            return cls(
                layout=int(value["layout"]),
                revision=int(value["revision"]),
                incarnation=str(value["incarnation"]),
                surplus=None if surplus is None else int(surplus),
            )
        except (KeyError, TypeError, ValueError) as exc:
            raise MetadataCorrupt(f"the record at {item.key!r} can't be read: {exc!r}", key=item.key) from exc

    def encode(self) -> bytes:
        """The record as it stands in the metadata."""
        return encode_json(asdict(self))


class Holdings:
    """What this node says that it holds. Thread-safe.

    Parameters
    ----------
    store : MetaStore
        Where it says so.
    node_id : str
        This node, which alone writes its record.
    """

    def __init__(self, store: MetaStore, *, node_id: str) -> None:
        self._store = store
        self._key = _HELD + node_id
        self._lock = threading.Lock()
        self._said: Held | None = None
        self._layout = 0
        self._incarnation = ""
        self._needed: int | None = None

    def follow(self, *, layout: int, incarnation: str) -> None:
        """From now on speak of the layout of this version, in this incarnation of the metadata."""
        known, item = read_layouts(self._store), self._store.get(self._key)
        with self._lock:
            self._said = None if item is None else Held.decode(item)
            self._layout, self._incarnation = layout, incarnation
            # What was committed before the layout was has to be held; what was committed since, its holders acknowledged.
            current = known is not None and known.layouts.current.version == layout
            self._needed = known.revision if known is not None and current else None

    def complete_to(self, revision: int) -> None:
        """Say that this node is complete to `revision`, if that is news to those who wait. Its cursor says so durably."""
        with self._lock:
            said = self._of_this_layout()
            if self._needed is None or (said is not None and (said.revision >= self._needed or revision <= said.revision)):
                return
            self._publish(Held(layout=self._layout, revision=revision, incarnation=self._incarnation))

    def begin_again(self) -> None:
        """Take back what was said of this layout: the node goes through all records, whatever it had."""
        with self._lock:
            if self._of_this_layout() is not None:
                self._store.txn([], [Delete(key=self._key)])
                self._said = None

    def left_over(self, surplus: int, *, layout: int) -> None:
        """Say how many chunks are here that records refer to and that the layout of this version places elsewhere."""
        with self._lock:
            said = self._of_this_layout()
            if said is not None and said.layout == layout and said.surplus != surplus:
                self._publish(replace(said, surplus=surplus))

    def _of_this_layout(self) -> Held | None:
        said = self._said
        same = said is not None and (said.layout, said.incarnation) == (self._layout, self._incarnation)
        return said if same else None

    def _publish(self, held: Held) -> None:
        self._store.txn([], [Put(key=self._key, value=held.encode())])
        self._said = held


def is_complete(held: Held | None, known: KnownLayouts, *, incarnation: str) -> bool:
    """Whether a node holds what the current layout gives it of all that was committed before that layout."""
    if not known.layouts.older:
        return True  # Otherwise they would not have been retired.
    if held is None or (held.layout, held.incarnation) != (known.layouts.current.version, incarnation):
        return False
    return held.revision >= known.revision


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
