"""How a node that starts finds its cluster, or makes it together with others.

Theory of operation
-------------------
A new cluster needs no operator's first command, and no node that is told to be the first. Each node that may take part knows
how many there shall be (``bootstrap_nodes``). Who finds metadata without a cluster creates it. Who finds no layout watches
the others register, and makes the first layout of all it sees once they are enough. Both are create-only writes, so racers
go on with what one of them wrote.

A data directory that belongs to a cluster never begins another one: metadata that was lost must not look like a new start.
A node that the layout does not name is a spare. It is up and holds nothing until the layout is changed.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TypeVar

from client.errors import CursorExpired, Misconfigured, StoreError
from client.placement import DEFAULT_PARTITIONS, Layout, Layouts, Node
from client.retry import Backoff, Deadline
from storenode.identity import cluster_of
from storenode.layouts import LAYOUT_KEY, create_layout, read_layouts
from storenode.lineage import create_cluster, read_cluster_id
from storenode.membership import NODES, NodeRecord, read_nodes
from storenode.metastore import MetaStore, prefix_end
from storenode.outage import Outages

__all__ = ["await_layout", "find_cluster", "first_layout", "outlasting"]

log = logging.getLogger(__name__)

T = TypeVar("T")


def find_cluster(store: MetaStore, *, where: str, data_dir: Path, bootstrap_nodes: int) -> str:
    """The id of the cluster in `store`, which becomes one now if this node may begin it.

    Parameters
    ----------
    where : str
        The metadata's address, for messages.
    data_dir : Path
        This node's.
    bootstrap_nodes : int
        0: it may not.

    Raises
    ------
    Misconfigured
        There is no cluster, and none is to be made.
    """
    found = read_cluster_id(store)
    if found is not None:
        return found
    if not bootstrap_nodes:
        raise Misconfigured(
            f"the metadata at {where} holds no cluster; `forebay up --data DIR` creates one on this machine, and "
            "FOREBAY_BOOTSTRAP_NODES=N on each of N nodes makes them one"
        )
    owner = cluster_of(data_dir)
    if owner is not None:
        raise Misconfigured(
            f"the metadata at {where} holds no cluster, but {data_dir} belongs to cluster {owner!r}. Restore the metadata of "
            "that cluster, or begin a new one with empty data directories"
        )
    return create_cluster(store)


def first_layout(nodes: Mapping[str, NodeRecord], *, wanted: int) -> Layout | None:
    """The layout with which a cluster begins once `wanted` nodes are up; None before."""
    if len(nodes) < wanted:
        return None
    placed = (Node(id=node_id, zone=nodes[node_id].zone, host=nodes[node_id].host) for node_id in sorted(nodes))
    return Layout(version=1, partitions=DEFAULT_PARTITIONS, nodes=tuple(placed))


def await_layout(store: MetaStore, *, bootstrap_nodes: int, timeout_s: float, watch_s: float) -> Layouts:
    """The layouts in force; waits until there are any, and makes the first one when enough nodes are up.

    Parameters
    ----------
    bootstrap_nodes : int
        How many those are; 0: this node neither makes a layout nor waits for one.
    timeout_s : float
        Longest outage of the metadata engine that is outlasted.
    watch_s : float
        Longest single wait for changes.

    Raises
    ------
    Misconfigured
        There is no layout, and this node must not make one.
    """
    while True:
        found = outlasting(partial(_look, store, bootstrap_nodes=bootstrap_nodes, watch_s=watch_s), timeout_s=timeout_s)
        if found is not None:
            return found


def _look(store: MetaStore, *, bootstrap_nodes: int, watch_s: float) -> Layouts | None:
    """The layouts, found or made; None after a wait for a change, when it is worth another look."""
    # Noted before anything is read, so that no node that registers meanwhile is missed.
    revision = store.revision()
    found = read_layouts(store)
    if found is not None:
        return found.layouts
    if not bootstrap_nodes:
        raise Misconfigured(
            "the cluster has no layout yet: it begins when the nodes that were started with FOREBAY_BOOTSTRAP_NODES are up. "
            "Start this one after them"
        )
    nodes = read_nodes(store)
    layout = first_layout(nodes, wanted=bootstrap_nodes)
    if layout is not None:
        return create_layout(store, layout)
    log.info("the cluster begins with %d nodes, and %d are up: waiting for the others", bootstrap_nodes, len(nodes))
    with suppress(CursorExpired):
        store.watch(LAYOUT_KEY, prefix_end(NODES), after_revision=revision, timeout_s=watch_s)
    return None


def outlasting(call: Callable[[], T], *, timeout_s: float, sleep: Callable[[float], object] = time.sleep) -> T:
    """What `call` returns, once the metadata engine answers; an outage longer than `timeout_s` raises its last error."""
    # All nodes of a cluster wait for the same engine, so the pauses grow until they are no load to it.
    backoff, outages, attempt = Backoff(base_s=0.25, max_s=5.0, sleep=sleep), Outages(log), 0
    what = f"the start, which outlasts {timeout_s:g} s of this (FOREBAY_START_TIMEOUT_S),"
    deadline: Deadline | None = None
    while True:
        try:
            result = call()
        except StoreError as error:
            # From the first failure on: before it the call may have waited for long, on purpose.
            deadline = deadline or Deadline(timeout_s)
            if not error.retryable:
                raise
            outages.failed(what, error)
            if not backoff.wait(attempt, error=error, deadline=deadline):
                raise
            attempt += 1
        else:
            outages.succeeded(what)
            return result
