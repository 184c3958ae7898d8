"""Many ranges in one request: a frame for each, whatever happens to the others."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from typing import Any

import pytest

from client.record import BucketPolicy
from storenode.batch import FRAMES_TYPE
from tests.support.asgi import Answer, call
from tests.support.nodes import TestBed, open_node

BODY = bytes(range(256)) * 400


@pytest.fixture
def bed() -> Iterator[TestBed]:
    with open_node(max_batch_item_bytes=200_000) as opened:
        opened.node.catalog.create_bucket("data", BucketPolicy(versions=3))
        for key, body in (("a", BODY), ("b", b"bb"), ("empty", b""), ("large", bytes(200_001))):
            opened.node.objects.put("data", key, body)
        yield opened


def batch(bed: TestBed, *items: Any) -> Answer:
    return call(bed.app, "POST", "/v1/objects:batchGet", body=json.dumps({"items": items}).encode())


def frames(answer: Answer) -> list[tuple[dict[str, Any], bytes]]:
    assert (answer.status, answer.headers["content-type"], answer.complete) == (200, FRAMES_TYPE, True)
    found, place = [], 0
    while place < len(answer.body):
        (length,) = struct.unpack_from("<I", answer.body, place)
        head = json.loads(answer.body[place + 4 : place + 4 + length])
        place += 4 + length
        found.append((head, answer.body[place : place + head["size"]]))
        place += head["size"]
    return found


def item(key: str, **fields: Any) -> dict[str, Any]:
    return {"bucket": "data", "key": key, **fields}


def test_every_item_has_its_frame_in_order(bed: TestBed) -> None:
    told = frames(
        batch(bed, item("b"), item("a", start=65530, end=65550), item("empty"), item("a", start=102_399), item("a", end=10**9))
    )
    assert [payload for _, payload in told] == [b"bb", BODY[65530:65550], b"", BODY[-1:], BODY]
    info = bed.node.catalog.lookup("data", "b")
    assert told[0][0] == {"status": 200, "etag": info.etag, "version": info.version, "size": 2}


def test_item_that_fails_does_not_harm_the_others(bed: TestBed) -> None:
    ref = bed.node.catalog.lookup("data", "a").record.content.refs[0]
    for node in bed.peers.nodes.values():
        node.pop((ref.partition, ref.id))
    told = frames(
        batch(
            bed,
            item("a"),
            item("none"),
            {"bucket": "nope", "key": "k"},
            item("../x"),
            item("b", start=3),
            item("b", start=2, end=1),
            item("large"),
            item("b", version=10**6),
            item("b"),
        )
    )
    codes = [head["problem"]["type"].rpartition(":")[2] for head, _ in told[:-1]]
    assert codes == [
        "all-replicas-failed",
        "object-not-found",
        "bucket-not-found",
        "invalid-name",
        "invalid-range",
        "invalid-range",
        "body-too-large",
        "object-not-found",
    ]
    assert all(head["status"] == head["problem"]["status"] for head, _ in told[:-1])
    assert told[-1][1] == b"bb"


def test_older_versions_can_be_asked_for(bed: TestBed) -> None:
    first = bed.node.catalog.lookup("data", "b").version
    bed.node.objects.put("data", "b", b"newer")
    assert [payload for _, payload in frames(batch(bed, item("b", version=first), item("b", version=None)))] == [
        b"bb",
        b"newer",
    ]


def test_empty_batch_is_an_empty_response(bed: TestBed) -> None:
    assert frames(batch(bed)) == []


@pytest.mark.parametrize(
    "wrong",
    [
        7,
        {"bucket": "data"},
        item("b", colour=1),
        item("b", start="0"),
        item("b", start=-1),
        item("b", start=None),
        item("b", end=True),
        item("b", version=1.5),
        {"bucket": "data", "key": 7},
    ],
)
def test_malformed_items_are_refused_as_a_whole(bed: TestBed, wrong: Any) -> None:
    answer = batch(bed, item("b"), wrong)
    assert (answer.status, answer.error) == (400, "invalid-request")


@pytest.mark.parametrize("body", [b"", b"[]", b"{}", b'{"items": 1}', b'{"items": [%s]}' % b",".join([b"{}"] * 1025)])
def test_malformed_batches_are_refused(bed: TestBed, body: bytes) -> None:
    assert call(bed.app, "POST", "/v1/objects:batchGet", body=body).error == "invalid-request"
