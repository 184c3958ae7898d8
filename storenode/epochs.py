"""The epochs of garbage collection: what every node has swept, which epoch is wanted, and when the next one begins.

    layout/anchor   holds the present epoch (`storenode.layouts`)
    gc/wanted       {"epoch"}: somebody asked for epochs up to this one
    swept/{id}      what a node's sweeps have done; only that node writes it

The next epoch begins when every node that is up has swept the present one, and either an interval has passed or it is
wanted: a duty of the coordinator. Safety rests on none of this, for an epoch may begin at any time (`storenode.collector`);
waiting for the sweeps keeps garbage from being left behind, and gives uploads their time. None begins while commits are
frozen: if the metadata turns out to be older than it was, nothing must have come to count as old meanwhile.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from client.errors import MetadataCorrupt
from client.wire import encode_json
from storenode.history import decode_json_object
from storenode.keyspace import after
from storenode.layouts import change_epoch, read_anchor
from storenode.lineage import read_lineage
from storenode.membership import read_nodes
from storenode.metastore import Compare, KeyValue, MetaStore, Put, prefix_end
from storenode.ownership import Fence

__all__ = ["EpochClock", "SweptRecord", "ask_for_epoch", "gc_status", "publish_swept", "swept_by"]

# What is garbage at epoch E is tagged with E at most, and a sweep at E + 2 removes it.
_EPOCHS_TO_FREE = 2
_WANTED = "gc/wanted"
_SWEPT = "swept/"
_PAGE = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class SweptRecord:
    """What the sweeps of one node have done.

    Attributes
    ----------
    epoch : int
        Of its last sweep that came to its end; -1 before the first.
    num_removed, removed_bytes : int
        In all its sweeps.
    num_kept : int
        Copies that records referred to in the last one.
    problem : str
        Why the last sweep failed, if it did: nothing is removed on that node then.
    """

    epoch: int = -1
    num_removed: int = 0
    removed_bytes: int = 0
    num_kept: int = 0
    problem: str = ""

    @classmethod
    def decode(cls, item: KeyValue) -> SweptRecord:
        """The record in a metadata item; raises `MetadataCorrupt`."""
        value = decode_json_object(item)
        try:
            return cls(**{name: value[name] for name in cls.__slots__})
        except KeyError as exc:
            raise MetadataCorrupt(f"the record at {item.key!r} can't be read: {exc!r}", key=item.key) from exc

    def to_json(self) -> dict[str, Any]:
        """The record as a JSON object."""
        return asdict(self)


def publish_swept(store: MetaStore, node_id: str, record: SweptRecord) -> None:
    """Say what the sweeps of this node have done."""
    store.txn([], [Put(key=_SWEPT + node_id, value=encode_json(record.to_json()))])


def swept_by(store: MetaStore, node_id: str) -> SweptRecord:
    """What the sweeps of one node have done."""
    item = store.get(_SWEPT + node_id)
    return SweptRecord() if item is None else SweptRecord.decode(item)


def _read_swept(store: MetaStore) -> dict[str, SweptRecord]:
    """What the sweeps of all nodes have done, by id."""
    found: dict[str, SweptRecord] = {}
    start, end = _SWEPT, prefix_end(_SWEPT)
    while True:
        page = store.range(start, end, limit=_PAGE)
        found.update({item.key.removeprefix(_SWEPT): SweptRecord.decode(item) for item in page.items})
        if not page.more:
            return found
        start = after(page.items[-1].key)


def ask_for_epoch(store: MetaStore) -> int:
    """Have epochs begin one after another, each when the one before is swept, until all that is garbage now is removed.

    Returns
    -------
    int
        The epoch whose sweeps have removed it.
    """
    while True:
        wanted, item = read_anchor(store).anchor.epoch + _EPOCHS_TO_FREE, store.get(_WANTED)
        if item is not None and _decode_wanted(item) >= wanted:
            return wanted
        compare = Compare(key=_WANTED, mod_revision=item.mod_revision if item else 0)
        if store.txn([compare], [Put(key=_WANTED, value=encode_json({"epoch": wanted}))]).ok:
            return wanted


def gc_status(store: MetaStore) -> dict[str, Any]:
    """The present epoch, the one that is wanted, and what each node has swept, with whether it is up."""
    up, swept = read_nodes(store), _read_swept(store)
    nodes = {node_id: swept.get(node_id, SweptRecord()).to_json() | {"up": node_id in up} for node_id in sorted({*up, *swept})}
    return {"epoch": read_anchor(store).anchor.epoch, "wanted": _wanted(store), "nodes": nodes}


class EpochClock:
    """Begins the next epoch; a duty of the coordinator.

    Parameters
    ----------
    interval_s : float
        Longest life of an epoch, if every node sweeps in time; 0: epochs begin only when they are wanted.
    clock : callable
        Monotonic seconds.
    """

    def __init__(self, store: MetaStore, *, interval_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._store = store
        self._interval_s = interval_s
        self._clock = clock
        self._epoch = -1
        self._since_s = clock()

    def __call__(self, fence: Fence) -> None:
        """Begin the next epoch if it is time."""
        now = read_anchor(self._store)
        self._notice(now.anchor.epoch)
        is_due = self._interval_s > 0 and self._clock() - self._since_s >= self._interval_s
        if not is_due and _wanted(self._store) <= now.anchor.epoch:
            return
        swept = _read_swept(self._store)
        if any(swept.get(node_id, SweptRecord()).epoch < now.anchor.epoch for node_id in read_nodes(self._store)):
            return
        lineage = read_lineage(self._store)
        if lineage.frozen is not None:
            return
        # Compared with what was read before the sweeps were: an epoch that began meanwhile has sweeps of its own to wait for.
        epoch = now.anchor.epoch + 1
        if change_epoch(self._store, now, epoch=epoch, also=[lineage.unchanged, fence.holds]) is not None:
            self._notice(epoch)

    def _notice(self, epoch: int) -> None:
        if epoch != self._epoch:
            self._epoch, self._since_s = epoch, self._clock()


def _wanted(store: MetaStore) -> int:
    item = store.get(_WANTED)
    return 0 if item is None else _decode_wanted(item)


def _decode_wanted(item: KeyValue) -> int:
    try:
        return int(decode_json_object(item)["epoch"])
    except (KeyError, TypeError, ValueError) as exc:
        raise MetadataCorrupt(f"the record at {item.key!r} can't be read: {exc!r}", key=item.key) from exc
