"""Batches of chunks over HTTP: what is stored, what is said of each, and what is refused as a whole."""

from __future__ import annotations

import errno
from collections.abc import Iterator

import pytest

from client.frames import encode_chunks
from client.manifest import Ref, make_ref
from client.wire import BATCH_PUT_PATH
from tests.support.asgi import Answer, call
from tests.support.filesystem import VolatileFileSystem
from tests.support.nodes import PARTITIONS, TestBed, open_node

PAYLOADS = [b"small %d" % number for number in range(300)]
CHUNKS = [(make_ref(payload, partitions=PARTITIONS), payload) for payload in PAYLOADS]


@pytest.fixture
def fs() -> VolatileFileSystem:
    return VolatileFileSystem()


@pytest.fixture
def bed(fs: VolatileFileSystem) -> Iterator[TestBed]:
    with open_node(fs=fs) as opened:
        fs.calls.clear()
        yield opened


def put(bed: TestBed, body: bytes, **options: object) -> Answer:
    return call(bed.app, "POST", BATCH_PUT_PATH, body=body, **options)


def has(bed: TestBed, ref: Ref) -> bool:
    return bed.node.store.contains(ref.partition, ref.id) and bool(bed.node.store.verify(ref.partition, ref.id))


def test_chunks_are_durable_before_the_answer_in_groups_of_bounded_size(bed: TestBed, fs: VolatileFileSystem) -> None:
    answer = put(bed, encode_chunks(CHUNKS))
    assert (answer.status, answer.json()) == (200, {"chunks": ["durable"] * 300})
    assert fs.methods.count("sync_everything") == 2 * 2  # Two groups for 300 chunks.
    fs.power_cut()
    assert all(has(bed, ref) for ref, _ in CHUNKS)


def test_a_chunk_that_fails_has_a_problem_and_the_others_are_stored(bed: TestBed) -> None:
    wrong = Ref(partition=1, id=bytes(32), size=1, check=0)
    answer = put(bed, encode_chunks([CHUNKS[0], (wrong, b"x"), CHUNKS[1]]))
    first, problem, last = answer.json()["chunks"]
    assert (answer.status, first, last) == (200, "durable", "durable")
    assert (problem["type"], problem["status"]) == ("urn:forebay:error:checksum-mismatch", 400)
    assert has(bed, CHUNKS[0][0]) and has(bed, CHUNKS[1][0])
    assert 'forebay_chunk_errors_total{error="checksum-mismatch"} 1.0' in call(bed.app, "GET", "/metrics").body.decode()


def test_a_group_that_fails_costs_no_other_group(bed: TestBed, fs: VolatileFileSystem) -> None:
    fs.fail(OSError(errno.EMFILE, "too many"), method="open_directory")
    told = put(bed, encode_chunks(CHUNKS)).json()["chunks"]
    assert {word["type"] for word in told[:256]} == {"urn:forebay:error:disk-failed"}
    assert told[256:] == ["durable"] * 44


@pytest.mark.parametrize("body", [b"", b"noise", encode_chunks(CHUNKS[:2])[:-1], encode_chunks(CHUNKS[:2]) + b"x"])
def test_a_malformed_batch_stores_nothing(bed: TestBed, body: bytes) -> None:
    answer = put(bed, body, announce=len(body))
    assert (answer.status, answer.error) == (400, "invalid-request")
    assert list(bed.node.store.scan()) == []


def test_a_partition_that_does_not_exist_is_refused(bed: TestBed) -> None:
    answer = put(bed, encode_chunks([(Ref(partition=PARTITIONS, id=CHUNKS[0][0].id, size=7, check=0), PAYLOADS[0])]))
    assert (answer.status, answer.error) == (400, "invalid-request")


def test_a_batch_larger_than_the_node_holds_is_refused_unread(bed: TestBed) -> None:
    answer = put(bed, b"", announce=1024 * 1024 + 1)
    assert (answer.status, answer.error) == (413, "body-too-large")


def test_a_batch_cut_short_stores_nothing(bed: TestBed) -> None:
    answer = put(bed, encode_chunks(CHUNKS[:2])[:-1], announce=len(encode_chunks(CHUNKS[:2])), vanish=True)
    assert answer.error == "truncated-body"
    assert list(bed.node.store.scan()) == []


def test_the_length_must_be_announced(bed: TestBed) -> None:
    assert put(bed, encode_chunks(CHUNKS[:1]), announce=False).status == 411


def test_only_post_is_served(bed: TestBed) -> None:
    answer = call(bed.app, "GET", BATCH_PUT_PATH)
    assert (answer.status, answer.headers["allow"]) == (405, "POST")


def test_batches_are_counted_and_described(bed: TestBed) -> None:
    put(bed, encode_chunks(CHUNKS[:1]))
    counted = f'forebay_requests_total{{method="POST",route="{BATCH_PUT_PATH}",status="200"}} 1.0'
    assert counted in call(bed.app, "GET", "/metrics").body.decode()
    assert "post" in call(bed.app, "GET", "/openapi.json").json()["paths"][BATCH_PUT_PATH]


def test_bodies_count_until_they_are_stored(fs: VolatileFileSystem) -> None:
    body = encode_chunks([(CHUNKS[0][0], PAYLOADS[0])])
    with open_node(fs=fs, max_chunk_bytes=64 * 1024, max_body_bytes=128 * 1024) as bed:
        taken: list[int] = []
        chunks_app = bed.app._chunks  # type: ignore[attr-defined]
        sync = fs.sync_everything

        def counting(fd: int) -> None:
            taken.append(chunks_app.bodies.taken)
            sync(fd)

        fs.sync_everything = counting  # type: ignore[method-assign]
        assert put(bed, body).status == 200
        assert taken == [len(body)] * 2
        assert chunks_app.bodies.taken == 0
