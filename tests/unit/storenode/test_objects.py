"""Objects by plain HTTP: upload and verified read behind one route, whole or not at all."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator
from typing import Any

import pytest

from client.record import BucketPolicy
from client.wire import VERSION_HEADER
from tests.support.asgi import Answer, ask, call
from tests.support.nodes import OWN, PEERS, TestBed, open_node

BODY = random.Random(0).randbytes(256_000)  # Four chunks, none like another.
PATH = "/v1/objects/data/a/b"


@pytest.fixture
def bed() -> Iterator[TestBed]:
    with open_node() as opened:
        opened.node.catalog.create_bucket("data", BucketPolicy())
        yield opened


def put(bed: TestBed, path: str = PATH, *, body: Any = BODY, **headers: str) -> Answer:
    return call(bed.app, "PUT", path, body=body, headers={name.replace("_", "-"): v for name, v in headers.items()})


def is_there(bed: TestBed, path: str = PATH) -> bool:
    return call(bed.app, "HEAD", path).status == 200


# PUT


def test_put_answers_with_the_object_that_get_then_reads(bed: TestBed) -> None:
    stored = put(bed, content_type="text/plain", x_forebay_write_id="mine")
    assert (stored.status, stored.headers["etag"]) == (201, '"mine"')
    assert stored.json()["version"] == int(stored.headers[VERSION_HEADER])
    answer = call(bed.app, "GET", PATH)
    assert (answer.status, answer.body, answer.complete) == (200, BODY, True)
    assert {name: answer.headers[name] for name in ("etag", VERSION_HEADER)} == {
        name: stored.headers[name] for name in ("etag", VERSION_HEADER)
    }
    assert answer.headers["content-type"] == "text/plain"
    assert all(len(bed.peers.nodes[name]) == 4 for name in (OWN, *PEERS))


def test_put_takes_a_body_of_unknown_length(bed: TestBed) -> None:
    pieces = [BODY[start : start + 5000] for start in range(0, len(BODY), 5000)]
    assert call(bed.app, "PUT", PATH, body=pieces, announce=False).status == 201
    assert call(bed.app, "GET", PATH).body == BODY


def test_put_of_nothing_is_an_empty_object(bed: TestBed) -> None:
    assert put(bed, body=b"").status == 201
    answer = call(bed.app, "GET", PATH)
    assert (answer.status, answer.body, answer.headers["content-length"]) == (200, b"", "0")
    assert call(bed.app, "GET", PATH, headers={"range": "bytes=0-"}).status == 416


def test_put_repeated_with_its_write_id_is_one_write(bed: TestBed) -> None:
    first = put(bed, x_forebay_write_id="mine", if_none_match="*")
    put(bed, body=b"other")
    assert put(bed, x_forebay_write_id="mine", if_none_match="*").json() == first.json()
    assert call(bed.app, "GET", PATH).body == b"other"


def test_put_obeys_its_conditions(bed: TestBed) -> None:
    first = put(bed, if_none_match="*")
    refused = put(bed, body=b"x", if_none_match="*")
    assert (refused.status, refused.error) == (412, "precondition-failed")
    assert put(bed, body=b"x", if_match='"else"').status == 412
    assert put(bed, body=b"second", if_match=first.headers["etag"]).status == 201
    assert call(bed.app, "GET", PATH).body == b"second"


@pytest.mark.parametrize("how", ["vanish", "stall", "end"])
def test_truncated_upload_leaves_no_name(how: str) -> None:
    ways: dict[str, dict[str, Any]] = {"vanish": {"vanish": True}, "stall": {"stall": True}, "end": {}}
    with open_node(stall_timeout_s=0.05, max_object_requests=1) as bed:
        bed.node.catalog.create_bucket("data", BucketPolicy())
        for _ in range(2):
            answer = call(bed.app, "PUT", PATH, body=BODY[:-1], announce=len(BODY), **ways[how])
            assert (answer.status, answer.error) == (400, "truncated-body")
        assert not is_there(bed)
        assert put(bed).status == 201


def test_upload_of_unknown_length_that_is_cut_off_leaves_no_name(bed: TestBed) -> None:
    call(bed.app, "PUT", PATH, body=BODY, announce=False, vanish=True)
    assert not is_there(bed)


def test_too_large_an_object_is_refused_before_it_is_read_if_it_says_so(bed: TestBed) -> None:
    limit = bed.node.config.max_object_bytes
    answer = call(bed.app, "PUT", PATH, announce=limit + 1, stall=True)
    assert (answer.status, answer.error) == (413, "body-too-large")
    assert not bed.peers.nodes[OWN]
    answer = call(bed.app, "PUT", PATH, body=[bytes(1 << 20)] * 6, announce=False, headers={"transfer-encoding": "chunked"})
    assert (answer.status, answer.error, answer.headers["connection"]) == (413, "body-too-large", "close")
    assert not is_there(bed)


def test_write_without_a_quorum_is_refused_and_leaves_no_name(bed: TestBed) -> None:
    bed.peers.down.update(PEERS)
    answer = put(bed)
    assert (answer.status, answer.error) == (503, "not-enough-replicas")
    bed.peers.down.clear()
    assert not is_there(bed)


def test_ack_level_of_the_request_counts(bed: TestBed) -> None:
    bed.peers.down.update(PEERS)
    assert put(bed, PATH + "?ack=one").status == 201
    bed.peers.down.remove("n2")
    assert put(bed, PATH + "?ack=all").error == "not-enough-replicas"
    assert put(bed, PATH + "?ack=most").error == "invalid-request"


def test_unknown_bucket_prints_the_command(bed: TestBed) -> None:
    answer = put(bed, "/v1/objects/none/k")
    assert (answer.status, answer.error) == (404, "bucket-not-found")
    assert "forebay bucket create none" in answer.json()["detail"]


def test_metadata_travels_in_headers(bed: TestBed) -> None:
    given = {"x-forebay-meta-author": "Ada L.", "x-forebay-meta-note": "50%25 %C3%BC", "x-forebay-meta-x": ""}
    stored = call(bed.app, "PUT", PATH, body=BODY, headers=given)
    assert stored.json()["record"]["metadata"] == {"author": "Ada L.", "note": "50% ü", "x": ""}
    assert {k: v for k, v in call(bed.app, "HEAD", PATH).headers.items() if k in given} == given


@pytest.mark.parametrize(
    "headers",
    [
        {"x-forebay-meta-a": "%ff"},
        {"x-forebay-meta-": "x"},
        {"x-forebay-meta-a": "x" * 9000},
        {"content-type": "\xe9"},
        {"content-type": "x" * 300},
        {"x-forebay-write-id": "../x"},
        {"x-forebay-write-id": ""},
        {"if-match": "no, list"},
        {"if-match": 'W/"weak"'},
        {"if-none-match": ""},
        {"content-length": "many"},
    ],
)
def test_malformed_headers_are_refused_before_the_body_is_read(bed: TestBed, headers: dict[str, str]) -> None:
    answer = call(bed.app, "PUT", PATH, headers=headers, stall=True, announce=False)
    assert (answer.status, answer.error) == (400, "invalid-request")
    assert not is_there(bed)


@pytest.mark.parametrize(
    "path",
    [
        "data/../secret",
        "data/%2e%2e/secret",
        "data/a/%2E%2E",
        "data/..%2fsecret",
        "data/a%2f%2fb",
        "data//a",
        "data/",
        "data/a%00b",
        "data/a%0Ab",
        "data/%ff",
        "data/%c3%28",
        "data/" + "x" * 1025,
        "DATA/k",
        "da%2Fta/k",
        "..%2f/k",
        "%2e%2e/k",
        "a/k",
    ],
)
@pytest.mark.parametrize("method", ["PUT", "GET", "HEAD", "DELETE"])
def test_bad_names_are_refused(bed: TestBed, method: str, path: str) -> None:
    answer = call(bed.app, method, "/v1/objects/" + path)
    assert (answer.status, answer.error) == (400, "invalid-name")


def test_names_come_from_the_path_as_it_was_sent(bed: TestBed) -> None:
    # Two keys that a lenient decoder would make one; and an encoded slash is a slash.
    for quoted, key in (("%C3%BC", "ü"), ("%EF%BF%BD", "\ufffd"), ("x%2Fy", "x/y"), ("100%25", "100%"), ("a+b%20c", "a+b c")):
        assert put(bed, f"/v1/objects/data/{quoted}").json()["key"] == key
    assert call(bed.app, "GET", "/v1%2Fobjects/data/k").status == 404


# GET


@pytest.mark.parametrize(
    ("wanted", "start", "end"),
    [
        ("bytes=0-0", 0, 1),
        ("bytes=65530-65550", 65530, 65551),
        ("bytes=255999-", 255999, 256000),
        ("bytes=-7", 255993, 256000),
        ("bytes=5-999999999", 5, 256000),
    ],
)
def test_ranges_cross_chunks(bed: TestBed, wanted: str, start: int, end: int) -> None:
    put(bed)
    answer = call(bed.app, "GET", PATH, headers={"range": wanted})
    assert (answer.status, answer.body) == (206, BODY[start:end])
    assert answer.headers["content-range"] == f"bytes {start}-{end - 1}/{len(BODY)}"
    head = call(bed.app, "HEAD", PATH, headers={"range": wanted})
    assert (head.status, head.headers, head.body) == (206, answer.headers, b"")


@pytest.mark.parametrize("wanted", ["bytes=256000-", "bytes=9-2", "bytes=a-b", "bytes=0-1,3-4", "rows=1-2", "bytes=-"])
def test_malformed_ranges_are_refused(bed: TestBed, wanted: str) -> None:
    put(bed)
    answer = call(bed.app, "GET", PATH, headers={"range": wanted})
    assert (answer.status, answer.error, answer.headers["content-range"]) == (416, "invalid-range", f"bytes */{len(BODY)}")


def test_range_is_ignored_if_the_object_is_another_than_the_client_began_with(bed: TestBed) -> None:
    etag = put(bed).headers["etag"]
    same = call(bed.app, "GET", PATH, headers={"range": "bytes=0-1", "if-range": etag})
    other = call(bed.app, "GET", PATH, headers={"range": "bytes=0-1", "if-range": '"else"'})
    assert (same.status, other.status, other.body) == (206, 200, BODY)


def test_known_version_is_not_sent_again(bed: TestBed) -> None:
    etag = put(bed).headers["etag"]
    for known in (etag, f'"x", W/{etag}', "*"):
        answer = call(bed.app, "GET", PATH, headers={"if-none-match": known})
        assert (answer.status, answer.body, answer.headers["etag"]) == (304, b"", etag)
    assert call(bed.app, "GET", PATH, headers={"if-none-match": '"else"'}).status == 200
    assert call(bed.app, "GET", PATH, headers={"if-match": '"else"'}).error == "precondition-failed"


def test_older_versions_are_read_by_number(bed: TestBed) -> None:
    bed.node.catalog.set_bucket("data", BucketPolicy(versions=3))
    first = put(bed, body=b"first").headers[VERSION_HEADER]
    put(bed, body=b"second")
    assert call(bed.app, "GET", f"{PATH}?version={first}").body == b"first"
    assert call(bed.app, "GET", f"{PATH}?version={int(first) + 1000}").error == "object-not-found"
    for wrong in ("x", "-1", str(2**70)):
        assert call(bed.app, "GET", f"{PATH}?version={wrong}").error == "invalid-request"


def test_consistency_levels_are_checked(bed: TestBed) -> None:
    put(bed, body=b"x")
    for level in ("strong", "session", "eventual"):
        assert call(bed.app, "GET", f"{PATH}?consistency={level}").body == b"x"
    assert call(bed.app, "GET", f"{PATH}?consistency=some").error == "invalid-request"


def damage(bed: TestBed, *, chunk: int, nodes: tuple[str, ...] = (OWN, *PEERS)) -> None:
    """Change a byte in copies of a chunk of the object."""
    ref = bed.node.catalog.lookup("data", "a/b").record.content.refs[chunk]
    for name in nodes:
        bed.peers.nodes[name][ref.partition, ref.id] = b"x" + bed.peers.nodes[name][ref.partition, ref.id][1:]


def test_read_moves_on_to_the_next_replica(bed: TestBed) -> None:
    put(bed)
    damage(bed, chunk=2, nodes=(OWN, "n2"))
    assert call(bed.app, "GET", PATH).body == BODY


def test_object_that_can_not_be_read_is_an_error_while_nothing_was_sent(bed: TestBed) -> None:
    put(bed)
    damage(bed, chunk=0)
    answer = call(bed.app, "GET", PATH)
    assert (answer.status, answer.error) == (503, "all-replicas-failed")


def test_chunk_that_fails_in_the_middle_breaks_the_response_off(bed: TestBed) -> None:
    put(bed)
    damage(bed, chunk=3)
    answer = call(bed.app, "GET", PATH)
    assert (answer.status, answer.complete) == (200, False)
    assert answer.body == BODY[: 3 * 65536]
    assert call(bed.app, "GET", PATH, headers={"range": "bytes=0-100"}).status == 206


def test_client_that_goes_away_ends_the_reading(bed: TestBed) -> None:
    async def scenario() -> Answer:
        leave = asyncio.Event()
        leave.set()
        return await ask(bed.app, "GET", PATH, leave=leave)

    put(bed)
    answer = asyncio.run(scenario())
    assert not answer.complete
    assert len(answer.body) < len(BODY)


def test_transfers_beyond_the_limit_are_refused_at_once() -> None:
    async def scenario(bed: TestBed) -> list[Answer]:
        gone, waiting = asyncio.Event(), asyncio.Event()
        upload = asyncio.create_task(ask(bed.app, "PUT", PATH, announce=10, stall=True, gone=gone, waiting=waiting))
        await waiting.wait()
        refused = [await ask(bed.app, "GET", "/v1/objects/data/known"), await ask(bed.app, "PUT", PATH, body=b"x")]
        gone.set()
        await upload
        return [*refused, await ask(bed.app, "GET", "/v1/objects/data/known")]

    with open_node(max_object_requests=1) as bed:
        bed.node.catalog.create_bucket("data", BucketPolicy())
        put(bed, "/v1/objects/data/known", body=b"x")
        *refused, served = asyncio.run(scenario(bed))
    assert [(answer.status, answer.error, answer.headers["retry-after"]) for answer in refused] == [(503, "busy", "1")] * 2
    assert served.body == b"x"


# DELETE


def test_delete_removes_the_object_once(bed: TestBed) -> None:
    etag = put(bed).headers["etag"]
    assert call(bed.app, "DELETE", PATH, headers={"if-match": '"else"'}).error == "precondition-failed"
    gone = call(bed.app, "DELETE", PATH, headers={"if-match": etag, "x-forebay-write-id": "w"})
    assert (gone.status, gone.body) == (204, b"")
    put(bed)
    assert call(bed.app, "DELETE", PATH, headers={"if-match": etag, "x-forebay-write-id": "w"}).status == 204
    assert is_there(bed)
    call(bed.app, "DELETE", PATH)
    assert call(bed.app, "DELETE", PATH).error == "object-not-found"
