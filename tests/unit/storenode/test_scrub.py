"""The scrub: it finds what is bad and what is missing, keeps to its rate, and goes on where it was."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from client.manifest import Ref
from storenode.job import Job
from storenode.jobs import Jobs
from storenode.scrub import Scrub, ScrubCursor
from tests.support.node_bench import NodeBench


class ScrubBench(NodeBench):
    """A node whose scrub runs in the test's thread."""

    def scrub(self, *, rate_bytes_per_s: float = 1e12, cursor: str = "") -> Job:
        assert self.desired is not None
        scrub = Scrub(
            chunks=self.chunks,
            store=self.store,
            desired=self.desired,
            follower=self.follower,
            rate_bytes_per_s=rate_bytes_per_s,
            clock=self.clock,
        )
        jobs = Jobs(self.store, node_id="a", kinds={"scrub": scrub}, clock=self.clock, wait=self.clock.wait)
        job, revision = jobs.write(jobs.create("scrub", cursor=cursor), revision=0)
        jobs.run(job, revision)
        return jobs.get(job.id)

    def file(self, ref: Ref) -> Path:
        (path,) = self.root.glob(f"node/chunks/*/*-{ref.hex}")
        return path

    def flip_bit(self, ref: Ref) -> None:
        data = bytearray(self.file(ref).read_bytes())
        data[0] ^= 0x10
        self.file(ref).write_bytes(data)


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[ScrubBench]:
    bench = ScrubBench(tmp_path)
    yield bench
    bench.close()


def found(job: Job) -> ScrubCursor:
    return ScrubCursor.decode(job.cursor)


def test_a_sound_disk_is_read_whole_and_nothing_is_found(bench: ScrubBench) -> None:
    refs = [bench.object(f"object {index}") for index in range(4)]
    bench.steps()
    job = bench.scrub()
    assert job.state == "done"
    assert (job.num_chunks, job.total_chunks, job.size_bytes) == (4, 4, sum(ref.size for ref in refs))
    assert job.detail == "0 corrupt, 0 missing and fetched"


def test_a_corrupt_copy_is_set_aside_and_replaced(bench: ScrubBench) -> None:
    refs = [bench.object(f"object {index}") for index in range(4)]
    bench.steps()
    bench.flip_bit(refs[2])
    job = bench.scrub()
    assert job.state == "done" and found(job).num_corrupt == 1
    assert [bench.chunks.verify(ref.partition, ref.id) for ref in refs] == [ref.size for ref in refs]


def test_a_missing_copy_is_fetched_although_the_cursor_has_passed_it(bench: ScrubBench) -> None:
    ref = bench.object("lost by the file system")
    bench.steps()
    bench.chunks.delete(ref.partition, ref.id)
    bench.steps()
    assert not bench.holds(ref)
    job = bench.scrub()
    assert job.detail == "0 corrupt, 1 missing and fetched" and bench.holds(ref)


def test_what_cannot_be_fetched_now_is_left_to_the_follower(bench: ScrubBench) -> None:
    ref = bench.object("elsewhere")
    bench.steps()
    bench.chunks.delete(ref.partition, ref.id)
    bench.peers.reachable = False
    job = bench.scrub()
    assert job.state == "done" and found(job).num_waiting == 1 and "wait for chunks" in job.detail
    bench.peers.reachable = True
    bench.steps(12)
    assert bench.holds(ref)


def test_the_rate_is_kept(bench: ScrubBench) -> None:
    refs = [bench.object(f"object {index}" * 100) for index in range(5)]
    bench.steps()
    size_bytes = sum(ref.size for ref in refs)
    began_s = bench.clock()
    bench.scrub(rate_bytes_per_s=size_bytes / 10)
    assert bench.clock() - began_s == pytest.approx(10, rel=0.01)


def test_a_scrub_goes_on_behind_the_copy_in_its_cursor(bench: ScrubBench) -> None:
    for index in range(6):
        bench.object(f"object {index}")
    bench.steps()
    third = list(bench.chunks.scan())[2]
    cursor = ScrubCursor(after=f"{third[0]}/{third[1].hex()}", num_corrupt=7)
    job = bench.scrub(cursor=cursor.encode())
    assert job.num_chunks == 3 and found(job).num_corrupt == 7


def test_a_cursor_that_cannot_be_read_means_from_the_start() -> None:
    assert ScrubCursor.decode("") == ScrubCursor.decode("[1]") == ScrubCursor.decode('{"no": 1}') == ScrubCursor()
