"""When this node sweeps: once in each epoch, as a job, and again a while after a sweep failed."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from functools import partial

from client.cluster import Cluster
from client.errors import MetadataFrozen, MetadataUnavailable, StoreError
from storenode.collector import Collector, Swept
from storenode.config import NodeConfig
from storenode.desired import DesiredSet
from storenode.epochs import SweptRecord, publish_swept, swept_by
from storenode.jobs import JobRun, Jobs
from storenode.layouts import read_anchor
from storenode.lineage_watch import LineageWatch
from storenode.membership import holds_lease
from storenode.metastore import MetaStore
from storenode.repair import Copies
from storenode.surplus import Surplus
from storenode.worker import Worker

__all__ = ["GC_KIND", "SweepJob", "Sweeping", "make_sweep_job", "reach", "require_may_remove"]

log = logging.getLogger(__name__)

GC_KIND = "gc"


class SweepJob:
    """The work of a job of garbage collection. A sweep that was interrupted begins anew, with less to remove.

    Parameters
    ----------
    store : MetaStore
        Where the present epoch, and what was swept, is written.
    node_id : str
        This node.
    collector : Collector
        Sweeps.
    rate_chunks_per_s : float
        How fast it removes.
    """

    def __init__(self, store: MetaStore, *, node_id: str, collector: Collector, rate_chunks_per_s: float) -> None:
        self._store = store
        self._node_id = node_id
        self._collector = collector
        self._rate_chunks_per_s = rate_chunks_per_s

    def __call__(self, run: JobRun) -> None:
        """Sweep at the present epoch, and say what was done."""
        before = swept_by(self._store, self._node_id)
        swept = Swept(epoch=read_anchor(self._store).anchor.epoch)
        try:
            for now in self._collector.sweep(swept.epoch):
                swept = self._advance(run, swept, now)
        except StoreError as error:
            log.error("the sweep at epoch %d was given up: %s", swept.epoch, error.message)
            problem = f"{error.title}: {error.message}"
            publish_swept(self._store, self._node_id, replace(_sum(before, swept), epoch=before.epoch, problem=problem))
            raise
        publish_swept(self._store, self._node_id, _sum(before, swept))

    def _advance(self, run: JobRun, before: Swept, now: Swept) -> Swept:
        gone, gone_before = now.removed + now.given_up, before.removed + before.given_up
        num_chunks = gone.num_chunks - gone_before.num_chunks
        detail = f"epoch {now.epoch}: {now.removed.num_chunks} chunks removed, {now.num_kept} looked at and kept"
        if now.given_up.num_chunks or now.num_left:
            detail += f"; {now.given_up.num_chunks} given up that other nodes hold, {now.num_left} of them left"
        size_bytes = gone.size_bytes - gone_before.size_bytes
        run.advance(cursor=str(now.epoch), detail=detail, num_chunks=num_chunks, size_bytes=size_bytes)
        run.pause(num_chunks / self._rate_chunks_per_s)
        return now


def _sum(before: SweptRecord, swept: Swept) -> SweptRecord:
    return SweptRecord(
        epoch=swept.epoch,
        num_removed=before.num_removed + swept.removed.num_chunks,
        removed_bytes=before.removed_bytes + swept.removed.size_bytes,
        num_kept=swept.num_kept,
    )


def reach(cluster: Cluster, epoch: int) -> None:
    """Have the view be as new as an epoch; without the metadata engine it stays what it is."""
    if cluster.refresh().epoch < epoch:
        raise MetadataUnavailable(f"the view of the cluster could not be made as new as epoch {epoch}")


def require_may_remove(meta: MetaStore, *, node_id: str, lineage: LineageWatch) -> None:
    """Raise `StoreError` while this node's word on what is garbage may be wrong, or others take it for down."""
    if lineage.metadata_went_back:
        raise MetadataFrozen("the metadata is older than it was, so nothing is deleted; see `forebay cluster status`")
    if not holds_lease(meta, node_id):
        raise MetadataUnavailable(f"node {node_id} holds no lease (yet), so it deletes nothing")


def make_sweep_job(
    config: NodeConfig,
    store: MetaStore,
    *,
    copies: Copies,
    desired: DesiredSet,
    lineage: LineageWatch,
    surplus: Surplus,
    forget: Callable[[int, bytes], object],
) -> SweepJob:
    """The work for this node's disk; `forget` is told of bad copies that nobody has to replace any more."""
    collector = Collector(
        store,
        garbage=copies.chunks.garbage,
        refs=desired.refs,
        reach=partial(reach, copies.cluster),
        require_may_remove=partial(require_may_remove, store, node_id=copies.node_id, lineage=lineage),
        surplus=surplus,
        forget=forget,
        max_chunks=config.max_gc_chunks,
    )
    return SweepJob(store, node_id=copies.node_id, collector=collector, rate_chunks_per_s=config.gc_rate_chunks_per_s)


class Sweeping:
    """Starts the sweeps, in a thread.

    Parameters
    ----------
    config : NodeConfig
        How late an epoch is noticed, and when a sweep that failed is tried again.
    store : MetaStore
        Where the node says what it has swept.
    cluster : Cluster
        Says which epoch it is.
    jobs : Jobs
        Of this node, with the work of `GC_KIND`.
    """

    def __init__(self, config: NodeConfig, store: MetaStore, *, node_id: str, cluster: Cluster, jobs: Jobs) -> None:
        self._store = store
        self._cluster = cluster
        self._node_id = node_id
        self._jobs = jobs
        self._poll_s = config.follow_wait_s
        self._retry_s = config.gc_retry_s
        self._swept: int | None = None
        self._job_id: str | None = None  # Of the sweep under way.
        self._worker = Worker("garbage collection", self.step, base_s=self._poll_s, max_s=self._retry_s)

    def start(self) -> None:
        """Begin."""
        self._worker.start()

    def stop(self) -> None:
        """End after the step in progress; a sweep is ended by its job."""
        self._worker.stop()

    def step(self) -> float:
        """Look once; returns the seconds until the next time."""
        if self._job_id is not None:
            state = self._jobs.get(self._job_id).state
            if state == "running":
                return self._poll_s
            self._job_id = self._swept = None
            if state != "done":
                return self._retry_s
        if self._swept is None:
            self._swept = swept_by(self._store, self._node_id).epoch
        if self._swept < self._cluster.anchor.epoch:
            self._job_id = self._jobs.start(GC_KIND).id
        return self._poll_s
