"""Single chunks on single nodes: what is asked, and that nothing unchecked arrives."""

from __future__ import annotations

import random

import pytest

from client.checksum import SEGMENT_BYTES
from client.chunks import MAX_REFS_PER_CALL, Stored
from client.errors import (
    ChecksumMismatch,
    ChunkCorrupt,
    ChunkNotFound,
    DeadlineExceeded,
    DiskFull,
    EndpointUnreachable,
    InvalidRequest,
    ProtocolMismatch,
    StoreError,
    TruncatedBody,
)
from client.manifest import Ref, make_ref
from client.transport import Response
from client.wire import encode_json
from tests.support.fake_cluster import FakeCluster, Fault

PAYLOAD = random.Random(5).randbytes(3 * SEGMENT_BYTES + 100)
REF = make_ref(PAYLOAD, partitions=64)


@pytest.fixture
def fake() -> FakeCluster:
    """Three nodes that hold the chunk."""
    made = FakeCluster()
    for node in made.nodes.values():
        node.chunks[REF.partition, REF.id] = PAYLOAD
    return made


def fetch(fake: FakeCluster, start: int, end: int, *, ref: Ref = REF) -> bytes:
    buffer = bytearray(end - start)
    fake.chunks.fetch_into("node-0", ref, memoryview(buffer), start=start)
    return bytes(buffer)


@pytest.mark.parametrize(
    ("start", "end"),
    [
        (0, len(PAYLOAD)),
        (0, 1),
        (len(PAYLOAD) - 1, len(PAYLOAD)),
        (SEGMENT_BYTES, 2 * SEGMENT_BYTES),
        (SEGMENT_BYTES - 1, 2 * SEGMENT_BYTES + 1),
        (3 * SEGMENT_BYTES, len(PAYLOAD)),
        (1, len(PAYLOAD)),
    ],
)
def test_any_range_arrives(fake: FakeCluster, start: int, end: int) -> None:
    assert fetch(fake, start, end) == PAYLOAD[start:end]


def test_no_more_than_the_segments_around_a_range_is_asked_for(fake: FakeCluster) -> None:
    sizes: list[int] = []
    request = fake.transport.request

    def watched(*args: object, **options: object) -> Response:
        response = request(*args, **options)  # type: ignore[arg-type]
        sizes.append(response.size)
        return response

    fake.transport.request = watched  # type: ignore[method-assign]
    fetch(fake, SEGMENT_BYTES + 5, SEGMENT_BYTES + 6)
    assert sizes == [SEGMENT_BYTES]


def test_nothing_is_asked_for_nothing(fake: FakeCluster) -> None:
    assert fetch(fake, 7, 7) == b""
    assert fake.nodes["node-0"].requests == []


@pytest.mark.parametrize(("start", "end"), [(0, len(PAYLOAD) + 1), (len(PAYLOAD), len(PAYLOAD) + 1), (-1, 5)])
def test_a_range_outside_of_the_chunk_is_refused_before_anybody_is_asked(fake: FakeCluster, start: int, end: int) -> None:
    with pytest.raises(InvalidRequest, match=f"chunk of {len(PAYLOAD)} bytes"):
        fetch(fake, start, end)
    assert fake.nodes["node-0"].requests == []


@pytest.mark.parametrize("fault", ["corrupt", "swapped"])
@pytest.mark.parametrize(("start", "end"), [(0, len(PAYLOAD)), (5, 6), (SEGMENT_BYTES, 2 * SEGMENT_BYTES), (1, len(PAYLOAD))])
def test_wrong_bytes_never_arrive(fake: FakeCluster, fault: Fault, start: int, end: int) -> None:
    fake.fail("node-0", fault=fault)
    with pytest.raises(ChunkCorrupt, match="node-0") as caught:
        fetch(fake, start, end)
    assert caught.value.node_id == "node-0"
    assert caught.value.key == str(REF)


def test_a_reference_that_the_bytes_do_not_have_is_corrupt(fake: FakeCluster) -> None:
    other = Ref(partition=REF.partition, id=REF.id, size=REF.size, check=REF.check ^ 1)
    for start, end in ((0, REF.size), (0, 10)):
        with pytest.raises(ChunkCorrupt):
            fetch(fake, start, end, ref=other)


@pytest.mark.parametrize(
    "headers", [{}, {"x-forebay-check": "zz"}, {"x-forebay-segment-checks": "-1"}, {"x-forebay-segment-checks": ""}]
)
def test_a_range_without_its_checksums_is_corrupt(fake: FakeCluster, headers: dict[str, str]) -> None:
    request = fake.transport.request

    def stripped(*args: object, **options: object) -> Response:
        response = request(*args, **options)  # type: ignore[arg-type]
        kept = {**response.headers, **headers} if headers else {}
        return Response(status=response.status, headers=kept, body=response.body, size=response.size)

    fake.transport.request = stripped  # type: ignore[method-assign]
    with pytest.raises(ChunkCorrupt):
        fetch(fake, 0, 10)


@pytest.mark.parametrize(
    ("fault", "kind", "suspected"),
    [
        ("down", EndpointUnreachable, True),
        ("silent", DeadlineExceeded, True),
        ("missing", ChunkNotFound, False),
        ("short", TruncatedBody, False),
        ("corrupt", ChunkCorrupt, False),
    ],
)
def test_only_a_node_that_does_not_answer_is_suspected(
    fake: FakeCluster, fault: Fault, kind: type[StoreError], suspected: bool
) -> None:
    fake.fail("node-0", fault=fault)
    with pytest.raises(kind):
        fetch(fake, 0, REF.size)
    assert fake.cluster.suspected("node-0") is suspected


def test_an_answer_clears_a_node(fake: FakeCluster) -> None:
    fake.cluster.failed("node-0")
    fetch(fake, 0, 1)
    assert not fake.cluster.suspected("node-0")


def test_a_put_reports_who_has_it_and_suspects_who_has_not() -> None:
    fake = FakeCluster()
    fake.fail("node-2", fault="full")
    stored = fake.chunks.put("node-0", REF, PAYLOAD, epoch=1, tee=("node-1", "node-2"))
    assert stored == Stored(durable=("node-0", "node-1"), failed={"node-2": "node-2 is full"})
    assert fake.holders(REF) == {"node-0", "node-1"}
    assert fake.cluster.suspected("node-2")
    assert fake.nodes["node-0"].requests == [f"PUT /v1/chunks/{REF}?tee=node-1,node-2"]


def test_a_put_to_one_node_names_no_others() -> None:
    fake = FakeCluster()
    assert fake.chunks.put("node-1", REF, bytearray(PAYLOAD), epoch=1).durable == ("node-1",)
    assert fake.nodes["node-1"].requests == [f"PUT /v1/chunks/{REF}"]


def test_a_coordinator_without_room_says_so() -> None:
    fake = FakeCluster()
    fake.fail("node-0", fault="full")
    with pytest.raises(DiskFull):
        fake.chunks.put("node-0", REF, PAYLOAD, epoch=1)


def test_bytes_that_do_not_have_the_id_are_refused_by_the_node() -> None:
    with pytest.raises(ChecksumMismatch):
        FakeCluster().chunks.put("node-0", REF, PAYLOAD[:-1], epoch=1)


@pytest.mark.parametrize("answer", [[], {}, {"durable": 5, "failed": {}}, {"durable": [], "failed": []}])
def test_a_put_whose_answer_makes_no_sense_is_a_mismatch_of_protocols(answer: object) -> None:
    fake = FakeCluster()
    body = encode_json(answer)
    fake.transport.request = lambda *_, **__: Response(status=200, headers={}, body=body, size=0)  # type: ignore[method-assign]
    with pytest.raises(ProtocolMismatch, match="node-0"):
        fake.chunks.put("node-0", REF, PAYLOAD, epoch=1)


def test_verification_tells_for_each_chunk(fake: FakeCluster) -> None:
    missing, corrupt = make_ref(b"missing", partitions=64), make_ref(b"corrupt", partitions=64)
    fake.nodes["node-0"].chunks[corrupt.partition, corrupt.id] = b"other"
    assert fake.chunks.verify("node-0", [REF, missing, corrupt]) == ["ok", "missing", "corrupt"]
    assert fake.chunks.verify("node-0", []) == []


def test_verification_of_many_chunks_is_cut_into_calls(fake: FakeCluster) -> None:
    assert fake.chunks.verify("node-0", [REF] * (2 * MAX_REFS_PER_CALL + 1)) == ["ok"] * (2 * MAX_REFS_PER_CALL + 1)
    assert len(fake.nodes["node-0"].requests) == 3


@pytest.mark.parametrize("answer", [{"status": ["ok"]}, {"status": []}, {}, [], {"status": "ok"}])
def test_a_verification_that_tells_too_little_is_a_mismatch_of_protocols(fake: FakeCluster, answer: object) -> None:
    body = encode_json(answer)
    fake.transport.request = lambda *_, **__: Response(status=200, headers={}, body=body, size=0)  # type: ignore[method-assign]
    with pytest.raises(ProtocolMismatch, match="asked about 3 chunks"):
        fake.chunks.verify("node-0", [REF, REF, REF])
