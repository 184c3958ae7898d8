"""Every failure is a problem document, and a defect costs one request."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from typing import Any

import pytest

from client.errors import MetadataUnavailable, from_problem
from client.wire import PROTOCOL_HEADER
from storenode.schemas import SCHEMAS
from tests.support.asgi import Answer, ask, call
from tests.support.nodes import OWN, TestBed, open_node


@pytest.fixture
def bed() -> Iterator[TestBed]:
    with open_node() as opened:
        yield opened


def fail_with(bed: TestBed, error: Exception) -> None:
    def raise_it(key: str) -> None:
        raise error

    bed.meta.before_get = raise_it


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/nowhere", 404), ("GET", "/v1/objects", 404), ("PATCH", "/v1/objects/data/k", 405), ("POST", "/healthz", 405)],
)
def test_unknown_paths_and_methods_are_problems(bed: TestBed, method: str, path: str, status: int) -> None:
    answer = call(bed.app, method, path)
    assert (answer.status, answer.error) == (status, "invalid-request")
    assert path in answer.json()["detail"]
    assert ("allow" in answer.headers) == (status == 405)


@pytest.mark.parametrize(
    ("path", "allowed"), [("/v1/buckets/data", "DELETE, GET, PUT"), ("/v1/objects/data/k", "DELETE, GET, HEAD, PUT")]
)
def test_allow_names_all_methods_of_a_path(bed: TestBed, path: str, allowed: str) -> None:
    assert call(bed.app, "PATCH", path).headers["allow"] == allowed


def test_arguments_that_do_not_validate_say_what_was_found(bed: TestBed) -> None:
    answer = call(bed.app, "GET", "/v1/objects/data?limit=many&versions=perhaps")
    assert (answer.status, answer.error) == (400, "invalid-request")
    assert "query limit" in answer.json()["detail"]
    assert "found 'many'" in answer.json()["detail"]
    assert "found 'perhaps'" in answer.json()["detail"]


def test_errors_keep_their_class_across_the_wire(bed: TestBed) -> None:
    fail_with(bed, MetadataUnavailable("the engine sleeps", retry_after_s=1.5))
    answer = call(bed.app, "GET", "/v1/buckets/data")
    assert (answer.status, answer.headers["retry-after"]) == (503, "2")
    error = from_problem(answer.json(), node_id="")
    assert isinstance(error, MetadataUnavailable)
    assert (error.message, error.node_id, error.retryable) == ("the engine sleeps", OWN, True)


def test_problem_of_another_node_keeps_its_name(bed: TestBed) -> None:
    fail_with(bed, MetadataUnavailable("x", node_id="n9"))
    assert call(bed.app, "GET", "/v1/buckets/data").json()["node_id"] == "n9"


@pytest.mark.parametrize("path", ["/v1/buckets/data", "/v1/chunks/1/" + "0" * 64])
def test_defect_is_logged_with_its_traceback_and_told_without(
    bed: TestBed, path: str, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> None:
        raise ZeroDivisionError("secret")

    fail_with(bed, ZeroDivisionError("secret"))
    object.__setattr__(bed.node, "store", type("Broken", (), {"open_chunk": fail})())
    with caplog.at_level(logging.ERROR):
        answer = call(bed.app, "GET", path)
    assert (answer.status, answer.error, answer.complete) == (500, "internal-error", True)
    assert b"secret" not in answer.body
    (logged,) = [entry for entry in caplog.records if entry.name == "storenode.app"]
    assert logged.exc_info is not None
    assert "ZeroDivisionError: secret" in caplog.text
    caplog.clear()
    assert call(bed.app, "GET", "/healthz").status == 200


@pytest.mark.parametrize("path", ["/healthz", "/v1/chunks/1/" + "0" * 64, "/nowhere"])
def test_every_response_states_the_protocol(bed: TestBed, path: str) -> None:
    assert call(bed.app, "GET", path).headers[PROTOCOL_HEADER] == "1"


@pytest.mark.parametrize(("version", "fits"), [("0", True), ("1", True), ("2", False), ("x", False), ("", False)])
@pytest.mark.parametrize("path", ["/healthz", "/v1/chunks/1/" + "0" * 64])
def test_requests_of_other_protocols_are_refused(bed: TestBed, path: str, version: str, fits: bool) -> None:
    answer = call(bed.app, "GET", path, headers={PROTOCOL_HEADER: version})
    if fits:
        assert answer.status in (200, 404)
    else:
        assert (answer.status, answer.error, answer.headers[PROTOCOL_HEADER]) == (400, "protocol-mismatch", "1")


def test_server_messages_other_than_requests_pass(bed: TestBed) -> None:
    async def lifespan() -> list[str]:
        coming = [{"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}]
        sent: list[str] = []

        async def receive() -> Any:
            return coming.pop(0)

        async def send(message: Any) -> None:
            sent.append(message["type"])

        await bed.app({"type": "lifespan", "asgi": {"version": "3.0"}, "state": {}}, receive, send)
        return sent

    assert asyncio.run(lifespan()) == ["lifespan.startup.complete", "lifespan.shutdown.complete"]


def test_requests_are_counted_by_route_and_not_by_name(bed: TestBed) -> None:
    async def requests() -> list[Answer]:
        paths = ["/v1/buckets/abc", "/v1/buckets/xyz", "/v1/chunks/1/" + "0" * 64, "/v1/chunks/x", "/nope/1", "/nope/2"]
        return [await ask(bed.app, "GET", path) for path in paths]

    asyncio.run(requests())
    call(bed.app, "POST", "/v1/chunks:have", body=b'{"chunks": []}')
    text = call(bed.app, "GET", "/metrics").body.decode()
    for line in (
        'forebay_requests_total{method="GET",route="/v1/buckets/{bucket}",status="404"} 2.0',
        'forebay_requests_total{method="GET",route="/v1/chunks/{partition}/{id}",status="404"} 1.0',
        'forebay_requests_total{method="GET",route="/v1/chunks/{partition}/{id}",status="400"} 1.0',
        'forebay_requests_total{method="GET",route="unknown",status="404"} 2.0',
        'forebay_received_bytes_total{route="/v1/chunks:have"} 14.0',
        'forebay_sent_bytes_total{route="/v1/chunks:have"} 11.0',
        'forebay_chunk_errors_total{error="chunk-not-found"} 1.0',
        'forebay_queue_length{pool="disk"} 0.0',
    ):
        assert line in text
    assert 'forebay_disk_bytes{kind="free"}' in text


# The description of the API


def references(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for name, item in value.items():
            if name == "$ref":
                yield item
            else:
                yield from references(item)
    elif isinstance(value, list):
        for item in value:
            yield from references(item)


def test_openapi_describes_every_route_and_every_failure(bed: TestBed) -> None:
    schema = call(bed.app, "GET", "/openapi.json").json()
    operations = [operation for path in schema["paths"].values() for operation in path.values()]
    assert {"/v1/chunks/{partition}/{id}", "/v1/objects/{bucket}/{key}", "/v1/records/{bucket}/{key}"} <= set(schema["paths"])
    ids = [operation["operationId"] for operation in operations]
    assert len(ids) == len(set(ids))
    assert all("422" not in operation["responses"] for operation in operations)
    for reference in references(schema):
        assert reference.removeprefix("#/components/schemas/") in SCHEMAS
    assert schema["components"]["securitySchemes"]["token"]["scheme"] == "bearer"
    assert [path for path, methods in schema["paths"].items() if methods.get("get", {}).get("security") == []] == [
        "/healthz",
        "/readyz",
    ]
    for path in schema["paths"].values():
        for method, operation in path.items():
            if operation.get("security") != []:
                assert {"401", "403"} <= set(operation["responses"])
            answers = operation["responses"]
            assert any(status < "4" for status in answers)
            if method == "head":
                assert all("content" not in answer for answer in answers.values())
            else:
                assert all("application/problem+json" in answers[status]["content"] for status in answers if status >= "4")
