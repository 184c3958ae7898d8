"""When a node sweeps: once in each epoch, again after a failure, and what it tells of it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import cast

import pytest

from client.cluster import Cluster, ClusterView
from client.errors import MetadataFrozen, MetadataUnavailable, StoreError
from client.placement import Layout, Layouts, Node
from storenode.collector import Collector, Swept
from storenode.config import load_node_config
from storenode.epochs import SweptRecord, swept_by
from storenode.garbage import Removed
from storenode.jobs import Jobs
from storenode.layouts import change_epoch, create_layout, read_anchor
from storenode.lineage import create_cluster
from storenode.lineage_watch import LineageWatch
from storenode.metastore import MetaStore, Put
from storenode.sweeping import GC_KIND, Sweeping, SweepJob, reach, require_may_remove
from tests.support.catalogs import Clock, open_meta

LAYOUT = Layout(version=1, partitions=16, nodes=(Node(id="a"),))


@pytest.fixture
def meta() -> Iterator[MetaStore]:
    with open_meta() as meta:
        create_cluster(meta)
        create_layout(meta, LAYOUT)
        yield meta


class Sweeps:
    """Stands for a collector: each sweep removes one chunk of ten bytes, or fails."""

    def __init__(self) -> None:
        self.epochs: list[int] = []
        self.error: StoreError | None = None

    def sweep(self, epoch: int) -> Iterator[Swept]:
        self.epochs.append(epoch)
        yield Swept(epoch=epoch)
        removed = Removed(num_chunks=1, size_bytes=10)
        yield Swept(epoch=epoch, removed=removed, num_kept=7)
        if self.error:
            raise self.error
        yield Swept(epoch=epoch, removed=removed, num_kept=7)


class Bench:
    def __init__(self, meta: MetaStore) -> None:
        self.meta = meta
        self.sweeps = Sweeps()
        self.clock = Clock()
        work = SweepJob(meta, node_id="a", collector=cast(Collector, self.sweeps), rate_chunks_per_s=0.5)
        self.jobs = Jobs(meta, node_id="a", kinds={GC_KIND: work}, clock=self.clock, wait=self.wait)
        self.cluster = Cluster(self.view, ttl_s=0.0, suspect_s=5.0, clock=self.clock)
        config = load_node_config(data_dir=Path("."), meta="sqlite:///meta.db", follow_wait_s=0.25, gc_retry_s=30.0)
        self.sweeping = Sweeping(config, meta, node_id="a", cluster=self.cluster, jobs=self.jobs)

    def view(self) -> ClusterView:
        epoch = read_anchor(self.meta).anchor.epoch
        return ClusterView(cluster_id="c", layouts=Layouts(current=LAYOUT), endpoints={}, epoch=epoch)

    def wait(self, seconds: float) -> None:
        self.clock.now_s += seconds

    def settle(self) -> float:
        """Steps until no sweep is under way; the last pause."""
        while True:
            pause_s = self.sweeping.step()
            for _, thread in list(self.jobs._running.values()):
                thread.join()
            if all(job.state != "running" for job in self.jobs.ls()) and self.sweeping._job_id is None:
                return pause_s

    def advance(self) -> None:
        now = read_anchor(self.meta)
        assert change_epoch(self.meta, now, epoch=now.anchor.epoch + 1)


def test_a_node_sweeps_once_in_each_epoch_and_adds_up_what_it_freed(meta: MetaStore) -> None:
    bench = Bench(meta)
    bench.settle()
    assert bench.settle() == 0.25
    assert swept_by(meta, "a") == SweptRecord(epoch=0, num_removed=1, removed_bytes=10, num_kept=7)
    bench.advance()
    bench.advance()
    bench.settle()
    assert bench.sweeps.epochs == [0, 2]
    assert swept_by(meta, "a") == SweptRecord(epoch=2, num_removed=2, removed_bytes=20, num_kept=7)
    (_, job) = bench.jobs.ls()
    assert (job.kind, job.state, job.num_chunks, job.size_bytes) == (GC_KIND, "done", 1, 10)
    assert job.detail == "epoch 2: 1 chunks removed, 7 looked at and kept"
    assert bench.clock.now_s == 1000.0 + 2 * 2.0  # Two chunks, at one in two seconds.


def test_a_node_that_starts_anew_knows_what_it_has_swept(meta: MetaStore) -> None:
    Bench(meta).settle()
    bench = Bench(meta)
    bench.settle()
    assert bench.sweeps.epochs == []


def test_a_sweep_that_failed_is_told_of_and_tried_again_later(meta: MetaStore) -> None:
    bench = Bench(meta)
    bench.sweeps.error = MetadataUnavailable("etcd is away")
    assert bench.settle() == 30.0
    record = swept_by(meta, "a")
    assert (record.epoch, record.num_removed, record.problem) == (-1, 1, "The metadata engine does not answer: etcd is away")
    bench.sweeps.error = None
    bench.settle()
    assert swept_by(meta, "a") == SweptRecord(epoch=0, num_removed=2, removed_bytes=20, num_kept=7)


def test_a_view_that_can_not_be_made_new_enough_is_an_error(meta: MetaStore) -> None:
    bench = Bench(meta)
    bench.advance()
    reach(bench.cluster, 1)
    with pytest.raises(MetadataUnavailable, match="epoch 2"):
        reach(bench.cluster, 2)


def test_a_node_without_a_lease_or_with_older_metadata_removes_nothing(meta: MetaStore) -> None:
    class Lineage:
        metadata_went_back = False

    lineage = Lineage()
    with pytest.raises(MetadataUnavailable, match="holds no lease"):
        require_may_remove(meta, node_id="a", lineage=cast(LineageWatch, lineage))
    meta.txn([], [Put(key="node/a", value=b"{}")])
    require_may_remove(meta, node_id="a", lineage=cast(LineageWatch, lineage))
    lineage.metadata_went_back = True
    with pytest.raises(MetadataFrozen):
        require_may_remove(meta, node_id="a", lineage=cast(LineageWatch, lineage))
