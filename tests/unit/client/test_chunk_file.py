"""Chunk files of nodes on this host: mapped where that is asked for, and taken many at a time where they are in memory."""

from __future__ import annotations

import errno
import mmap
import os
import random
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from client.attempt import Overtaken
from client.checksum import SEGMENT_BYTES
from client.chunks import Reads
from client.errors import ChunkCorrupt
from client.in_flight import ThreadPool
from client.local_wire import MAX_TOGETHER
from client.manifest import make_ref
from client.manifest_cache import ManifestCache
from client.pages import Pages, Place
from client.reader import ContentReader
from client.record import Content
from client.replica import ReplicaReader
from client.retry import Backoff, Deadline
from client.together import requests_for
from tests.support.cluster import eventually
from tests.support.door import Door, open_door, scripted_door
from tests.support.fake_cluster import quick_config
from tests.support.local_reads import PAYLOAD, PIECE_BYTES, REF, Bench, bench_at, cut_when_opened, mapped_bytes

TOGETHER = 8


@pytest.fixture(autouse=True)
def _small_pieces_and_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("client.chunk_file.PIECE_BYTES", PIECE_BYTES)
    monkeypatch.setattr("client.together.MAX_TOGETHER", TOGETHER)


@pytest.fixture
def door(tmp_path: Path) -> Iterator[Door]:
    with open_door(tmp_path, (REF, PAYLOAD)) as door:
        yield door


@pytest.fixture
def bench(door: Door) -> Iterator[Bench]:
    with bench_at({"node-0": door.path}) as bench:
        yield bench


# Into memory that files can be mapped into


@pytest.fixture
def whole() -> memoryview:
    return memoryview(Pages(REF.size))


def test_a_whole_chunk_is_mapped_and_shared_and_written_to_without_harm(bench: Bench, door: Door, whole: memoryview) -> None:
    bench.chunks.fetch_into("node-0", REF, whole)
    assert whole == PAYLOAD
    assert mapped_bytes(door.chunk_file(REF)) == -(-REF.size // mmap.PAGESIZE) * mmap.PAGESIZE
    whole[:4] = b"mine"
    assert door.chunk_file(REF).read_bytes()[: REF.size] == PAYLOAD
    assert bench.fetch() == PAYLOAD


def test_it_outlives_the_file_and_ends_with_the_memory(bench: Bench, door: Door) -> None:
    whole = memoryview(Pages(REF.size))
    bench.chunks.fetch_into("node-0", REF, whole)
    door.chunk_file(REF).unlink()
    assert whole == PAYLOAD
    assert mapped_bytes(door.chunk_file(REF))
    del whole
    assert not mapped_bytes(door.chunk_file(REF))


@pytest.mark.parametrize(("first", "room"), [(1, 0), (mmap.PAGESIZE, 1)])
def test_what_would_share_a_page_with_something_else_is_read(bench: Bench, door: Door, first: int, room: int) -> None:
    whole = memoryview(Pages(first + REF.size + room))
    whole[:first] = b"b" * first
    bench.chunks.fetch_into("node-0", REF, whole[first : first + REF.size])
    assert whole == b"b" * first + PAYLOAD + bytes(room)
    assert not mapped_bytes(door.chunk_file(REF))


def test_parts_of_chunks_are_read(bench: Bench, door: Door) -> None:
    some = memoryview(Pages(SEGMENT_BYTES))
    bench.chunks.fetch_into("node-0", REF, some)
    assert some == PAYLOAD[:SEGMENT_BYTES]
    assert not mapped_bytes(door.chunk_file(REF))


@pytest.mark.parametrize("at", [0, PIECE_BYTES + 7, len(PAYLOAD) - 1])
def test_damaged_bytes_are_taken_away_again(bench: Bench, door: Door, whole: memoryview, at: int) -> None:
    with door.chunk_file(REF).open("r+b") as file:
        file.seek(at)
        file.write(bytes([PAYLOAD[at] ^ 1]))
    with pytest.raises(ChunkCorrupt, match="node-0"):
        bench.chunks.fetch_into("node-0", REF, whole)
    assert whole == bytes(REF.size)
    assert not mapped_bytes(door.chunk_file(REF))


def test_a_file_that_is_cut_short_kills_nobody(
    bench: Bench, door: Door, whole: memoryview, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut_when_opened(door, monkeypatch)
    with pytest.raises(ChunkCorrupt, match=f"ends at byte {PIECE_BYTES + 5}; it was cut short"):
        bench.chunks.fetch_into("node-0", REF, whole)
    assert not mapped_bytes(door.chunk_file(REF))


class Ended(Deadline):
    """Of an attempt that is not wanted any more."""

    def check(self) -> None:
        raise Overtaken


def test_who_brings_a_file_in_stops_when_he_is_overtaken(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def read(*_: object, **__: object) -> bool:
        raise AssertionError("it was to end before")

    monkeypatch.setattr("client.chunk_file.is_in_memory", lambda fd, size, **_: False)
    monkeypatch.setattr("client.chunk_file.ChunkFile._read", read)
    with pytest.raises(Overtaken):
        bench.fetch(deadline=Ended(1.0))


def test_a_kernel_that_cannot_fill_maps_has_them_read(
    bench: Bench, door: Door, whole: memoryview, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unknown(place: Place) -> None:
        raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(Place, "populate", unknown)
    bench.chunks.fetch_into("node-0", REF, whole)
    assert whole == PAYLOAD
    assert (bench.asked_over_http, mapped_bytes(door.chunk_file(REF))) == ([], 0)


def test_where_nothing_can_be_mapped_it_is_read(
    bench: Bench, door: Door, whole: memoryview, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(place: Place, fd: int) -> None:
        raise OSError(errno.ENODEV, "No such device")

    monkeypatch.setattr(Place, "map", refused)
    bench.chunks.fetch_into("node-0", REF, whole)
    assert whole == PAYLOAD
    assert bench.asked_over_http == []


def test_over_http_it_is_memory_like_any_other(tmp_path: Path, whole: memoryview) -> None:
    with bench_at({}) as bench:
        bench.chunks.fetch_into("node-0", REF, whole)
        assert whole == PAYLOAD


# Many at a time

MANY = [random.Random(100 + number).randbytes(3 * SEGMENT_BYTES + number) for number in range(3 * TOGETHER + 1)]
REFS = [make_ref(payload, partitions=64) for payload in MANY]
NODES = ["node-0", "node-1", "node-2"]


@given(counts=st.lists(st.integers(1, 200), max_size=4), num_threads=st.integers(1, 16))
def test_requests_have_every_chunk_once_and_no_more_than_a_threads_share(counts: list[int], num_threads: int) -> None:
    chosen = {f"node-{node}": [1000 * node + number for number in range(count)] for node, count in enumerate(counts)}
    requests = requests_for(chosen, num_threads=num_threads)
    for node_id, numbers in chosen.items():
        assert sorted(number for node, part in requests if node == node_id for number in part) == numbers
    most = min(MAX_TOGETHER, max(2, -(-sum(counts) // num_threads)))
    assert all(1 <= len(part) <= most for _, part in requests)


@pytest.fixture
def doors(tmp_path: Path) -> Iterator[dict[str, Door]]:
    """The doors of three nodes, each of which has all of the chunks."""
    with ExitStack() as stack:
        opened = {}
        for node_id in NODES:
            (root := tmp_path / node_id).mkdir()
            opened[node_id] = stack.enter_context(open_door(root, *zip(REFS, MANY, strict=True), node_id=node_id))
        yield opened


@contextmanager
def reading(sockets: dict[str, str]) -> Iterator[tuple[Bench, ReplicaReader, ContentReader]]:
    content = Content(size=sum(map(len, MANY)), digest="", refs=tuple(REFS))
    with ExitStack() as stack:
        bench = stack.enter_context(bench_at(sockets))
        for node in bench.fake.nodes.values():
            node.chunks.update({(ref.partition, ref.id): payload for ref, payload in zip(REFS, MANY, strict=True)})
        replicas = ReplicaReader(bench.fake.cluster, bench.chunks, quick_config(hedge_waste=0))
        stack.callback(replicas.close)
        yield (
            bench,
            replicas,
            ContentReader(
                content,
                replicas=3,
                reader=replicas,
                manifests=ManifestCache(),
                executor=stack.enter_context(ThreadPool(4, name="test")),
                max_in_flight=2,
                backoff=Backoff(base_s=0.001, max_s=0.002),
                deadline_s=5.0,
            ),
        )


def paths(doors: dict[str, Door]) -> dict[str, str]:
    return {node_id: door.path for node_id, door in doors.items()}


def together(bench: Bench, node_id: str, numbers: range) -> tuple[list[bool], list[bytearray]]:
    buffers = [bytearray(len(MANY[number])) for number in numbers]
    wanted = [(REFS[number], memoryview(buffer)) for number, buffer in zip(numbers, buffers, strict=True)]
    return bench.chunks.take_together(node_id, wanted), buffers


def all_closed(root: Path) -> bool:
    """Whether no chunk file is open (any more: the node closes its own after it has answered)."""
    for fd in os.listdir("/proc/self/fd"):
        with suppress(FileNotFoundError):
            if os.readlink(f"/proc/self/fd/{fd}").startswith(f"{root}/"):
                return False
    return True


@pytest.mark.parametrize("maps", [False, True])
def test_all_chunks_of_a_read_come_past_the_network(doors: dict[str, Door], maps: bool) -> None:
    with reading(paths(doors)) as (bench, replicas, content):
        buffers = [memoryview(Pages(len(payload))) if maps else memoryview(bytearray(len(payload))) for payload in MANY]
        starts = [sum(map(len, MANY[:number])) for number in range(len(MANY))]
        content.read_parts(zip(buffers, starts, strict=True))
        assert all(buffer == payload for buffer, payload in zip(buffers, MANY, strict=True))
        assert bench.reads == Reads(local=len(MANY), local_bytes=content.size)
        assert replicas.totals().bytes_local == content.size
        mapped = sum(mapped_bytes(door.chunk_file(ref)) for door in doors.values() for ref in REFS)
        assert mapped == (sum(-(-len(payload) // mmap.PAGESIZE) * mmap.PAGESIZE for payload in MANY) if maps else 0)


def test_what_is_wrong_with_one_chunk_is_nothing_to_the_others(doors: dict[str, Door]) -> None:
    door = doors["node-0"]
    door.store.delete(REFS[1].partition, REFS[1].id)
    os.truncate(door.chunk_file(REFS[2]), 100)
    with door.chunk_file(REFS[3]).open("r+b") as file:
        file.write(b"damage")
    with reading(paths(doors)) as (bench, replicas, content):
        filled, buffers = together(bench, "node-0", range(5))
        assert filled == [True, False, False, False, True]
        assert [bytes(buffers[number]) for number in (0, 4)] == [MANY[0], MANY[4]]
        eventually(lambda: all_closed(door.root / "chunks"), what="all files are closed")
        whole = bytearray(content.size)
        content.read_into(whole)
        assert whole == b"".join(MANY)
        assert replicas.totals().failovers <= 3


def test_what_is_not_in_memory_is_left(doors: dict[str, Door], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("client.chunk_file.is_in_memory", lambda fd, size, **_: False)
    with reading(paths(doors)) as (bench, _, content):
        assert together(bench, "node-1", range(3))[0] == [False] * 3
        whole = bytearray(content.size)
        content.read_into(whole)
        assert whole == b"".join(MANY)
        assert bench.asked_over_http == []


def test_a_disk_that_fails_is_left_to_whoever_reads_one_by_one(doors: dict[str, Door], monkeypatch: pytest.MonkeyPatch) -> None:
    preadv = os.preadv

    def broken(fd: int, buffers: list[memoryview], offset: int, flags: int = 0) -> int:
        if len(buffers[0]) == len(MANY[1]):
            raise OSError(errno.EIO, "Input/output error")
        return preadv(fd, buffers, offset, flags)

    monkeypatch.setattr(os, "preadv", broken)
    with reading(paths(doors)) as (bench, _, _):
        assert together(bench, "node-0", range(3))[0] == [True, False, True]


@pytest.mark.parametrize("answer", [b"", b"nonsense"])
def test_a_node_that_does_not_answer_is_left_after_a_moment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: bytes
) -> None:
    monkeypatch.setattr("client.colocated._PATIENCE_S", 0.05)
    with scripted_door(tmp_path, answer, reply=lambda: bool(answer)) as path, reading({"node-0": path}) as (bench, _, _):
        assert together(bench, "node-0", range(4))[0] == [False] * 4
        assert bench.reads == Reads()
        assert list(bench.chunks.colocated()) == ["node-0"]


def test_another_node_at_the_path_is_found_out(tmp_path: Path) -> None:
    chunks = zip(REFS, MANY, strict=True)
    with open_door(tmp_path, *chunks, node_id="node-2") as door, reading({"node-0": door.path}) as (bench, _, content):
        assert together(bench, "node-0", range(4))[0] == [False] * 4
        whole = bytearray(content.size)
        content.read_into(whole)
        assert whole == b"".join(MANY)


def test_a_node_that_goes_in_the_middle_is_done_without(doors: dict[str, Door], monkeypatch: pytest.MonkeyPatch) -> None:
    door, answered = doors["node-1"], 0
    open_file = door.store.open_file

    def dying(partition: int, chunk_id: bytes) -> int:
        nonlocal answered
        answered += 1
        if answered == 3:
            raise RuntimeError("a defect, after which the connection is closed")
        return open_file(partition, chunk_id)

    monkeypatch.setattr(door.store, "open_file", dying)
    with reading(paths(doors)) as (bench, _, content):
        assert together(bench, "node-1", range(6))[0] == [False] * 6
        eventually(lambda: all_closed(door.root / "chunks"), what="all files are closed")
        whole = bytearray(content.size)
        content.read_into(whole)
        assert whole == b"".join(MANY)
