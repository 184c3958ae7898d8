"""Records with the first bytes: what is sent along, and what is left out rather than refused."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from client.catalog import Commit
from client.checksum import SEGMENT_BYTES, content_digest
from client.manifest import Ref, make_ref
from client.opening import Opening
from client.record import BucketPolicy, Content, ObjectInfo, ObjectRecord
from client.wire import CHECK_HEADER, RECORD_HEADER, SEGMENTS_HEADER, record_path
from storenode.app import App
from storenode.metastore import WouldWait
from storenode.openchunks import OpenChunks
from tests.support.asgi import Answer, call
from tests.support.nodes import PARTITIONS, TestBed, open_node

LARGE, SMALL = os.urandom(2 * SEGMENT_BYTES + 100), os.urandom(4096)


@pytest.fixture
def bed() -> Iterator[TestBed]:
    with open_node() as opened:
        opened.node.catalog.create_bucket("data", BucketPolicy(versions=2))
        yield opened


def name(bed: TestBed, key: str, *payloads: bytes, store: bool = True, **fields: Any) -> ObjectInfo:
    """An object made of these chunks."""
    refs = tuple(make_ref(payload, partitions=PARTITIONS) for payload in payloads)
    for ref, payload in zip(refs, payloads, strict=True):
        if store:
            bed.node.store.put(ref.partition, ref.id, payload)
    content = Content(size=sum(map(len, payloads)), digest=content_digest([ref.id for ref in refs]), refs=refs)
    record = ObjectRecord(write_id=f"w-{key}-{len(payloads)}", content=content, **fields)
    return bed.node.catalog.commit(Commit(bucket="data", key=key, record=record))


def read(bed: TestBed, key: str, query: str) -> tuple[Answer, ObjectInfo, bytes]:
    """The answer, and what a client makes of it: the record, and the bytes that it believes."""
    answer = call(bed.app, "GET", record_path("data", key) + query)
    assert answer.status == 200, answer
    values = dict(pair.split("=") for pair in query.lstrip("?").split("&"))
    start = int(values["start"])

    def place(info: ObjectInfo) -> memoryview:
        return memoryview(bytearray(min(int(values.get("end", info.size)), info.size) - start))

    opening = Opening(start=start, place=place)
    view = opening(answer.headers, len(answer.body))
    if view is None:
        opening.take_record(answer.body)
        return answer, opening.info, b""
    view[:] = answer.body
    opening.seen(view)
    return answer, opening.info, bytes(opening.buffer[: opening.opened().filled])


def file_of(bed: TestBed, ref: Ref) -> Path:
    (found,) = bed.root.glob(f"chunks/*/*{ref.hex}")
    return found


@pytest.mark.parametrize("payload", [LARGE, SMALL], ids=["large", "small"])
def test_the_first_chunk_comes_with_the_record(bed: TestBed, payload: bytes) -> None:
    info = name(bed, "k", payload)
    for _ in range(3):
        answer, found, data = read(bed, "k", "?start=0")
        assert (found, data) == (info, payload)
        assert SEGMENTS_HEADER not in answer.headers  # The reference checks a whole chunk.


@pytest.mark.parametrize(
    ("start", "end", "sent"),
    [(0, 10, SEGMENT_BYTES), (SEGMENT_BYTES + 1, 2 * SEGMENT_BYTES + 1, SEGMENT_BYTES + 100), (5, 1 << 40, len(LARGE))],
)
def test_a_range_comes_in_whole_segments(bed: TestBed, start: int, end: int, sent: int) -> None:
    name(bed, "k", LARGE, SMALL)
    answer, _, data = read(bed, "k", f"?start={start}&end={end}")
    assert (len(answer.body), data) == (sent, LARGE[start:end])
    assert (CHECK_HEADER in answer.headers) == (sent < len(LARGE))


def test_the_chunk_in_which_the_read_begins_is_the_one_that_comes(bed: TestBed) -> None:
    name(bed, "k", LARGE, SMALL)
    assert read(bed, "k", f"?start={len(LARGE) + 7}")[2] == SMALL[7:]
    assert read(bed, "k", f"?start={len(LARGE) - 7}")[2] == LARGE[-7:]


@pytest.mark.parametrize("query", ["?start=0&most=100", "?start=999999999", "?start=10&end=10", "?start=10&end=5"])
def test_what_is_not_wanted_does_not_come(bed: TestBed, query: str) -> None:
    info = name(bed, "k", LARGE)
    answer = call(bed.app, "GET", record_path("data", "k") + query)
    assert RECORD_HEADER not in answer.headers
    assert ObjectInfo.from_json(answer.json()) == info


def test_a_plain_question_is_answered_with_the_record_alone(bed: TestBed) -> None:
    info = name(bed, "k", SMALL)
    answer = call(bed.app, "GET", record_path("data", "k"))
    assert (ObjectInfo.from_json(answer.json()), answer.headers["content-type"]) == (info, "application/json")


@pytest.mark.parametrize("payload", [LARGE, SMALL], ids=["large", "small"])
def test_a_chunk_that_is_elsewhere_is_left_out(bed: TestBed, payload: bytes) -> None:
    info = name(bed, "k", payload, store=False)
    answer, found, data = read(bed, "k", "?start=0")
    assert (found, data, answer.body) == (info, b"", b"")
    assert bed.repairs.asked == []  # Nobody has said that it ought to be here.


@pytest.mark.parametrize("payload", [LARGE, SMALL], ids=["large", "small"])
def test_a_damaged_file_is_left_out_set_aside_and_repaired(bed: TestBed, payload: bytes) -> None:
    ref = name(bed, "k", payload).record.content.refs[0]
    os.truncate(file_of(bed, ref), 1000)
    assert read(bed, "k", "?start=0")[2] == b""
    assert bed.repairs.asked == [(ref.partition, ref.id)]
    assert not list(bed.root.glob(f"chunks/*/*{ref.hex}"))


@pytest.mark.parametrize("payload", [LARGE, SMALL], ids=["large", "small"])
def test_flipped_bits_are_for_the_client_to_see(bed: TestBed, payload: bytes) -> None:
    ref = name(bed, "k", payload).record.content.refs[0]
    assert read(bed, "k", "?start=0")[2] == payload
    with file_of(bed, ref).open("r+b") as file:
        file.write(bytes([payload[0] ^ 1]))
    answer, _, data = read(bed, "k", "?start=0")
    assert (len(answer.body), data) == (len(payload), b"")


@pytest.mark.usefixtures("in_memory")
def test_a_copy_that_was_set_aside_is_not_served_from_an_open_file(bed: TestBed) -> None:
    ref = name(bed, "k", SMALL).record.content.refs[0]
    assert read(bed, "k", "?start=0")[2] == SMALL
    with file_of(bed, ref).open("r+b") as file:
        file.write(bytes([SMALL[0] ^ 1]))
    assert bed.node.store.quarantine(ref.partition, ref.id)
    assert read(bed, "k", "?start=0")[0].body == b""
    bed.node.store.put(ref.partition, ref.id, SMALL)
    assert read(bed, "k", "?start=0")[2] == SMALL


def test_a_record_too_long_for_a_header_comes_as_the_body(bed: TestBed) -> None:
    info = name(bed, "k", SMALL, metadata={"note": "ä" * 2000})
    answer, found, _ = read(bed, "k", "?start=0")
    assert RECORD_HEADER not in answer.headers
    assert found == info


def test_names_beyond_ascii_fit_into_the_header(bed: TestBed) -> None:
    info = name(bed, "ключ/键", SMALL, metadata={"who": "Zoë\u2028"})
    assert read(bed, "ключ/键", "?start=0")[1:] == (info, SMALL)


def test_older_versions_are_read_like_the_newest(bed: TestBed) -> None:
    old = name(bed, "k", SMALL)
    new = name(bed, "k", LARGE, SMALL)
    assert read(bed, "k", f"?start=0&version={old.version}")[1:] == (replace(old), SMALL)
    assert read(bed, "k", f"?start=0&version={new.version}")[1:] == (new, LARGE)


def test_a_metadata_engine_that_is_busy_is_waited_for_in_a_thread(bed: TestBed, monkeypatch: pytest.MonkeyPatch) -> None:
    info = name(bed, "k", SMALL)

    def busy(key: str) -> None:
        raise WouldWait

    monkeypatch.setattr(bed.meta, "get_now", busy)
    assert read(bed, "k", "?start=0")[1:] == (info, SMALL)


@pytest.mark.parametrize(
    "query", ["start=-1", "start=x", "end=1e3", "most=", f"start={2**63}", "consistency=weak", "version=٣"]
)
def test_malformed_questions_are_refused(bed: TestBed, query: str) -> None:
    name(bed, "k", SMALL)
    answer = call(bed.app, "GET", f"{record_path('data', 'k')}?{query}")
    assert (answer.status, answer.error) == (400, "invalid-request")


@pytest.mark.parametrize(
    ("path", "status", "code"),
    [
        ("/v1/records/data/none", 404, "object-not-found"),
        ("/v1/records/other/none", 404, "bucket-not-found"),
        ("/v1/records/data/", 400, "invalid-name"),
        ("/v1/records/data", 400, "invalid-name"),
        ("/v1/records/D/x", 400, "invalid-name"),
        ("/v1/records/data/a//b", 400, "invalid-name"),
        ("/v1/records/data/%ff", 400, "invalid-name"),
    ],
)
def test_what_is_not_there_or_no_name_says_so(bed: TestBed, path: str, status: int, code: str) -> None:
    answer = call(bed.app, "GET", path + "?start=0")
    assert (answer.status, answer.error) == (status, code)


def test_the_record_in_the_header_is_json(bed: TestBed) -> None:
    info = name(bed, "k", SMALL)
    answer, _, _ = read(bed, "k", "?start=0")
    assert json.loads(answer.headers[RECORD_HEADER]) == info.to_json()


# Open files


def open_fds() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.fixture
def in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """The directory of these tests lies where the kernel has no ``RWF_NOWAIT``; what it would find in memory, it is told."""
    real = os.preadv
    monkeypatch.setattr(os, "preadv", lambda fd, buffers, offset, flags=0: real(fd, buffers, offset))


@pytest.mark.usefixtures("in_memory")
def test_no_more_files_are_kept_open_than_allowed(bed: TestBed) -> None:
    before = open_fds()
    opened = OpenChunks(bed.node.store, limit=3)
    payloads = [os.urandom(100) for _ in range(5)]
    refs = [name(bed, f"k{number}", payload).record.content.refs[0] for number, payload in enumerate(payloads)]
    for ref in (*refs, refs[-1]):
        opened.keep(ref, os.open(file_of(bed, ref), os.O_RDONLY), withdrawn=bed.node.store.num_withdrawn)
    assert open_fds() == before + 3
    assert [opened.read_now(ref) for ref in refs] == [None, None, *payloads[2:]]
    opened.read_now(refs[2])
    extra = name(bed, "extra", b"extra").record.content.refs[0]
    opened.keep(extra, os.open(file_of(bed, extra), os.O_RDONLY), withdrawn=bed.node.store.num_withdrawn)
    assert opened.read_now(refs[2]) is not None  # Read last, so another one went.
    opened.close()
    assert open_fds() == before


@pytest.mark.usefixtures("in_memory")
def test_a_copy_that_was_taken_away_while_it_was_opened_is_not_kept(bed: TestBed) -> None:
    before = open_fds()
    ref = name(bed, "k", SMALL).record.content.refs[0]
    opened = OpenChunks(bed.node.store, limit=3)
    withdrawn = bed.node.store.num_withdrawn
    fd = os.open(file_of(bed, ref), os.O_RDONLY)
    bed.node.store.delete(ref.partition, ref.id)
    assert opened.read_now(ref) is None
    opened.keep(ref, fd, withdrawn=withdrawn)
    assert opened.read_now(ref) is None
    assert open_fds() == before


def test_what_is_not_in_memory_is_not_waited_for(bed: TestBed, monkeypatch: pytest.MonkeyPatch) -> None:
    ref = name(bed, "k", SMALL).record.content.refs[0]
    opened = OpenChunks(bed.node.store, limit=3)
    opened.keep(ref, os.open(file_of(bed, ref), os.O_RDONLY), withdrawn=bed.node.store.num_withdrawn)

    def cold(*_: object) -> int:
        raise BlockingIOError

    monkeypatch.setattr(os, "preadv", cold)
    assert opened.read_now(ref) is None
    monkeypatch.undo()
    os.truncate(file_of(bed, ref), 10)
    assert opened.read_now(ref) is None
    opened.close()


# Answers at once


def at_once(bed: TestBed, path: str, *, headers: bytes = b"host: n1:7070\r\nx-forebay-protocol: 1\r\n") -> Answer | None:
    """What the node sends for the bytes of a request, without a request having been made of them."""
    assert isinstance(bed.app, App)
    sent = bed.app.answer_now(b"GET %s HTTP/1.1\r\n%s\r\n" % (path.encode(), headers))
    if sent is None:
        return None
    lines = bytes(sent[0]).decode("latin-1").split("\r\n")
    assert (lines[0], lines[-2:]) == ("HTTP/1.1 200 OK", ["", ""])
    fields = dict(line.split(": ", 1) for line in lines[1:-2])
    return Answer(status=200, headers=fields, pieces=[bytes(sent[1])], complete=True)


@pytest.mark.usefixtures("in_memory")
@pytest.mark.parametrize("query", ["", "?start=0", "?start=7&end=9", "?start=7&end=9&most=1", "?start=999999"])
@pytest.mark.parametrize("key", ["k", "a/b", "ключ"])
def test_what_needs_no_waiting_is_answered_as_it_is_otherwise(bed: TestBed, key: str, query: str) -> None:
    name(bed, key, SMALL)
    path = record_path("data", key) + query
    call(bed.app, "GET", record_path("data", key) + "?start=0")  # From now on its file is open.
    assert at_once(bed, path) == call(bed.app, "GET", path)
    counted = call(bed.app, "GET", "/metrics").body.decode()
    assert 'forebay_requests_total{method="GET",route="/v1/records/{bucket}/{key:path}",status="200"} 3.0' in counted


def test_a_bucket_s_policy_is_told_at_once(bed: TestBed) -> None:
    told, otherwise = at_once(bed, "/v1/buckets/data"), call(bed.app, "GET", "/v1/buckets/data")
    assert told is not None
    assert (told.headers["content-type"], told.json()) == ("application/json", otherwise.json())
    bed.node.catalog.set_bucket("data", BucketPolicy(replicas=1))
    told = at_once(bed, "/v1/buckets/data")
    assert told is not None
    assert told.json()["replicas"] == 1
    for path in ("/v1/buckets/none", "/v1/buckets/data?x=1", "/v1/buckets/D", "/v1/buckets/data/x"):
        assert at_once(bed, path) is None


def test_what_needs_waiting_is_not_answered_at_once(bed: TestBed, monkeypatch: pytest.MonkeyPatch) -> None:
    info = name(bed, "small", SMALL)
    name(bed, "large", LARGE)
    small = record_path("data", "small")
    assert at_once(bed, small + "?start=0") is None  # Its file is not open.
    for path in (record_path("data", "large") + "?start=0", record_path("data", "none"), f"{small}?version={info.version}"):
        assert at_once(bed, path) is None
    assert at_once(bed, small) is not None

    def fails(key: str) -> None:
        raise WouldWait

    monkeypatch.setattr(bed.meta, "get_now", fails)
    assert at_once(bed, small) is None

    def is_defective(key: str) -> None:
        raise RuntimeError

    monkeypatch.setattr(bed.meta, "get_now", is_defective)
    assert at_once(bed, small) is None


@pytest.mark.parametrize(
    "headers",
    [
        b"",
        b"host: n1\r\n",
        b"host: n1\r\nx-forebay-protocol: 0\r\n",
        b"host: n1\r\nx-forebay-protocol: 1\r\nx-forebay-timeout-ms: 0\r\n",
        b"host: n1\r\nx-forebay-protocol: 1\r\nauthorization: Basic x\r\n",
        b"host: n1\r\nx-forebay-protocol: 1\r\ncontent-length: 1\r\n",
        b"host: n1\r\nx-forebay-protocol: 1\r\nconnection: close\r\n",
        b"Host: n1\r\nx-forebay-protocol: 1\r\n",
    ],
)
def test_only_requests_as_our_client_writes_them_are_answered_at_once(bed: TestBed, headers: bytes) -> None:
    name(bed, "k", SMALL)
    ours = b"host: n1\r\nx-forebay-protocol: 1\r\nx-forebay-timeout-ms: 60000\r\n"
    assert at_once(bed, record_path("data", "k"), headers=ours) is not None
    assert at_once(bed, record_path("data", "k"), headers=headers) is None


@pytest.mark.parametrize("path", ["/v1/records/data/k?start=-1", "/v1/records/data/a//b", "/v1/records/data", "/v1/chunks/1/x"])
def test_malformed_requests_are_not_answered_at_once(bed: TestBed, path: str) -> None:
    name(bed, "k", SMALL)
    assert at_once(bed, path) is None


def test_two_requests_in_one_packet_are_not_answered_at_once(bed: TestBed) -> None:
    name(bed, "k", SMALL)
    request = b"GET /v1/records/data/k HTTP/1.1\r\nhost: n1\r\nx-forebay-protocol: 1\r\n\r\n"
    assert isinstance(bed.app, App)
    assert bed.app.answer_now(request) is not None
    assert bed.app.answer_now(request * 2) is None
    assert bed.app.answer_now(request[:-1]) is None
