"""Nodes that stay away are drained after a delay that the operator has named: a duty of the coordinator.

Down is not out: a node that is started anew within minutes has all its copies, and moving them would be work for nothing. So
by default nobody is ever drained. The delay is counted on this process's own clock from when it first missed the node; a new
coordinator counts anew.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from client.errors import StoreError
from storenode.layouts import read_layouts
from storenode.membership import read_nodes
from storenode.metastore import MetaStore
from storenode.outage import Outages
from storenode.ownership import Fence
from storenode.reshaping import Reshaping, Wish

__all__ = ["Absences"]

log = logging.getLogger(__name__)


class Absences:
    """The duty.

    Parameters
    ----------
    store : MetaStore
        The layouts, and who is up.
    reshaping : Reshaping
        Drains.
    out_after_s : float
        The delay; 0: never.
    clock : callable
        Monotonic seconds.
    """

    def __init__(
        self, store: MetaStore, *, reshaping: Reshaping, out_after_s: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._store = store
        self._reshaping = reshaping
        self._out_after_s = out_after_s
        self._clock = clock
        self._missed_s: dict[str, float] = {}
        self._outages = Outages(log)

    def __call__(self, fence: Fence) -> None:
        """Drain one node that has been away for long enough."""
        known = read_layouts(self._store)
        if not self._out_after_s or known is None:
            return
        up, now_s = read_nodes(self._store), self._clock()
        away = {node.id for node in known.layouts.current.active} - set(up)
        self._missed_s = {node_id: self._missed_s.get(node_id, now_s) for node_id in sorted(away)}
        for node_id, since_s in self._missed_s.items():
            if now_s - since_s < self._out_after_s:
                continue
            what = f"draining node {node_id}, which is down for longer than {self._out_after_s:g} s"
            try:
                done = self._reshaping(Wish(kind="drain", node_ids=(node_id,)), also=[fence.holds])
            except StoreError as error:
                # Too few nodes or zones would be left, or a disk would overflow: for an operator to decide.
                self._outages.failed(what, error)
                continue
            self._outages.succeeded(what)
            if done.revision is not None:
                log.warning("%s: layout %d", what, done.plan.layouts.current.version)
                return
