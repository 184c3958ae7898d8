"""Hedged reads: a second node is asked when the first is late, the first verified answer counts, and waste is bounded."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from typing import Any

import pytest

from client.errors import AllReplicasFailed, ChunkCorrupt, EndpointUnreachable, Forbidden, Unauthenticated
from client.hedging import kind_of
from client.manifest import make_ref
from client.replica import ReadTotals, ReplicaReader
from client.retry import Deadline
from tests.support.fake_cluster import FakeCluster, quick_config
from tests.support.scripted_chunks import Hold, ScriptedChunks

WAIT_S = 10.0
PAYLOAD = random.Random(9).randbytes(100_000)
SIZE = len(PAYLOAD)
REF = make_ref(PAYLOAD, partitions=64)


def give(buffer: memoryview, deadline: Deadline) -> None:
    buffer[:] = PAYLOAD
    deadline.took(len(buffer))


def refuse(buffer: memoryview, deadline: Deadline) -> None:
    raise EndpointUnreachable("nobody is there")


def send_other_bytes(buffer: memoryview, deadline: Deadline) -> None:
    buffer[:] = bytes(len(buffer))
    deadline.took(len(buffer))
    raise ChunkCorrupt("not the bytes of its reference")


class Bed:
    """A reader of a chunk that three nodes hold, and the reads that it makes in threads of their own."""

    def __init__(self, pool: ThreadPoolExecutor, **settings: Any) -> None:
        self.fake = FakeCluster()
        self.holders = self.fake.layout.replicas(REF.partition, count=3)
        self.chunks = ScriptedChunks(self.fake, dict.fromkeys(self.holders, give))
        self.reader = ReplicaReader(self.fake.cluster, self.chunks, quick_config(**settings))
        self._pool = pool
        # All nodes have been quick so far, so that a read is late soon.
        for _ in range(8):
            self.reader._paces.answered("all", kind_of(SIZE, on_this_host=False), 0.001)

    def script(self, *scripts: Any) -> None:
        self.chunks.scripts = dict(zip(self.holders, scripts, strict=True))

    def begin(self, *, replicas: int = 3, deadline: Deadline | None = None) -> Future[bytearray]:
        return self._pool.submit(self.reader.read, REF, replicas=replicas, deadline=deadline or Deadline(WAIT_S))

    @property
    def totals(self) -> ReadTotals:
        return self.reader.totals()


@contextmanager
def bed_of(**settings: Any) -> Iterator[Bed]:
    with ThreadPoolExecutor(8) as pool:
        bed = Bed(pool, **settings)
        try:
            yield bed
        finally:
            bed.reader.close()


@pytest.fixture
def bed() -> Iterator[Bed]:
    with bed_of() as bed:
        yield bed


def test_when_the_first_is_late_the_second_is_asked_and_the_first_is_ended(bed: Bed) -> None:
    late = Hold(give, received=300)
    bed.script(late, give, give)
    assert bed.begin().result(WAIT_S) == PAYLOAD
    assert late.ended.is_set()
    assert bed.chunks.asked == list(bed.holders[:2])
    assert bed.totals == ReadTotals(bytes_remote=SIZE, bytes_hedged=SIZE, bytes_wasted=300, hedges=1)


def test_the_first_wins_if_it_is_faster_after_all(bed: Bed) -> None:
    first, second = Hold(give), Hold(give, received=70)
    bed.script(first, second, give)
    read = bed.begin()
    assert second.asked.wait(WAIT_S)
    first.let_go()
    assert read.result(WAIT_S) == PAYLOAD
    assert second.ended.wait(WAIT_S)
    bed.reader.close()
    assert bed.totals == ReadTotals(bytes_remote=SIZE, bytes_wasted=70, hedges=1)


def test_no_thread_writes_into_a_buffer_that_the_caller_has_back(bed: Bed) -> None:
    first, asked, returned, written = Hold(give), threading.Event(), threading.Event(), threading.Event()

    def writes_in_the_end(buffer: memoryview, deadline: Deadline) -> None:
        asked.set()
        assert returned.wait(WAIT_S)
        buffer[:] = bytes(len(buffer))
        written.set()

    bed.script(first, writes_in_the_end, give)
    read = bed.begin()
    assert asked.wait(WAIT_S)
    first.let_go()
    data = read.result(WAIT_S)
    returned.set()
    assert written.wait(WAIT_S)
    assert data == PAYLOAD
    bed.reader.close()
    assert bed.totals.bytes_wasted == SIZE


def test_a_second_that_fails_is_followed_by_the_third(bed: Bed) -> None:
    bed.script(Hold(give), send_other_bytes, give)
    assert bed.begin().result(WAIT_S) == PAYLOAD
    assert bed.chunks.asked == list(bed.holders)
    assert bed.totals == ReadTotals(bytes_remote=SIZE, bytes_hedged=SIZE, bytes_wasted=SIZE, hedges=1, failovers=1)
    assert bed.chunks.verified == [bed.holders[1]]


def test_when_the_first_fails_at_last_the_second_is_waited_for(bed: Bed) -> None:
    first, second = Hold(refuse), Hold(give)
    bed.script(first, second, refuse)
    read = bed.begin()
    assert second.asked.wait(WAIT_S)
    first.let_go()
    while bed.reader.under_way():  # The caller's thread asks its nodes.
        wait([read], timeout=0.001)
    assert not read.done()
    second.let_go()
    assert read.result(WAIT_S) == PAYLOAD
    assert (bed.totals.bytes_hedged, bed.totals.failovers) == (SIZE, 2)


def test_when_all_fail_the_error_says_what_each_one_said(bed: Bed) -> None:
    first, second = Hold(refuse), Hold(send_other_bytes)
    bed.script(first, second, refuse)
    read = bed.begin()
    assert second.asked.wait(WAIT_S)
    first.let_go()
    second.let_go()
    with pytest.raises(AllReplicasFailed, match="any of 3 replicas") as caught:
        read.result(WAIT_S)
    assert all(node_id in caught.value.message for node_id in bed.holders)
    assert bed.totals.bytes_wasted == SIZE


def test_what_no_node_would_allow_ends_both(bed: Bed) -> None:
    def forbid(buffer: memoryview, deadline: Deadline) -> None:
        raise Forbidden("not with this token")

    first, second = Hold(forbid), Hold(give)
    bed.script(first, second, give)
    read = bed.begin()
    assert second.asked.wait(WAIT_S)
    first.let_go()
    with pytest.raises(Forbidden):
        read.result(WAIT_S)
    assert second.ended.wait(WAIT_S)


def test_a_second_node_that_refuses_the_token_does_not_end_the_first(bed: Bed) -> None:
    def forbid(buffer: memoryview, deadline: Deadline) -> None:
        raise Unauthenticated("the token has expired, says a clock that is ahead")

    first, second = Hold(give), Hold(forbid)
    bed.script(first, second, refuse)
    read = bed.begin()
    assert second.asked.wait(WAIT_S)
    second.let_go()
    while len(bed.chunks.asked) < 3 and not read.done():  # The second run goes on to the third node.
        wait([read], timeout=0.001)
    assert not first.ended.is_set()
    first.let_go()
    assert read.result(WAIT_S) == PAYLOAD


@pytest.mark.parametrize(("settings", "replicas"), [({"hedge_waste": 0}, 3), ({}, 1)])
def test_nobody_else_is_asked_without_a_budget_or_without_another_replica(settings: dict[str, Any], replicas: int) -> None:
    with bed_of(**settings) as bed:
        late = Hold(give)
        bed.script(late, give, give)
        read = bed.begin(replicas=replicas)
        assert late.asked.wait(WAIT_S)
        assert not late.ended.wait(0.1)
        late.let_go()
        assert read.result(WAIT_S) == PAYLOAD
        assert bed.totals == ReadTotals(bytes_remote=SIZE)


def test_waste_is_bounded_and_what_came_of_use_gives_room_for_more() -> None:
    # The burst is two reads, of which each wastes almost all.
    with bed_of(hedge_burst_bytes=2 * SIZE) as bed:
        for _ in range(2):
            bed.script(Hold(give, received=SIZE - 1), give, give)
            assert bed.begin().result(WAIT_S) == PAYLOAD
        late = Hold(give)
        bed.script(late, give, give)
        read = bed.begin()
        assert late.asked.wait(WAIT_S)
        assert not late.ended.wait(0.1)
        late.let_go()
        assert read.result(WAIT_S) == PAYLOAD
        assert bed.totals.hedges == 2
        bed.script(give, give, give)
        for _ in range(10):
            bed.begin().result(WAIT_S)
        bed.script(Hold(give), give, give)
        assert bed.begin().result(WAIT_S) == PAYLOAD
        assert bed.totals.hedges == 3


def test_no_more_second_reads_run_at_once_than_are_allowed() -> None:
    with bed_of(max_hedges=1) as bed:
        first, second = Hold(give), Hold(give)
        bed.script(first, second, give)
        reads = [bed.begin(), bed.begin()]
        assert second.asked.wait(WAIT_S)
        assert not first.ended.wait(0.1)
        assert [race.second for race in bed.reader._lookout.under_way()].count(None) == 1
        second.let_go()
        assert [read.result(WAIT_S) for read in reads] == [PAYLOAD, PAYLOAD]


def test_a_node_that_others_had_to_stand_in_for_is_asked_last_until_it_is_tried_again() -> None:
    with bed_of(suspect_s=3600.0) as bed:
        for _ in range(4):
            bed.script(Hold(give), give, give)
            bed.begin().result(WAIT_S)
        bed.chunks.asked.clear()
        for _ in range(5):
            bed.begin().result(WAIT_S)
        assert bed.chunks.asked == [bed.holders[1]] * 5
        assert bed.totals.hedges == 4
        assert list(bed.reader._paces.slow(bed.holders)) == [bed.holders[0]]


def test_reads_that_are_under_way_say_whom_they_wait_for_and_since_when(bed: Bed) -> None:
    assert bed.reader.under_way() == []
    first, second = Hold(give), Hold(give)
    bed.script(first, second, give)
    read = bed.begin()
    assert second.asked.wait(WAIT_S)
    (found,) = bed.reader.under_way()
    assert found.ref == REF
    assert list(found.asked_s) == list(bed.holders[:2])
    assert 0 < found.asked_s[bed.holders[1]] < found.asked_s[bed.holders[0]]
    first.let_go()
    read.result(WAIT_S)
    assert bed.reader.under_way() == []


def test_the_thread_that_watches_ends_with_the_reader_and_starts_when_it_is_needed(bed: Bed) -> None:
    def lookouts() -> list[threading.Thread]:
        return [thread for thread in threading.enumerate() if thread.name == "forebay-lookout"]

    assert lookouts() == []
    bed.begin().result(WAIT_S)
    assert len(lookouts()) == 1
    bed.reader.close()
    assert lookouts() == []
    assert bed.begin().result(WAIT_S) == PAYLOAD
