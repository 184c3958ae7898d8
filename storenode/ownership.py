"""One node at a time does what must be done once for the whole cluster: a key under its lease, and a fence for its writes.

    owner/{what}    {"node_id"}, under the owner's lease

Theory of operation
-------------------
The key is created, never overwritten, so one node has it. It goes with the owner's lease, and then another node takes it. A
lease alone makes nothing safe: a process that was stopped for a minute goes on in the middle of what it did, and believes to
own what another one owns by now. So each write of the owner compares the revision at which its key was created. The next
owner's key has another one, and what the old one still writes changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from client.errors import Conflict
from client.wire import encode_json
from storenode.history import decode_json_object
from storenode.metastore import Compare, MetaStore, Put

__all__ = ["Fence", "Ownership"]

_OWNERS = "owner/"


@dataclass(frozen=True, slots=True, kw_only=True)
class Fence:
    """The proof of ownership that an owner's writes carry."""

    key: str
    revision: int

    @property
    def holds(self) -> Compare:
        """Holds while the owner is the one that got this fence."""
        return Compare(key=self.key, mod_revision=self.revision)


class Ownership:
    """This node's claim to a cluster-wide task. Not thread-safe.

    Parameters
    ----------
    store : MetaStore
        Where the owner's key is.
    what : str
        The task.
    node_id : str
        This node.
    lease : callable
        This node's lease; None while it has none.
    """

    def __init__(self, store: MetaStore, *, what: str, node_id: str, lease: Callable[[], int | None]) -> None:
        self._store = store
        self._key = _OWNERS + what
        self._node_id = node_id
        self._lease = lease
        self._mine: Fence | None = None

    def claim(self) -> Fence | None:
        """The fence if this node is the owner, which it becomes if there is none; None if another one is."""
        item = self._store.get(self._key)
        if item is not None:
            mine = self._mine
            # A key of an earlier life of this node has a lease that nobody renews, so it is about to go.
            return mine if mine is not None and mine.revision == item.mod_revision else None
        lease = self._lease()
        if lease is None:
            return None
        value = encode_json({"node_id": self._node_id})
        try:
            result = self._store.txn([Compare(key=self._key, mod_revision=0)], [Put(key=self._key, value=value, lease=lease)])
        except Conflict:  # The lease has run out; membership takes another one.
            return None
        self._mine = Fence(key=self._key, revision=result.revision) if result.ok else None
        return self._mine

    def owner(self) -> str | None:
        """The id of the node that is the owner, None if none is."""
        item = self._store.get(self._key)
        return None if item is None else str(decode_json_object(item).get("node_id"))
