"""What a process knows about the nodes: the layout, where each node listens, and which ones answered lately.

The view comes from whoever can say (a node over HTTP for clients, the metadata for nodes) and is refreshed when it grows
old or a node in it fails. A view that can't be refreshed is used on: an outdated one costs a failed request, while none would
stop reads that need no metadata. Suspicion is local and short: it only decides who is asked first, never where data belongs.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from client.addresses import Addresses
from client.errors import EndpointUnreachable, MetadataCorrupt, StoreError
from client.placement import Layout, Layouts

__all__ = ["Anchor", "Cluster", "ClusterView"]

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Anchor:
    """What holds an upload's chunks in place until they have a name.

    Copies count only on the nodes of the current layout, and garbage collection spares chunks that were stored or touched
    lately. So a commit says under which layout and epoch its chunks were stored, and is refused if that is too long ago.

    Attributes
    ----------
    layout : int
        Version of the layout under which the copies were acknowledged.
    epoch : int
        Of garbage collection; all chunks are tagged with it or a later one.
    """

    layout: int
    epoch: int

    def holds(self, now: Anchor) -> bool:
        """Whether a commit may rely on it when `now` is the state of the cluster."""
        # An epoch that is ahead of the cluster's is of metadata that were since replaced by an older backup.
        return self.layout == now.layout and self.epoch <= now.epoch <= self.epoch + 1

    def to_json(self) -> dict[str, int]:
        """The anchor as a JSON object."""
        return {"layout": self.layout, "epoch": self.epoch}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Anchor:
        """The inverse of `to_json`; raises `MetadataCorrupt`."""
        try:
            return cls(layout=int(value["layout"]), epoch=int(value["epoch"]))
        except (KeyError, TypeError, ValueError) as exc:
            raise MetadataCorrupt(f"an anchor can't be read: {exc!r} in {str(value)[:200]}") from exc


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterView:
    """The cluster at one moment.

    Attributes
    ----------
    cluster_id : str
        Made once, when the cluster is created.
    layouts : Layouts
        Who holds what.
    epoch : int
        Of garbage collection: an upload that begins now tags its chunks with it.
    endpoints : mapping of str to tuple of str
        For each node that holds a lease: its URLs, the preferred one first. A node that is down is missing.
    sockets : mapping of str to str
        For those that have one: the path, on their host, of the Unix socket that passes chunks (`client.colocated`).
    """

    cluster_id: str
    layouts: Layouts
    endpoints: Mapping[str, tuple[str, ...]]
    sockets: Mapping[str, str] = field(default_factory=dict)
    epoch: int = 0

    @property
    def layout(self) -> Layout:
        """The current layout."""
        return self.layouts.current

    @property
    def anchor(self) -> Anchor:
        """What an upload that begins now is anchored to."""
        return Anchor(layout=self.layout.version, epoch=self.epoch)

    def to_json(self) -> dict[str, Any]:
        """The view as a JSON object."""
        nodes: dict[str, dict[str, Any]] = {node_id: {"endpoints": list(urls)} for node_id, urls in self.endpoints.items()}
        for node_id, path in self.sockets.items():
            nodes[node_id]["socket"] = path
        return {"cluster_id": self.cluster_id, "layouts": self.layouts.to_json(), "epoch": self.epoch, "nodes": nodes}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> ClusterView:
        """The inverse of `to_json`; raises `MetadataCorrupt`."""
        try:
            layouts = Layouts.from_json(value["layouts"])
            endpoints = {str(k): tuple(map(str, v["endpoints"])) for k, v in value["nodes"].items()}
            # A node of an earlier release names none.
            sockets = {str(k): str(v["socket"]) for k, v in value["nodes"].items() if "socket" in v}
            return cls(
                cluster_id=str(value["cluster_id"]),
                layouts=layouts,
                endpoints=endpoints,
                sockets=sockets,
                epoch=int(value["epoch"]),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as exc:
            raise MetadataCorrupt(f"the view of the cluster can't be read: {exc!r}") from exc


class Cluster:
    """A shared, self-refreshing `ClusterView` with the recent record of each node. Thread-safe.

    Parameters
    ----------
    load : callable
        Fetches the current view.
    ttl_s : float
        A view older than this is fetched again at its next use.
    suspect_s : float
        For how long after a failure a node is asked last.
    min_refresh_s : float
        The view is not fetched more often than this, however many requests fail.
    clock : callable
        Monotonic seconds.
    addresses : Addresses, optional
        Finds out which address of a node leads to it; by default its first.
    """

    def __init__(
        self,
        load: Callable[[], ClusterView],
        *,
        ttl_s: float,
        suspect_s: float,
        min_refresh_s: float = 1.0,
        clock: Callable[[], float] = time.monotonic,
        addresses: Addresses | None = None,
    ) -> None:
        self._load = load
        self._ttl_s = ttl_s
        self._suspect_s = suspect_s
        self._min_refresh_s = min_refresh_s
        self._clock = clock
        self._addresses = addresses
        self._lock = threading.Lock()
        self._loading = threading.Lock()
        self._view: ClusterView | None = None
        self._tried_s = 0.0
        self._due_s = 0.0
        self._failed_s: dict[str, float] = {}

    def view(self) -> ClusterView:
        """The current view, fetched if there is none or it is old. Raises what fetching raised only if there is none."""
        view = self._view
        if view is None:
            # Whoever comes meanwhile needs this one's result, too.
            with self._loading:
                return self._view or self._fetch()
        if self._clock() < self._due_s or not self._loading.acquire(blocking=False):
            return view
        # One thread fetches, while the others go on with what is known.
        try:
            return view if self._clock() < self._due_s else self._fetch()
        except StoreError as error:
            log.warning("the view of the cluster can't be refreshed, so the last one is used on: %s", error.message)
            return view
        finally:
            self._loading.release()

    def refresh(self) -> ClusterView:
        """Fetch the view now. Its errors pass through."""
        with self._loading:
            return self._fetch()

    def _fetch(self) -> ClusterView:
        with self._lock:
            self._tried_s, self._due_s = self._clock(), math.inf
        good_for_s = self._min_refresh_s
        try:
            view = self._load()
            if self._view is not None and view.layouts == self._view.layouts:
                # The same objects remember where partitions lie.
                view = replace(view, layouts=self._view.layouts)
            self._view = view
            good_for_s = self._ttl_s
            return view
        finally:
            with self._lock:
                # Sooner if a node failed meanwhile, for the view that came may still have it.
                self._due_s = min(self._due_s, self._tried_s + good_for_s)

    @property
    def layout(self) -> Layout:
        """The current layout."""
        return self.view().layout

    @property
    def layouts(self) -> Layouts:
        """All layouts that are not retired."""
        return self.view().layouts

    @property
    def anchor(self) -> Anchor:
        """What an upload that begins now is anchored to."""
        return self.view().anchor

    def endpoint(self, node_id: str) -> str:
        """The URL of a node; raises `EndpointUnreachable` for one that holds no lease, or is at none of its addresses."""
        urls = self.view().endpoints.get(node_id)
        if not urls:
            with self._lock:
                # It may be back: whoever asks once more is to see it, and not when the view has grown old.
                self._due_s = min(self._due_s, self._tried_s + self._min_refresh_s)
            raise EndpointUnreachable(f"node {node_id} is down: it holds no lease in the metadata", node_id=node_id)
        return urls[0] if self._addresses is None else self._addresses.of(node_id, urls)

    def suspected(self, node_id: str) -> bool:
        """Whether the node is down or failed within the last ``suspect_s``."""
        view = self.view()
        with self._lock:
            return self._is_suspected(view, node_id, self._clock())

    def ranked(self, node_ids: Collection[str], *, by: Callable[[str], Any] = lambda _: 0) -> tuple[str, ...]:
        """`node_ids` in the order in which to ask them: trusted before suspected, then `by` its value, else as given.

        The order of placement differs from partition to partition, so that readers are spread over the nodes.
        """
        view, now_s = self.view(), self._clock()
        with self._lock:
            return tuple(sorted(node_ids, key=lambda node: (self._is_suspected(view, node, now_s), by(node))))

    def failed(self, node_id: str) -> None:
        """Note that a node did not answer; the view is fetched again soon."""
        with self._lock:
            self._failed_s[node_id] = self._clock()
            self._due_s = min(self._due_s, self._tried_s + self._min_refresh_s)
        if self._addresses is not None:
            self._addresses.forget(node_id)

    def answered(self, node_id: str) -> None:
        """Note that a node answered."""
        # For each chunk that is read: without a lock, because taking something out of a dictionary is one step.
        self._failed_s.pop(node_id, None)

    def _is_suspected(self, view: ClusterView, node_id: str, now_s: float) -> bool:
        failed_s = self._failed_s.get(node_id)
        return node_id not in view.endpoints or (failed_s is not None and now_s - failed_s < self._suspect_s)
