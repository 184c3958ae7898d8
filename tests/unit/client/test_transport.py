"""The transport against a server that misbehaves: what it raises, and which connections it uses again."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest

from client.errors import (
    Busy,
    ChunkNotFound,
    ProtocolMismatch,
    StoreError,
    TruncatedBody,
)
from client.retry import Deadline
from client.transport import Transport
from tests.support.fake_cluster import Clock, quick_config
from tests.support.socket_server import Connection, SocketServer, answer, each, echo, problem, serving

WAIT_S = 10.0


@contextmanager
def transport_of(**settings: object) -> Iterator[Transport]:
    transport = Transport(quick_config(read_timeout_s=WAIT_S, **settings))
    try:
        yield transport
    finally:
        transport.close()


@pytest.fixture
def transport() -> Iterator[Transport]:
    with transport_of() as made:
        yield made


# --- the plain case


def test_a_source_of_tokens_is_asked_for_each_request() -> None:
    seen, tokens = [], iter(["one", "two"])

    def script(connection: Connection) -> None:
        while request := connection.request():
            seen.append(request.headers["authorization"])
            connection.send(answer(200, b"fine"))

    transport = Transport(quick_config(read_timeout_s=WAIT_S, token="configured"), token=lambda: next(tokens))
    with serving(script) as server:
        for _ in range(2):
            transport.request("GET", server.url, "/v1/x")
        transport.close()
    assert seen == ["Bearer one", "Bearer two"]


def test_a_request_carries_protocol_token_length_and_body() -> None:
    seen = []

    def script(connection: Connection) -> None:
        while request := connection.request():
            seen.append(request)
            connection.send(answer(200, b"fine", headers="X-Forebay-Protocol: 1\r\nX-Other: Yes\r\n"))

    with serving(script) as server, transport_of(token="secret") as transport:
        response = transport.request("PUT", server.url, "/v1/x?y=z", headers={"range": "bytes=0-1"}, body=memoryview(b"body"))
    assert (response.status, response.body, response.size) == (200, b"fine", 4)
    assert response.headers["x-other"] == "Yes"
    (request,) = seen
    assert (request.method, request.path, request.body) == ("PUT", "/v1/x?y=z", b"body")
    assert request.headers["x-forebay-protocol"] == "1"
    assert request.headers["authorization"] == "Bearer secret"
    assert request.headers["content-length"] == "4"
    assert request.headers["range"] == "bytes=0-1"


@pytest.mark.parametrize(
    ("method", "body", "length"), [("PUT", None, "0"), ("POST", b"", "0"), ("GET", None, None), ("DELETE", None, None)]
)
def test_requests_without_a_body_say_so_where_http_wants_it(method: str, body: bytes | None, length: str | None) -> None:
    seen = []

    def script(connection: Connection) -> None:
        seen.append(connection.request())
        connection.send(answer(204))

    with serving(script) as server, transport_of() as transport:
        transport.request(method, server.url, "/", body=body)
    assert seen[0] is not None
    assert seen[0].headers.get("content-length") == length


def test_the_body_arrives_in_the_callers_buffer(transport: Transport) -> None:
    payload = bytes(range(256)) * 4096
    with serving(echo) as server:
        buffer = bytearray(len(payload) + 2)
        response = transport.request("PUT", server.url, "/", body=payload, into=memoryview(buffer)[1:-1])
    assert buffer == b"\0" + payload + b"\0"
    assert (response.body, response.size) == (b"", len(payload))


def test_any_buffer_can_be_a_body(transport: Transport) -> None:
    with serving(echo) as server:
        wide = memoryview(bytes(range(24))).cast("Q")
        assert transport.request("PUT", server.url, "/", body=wide).body == bytes(range(24))


def test_the_time_that_is_left_is_passed_on(transport: Transport) -> None:
    seen: list[str | None] = []

    def script(connection: Connection) -> None:
        while request := connection.request():
            seen.append(request.headers.get("x-forebay-timeout-ms"))
            connection.send(answer(200))

    clock = Clock()
    deadline = Deadline(2.5, clock=clock)
    with serving(script) as server:
        transport.request("GET", server.url, "/", deadline=deadline)
        clock.sleep(1.0)
        with transport.begin("PUT", server.url, "/", size_bytes=0, deadline=deadline) as sending:
            sending.finish()
        transport.request("GET", server.url, "/")
    assert seen == ["2500", "1500", None]


# --- which connections are used again


@pytest.mark.parametrize(
    "data",
    [
        answer(200, b"body"),
        answer(204),
        answer(200, b""),
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n",
    ],
)
def test_a_connection_is_used_again_after_a_whole_answer(transport: Transport, data: bytes) -> None:
    with serving(each(data, data, answer(200, b"last"))) as server:
        transport.request("GET", server.url, "/")
        transport.request("GET", server.url, "/")
        assert transport.request("GET", server.url, "/").body == b"last"
        assert server.num_connections == 1


def test_a_connection_is_used_again_after_a_head(transport: Transport) -> None:
    with serving(each(answer(200, b"", length=1000), answer(200, b"last"))) as server:
        assert transport.request("HEAD", server.url, "/").size == 0
        assert transport.request("GET", server.url, "/").body == b"last"
        assert server.num_connections == 1


def test_a_connection_is_used_again_after_an_error_that_was_read_whole(transport: Transport) -> None:
    with serving(each(problem(ChunkNotFound("none")), answer(404), answer(200, b"last"))) as server:
        with pytest.raises(ChunkNotFound, match="none"):
            transport.request("GET", server.url, "/")
        with pytest.raises(StoreError, match="404"):
            transport.request("GET", server.url, "/", into=memoryview(bytearray(8)))
        assert transport.request("GET", server.url, "/").body == b"last"
        assert server.num_connections == 1


def test_an_answer_into_an_empty_buffer_leaves_the_connection_usable(transport: Transport) -> None:
    with serving(each(answer(200, b""), answer(200, b"last"))) as server:
        transport.request("GET", server.url, "/", into=memoryview(bytearray()))
        assert transport.request("GET", server.url, "/").body == b"last"
        assert server.num_connections == 1


def test_an_error_with_a_huge_body_is_cut_and_its_connection_dropped(transport: Transport) -> None:
    huge = answer(503, b'{"detail": "' + b"x" * 1_000_000 + b'"}')
    with serving(each(huge), echo) as server:
        with pytest.raises(Busy, match="status 503"):
            transport.request("GET", server.url, "/")
        assert transport.request("PUT", server.url, "/", body=b"next").body == b"next"
        assert server.num_connections == 2


@pytest.mark.parametrize("announced", [3, 5])
def test_a_body_of_another_length_is_refused_and_its_connection_dropped(transport: Transport, announced: int) -> None:
    # The bytes have yet to come, so that nothing on the connection shows that they will.
    with serving(each(answer(200, length=announced)), echo) as server:
        with pytest.raises(TruncatedBody, match=f"expected 4 bytes.*announced {announced}"):
            transport.request("GET", server.url, "/", into=memoryview(bytearray(4)))
        assert transport.request("PUT", server.url, "/", body=b"next").body == b"next"
        assert server.num_connections == 2


def test_a_body_whose_length_is_not_announced_is_refused_for_a_buffer(transport: Transport) -> None:
    chunked = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n4\r\nabcd\r\n0\r\n\r\n"
    with serving(each(chunked), echo) as server:
        with pytest.raises(TruncatedBody, match="announced None"):
            transport.request("GET", server.url, "/", into=memoryview(bytearray(4)))
        assert transport.request("PUT", server.url, "/", body=b"next").body == b"next"


def test_bytes_beyond_an_answer_are_not_the_next_answer(transport: Transport) -> None:
    stray_sent = threading.Event()

    def script(connection: Connection) -> None:
        connection.request()
        connection.send(answer(200, b"first"))
        go_on.wait(WAIT_S)
        connection.send(answer(200, b"stray"))
        stray_sent.set()
        connection.wait_for_close()

    go_on = threading.Event()
    with serving(script, echo) as server:
        assert transport.request("GET", server.url, "/").body == b"first"
        go_on.set()
        assert stray_sent.wait(WAIT_S)
        assert transport.request("PUT", server.url, "/", body=b"mine").body == b"mine"


def test_another_protocol_is_refused_and_its_connection_dropped(transport: Transport) -> None:
    with serving(each(answer(200, b"body", headers="x-forebay-protocol: 9\r\n")), echo) as server:
        with pytest.raises(ProtocolMismatch):
            transport.request("GET", server.url, "/")
        assert transport.request("PUT", server.url, "/", body=b"next").body == b"next"
        assert server.num_connections == 2


def test_a_server_that_closes_after_each_answer_is_served_by_fresh_connections(transport: Transport) -> None:
    def once(connection: Connection) -> None:
        connection.request()
        connection.send(answer(200, b"x", headers="connection: close\r\n"))

    with serving(once) as server:
        for _ in range(3):
            assert transport.request("GET", server.url, "/").body == b"x"
        assert server.num_connections == 3


def test_no_more_connections_are_kept_than_configured() -> None:
    barrier = threading.Barrier(3)

    def script(connection: Connection) -> None:
        while connection.request():
            barrier.wait(WAIT_S)
            connection.send(answer(200))

    with serving(script) as server, transport_of(max_idle_connections=1) as transport, ThreadPoolExecutor(3) as pool:
        for expected in (3, 5):  # One of three is kept, so that the second round makes two.
            list(pool.map(lambda _: transport.request("GET", server.url, "/"), range(3)))
            assert server.num_connections == expected


def test_a_closed_transport_keeps_nothing(transport: Transport) -> None:
    with serving(echo) as server:
        transport.request("GET", server.url, "/")
        transport.close()
        transport.request("GET", server.url, "/")
        transport.request("GET", server.url, "/")
        assert server.num_connections == 3


# --- many at once


def test_threads_never_see_each_others_answers(transport: Transport) -> None:
    def call(number: int) -> bool:
        body = struct.pack("<Q", number) * (1 + number % 50)
        return transport.request("PUT", server.url, "/", body=body).body == body

    with serving(echo) as server, ThreadPoolExecutor(8) as pool:
        assert all(pool.map(call, range(400)))
        assert server.num_connections <= 8


def test_the_server_of_these_tests_reports_its_own_faults() -> None:
    raising = threading.Event()

    def script(connection: Connection) -> None:
        raising.set()
        raise AssertionError("expected")

    server = SocketServer(script)
    socket.create_connection(("127.0.0.1", int(server.url.rpartition(":")[2]))).close()
    assert raising.wait(WAIT_S)
    with pytest.raises(AssertionError, match="expected"):
        server.close()
