"""The move of data after a change of the layout, as a job that everyone can watch: a duty of the coordinator.

The nodes do the work by themselves (`storenode.follower`); nobody tells them to, and nobody can stop them short of another
change. The job's record only says how far they are. It belongs to no node: whoever is the coordinator goes on with it, from
what it says and what the nodes say, and every write of it compares the coordinator's fence.
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import replace

from client.placement import Layouts
from client.wire import encode_json
from storenode.held import is_complete, read_held
from storenode.job import REBALANCE, Job
from storenode.jobs import JOBS, read_jobs
from storenode.layouts import KnownLayouts, read_layouts
from storenode.lineage import read_lineage
from storenode.metastore import Compare, Delete, MetaStore, Put
from storenode.movement import NodeFacts, per_partition, shifts
from storenode.ownership import Fence
from storenode.reshaping import most_replicas

__all__ = ["Rebalance"]

# Whose disk such a job works on: all of them.
EVERYWHERE = "cluster"


class Rebalance:
    """The duty.

    Parameters
    ----------
    store : MetaStore
        Layouts, jobs, and what nodes hold.
    ask : callable
        Gives the facts of the nodes of these ids.
    max_kept : int
        How many ended jobs are remembered.
    wall_clock : callable
        Seconds since 1970.
    """

    def __init__(
        self,
        store: MetaStore,
        *,
        ask: Callable[[list[str]], Mapping[str, NodeFacts]],
        max_kept: int,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._ask = ask
        self._max_kept = max_kept
        self._wall_clock = wall_clock

    def __call__(self, fence: Fence) -> None:
        """Begin, update or end the job of the current layout."""
        known = read_layouts(self._store)
        if known is None:
            return
        current = known.layouts.current
        found = [(job, revision) for job, revision in read_jobs(self._store) if job.kind == REBALANCE]
        running = [(job, revision) for job, revision in found if job.state == "running"]
        for job, revision in running:
            if not known.layouts.older:
                job = _counted(job, self._ask([node.id for node in current.nodes]), current.version)
                self._put(replace(job, state="done", detail=self._whole(job, current.version)), revision, fence)
            elif _layout_of(job) != current.version:
                detail = f"layout {current.version} came before this one was complete, and goes on with its work"
                self._put(replace(job, state="cancelled", detail=detail), revision, fence)
        if known.layouts.older:
            mine = [(job, revision) for job, revision in running if _layout_of(job) == current.version]
            self._advance(known, *(mine[0] if mine else (None, 0)), fence=fence)
        self._forget([job for job, _ in found if job.state != "running"], fence)

    def _advance(self, known: KnownLayouts, job: Job | None, revision: int, *, fence: Fence) -> None:
        current = known.layouts.current
        facts = self._ask([node.id for node in current.nodes])
        job = job or self._begin(known.layouts, facts)
        incarnation, held = read_lineage(self._store).incarnation, read_held(self._store)
        complete = sum(is_complete(held.get(node.id), known, incarnation=incarnation) for node in current.active)
        job = _counted(job, facts, current.version)
        self._put(replace(job, detail=self._describe(job, complete, len(current.active))), revision, fence)

    def _begin(self, layouts: Layouts, facts: Mapping[str, NodeFacts]) -> Job:
        found = shifts(layouts.older[-1], layouts.current, replicas=most_replicas(self._store))
        gained = sum(shift.gained for shift in found)
        size_bytes = per_partition(found, {node_id: fact.held_bytes for node_id, fact in facts.items()})
        chunks = per_partition(found, {node_id: fact.held_chunks for node_id, fact in facts.items()})
        expected = None if size_bytes is None else round(gained * size_bytes)
        now_s = self._wall_clock()
        return Job(
            id=secrets.token_hex(6),
            kind=REBALANCE,
            node_id=EVERYWHERE,
            state="running",
            cancelling=False,
            cursor=json.dumps({"layout": layouts.current.version, "expected_bytes": expected}),
            num_chunks=0,
            total_chunks=None if chunks is None else round(gained * chunks),
            size_bytes=0,
            detail="",
            started_s=now_s,
            updated_s=now_s,
        )

    def _describe(self, job: Job, complete: int, total: int) -> str:
        told = f"layout {_layout_of(job)}: {complete} of {total} nodes complete"
        expected = _cursor_of(job).get("expected_bytes")
        seconds = max(1.0, self._wall_clock() - job.started_s)
        if complete == total or not isinstance(expected, int):
            return told
        left, rate = max(0, expected - job.size_bytes), job.size_bytes / seconds
        told += f", about {left} bytes left, {rate:.0f} bytes/s"
        return told + (f", {left / rate:.0f} s to go" if rate else "")

    def _whole(self, job: Job, version: int) -> str:
        superseded = "" if _layout_of(job) == version else f", with layout {version}"
        return f"layout {_layout_of(job)}: all nodes complete{superseded}"

    def _put(self, job: Job, revision: int, fence: Fence) -> None:
        value = replace(job, updated_s=self._wall_clock())
        key = JOBS + job.id
        # If it was changed meanwhile, or somebody else is the coordinator, the next round looks again.
        unchanged = Compare(key=key, mod_revision=revision)
        self._store.txn([unchanged, fence.holds], [Put(key=key, value=encode_json(value.to_json()))])

    def _forget(self, ended: list[Job], fence: Fence) -> None:
        ended.sort(key=lambda job: job.updated_s)
        for job in ended[: max(0, len(ended) - self._max_kept)]:
            self._store.txn([fence.holds], [Delete(key=JOBS + job.id)])


def _counted(job: Job, facts: Mapping[str, NodeFacts], version: int) -> Job:
    """The job with what nodes say that they have fetched for the layout of this version."""
    moving = [fact for fact in facts.values() if fact.follows == version]
    # What a node says begins anew when it does.
    return replace(
        job,
        num_chunks=max(job.num_chunks, sum(fact.fetched_chunks for fact in moving)),
        size_bytes=max(job.size_bytes, sum(fact.fetched_bytes for fact in moving)),
    )


def _cursor_of(job: Job) -> dict[str, object]:
    try:
        value = json.loads(job.cursor)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _layout_of(job: Job) -> object:
    return _cursor_of(job).get("layout")
