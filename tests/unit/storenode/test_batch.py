"""Many objects in one request: a frame for each, whatever happens to the others."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import pytest

from client.errors import DiskFailed, MetadataUnavailable
from client.frames import CHUNK, INFO, MAX_SMALL_BYTES, PROBLEM, frames
from client.manifest import REF_BYTES, Ref
from client.record import BucketPolicy, ObjectInfo
from client.wire import BATCH_GET_PATH
from storenode.framed import FRAMES_TYPE
from tests.support.asgi import Answer, ask, call
from tests.support.nodes import TestBed, open_node

SMALL = {"a": b"aa", "b": bytes(range(256)) * 16, "full": bytes(MAX_SMALL_BYTES)}
LARGE = bytes(MAX_SMALL_BYTES + 1)


@pytest.fixture
def bed() -> Iterator[TestBed]:
    with open_node() as opened:
        opened.node.catalog.create_bucket("data", BucketPolicy(versions=3))
        for key, body in {**SMALL, "large": LARGE, "empty": b""}.items():
            info = opened.node.objects.put("data", key, body)
            # The node's own copies, which `peers` keep in a dictionary, lie on its disk here.
            for ref in info.record.content.refs:
                opened.node.store.put(ref.partition, ref.id, opened.peers.nodes["n2"][ref.partition, ref.id])
        yield opened


def batch(bed: TestBed, *items: Any) -> Answer:
    return call(bed.app, "POST", BATCH_GET_PATH, body=json.dumps({"items": items}).encode())


def told(answer: Answer, count: int) -> list[tuple[int, Any]]:
    """Of each frame its kind and what it says: payload, info, or the code of a problem."""
    assert (answer.status, answer.headers["content-type"], answer.complete) == (200, FRAMES_TYPE, True)
    found: list[tuple[int, Any]] = []
    for kind, content in frames(answer.body, count=count):
        if kind == CHUNK:
            found.append((kind, (Ref.unpack(content[:REF_BYTES]), bytes(content[REF_BYTES:]))))
        else:
            value = json.loads(bytes(content))
            found.append((kind, ObjectInfo.from_json(value) if kind == INFO else value["type"].rpartition(":")[2]))
    return found


def ref_of(bed: TestBed, key: str) -> Ref:
    return bed.node.catalog.lookup("data", key).record.content.refs[0]


def test_small_objects_come_with_their_chunks_in_order(bed: TestBed) -> None:
    keys = ["b", "full", "a", "a"]
    assert told(batch(bed, *(["data", key] for key in keys)), 4) == [(CHUNK, (ref_of(bed, key), SMALL[key])) for key in keys]


def test_what_is_no_small_chunk_comes_as_its_info(bed: TestBed) -> None:
    keys = ["large", "empty"]
    infos = [(INFO, bed.node.catalog.lookup("data", key)) for key in keys]
    assert told(batch(bed, *(["data", key] for key in keys)), 2) == infos


def test_a_missing_or_damaged_copy_is_no_error_of_its_object(bed: TestBed) -> None:
    for key, damage in (("a", b""), ("b", b"rotten")):
        (path,) = bed.root.glob(f"chunks/*/*{ref_of(bed, key).hex}")
        path.write_bytes(damage) if damage else path.unlink()
    answer = told(batch(bed, ["data", "a"], ["data", "b"], ["data", "full"]), 3)
    assert [kind for kind, _ in answer] == [INFO, INFO, CHUNK]
    assert bed.repairs.asked == [(ref_of(bed, "b").partition, ref_of(bed, "b").id)]


def test_payloads_are_sent_as_they_lie(bed: TestBed) -> None:
    (path,) = bed.root.glob(f"chunks/*/*{ref_of(bed, 'a').hex}")
    path.write_bytes(b"Xa" + path.read_bytes()[2:])
    assert told(batch(bed, ["data", "a"]), 1) == [(CHUNK, (ref_of(bed, "a"), b"Xa"))]


def test_item_that_fails_does_not_harm_the_others(bed: TestBed) -> None:
    items = [["data", "none"], ["nope", "k"], ["data", "../x"], ["data", "b", 10**6], ["data", "a"]]
    answer = told(batch(bed, *items), 5)
    assert answer[:-1] == [
        (PROBLEM, "object-not-found"),
        (PROBLEM, "bucket-not-found"),
        (PROBLEM, "invalid-name"),
        (PROBLEM, "object-not-found"),
    ]
    assert answer[-1] == (CHUNK, (ref_of(bed, "a"), SMALL["a"]))


def test_older_versions_can_be_asked_for(bed: TestBed) -> None:
    first = bed.node.catalog.lookup("data", "a").version
    bed.node.objects.put("data", "a", b"newer")
    answer = told(batch(bed, ["data", "a", first], ["data", "a"]), 2)
    assert (answer[0][1][1], answer[1][1].size) == (b"aa", 5)


def test_an_answer_streams_in_slices(bed: TestBed) -> None:
    answer = batch(bed, *[["data", "a"]] * 300)
    assert len(told(answer, 300)) == 300
    assert len([piece for piece in answer.pieces if piece]) == 3


def test_an_answer_that_its_client_does_not_take_keeps_its_place_to_the_last_byte() -> None:
    body = json.dumps({"items": []}).encode()

    async def scenario(bed: TestBed) -> Answer:
        ending = asyncio.Event()

        async def receive() -> Any:
            return {"type": "http.request", "body": body, "more_body": False}

        async def stuck(message: Any) -> None:
            if message["type"] == "http.response.body" and not message.get("more_body"):
                ending.set()
                await asyncio.Event().wait()

        path = BATCH_GET_PATH
        scope = {"type": "http", "method": "POST", "path": path, "raw_path": path.encode(), "query_string": b"", "headers": []}
        answering: Any = bed.app(scope, receive, stuck)
        taking = asyncio.create_task(answering)
        await asyncio.wait_for(ending.wait(), 10.0)
        try:
            return await ask(bed.app, "POST", BATCH_GET_PATH, body=body)
        finally:
            taking.cancel()

    with open_node(max_object_requests=1) as bed:
        assert asyncio.run(scenario(bed)).error == "busy"


def test_empty_batch_is_an_empty_answer(bed: TestBed) -> None:
    assert told(batch(bed), 0) == []


def test_a_node_that_can_not_begin_says_why(bed: TestBed, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise MetadataUnavailable("no answer")

    monkeypatch.setattr(type(bed.node.catalog), "lookup_many", fail)
    answer = batch(bed, ["data", "a"])
    assert (answer.status, answer.error) == (503, "metadata-unavailable")


def test_an_answer_that_can_not_go_on_is_broken_off(
    bed: TestBed, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    calls = 0
    small_chunks = type(bed.node.store).small_chunks

    def once(store: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls > 1:
            raise DiskFailed("gone")
        return small_chunks(store)

    monkeypatch.setattr(type(bed.node.store), "small_chunks", once)
    answer = batch(bed, *[["data", "a"]] * 200)
    assert (answer.status, answer.complete) == (200, False)
    assert "was broken off: a later part" in caplog.text


@pytest.mark.parametrize(
    "wrong",
    [
        7,
        "ab",
        [],
        ["data"],
        ["data", 7],
        ["data", "b", None],
        ["data", "b", -1],
        ["data", "b", True],
        ["data", "b", 1.5],
        ["data", "b", 1, 1],
        {"bucket": "data", "key": "b"},
    ],
)
def test_malformed_items_are_refused_as_a_whole(bed: TestBed, wrong: Any) -> None:
    answer = batch(bed, ["data", "b"], wrong)
    assert (answer.status, answer.error) == (400, "invalid-request")


@pytest.mark.parametrize("body", [b"", b"[]", b"{}", b'{"items": 1}', b'{"items": [%s]}' % b",".join([b"[]"] * 1025)])
def test_malformed_batches_are_refused(bed: TestBed, body: bytes) -> None:
    assert call(bed.app, "POST", BATCH_GET_PATH, body=body).error == "invalid-request"
