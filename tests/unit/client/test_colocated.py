"""Reads from a node on this host: the right bytes, past the network, and over it whenever the local way fails."""

from __future__ import annotations

import errno
import os
import random
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from client.checksum import SEGMENT_BYTES
from client.chunks import Reads
from client.errors import ChunkCorrupt, ChunkNotFound, DeadlineExceeded, Misconfigured
from client.local_wire import MAX_HEAD_BYTES, ChunkAnswer
from client.manifest import Ref, make_ref
from client.replica import ReplicaReader
from client.retry import Deadline
from tests.support.door import CLUSTER_ID, Door, open_door, scripted_door
from tests.support.fake_cluster import FakeCluster, quick_config
from tests.support.local_reads import PAYLOAD, PIECE_BYTES, REF, WHOLE, Bench, bench_at, cut_when_opened


@pytest.fixture(autouse=True)
def _small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("client.chunk_file.PIECE_BYTES", PIECE_BYTES)


@pytest.fixture
def door(tmp_path: Path) -> Iterator[Door]:
    with open_door(tmp_path, (REF, PAYLOAD)) as door:
        yield door


@pytest.fixture
def bench(door: Door) -> Iterator[Bench]:
    with bench_at({"node-0": door.path}) as bench:
        yield bench


# What a node answers that passes one chunk at a time.
VERSION_1 = (
    b'{"node_id":"node-0","cluster_id":"fake","check":null,"problem":{"type":"urn:forebay:error:protocol-mismatch",'
    b'"title":"protocol mismatch","status":400,"detail":"this node passes chunks by version 1, and was asked by version 2"}}\n'
)


def signed(**said: Any) -> bytes:
    return ChunkAnswer(**{"node_id": "node-0", "cluster_id": CLUSTER_ID, **said}).encode()


@pytest.mark.parametrize(
    ("start", "end"),
    [
        WHOLE,
        (0, 1),
        (len(PAYLOAD) - 1, len(PAYLOAD)),
        (SEGMENT_BYTES, 2 * SEGMENT_BYTES),
        (SEGMENT_BYTES - 1, PIECE_BYTES + SEGMENT_BYTES + 1),
        (1, len(PAYLOAD)),
    ],
)
def test_any_range_arrives_past_the_network(bench: Bench, start: int, end: int) -> None:
    assert bench.fetch(start, end) == PAYLOAD[start:end]
    assert bench.asked_over_http == []
    assert (bench.reads.local, bench.reads.http, bench.reads.local_failures) == (1, 0, 0)
    assert end - start <= bench.reads.local_bytes < end - start + 2 * SEGMENT_BYTES


@pytest.mark.parametrize("at", [0, PIECE_BYTES + 7, len(PAYLOAD) - 1])
def test_damaged_bytes_never_arrive_and_are_no_reason_to_ask_again(bench: Bench, door: Door, at: int) -> None:
    with door.chunk_file(REF).open("r+b") as file:
        file.seek(at)
        file.write(bytes([PAYLOAD[at] ^ 1]))
    for start, end in (WHOLE, (at, at + 1)):
        with pytest.raises(ChunkCorrupt, match="node-0") as caught:
            bench.fetch(start, end)
        assert (caught.value.node_id, caught.value.key) == ("node-0", str(REF))
    assert bench.asked_over_http == []


def test_other_bytes_with_checks_that_fit_them_never_arrive(tmp_path: Path) -> None:
    other = make_ref(PAYLOAD, partitions=64)
    wrong = Ref(partition=other.partition, id=other.id, size=other.size, check=other.check ^ 1)
    with open_door(tmp_path, (REF, PAYLOAD)) as door, bench_at({"node-0": door.path}) as bench:
        for start, end in (WHOLE, (0, 10)):
            with pytest.raises(ChunkCorrupt):
                bench.fetch(start, end, ref=wrong)


def test_a_copy_that_the_node_finds_damaged_is_corrupt(bench: Bench, door: Door) -> None:
    os.truncate(door.chunk_file(REF), 100)
    with pytest.raises(ChunkCorrupt, match="trailer"):
        bench.fetch(0, 10)
    assert door.repairs == [(REF.partition, REF.id)]
    assert bench.asked_over_http == []


def test_a_whole_copy_that_is_cut_short_is_corrupt(bench: Bench, door: Door) -> None:
    os.truncate(door.chunk_file(REF), 100)
    with pytest.raises(ChunkCorrupt, match="ends at byte 100; it was cut short"):
        bench.fetch()
    assert bench.asked_over_http == []


def test_a_file_that_is_cut_short_while_it_is_read_is_corrupt(
    bench: Bench, door: Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut_when_opened(door, monkeypatch)
    with pytest.raises(ChunkCorrupt, match=f"ends at byte {PIECE_BYTES + 5}; it was cut short"):
        bench.fetch()
    assert bench.asked_over_http == []


def test_a_disk_that_cannot_read_has_lost_the_copy(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    preadv = os.preadv

    def broken(fd: int, buffers: list[memoryview], offset: int) -> int:
        if len(buffers[0]) == PIECE_BYTES:  # Ours: the node shares this process, and reads its trailer.
            raise OSError(errno.EIO, "Input/output error")
        return preadv(fd, buffers, offset)

    monkeypatch.setattr(os, "preadv", broken)
    with pytest.raises(ChunkCorrupt, match="Input/output error"):
        bench.fetch()
    assert bench.asked_over_http == []


def test_a_chunk_that_the_node_does_not_have_is_not_found(bench: Bench) -> None:
    missing = make_ref(b"missing", partitions=64)
    with pytest.raises(ChunkNotFound):
        bench.fetch(0, missing.size, ref=missing)
    assert bench.asked_over_http == []
    assert list(bench.chunks.colocated()) == ["node-0"]


def test_a_descriptor_is_good_after_the_chunk_was_deleted(bench: Bench, door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    open_file = door.store.open_file

    def deleted(partition: int, chunk_id: bytes) -> int:
        fd = open_file(partition, chunk_id)
        assert door.store.delete(partition, chunk_id)
        return fd

    monkeypatch.setattr(door.store, "open_file", deleted)
    assert bench.fetch() == PAYLOAD
    with pytest.raises(ChunkNotFound):
        bench.fetch()


def test_an_answer_clears_a_node(bench: Bench) -> None:
    bench.fake.cluster.failed("node-0")
    bench.fetch()
    assert not bench.fake.cluster.suspected("node-0")


def test_a_thousand_reads_leave_no_descriptor(bench: Bench) -> None:
    bench.fetch()
    before = len(os.listdir("/proc/self/fd"))
    for number in range(1000):
        bench.fetch(number, number + 1)
    # The node is in this process, and may be about to close its own.
    assert len(os.listdir("/proc/self/fd")) < before + 10
    assert bench.reads.local == 1001


def test_threads_that_read_at_once_get_their_own_bytes(bench: Bench) -> None:
    starts = [random.Random(n).randrange(len(PAYLOAD)) for n in range(200)]
    with ThreadPoolExecutor(8) as pool:
        got = list(pool.map(lambda start: bench.fetch(start, len(PAYLOAD)), starts))
    assert got == [PAYLOAD[start:] for start in starts]
    assert (bench.reads.local, bench.asked_over_http) == (200, [])


def test_no_more_connections_are_kept_than_configured(door: Door) -> None:
    with bench_at({"node-0": door.path}, max_idle_connections=0) as bench:
        for _ in range(100):
            bench.fetch(0, 1)
        assert not bench.colocated._idle["node-0"]
        assert bench.reads.local == 100


# When there is no local way


@pytest.mark.parametrize("who", [{"node_id": "node-1"}, {"cluster_id": "another"}])
def test_another_node_behind_the_path_is_not_read(tmp_path: Path, who: dict[str, str]) -> None:
    with open_door(tmp_path, (REF, PAYLOAD), **who) as door, bench_at({"node-0": door.path}) as bench:
        assert bench.reads_over_http()


@pytest.mark.parametrize("who", [{"node_id": "node-1"}, {"cluster_id": "another"}])
def test_what_another_node_says_of_a_chunk_is_not_believed(tmp_path: Path, who: dict[str, str]) -> None:
    with open_door(tmp_path, **who) as door, bench_at({"node-0": door.path}) as bench:
        assert bench.reads_over_http()


def test_where_all_nodes_have_the_same_path_the_first_answer_tells_whose_it_is(tmp_path: Path) -> None:
    with (
        open_door(tmp_path, (REF, PAYLOAD), node_id="node-1") as door,
        bench_at(dict.fromkeys(("node-0", "node-1", "node-2"), door.path)) as bench,
    ):
        assert bench.reads_over_http()
        assert list(bench.chunks.colocated()) == ["node-1"]


@pytest.mark.parametrize(
    ("answer", "num_fds"),
    [
        (b"garbage", 1),
        (b"{}", 1),
        (b"[]\n", 1),
        (b"\xff\xfe\n", 1),
        (signed(), 0),
        (signed(), 2),
        (signed() + bytes(MAX_HEAD_BYTES), 1),
        (signed(problem={"type": "urn:forebay:error:protocol-mismatch", "detail": "I speak version 3"}), 0),
        (VERSION_1, 0),
    ],
)
def test_a_door_that_answers_nonsense_is_not_used(tmp_path: Path, answer: bytes, num_fds: int) -> None:
    with (
        open(os.devnull) as null,
        scripted_door(tmp_path, answer, fds=[null.fileno()] * num_fds) as path,
        bench_at({"node-0": path}) as bench,
    ):
        assert bench.reads_over_http()


def test_a_descriptor_of_something_else_than_a_file_is_not_used(tmp_path: Path) -> None:
    ends = os.pipe()
    with scripted_door(tmp_path, signed(), fds=ends[:1]) as path, bench_at({"node-0": path}) as bench:
        assert bench.reads_over_http()
    for end in ends:
        os.close(end)


def test_a_failure_is_remembered_until_the_view_is_fetched_again(tmp_path: Path) -> None:
    with open_door(tmp_path, (REF, PAYLOAD), node_id="node-1") as door, bench_at({"node-0": door.path}) as bench:
        assert bench.fetch() == bench.fetch() == PAYLOAD
        assert (bench.reads.http, bench.reads.local_failures) == (2, 1)
        bench.fake.cluster.refresh()
        assert list(bench.chunks.colocated()) == ["node-0"]
        bench.fetch()
        assert bench.reads.local_failures == 2


def test_where_there_is_no_such_path_nothing_is_tried(tmp_path: Path) -> None:
    with bench_at({"node-0": str(tmp_path / "elsewhere" / "chunks.sock")}) as bench:
        assert bench.fetch() == PAYLOAD
        assert bench.reads == Reads(http=1, http_bytes=REF.size)


def test_a_path_where_nobody_listens_costs_one_try(tmp_path: Path) -> None:
    path = tmp_path / "chunks.sock"
    path.write_bytes(b"no socket")
    with bench_at({"node-0": str(path)}) as bench:
        assert bench.reads_over_http()
        assert not bench.chunks.colocated()


def test_a_door_at_which_too_many_wait_is_not_waited_at(tmp_path: Path) -> None:
    path = tmp_path / "chunks.sock"
    with ExitStack() as stack:
        listener = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET))
        listener.bind(str(path))
        listener.listen(0)
        waiting = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET))
        waiting.connect(str(path))
        bench = stack.enter_context(bench_at({"node-0": str(path)}))
        assert bench.reads_over_http()


def test_who_may_not_connect_reads_over_http(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: str) -> None:
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr("client.colocated.socket_address", refuse)
    assert bench.reads_over_http()


def test_the_switch_turns_it_off(door: Door) -> None:
    with bench_at({"node-0": door.path}, colocated=False) as bench:
        assert bench.fetch() == PAYLOAD
        assert bench.reads == Reads(http=1, http_bytes=REF.size)
        assert not bench.chunks.colocated()


def test_a_node_that_is_gone_is_read_over_http(tmp_path: Path) -> None:
    with open_door(tmp_path, (REF, PAYLOAD)) as door:
        bench = Bench({"node-0": door.path})
        bench.fetch()
    assert bench.reads_over_http()
    bench.colocated.close()


def test_a_node_that_came_back_is_read_locally_without_a_detour(tmp_path: Path) -> None:
    with open_door(tmp_path, (REF, PAYLOAD)) as door:
        bench = Bench({"node-0": door.path})
        bench.fetch()
    with open_door(tmp_path):
        assert bench.fetch() == PAYLOAD
        assert bench.reads == Reads(local=2, local_bytes=2 * REF.size)
        bench.colocated.close()


def test_silence_is_the_nodes_and_is_not_waited_for_twice(tmp_path: Path) -> None:
    with scripted_door(tmp_path, b"", reply=lambda: False) as path, bench_at({"node-0": path}) as bench:
        with pytest.raises(DeadlineExceeded, match="node-0"):
            bench.fetch(deadline=Deadline(0.05))
        assert bench.asked_over_http == []
        assert bench.fake.cluster.suspected("node-0")


def test_a_fork_is_told_to_open_its_own(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.fetch()
    real = os.getpid()
    monkeypatch.setattr("client.process.os.getpid", lambda: real + 1)
    with pytest.raises(Misconfigured):
        bench.fetch()


# Which replica is asked


def test_a_replica_on_this_host_is_asked_first(tmp_path: Path) -> None:
    last = FakeCluster().layout.replicas(REF.partition, count=3)[-1]
    with open_door(tmp_path, (REF, PAYLOAD), node_id=last) as door, bench_at({last: door.path}) as bench:
        reader = ReplicaReader(bench.fake.cluster, bench.chunks, quick_config(hedge_waste=0))
        assert reader.read(REF, replicas=3) == PAYLOAD
        assert (bench.reads.local, bench.asked_over_http) == (1, [])
        # Trust comes before nearness.
        bench.fake.cluster.failed(last)
        assert reader.read(REF, replicas=3) == PAYLOAD
        assert (bench.reads.local, last in bench.asked_over_http) == (1, False)


def test_a_corrupt_copy_on_this_host_is_passed_over_and_reported(tmp_path: Path) -> None:
    last = FakeCluster().layout.replicas(REF.partition, count=3)[-1]
    with open_door(tmp_path, (REF, PAYLOAD), node_id=last) as door, bench_at({last: door.path}) as bench:
        with door.chunk_file(REF).open("r+b") as file:
            file.write(b"damage")
        reader = ReplicaReader(bench.fake.cluster, bench.chunks, quick_config(hedge_waste=0))
        assert reader.read(REF, replicas=3) == PAYLOAD
        assert (bench.reads.local, bench.reads.http, reader.totals().failovers) == (1, 1, 1)
        assert bench.fake.nodes[last].requests == ["POST /v1/chunks:verify"]
