"""Older layouts are retired when nothing needs them: a duty of the coordinator.

An older layout says where copies may lie that the current holders still lack. Once every node to which the current layout
gives data says that it holds it all (`storenode.held`), of every record that was committed before that layout was, there are
no such copies: what was committed since was acknowledged by current holders. Nodes that are down are waited for: down is
not out.
"""

from __future__ import annotations

import logging

from client.placement import Layouts
from storenode.epochs import ask_for_epoch
from storenode.held import is_complete, read_held
from storenode.layouts import change_layouts, read_layouts
from storenode.lineage import read_lineage
from storenode.metastore import MetaStore
from storenode.ownership import Fence

__all__ = ["Retirement"]

log = logging.getLogger(__name__)


class Retirement:
    """The duty.

    Parameters
    ----------
    store : MetaStore
        The layouts, and what nodes hold.
    """

    def __init__(self, store: MetaStore) -> None:
        self._store = store

    def __call__(self, fence: Fence) -> None:
        """Retire all older layouts, if all nodes are complete."""
        incarnation = read_lineage(self._store).incarnation
        known = read_layouts(self._store)
        if known is None or not known.layouts.older:
            return
        current = known.layouts.current
        held = read_held(self._store)
        if not all(is_complete(held.get(node.id), known, incarnation=incarnation) for node in current.active):
            return
        # If the layouts changed meanwhile, or this node is no longer the owner, nothing happens.
        if change_layouts(self._store, known, Layouts(current=current), also=[fence.holds]) is not None:
            older = ", ".join(str(layout.version) for layout in known.layouts.older)
            log.info("layout %d is complete on all nodes; retired: %s", current.version, older)
            # For nodes to give up soon what they hold no longer; without it they would at the next epoch.
            ask_for_epoch(self._store)
