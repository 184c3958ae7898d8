"""Requests whose bodies are sent part by part, and long bodies that come: what is sent again, what is seen, what is left."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator

import pytest

from client.errors import DiskFull, EndpointUnreachable
from client.transport import Sending, Transport
from tests.support.fake_cluster import quick_config
from tests.support.socket_server import Connection, Script, answer, each, echo, problem, serving

BODY = os.urandom(3 << 20)


@pytest.fixture
def transport() -> Iterator[Transport]:
    made = Transport(quick_config(read_timeout_s=10.0))
    yield made
    made.close()


def begin(transport: Transport, url: str, *, size: int = len(BODY)) -> Sending:
    return transport.begin("PUT", url, "/x", size_bytes=size)


def test_parts_arrive_as_one_body(transport: Transport) -> None:
    with serving(echo) as server:
        for _ in range(2):
            with begin(transport, server.url) as sending:
                for start in range(0, len(BODY), 700_000):
                    sending.send(memoryview(BODY)[start : start + 700_000])
                assert sending.finish().body == BODY
    assert server.num_connections == 1


def test_what_was_sent_to_a_dead_connection_is_sent_again() -> None:
    got: list[bytes] = []

    def once_then_gone(connection: Connection) -> None:
        connection.request()
        connection.send(answer())
        connection.head()  # The next request begins, and the node dies.

    def whole(connection: Connection) -> None:
        request = connection.request()
        assert request is not None
        got.append(request.body)
        connection.send(answer())

    transport = Transport(quick_config(read_timeout_s=10.0))
    with serving(once_then_gone, whole) as server:
        transport.request("GET", server.url, "/")
        with begin(transport, server.url) as sending:
            for start in range(0, len(BODY), 500_000):
                sending.send(memoryview(BODY)[start : start + 500_000])
            sending.finish()
    transport.close()
    assert got == [BODY]


def test_an_error_in_the_middle_of_the_parts_is_raised_at_the_end(transport: Transport) -> None:
    def refuse(connection: Connection) -> None:
        connection.head()
        connection.send(problem(DiskFull("no room")))

    with serving(refuse) as server, pytest.raises(DiskFull), begin(transport, server.url, size=50 << 20) as sending:
        for _ in range(50):
            sending.send(memoryview(bytes(1 << 20)))
        sending.finish()


def test_a_request_that_is_left_early_is_cut_short_for_the_node(transport: Transport) -> None:
    came: list[int] = []
    done = threading.Event()

    def count(connection: Connection) -> None:
        head = connection.head()
        assert head is not None
        came.append(len(connection._file.read(int(head.headers["content-length"]))))
        done.set()

    def leave(sending: Sending) -> None:
        with sending:
            sending.send(memoryview(BODY)[:1000])
            raise RuntimeError

    with serving(count) as server:
        with pytest.raises(RuntimeError):
            leave(begin(transport, server.url))
        assert done.wait(10)
    assert came == [1000]


def test_a_node_that_is_not_there_is_named(transport: Transport) -> None:
    with pytest.raises(EndpointUnreachable, match=r"127\.0\.0\.1:1"), begin(transport, "http://127.0.0.1:1", size=4) as sending:
        sending.send(memoryview(b"body"))


# --- what comes


def slowly(pieces: list[bytes]) -> Script:
    def script(connection: Connection) -> None:
        connection.request()
        connection.send(answer(length=sum(map(len, pieces))))
        for piece in pieces:
            connection.send(piece)
        connection.wait_for_close()

    return script


@pytest.mark.parametrize("cut", [1, 1000, 1 << 20, (1 << 20) + 1, (2 << 20) + 7, len(BODY) - 1])
def test_a_long_body_comes_whole_wherever_it_is_cut(transport: Transport, cut: int) -> None:
    parts: list[bytes] = []
    buffer = bytearray(len(BODY))
    with serving(slowly([BODY[:cut], BODY[cut:]])) as server:
        seen = lambda part: parts.append(bytes(part))  # noqa: E731
        response = transport.request("GET", server.url, "/", into=memoryview(buffer), seen=seen)
        transport.close()
    assert response.size == len(BODY)
    assert bytes(buffer) == BODY
    assert b"".join(parts) == BODY
    assert len(parts) < 40  # Not woken for every packet, of which there are some hundred.


def test_after_a_long_body_the_connection_wakes_for_anything(transport: Transport) -> None:
    with serving(each(answer(body=BODY), answer(body=b"x"))) as server:
        transport.request("GET", server.url, "/", into=memoryview(bytearray(len(BODY))))
        (connection,) = transport.connections._idle[server.url]
        assert connection.sock is not None
        assert connection.sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT) == 1
        assert transport.request("GET", server.url, "/").body == b"x"
        transport.close()


def test_where_a_body_goes_may_depend_on_the_answer(transport: Transport) -> None:
    asked: list[tuple[str, int]] = []
    buffer = bytearray(3)

    def into(headers: object, size_bytes: int) -> memoryview | None:
        asked.append((headers["x-kind"], size_bytes))  # type: ignore[index]
        return memoryview(buffer) if size_bytes == 3 else None

    with serving(each(answer(body=b"abc", headers="x-kind: a\r\n"), answer(body=b"long", headers="x-kind: b\r\n"))) as server:
        assert transport.request("GET", server.url, "/", into=into).body == b""
        assert transport.request("GET", server.url, "/", into=into).body == b"long"
        transport.close()
    assert asked == [("a", 3), ("b", 4)]
    assert bytes(buffer) == b"abc"
