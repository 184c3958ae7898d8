"""Notices that the metadata is another than it was: a new incarnation, or an older state of this one.

Theory of operation
-------------------
Revisions and the epoch of garbage collection only grow within one incarnation. A node remembers the highest that it has seen,
the revision durably (`storenode.cursor`), and looks at its start, before it changes anything, and every few seconds. If the
metadata has less, it was restored from a backup. What was committed since the backup has no record then, and an operator
may yet bring the newer metadata back. So the node marks the cluster's record, which tells all nodes and has every commit
refused; reads and the repair of copies go on; and whoever deletes chunks asks `metadata_went_back` first. That ends with a new
incarnation (`storenode.incarnation`).
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

from storenode.cursor import Cursor
from storenode.layouts import ANCHOR_KEY, decode_anchor
from storenode.lineage import CLUSTER_KEY, Lineage, decode_lineage, mark_restored
from storenode.metastore import MetaStore
from storenode.worker import Worker

__all__ = ["LineageWatch"]

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Seen:
    """The highest that was seen of one incarnation."""

    incarnation: str
    revision: int = 0
    epoch: int = 0


class LineageWatch:
    """Knows the cluster's record, in a thread.

    Parameters
    ----------
    store : MetaStore
        Where it lies.
    cluster_id : str
        This node's cluster.
    node_id : str
        This node.
    cursor : Cursor or None
        What the node's last life has seen.
    period_s : float
        Time between two looks.
    """

    def __init__(self, store: MetaStore, *, cluster_id: str, node_id: str, cursor: Cursor | None, period_s: float) -> None:
        self._store = store
        self._cluster_id = cluster_id
        self._who = f"node {node_id}"
        self._seen = _Seen(incarnation=cursor.incarnation, revision=cursor.seen) if cursor else _Seen(incarnation="")
        self._lineage = Lineage(cluster_id=cluster_id)
        self._period_s = period_s
        # No longer pauses while the metadata can't be reached: it may come back as an older one, and what nodes write when they
        # register anew could hide that.
        self._worker = Worker("lineage watch", self.step, base_s=period_s, max_s=period_s)

    def start(self) -> None:
        """Look now, and then again and again."""
        self.look()
        self._worker.start()

    def stop(self) -> None:
        """End after the look in progress."""
        self._worker.stop()

    def step(self) -> float:
        """Look once; returns the seconds until the next time."""
        self.look()
        return self._period_s

    @property
    def lineage(self) -> Lineage:
        """The cluster's record as it was at the last look."""
        return self._lineage

    @property
    def incarnation(self) -> str:
        """Which metadata this is."""
        return self._lineage.incarnation

    @property
    def metadata_went_back(self) -> bool:
        """Whether the metadata may lack what it had. Nothing may be deleted then because no record names it."""
        return self._lineage.went_back or self._lineage.cluster_id != self._cluster_id

    def look(self) -> None:
        """Compare the metadata with what was seen of it before."""
        item, anchor = self._store.get_many([CLUSTER_KEY, ANCHOR_KEY])
        # Afterwards, so that it is never below what those were read at.
        revision = self._store.revision()
        lineage, seen = decode_lineage(item), self._seen
        now = _Seen(incarnation=lineage.incarnation, revision=revision, epoch=decode_anchor(anchor).anchor.epoch)
        if lineage.cluster_id != self._cluster_id:
            self._say(f"it holds cluster {lineage.cluster_id or 'none'!r} and not {self._cluster_id!r}")
        elif now.incarnation != seen.incarnation:
            self._seen = now
        elif now.revision < seen.revision or now.epoch < seen.epoch:
            detail = (
                f"{self._who} has seen revision {seen.revision} and epoch {seen.epoch}, "
                f"and finds {now.revision} and {now.epoch}"
            )
            lineage = mark_restored(self._store, incarnation=seen.incarnation, who=self._who, detail=detail)
            self._say(detail)
        else:
            self._seen = now
        self._lineage = lineage

    def _say(self, detail: str) -> None:
        if not self.metadata_went_back:
            log.critical(
                "THE METADATA WENT BACK: %s. Reads go on; nothing is committed or deleted until the newer metadata is back or "
                "`forebay meta accept-restore` was typed",
                detail,
            )
