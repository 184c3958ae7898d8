"""Long work of a node as records: what runs, how far it is, and how it is stopped.

    job/{id}    kind, node, state, cursor, chunks and bytes done, when it started and was last updated

Theory of operation
-------------------
A job belongs to the node that started it and works on that node's own disk, so no other node takes it over. Its states:

    running -> done | failed | cancelled

`cancel` may be called on any node. It marks the record, and the owner sees the mark when it next saves its progress; the
record of a node that is down is marked all the same. Progress is saved by comparing revisions, at most once a second: it can't
wipe out a mark. A node that stops or dies leaves its jobs running in the record and goes on from the saved cursor at its next
start, so steps since then are done twice; work has to bear that.

One job of a kind runs on a node at a time. Asking for another gives the one that runs.
"""

from __future__ import annotations

import logging
import secrets
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TypeAlias

from client.errors import Conflict, InvalidRequest, JobNotFound, MetadataUnavailable, StoreError
from client.wire import encode_json
from storenode.job import REBALANCE, Job, JobState, decode_job
from storenode.keyspace import after
from storenode.metastore import Compare, Delete, MetaStore, Put, prefix_end
from storenode.outage import Outages

__all__ = ["JOBS", "JobEnded", "JobRun", "Jobs", "Work", "read_jobs"]

log = logging.getLogger(__name__)

JOBS = "job/"
_PAGE = 256
_MAX_TURNS = 8


class JobEnded(Exception):
    """Not an error: the work ends here, because the job was cancelled or the node stops."""


class JobRun:
    """A running job, as its work sees it.

    Attributes
    ----------
    job : Job
        With what was done so far, in earlier runs too.
    """

    def __init__(self, jobs: Jobs, job: Job, *, revision: int, save_s: float, clock: Callable[[], float]) -> None:
        self.job = job
        self._jobs = jobs
        self._revision = revision
        self._save_s = save_s
        self._clock = clock
        self._saved_s = clock()

    def expect(self, total_chunks: int) -> None:
        """Note how many chunks there are to look at."""
        self.job = replace(self.job, total_chunks=total_chunks)

    def advance(self, *, cursor: str, detail: str, num_chunks: int = 0, size_bytes: int = 0) -> None:
        """Note progress: everything up to `cursor` is done, and `detail` says what was found.

        Raises
        ------
        JobEnded
            The work has to return; it is resumed from `cursor`, if at all.
        """
        self.job = replace(
            self.job,
            cursor=cursor,
            detail=detail,
            num_chunks=self.job.num_chunks + num_chunks,
            size_bytes=self.job.size_bytes + size_bytes,
        )
        self.check()

    def pause(self, seconds: float) -> None:
        """Wait, so as to keep to a rate. Raises `JobEnded`, as `advance` does."""
        end_s = self._clock() + seconds
        while (rest_s := end_s - self._clock()) > 0:
            self._jobs.wait(min(rest_s, self._save_s))
            self.check()

    def check(self) -> None:
        """Raise `JobEnded` if the work has to end, and save the progress now and then."""
        if self._jobs.stopping:
            self.save()
            raise JobEnded("the node stops")
        if self._clock() - self._saved_s >= self._save_s:
            self.save()
            if self.job.cancelling:
                raise JobEnded("it was cancelled")

    def save(self) -> bool:
        """Write the record, keeping a mark that was set meanwhile; False while the metadata engine is down."""
        self._saved_s = self._clock()
        try:
            self.job, self._revision = self._jobs.write(self.job, revision=self._revision)
        except MetadataUnavailable as error:
            self._jobs.outages.failed(f"saving job {self.job.id}", error)
            return False
        self._jobs.outages.succeeded(f"saving job {self.job.id}")
        return True


Work: TypeAlias = Callable[[JobRun], None]


class Jobs:
    """The jobs of the cluster, and the threads of those that run here.

    Parameters
    ----------
    store : MetaStore
        Keeps the records.
    node_id : str
        This node.
    kinds : mapping of str to callable
        What this node can do: the work of each kind, which calls `JobRun.advance` as it goes.
    max_kept : int
        How many ended jobs of a kind are remembered of this node.
    save_s : float
        Shortest time between two saves of progress.
    clock : callable
        Monotonic seconds.
    wall_clock : callable
        Seconds since 1970.
    wait : callable, optional
        Sleeps; by default it ends early when the node stops.
    """

    def __init__(
        self,
        store: MetaStore,
        *,
        node_id: str,
        kinds: Mapping[str, Work],
        max_kept: int = 32,
        save_s: float = 1.0,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
        wait: Callable[[float], object] | None = None,
    ) -> None:
        self._store = store
        self._node_id = node_id
        self._kinds = dict(kinds)
        self._max_kept = max_kept
        self._save_s = save_s
        self._clock = clock
        self._wall_clock = wall_clock
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._wait = wait or self._stop.wait
        self._running: dict[str, tuple[str, threading.Thread]] = {}  # kind -> job id, thread
        self.outages = Outages(log)

    @property
    def stopping(self) -> bool:
        """Whether the node is about to end."""
        return self._stop.is_set()

    def wait(self, seconds: float) -> None:
        """Sleep, but not past the end of the node."""
        self._wait(seconds)

    def resume(self) -> None:
        """Go on with what an earlier life of this node left unfinished."""
        for job, revision in read_jobs(self._store):
            if job.node_id != self._node_id or job.state != "running":
                continue
            with self._lock:
                known = job.kind in self._kinds and job.kind not in self._running
                if known and not job.cancelling:
                    self._spawn(job, revision)
                    continue
            state: JobState = "cancelled" if job.cancelling else "failed"
            detail = job.detail if job.cancelling else f"this release does not know jobs of kind {job.kind!r}"
            self.write(replace(job, state=state, detail=detail), revision=revision)

    def start(self, kind: str) -> Job:
        """Begin a job of `kind` on this node, or give the one that runs.

        Raises
        ------
        InvalidRequest
            If there is no such kind.
        """
        if kind not in self._kinds:
            raise InvalidRequest(f"no jobs of kind {kind!r}; there are {', '.join(sorted(self._kinds))}")
        self._forget_old(kind)
        with self._lock:
            if kind in self._running:
                return self.get(self._running[kind][0])
            job, revision = self.write(self.create(kind), revision=0)
            self._spawn(job, revision)
        return job

    def create(self, kind: str, *, cursor: str = "") -> Job:
        """A job of this node that has done nothing yet, not written anywhere."""
        now_s = self._wall_clock()
        return Job(
            id=secrets.token_hex(6),
            kind=kind,
            node_id=self._node_id,
            state="running",
            cancelling=False,
            cursor=cursor,
            num_chunks=0,
            total_chunks=None,
            size_bytes=0,
            detail="",
            started_s=now_s,
            updated_s=now_s,
        )

    def ls(self) -> list[Job]:
        """All jobs of the cluster, oldest first."""
        return sorted((job for job, _ in read_jobs(self._store)), key=lambda job: (job.started_s, job.id))

    def get(self, job_id: str) -> Job:
        """One job; raises `JobNotFound`."""
        return self._read(job_id)[0]

    def cancel(self, job_id: str) -> Job:
        """Ask for the end of a job, wherever it runs. Nothing happens to one that has ended.

        Raises
        ------
        JobNotFound
            There is no such job.
        InvalidRequest
            It is the move of data after a change of the layout.
        """
        for _ in range(_MAX_TURNS):
            job, revision = self._read(job_id)
            if job.kind == REBALANCE:
                raise InvalidRequest(
                    "a change of the layout is not cancelled, because data lie under it already; make the reverse change "
                    "(`forebay node add` after a drain, `forebay node drain` after an add)"
                )
            if job.state != "running" or job.cancelling:
                return job
            job = replace(job, cancelling=True)
            if self._put(job, revision=revision) is not None:
                return job
        raise Conflict(f"job {job_id} changed {_MAX_TURNS} times while it was cancelled", key=job_id)

    def stop(self) -> None:
        """End the work that runs here; the records stay, to be resumed at the next start."""
        self._stop.set()
        with self._lock:
            threads = [thread for _, thread in self._running.values()]
        for thread in threads:
            thread.join()

    def write(self, job: Job, *, revision: int) -> tuple[Job, int]:
        """Save `job`, last seen at `revision` (0: new), keeping a mark that was set meanwhile; what was saved, and when."""
        for _ in range(_MAX_TURNS):
            job = replace(job, updated_s=self._wall_clock())
            written = self._put(job, revision=revision)
            if written is not None:
                return job, written
            found, revision = self._read(job.id)
            job = replace(job, cancelling=found.cancelling)
        raise Conflict(f"job {job.id} changed {_MAX_TURNS} times while it was saved", key=job.id)

    def _spawn(self, job: Job, revision: int) -> None:
        def body() -> None:
            try:
                self.run(job, revision)
            finally:
                with self._lock:
                    del self._running[job.kind]

        thread = threading.Thread(target=body, name=f"forebay-job-{job.kind}", daemon=True)
        self._running[job.kind] = (job.id, thread)
        thread.start()

    def run(self, job: Job, revision: int) -> None:
        """Do the work of a job whose record was written at `revision`, in this thread, and write how it ended."""
        run = JobRun(self, job, revision=revision, save_s=self._save_s, clock=self._clock)
        state: JobState = "done"
        try:
            self._kinds[job.kind](run)
        except JobEnded:
            state = "cancelled" if run.job.cancelling else "running"
        except StoreError as error:
            state = "failed"
            run.job = replace(run.job, detail=f"{error.title}: {error.message}")
        except Exception as exc:
            log.exception("job %s (%s) failed", job.id, job.kind)
            state = "failed"
            run.job = replace(run.job, detail=f"defect: {exc!r}")
        log.info("job %s (%s): %s. %s", job.id, job.kind, state, run.job.detail)
        run.job = replace(run.job, state=state)
        try:
            # Without the metadata the end can't be told. Until then the job counts as running, here too.
            while not run.save() and not self.stopping:
                self.wait(self._save_s)
        except StoreError as error:
            log.warning("the end of job %s could not be saved, so it runs again at the next start: %s", job.id, error.message)

    def _put(self, job: Job, *, revision: int) -> int | None:
        key = JOBS + job.id
        result = self._store.txn([Compare(key=key, mod_revision=revision)], [Put(key=key, value=encode_json(job.to_json()))])
        return result.revision if result.ok else None

    def _read(self, job_id: str) -> tuple[Job, int]:
        item = self._store.get(JOBS + job_id)
        if item is None:
            raise JobNotFound(f"there is no job {job_id!r}; `forebay job ls` lists them", key=job_id)
        return decode_job(item), item.mod_revision

    def _forget_old(self, kind: str) -> None:
        mine = [(job, rev) for job, rev in read_jobs(self._store) if (job.node_id, job.kind) == (self._node_id, kind)]
        ended = [(job, rev) for job, rev in mine if job.state != "running"]
        ended.sort(key=lambda pair: pair[0].updated_s)
        for job, revision in ended[: max(0, len(ended) - self._max_kept)]:
            key = JOBS + job.id
            self._store.txn([Compare(key=key, mod_revision=revision)], [Delete(key=key)])


def read_jobs(store: MetaStore) -> list[tuple[Job, int]]:
    """All jobs, each with the revision at which it was written last."""
    found: list[tuple[Job, int]] = []
    start, end = JOBS, prefix_end(JOBS)
    while True:
        page = store.range(start, end, limit=_PAGE)
        found += [(decode_job(item), item.mod_revision) for item in page.items]
        if not page.more:
            return found
        start = after(page.items[-1].key)
