"""Jobs: their records tell the truth through cancels, crashes and restarts."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from client.errors import DiskFailed, InvalidRequest, JobNotFound
from storenode.job import Job
from storenode.jobs import JobRun, Jobs, Work
from storenode.sqlite import SqliteMetaStore
from tests.support.peers import Clock

DEADLINE_S = 10.0


class Steps:
    """Work of so many steps, each of which waits until the test lets it go."""

    def __init__(self, total: int) -> None:
        self.total = total
        self.began_at: list[str] = []
        self.arrived = threading.Semaphore(0)
        self.go = threading.Semaphore(0)

    def __call__(self, run: JobRun) -> None:
        self.began_at.append(run.job.cursor)
        run.expect(self.total)
        for step in range(int(run.job.cursor or 0), self.total):
            self.arrived.release()
            assert self.go.acquire(timeout=DEADLINE_S)
            run.advance(cursor=str(step + 1), detail=f"{step + 1} done", num_chunks=1, size_bytes=10)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SqliteMetaStore]:
    store = SqliteMetaStore(tmp_path / "meta.sqlite")
    yield store
    store.close()


def make_jobs(store: SqliteMetaStore, kinds: dict[str, Work], *, node_id: str = "a", max_kept: int = 32) -> Jobs:
    clock = Clock()
    return Jobs(store, node_id=node_id, kinds=kinds, max_kept=max_kept, save_s=0.0, clock=clock, wall_clock=clock)


def ended(jobs: Jobs, job: Job) -> Job:
    """The job's record once its thread has ended."""
    for thread in threading.enumerate():
        if thread.name.startswith("forebay-job-"):
            thread.join(DEADLINE_S)
    return jobs.get(job.id)


def test_a_job_runs_to_its_end_and_its_record_says_so(store: SqliteMetaStore) -> None:
    work = Steps(3)
    work.go.release(3)
    jobs = make_jobs(store, {"walk": work})
    job = ended(jobs, jobs.start("walk"))
    assert (job.state, job.num_chunks, job.total_chunks, job.size_bytes) == ("done", 3, 3, 30)
    assert (job.cursor, job.detail, job.node_id) == ("3", "3 done", "a")
    assert jobs.ls() == [job]


def test_starting_a_kind_that_runs_gives_the_running_job(store: SqliteMetaStore) -> None:
    work = Steps(1)
    jobs = make_jobs(store, {"walk": work})
    first = jobs.start("walk")
    assert jobs.start("walk").id == first.id
    work.go.release()
    assert ended(jobs, first).state == "done"
    work.go.release()
    second = jobs.start("walk")
    assert second.id != first.id
    assert ended(jobs, second).state == "done"


def test_an_unknown_kind_or_job_is_named(store: SqliteMetaStore) -> None:
    jobs = make_jobs(store, {"walk": Steps(1)})
    with pytest.raises(InvalidRequest, match="'dance'; there are walk"):
        jobs.start("dance")
    with pytest.raises(JobNotFound, match="nope"):
        jobs.cancel("nope")


def test_a_cancel_from_another_node_ends_the_job_at_its_next_save(store: SqliteMetaStore) -> None:
    work = Steps(100)
    jobs = make_jobs(store, {"walk": work})
    job = jobs.start("walk")
    assert work.arrived.acquire(timeout=DEADLINE_S)
    elsewhere = make_jobs(store, {}, node_id="b")
    assert elsewhere.cancel(job.id).cancelling
    work.go.release(100)
    job = ended(jobs, job)
    assert job.state == "cancelled" and job.num_chunks < 100
    assert elsewhere.cancel(job.id) == job


def test_a_stopped_node_leaves_the_job_running_and_its_next_life_goes_on_from_the_cursor(store: SqliteMetaStore) -> None:
    work = Steps(3)
    jobs = make_jobs(store, {"walk": work})
    job = jobs.start("walk")
    assert work.arrived.acquire(timeout=DEADLINE_S)
    stopper = threading.Thread(target=jobs.stop)
    stopper.start()
    while not jobs.stopping:  # set by the first statement of stop
        stopper.join(0.001)
    work.go.release()
    stopper.join(DEADLINE_S)
    assert (jobs.get(job.id).state, jobs.get(job.id).cursor) == ("running", "1")

    work.go.release(2)
    reborn = make_jobs(store, {"walk": work})
    reborn.resume()
    job = ended(reborn, job)
    assert (job.state, job.num_chunks) == ("done", 3)
    assert work.began_at == ["", "1"]


def test_a_node_does_not_take_over_the_jobs_of_another(store: SqliteMetaStore) -> None:
    work = Steps(1)
    jobs = make_jobs(store, {"walk": work})
    job = jobs.start("walk")
    make_jobs(store, {"walk": work}, node_id="b").resume()
    work.go.release()
    assert ended(jobs, job).state == "done" and work.began_at == [""]


def abandoned(store: SqliteMetaStore) -> Job:
    """A job whose node died: running in the record, and nowhere else."""
    jobs = make_jobs(store, {"walk": Steps(0)})
    job = ended(jobs, jobs.start("walk"))
    fields = {**job.to_json(), "state": "running"}
    item = store.get(f"job/{job.id}")
    assert item is not None
    return jobs.write(Job.from_json(fields), revision=item.mod_revision)[0]


def test_a_job_cancelled_while_its_node_was_down_ends_at_the_next_start(store: SqliteMetaStore) -> None:
    job = abandoned(store)
    make_jobs(store, {}, node_id="b").cancel(job.id)
    work = Steps(1)
    jobs = make_jobs(store, {"walk": work})
    jobs.resume()
    assert jobs.get(job.id).state == "cancelled" and work.began_at == []


def test_a_job_of_an_unknown_kind_fails_at_the_next_start(store: SqliteMetaStore) -> None:
    job = abandoned(store)
    jobs = make_jobs(store, {})
    jobs.resume()
    assert jobs.get(job.id).state == "failed" and "'walk'" in jobs.get(job.id).detail


def test_an_error_of_the_store_and_a_defect_fail_the_job_with_their_reason(store: SqliteMetaStore) -> None:
    def breaks(run: JobRun) -> None:
        raise DiskFailed("sda1: Input/output error")

    def defect(run: JobRun) -> None:
        raise ZeroDivisionError

    jobs = make_jobs(store, {"breaks": breaks, "defect": defect})
    broken, defective = ended(jobs, jobs.start("breaks")), ended(jobs, jobs.start("defect"))
    assert broken.state == defective.state == "failed"
    assert "sda1: Input/output error" in broken.detail and "ZeroDivisionError" in defective.detail


def test_ended_jobs_are_forgotten_beyond_the_bound(store: SqliteMetaStore) -> None:
    jobs = make_jobs(store, {"walk": Steps(0)}, max_kept=2)
    for _ in range(6):
        ended(jobs, jobs.start("walk"))
    assert len(jobs.ls()) == 3


def test_a_pause_ends_when_the_node_stops(store: SqliteMetaStore) -> None:
    began = threading.Event()

    def slow(run: JobRun) -> None:
        began.set()
        run.pause(3600.0)

    jobs = Jobs(store, node_id="a", kinds={"slow": slow})
    job = jobs.start("slow")
    assert began.wait(DEADLINE_S)
    jobs.stop()
    assert jobs.get(job.id).state == "running"
