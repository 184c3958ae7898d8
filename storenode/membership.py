"""Who is up: this node's lease, and the view of the cluster.

    node/{id}    {"endpoints", "zone", "host", "data_dir"}, under a lease: exists as long as the node is up

A node's key is created, never overwritten, but for one case: the node itself comes back before the lease of its last life
has run out. It proves that by host and data directory, which its flock keeps to one process. A copied data directory shows
up as the same id from another place and is refused. Losing the lease hides a node from new clients and stops nothing that it
serves: no safety rests on a lease.
"""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass

from client.cluster import Cluster, ClusterView
from client.errors import Conflict, CursorExpired, MetadataCorrupt, MetadataUnavailable, Misconfigured, StoreError
from client.local_wire import SOCKET_NAME
from client.wire import encode_json
from storenode.history import decode_json_object
from storenode.keyspace import after
from storenode.layouts import LAYOUT_KEY, read_anchor, read_layouts
from storenode.metastore import Compare, KeyValue, MetaStore, Put, prefix_end
from storenode.worker import Worker

__all__ = [
    "NODES",
    "Membership",
    "NodeRecord",
    "ViewLoader",
    "ViewWatcher",
    "holds_lease",
    "read_nodes",
]

log = logging.getLogger(__name__)

NODES = "node/"
_PAGE = 256
_MAX_TURNS = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeRecord:
    """What a node that is up says of itself.

    Attributes
    ----------
    endpoints : tuple of str
        URLs, the preferred one first.
    zone, host : str
        Where it runs.
    data_dir : str
        Absolute path; with `host`, the proof that two lives of a node id are of one node.
    """

    endpoints: tuple[str, ...]
    zone: str
    host: str
    data_dir: str

    @property
    def socket(self) -> str:
        """Path, on its host, of the Unix socket that passes chunks, if it has one."""
        return f"{self.data_dir}/{SOCKET_NAME}"

    def encode(self) -> bytes:
        """The record as it stands in the metadata."""
        value = {"endpoints": list(self.endpoints), "zone": self.zone, "host": self.host, "data_dir": self.data_dir}
        return encode_json(value)

    @classmethod
    def decode(cls, item: KeyValue) -> NodeRecord:
        """The inverse of `encode`; raises `MetadataCorrupt`."""
        value = decode_json_object(item)
        try:
            return cls(
                endpoints=tuple(map(str, value["endpoints"])),
                zone=str(value["zone"]),
                host=str(value["host"]),
                data_dir=str(value["data_dir"]),
            )
        except (KeyError, TypeError) as exc:
            raise MetadataCorrupt(f"the record at {item.key!r} can't be read: {exc!r}", key=item.key) from exc


def read_nodes(store: MetaStore) -> dict[str, NodeRecord]:
    """The nodes that are up, by id."""
    found: dict[str, NodeRecord] = {}
    start, end = NODES, prefix_end(NODES)
    while True:
        page = store.range(start, end, limit=_PAGE)
        found.update({item.key.removeprefix(NODES): NodeRecord.decode(item) for item in page.items})
        if not page.more:
            return found
        start = after(page.items[-1].key)


def holds_lease(store: MetaStore, node_id: str) -> bool:
    """Whether a node counts as up."""
    return store.get(NODES + node_id) is not None


class ViewLoader:
    """Reads the view of the cluster for `client.cluster.Cluster`. Thread-safe.

    Without the metadata engine reads by known reference must go on, so the last view is then given once more: an outdated
    endpoint costs a failed request, an outdated layout asks a node that answers "not here".

    Parameters
    ----------
    store : MetaStore
        Where the view is kept.
    cluster_id : str
        Of this node's cluster.
    """

    def __init__(self, store: MetaStore, *, cluster_id: str) -> None:
        self._store = store
        self._cluster_id = cluster_id
        self._lock = threading.Lock()
        self._last: ClusterView | None = None

    def __call__(self) -> ClusterView:
        """The current view, or the last one while the metadata engine does not answer."""
        try:
            view = self._load()
        except MetadataUnavailable:
            with self._lock:
                if self._last is None:
                    raise
                return self._last
        with self._lock:
            self._last = view
        return view

    def _load(self) -> ClusterView:
        # The anchor first: an epoch or a layout that is older than the truth costs a repeat, a newer one would be a lie.
        anchor = read_anchor(self._store)
        found = read_layouts(self._store)
        if found is None:
            raise MetadataCorrupt(f"the metadata of cluster {self._cluster_id} has lost its layout", key=LAYOUT_KEY)
        nodes = read_nodes(self._store)
        return ClusterView(
            cluster_id=self._cluster_id,
            layouts=found.layouts,
            epoch=anchor.anchor.epoch,
            endpoints={node_id: record.endpoints for node_id, record in nodes.items()},
            sockets={node_id: record.socket for node_id, record in nodes.items()},
        )


class ViewWatcher:
    """Refreshes the view when the layout or the epoch changes or a node comes or goes, in a thread.

    Without it a node would take one that has just come up for down until its view has grown old.

    Parameters
    ----------
    store : MetaStore
        Where the view is kept.
    cluster : Cluster
        What is refreshed.
    watch_s : float
        Longest wait for changes; also how quickly a stop is noticed.
    """

    def __init__(self, store: MetaStore, *, cluster: Cluster, watch_s: float) -> None:
        self._store = store
        self._cluster = cluster
        self._watch_s = watch_s
        self._revision: int | None = None
        self._worker = Worker("view watcher", self.step, base_s=watch_s, max_s=10 * watch_s)

    def start(self) -> None:
        """Begin."""
        self._worker.start()

    def stop(self) -> None:
        """End after the wait in progress."""
        self._worker.stop()

    def step(self) -> float:
        """Wait for a change once, and refresh if there was one."""
        if self._revision is None:
            # Noted before the view is read, so that no change falls between the two.
            revision = self._store.revision()
            self._cluster.refresh()
            self._revision = revision
        try:
            # One range over all: nothing lies between the layout, the anchor and the nodes.
            watched = self._store.watch(LAYOUT_KEY, prefix_end(NODES), after_revision=self._revision, timeout_s=self._watch_s)
        except CursorExpired:
            self._revision = None
            return 0.0
        if watched.events:
            self._cluster.refresh()
        self._revision = watched.revision
        return 0.0


class Membership:
    """This node's lease, kept alive in a thread.

    Parameters
    ----------
    store : MetaStore
        Where the lease is held.
    node_id : str
        This node.
    record : NodeRecord
        What others learn of it.
    ttl_s : float
        How long it counts as up after it fell silent.
    """

    def __init__(self, store: MetaStore, *, node_id: str, record: NodeRecord, ttl_s: float) -> None:
        self._store = store
        self._node_id = node_id
        self._key = NODES + node_id
        self._record = record
        self._ttl_s = ttl_s
        self._lease: int | None = None
        # Three chances within one life of the lease.
        self._period_s = ttl_s / 3
        self._worker = Worker("membership", self.step, base_s=self._period_s / 4, max_s=self._period_s)

    def start(self) -> None:
        """Appear in the cluster, and stay. Raises `Misconfigured` if another data directory serves this id."""
        self.register()
        self._worker.start()

    def stop(self) -> None:
        """Disappear from the cluster at once, as far as the metadata engine lives."""
        self._worker.stop()
        if self._lease is None:
            return
        try:
            self._store.revoke(self._lease)
        except StoreError as error:
            log.warning("the lease could not be released and runs out within %.0f s: %s", self._ttl_s, error.message)

    @property
    def lease(self) -> int | None:
        """The lease under which this node is up; None before the first."""
        return self._lease

    def step(self) -> float:
        """Renew the lease, or register anew if it is gone; returns the seconds until the next time."""
        if self._lease is None or not self._store.keep_alive(self._lease):
            log.warning("the lease of node %s ran out; it registers again", self._node_id)
            self.register()
        return self._period_s

    def register(self) -> None:
        """Take a lease and put this node's key under it."""
        for _ in range(_MAX_TURNS):
            found = self._store.get(self._key)
            if found is not None:
                self._check_is_this_node(NodeRecord.decode(found))
            lease = self._store.grant(self._ttl_s)
            compare = Compare(key=self._key, mod_revision=found.mod_revision if found else 0)
            if self._store.txn([compare], [Put(key=self._key, value=self._record.encode(), lease=lease)]).ok:
                # The lease of the last life, if there was one, runs out with nothing under it.
                self._lease = lease
                return
            self._store.revoke(lease)
        raise Conflict(f"{self._key} changed {_MAX_TURNS} times while node {self._node_id} registered", key=self._key)

    def _check_is_this_node(self, found: NodeRecord) -> None:
        if (found.host, found.data_dir) != (self._record.host, self._record.data_dir):
            raise Misconfigured(
                f"node {self._node_id} is up already at {', '.join(found.endpoints)}, with data directory {found.data_dir} on "
                f"{found.host}; this one is {self._record.data_dir} on {self._record.host}. A data directory must not be "
                "copied: start the new node with an empty one"
            )
