"""Draining nodes are emptied without delay: a duty of the coordinator.

A node gives up copies when garbage collection sweeps its disk, once in each epoch, and those that were relied on lately only
two epochs later. Epochs are long where nothing is urgent. While a draining node has something left, and all older layouts are
retired, the next ones are asked for: at once, and more and more seldom if that does not help.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from storenode.epochs import ask_for_epoch
from storenode.held import read_held
from storenode.layouts import read_layouts
from storenode.lineage import read_lineage
from storenode.membership import read_nodes
from storenode.metastore import MetaStore
from storenode.ownership import Fence

__all__ = ["Emptying"]


class Emptying:
    """The duty.

    Parameters
    ----------
    store : MetaStore
        Layouts, epochs, and what nodes hold.
    retry_s : float
        Pause after the first request, of which each makes two epochs begin; it doubles each time, up to a hundredfold.
    clock : callable
        Monotonic seconds.
    """

    def __init__(self, store: MetaStore, *, retry_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._store = store
        self._retry_s = retry_s
        self._clock = clock
        self._version = 0  # of the layout for which was asked
        self._pause_s = retry_s
        self._due_s = 0.0

    def __call__(self, fence: Fence) -> None:
        """Ask for epochs, if a draining node that is up waits for them. One too many harms nobody, so it needs no fence."""
        known = read_layouts(self._store)
        if known is None or known.layouts.older:
            return
        current = known.layouts.current
        draining = {node.id for node in current.nodes} - {node.id for node in current.active}
        if not draining:
            return
        held, incarnation = read_held(self._store), read_lineage(self._store).incarnation
        drained = {node_id for node_id, each in held.items() if each.drained(layout=current.version, incarnation=incarnation)}
        if self._version != current.version:
            self._version, self._pause_s, self._due_s = current.version, self._retry_s, 0.0
        if self._clock() >= self._due_s and (draining - drained) & read_nodes(self._store).keys():
            ask_for_epoch(self._store)
            self._due_s = self._clock() + self._pause_s
            self._pause_s = min(2 * self._pause_s, 100 * self._retry_s)
