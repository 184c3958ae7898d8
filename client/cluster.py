"""What a process knows about the nodes: the layout, where each node listens, and which ones answered lately.

The view comes from whoever can say (a node over HTTP for clients, the metadata for nodes) and is refreshed when it grows
old or a node in it fails. Suspicion is local and short: it only decides who is asked first, never where data belongs.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from client.errors import EndpointUnreachable, MetadataCorrupt
from client.placement import Layout

__all__ = ["Cluster", "ClusterView"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterView:
    """The cluster at one moment.

    Attributes
    ----------
    cluster_id : str
        Made once, when the cluster is created.
    layout : Layout
        Who holds what.
    endpoints : mapping of str to tuple of str
        For each node that holds a lease: its URLs, the preferred one first. A node that is down is missing.
    """

    cluster_id: str
    layout: Layout
    endpoints: Mapping[str, tuple[str, ...]]

    def to_json(self) -> dict[str, Any]:
        """The view as a JSON object."""
        nodes = {node_id: {"endpoints": list(urls)} for node_id, urls in self.endpoints.items()}
        return {"cluster_id": self.cluster_id, "layout": self.layout.to_json(), "nodes": nodes}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> ClusterView:
        """The inverse of `to_json`; raises `MetadataCorrupt`."""
        try:
            layout = Layout.from_json(value["layout"])
            endpoints = {str(k): tuple(map(str, v["endpoints"])) for k, v in value["nodes"].items()}
            return cls(cluster_id=str(value["cluster_id"]), layout=layout, endpoints=endpoints)
        except (KeyError, TypeError, AttributeError) as exc:
            raise MetadataCorrupt(f"the view of the cluster can't be read: {exc!r}") from exc


class Cluster:
    """A shared, self-refreshing `ClusterView` with the recent record of each node. Thread-safe.

    Parameters
    ----------
    load : callable
        Fetches the current view; its errors pass through.
    ttl_s : float
        A view older than this is fetched again before use.
    suspect_s : float
        For how long after a failure a node is asked last.
    clock : callable
        Monotonic seconds.
    """

    def __init__(
        self,
        load: Callable[[], ClusterView],
        *,
        ttl_s: float,
        suspect_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._load = load
        self._ttl_s = ttl_s
        self._suspect_s = suspect_s
        self._clock = clock
        self._lock = threading.Lock()
        self._view: ClusterView | None = None
        self._loaded_s = 0.0
        self._failed_s: dict[str, float] = {}

    def view(self) -> ClusterView:
        """The current view, fetched if there is none or it is old."""
        with self._lock:
            if self._view is not None and self._clock() - self._loaded_s < self._ttl_s:
                return self._view
        return self.refresh()

    def refresh(self) -> ClusterView:
        """Fetch the view now."""
        view = self._load()
        with self._lock:
            self._view, self._loaded_s = view, self._clock()
        return view

    @property
    def layout(self) -> Layout:
        """The layout of the current view."""
        return self.view().layout

    def endpoint(self, node_id: str) -> str:
        """The URL of a node; raises `EndpointUnreachable` for one that holds no lease."""
        urls = self.view().endpoints.get(node_id)
        if not urls:
            raise EndpointUnreachable(f"node {node_id} is down: it holds no lease in the metadata", node_id=node_id)
        return urls[0]

    def suspected(self, node_id: str) -> bool:
        """Whether the node is down or failed within the last ``suspect_s``."""
        if node_id not in self.view().endpoints:
            return True
        with self._lock:
            failed_s = self._failed_s.get(node_id)
            return failed_s is not None and self._clock() - failed_s < self._suspect_s

    def ranked(self, node_ids: Iterable[str]) -> tuple[str, ...]:
        """`node_ids` in the order in which to ask them: trusted before suspected, else as given.

        The order of placement differs from partition to partition, so that readers are spread over the nodes.
        """
        return tuple(sorted(node_ids, key=self.suspected))

    def failed(self, node_id: str) -> None:
        """Note that a node did not answer; the next use fetches a fresh view."""
        with self._lock:
            self._failed_s[node_id] = self._clock()
            self._loaded_s = float("-inf")

    def answered(self, node_id: str) -> None:
        """Note that a node answered."""
        with self._lock:
            self._failed_s.pop(node_id, None)
