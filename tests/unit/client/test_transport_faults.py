"""The transport when connections break, nodes fall silent, or answer before they were asked to the end."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Callable, Iterator

import pytest

from client.errors import (
    BodyTooLarge,
    Busy,
    DeadlineExceeded,
    DiskFull,
    EndpointUnreachable,
    Misconfigured,
    StoreError,
)
from client.retry import Deadline
from client.transport import Transport
from tests.support.fake_cluster import quick_config
from tests.support.socket_server import Connection, answer, echo, problem, serving

WAIT_S = 10.0


@pytest.fixture
def transport() -> Iterator[Transport]:
    made = Transport(quick_config(read_timeout_s=WAIT_S))
    yield made
    made.close()


# --- connections that break


def closes_after_first(closed: threading.Event, *, reset: bool) -> Callable[[Connection], None]:
    def script(connection: Connection) -> None:
        connection.request()
        connection.send(answer(200, b"first"))
        if reset:
            connection.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.close()
        closed.set()

    return script


@pytest.mark.parametrize("reset", [False, True])
@pytest.mark.parametrize("size", [0, 8_000_000])
def test_an_idle_connection_that_was_closed_costs_no_error(transport: Transport, reset: bool, size: int) -> None:
    closed = threading.Event()
    with serving(closes_after_first(closed, reset=reset), echo) as server:
        assert transport.request("GET", server.url, "/").body == b"first"
        assert closed.wait(WAIT_S)
        assert transport.request("PUT", server.url, "/", body=bytes(size)).size == size
        assert server.num_connections == 2


def test_a_kept_connection_that_breaks_during_the_request_is_replaced_once(transport: Transport) -> None:
    def script(connection: Connection) -> None:
        connection.request()
        connection.send(answer(200, b"first"))
        connection.request()  # And no answer.

    with serving(script, echo) as server:
        transport.request("GET", server.url, "/")
        assert transport.request("PUT", server.url, "/", body=b"again").body == b"again"
        assert server.num_connections == 2


def test_a_fresh_connection_that_breaks_is_an_error_that_names_the_endpoint(transport: Transport) -> None:
    with serving(lambda connection: connection.request()) as server:
        with pytest.raises(EndpointUnreachable, match=f"GET /x: no answer from {server.url}") as caught:
            transport.request("GET", server.url, "/x", node_id="node-7")
        assert caught.value.node_id == "node-7"
        assert server.num_connections == 1


def test_a_dropped_reply_is_not_repeated_for_ever(transport: Transport) -> None:
    def script(connection: Connection) -> None:
        connection.request()
        connection.send(answer(200))
        connection.request()

    with serving(script, lambda connection: connection.request()) as server:
        transport.request("GET", server.url, "/")
        with pytest.raises(EndpointUnreachable):
            transport.request("GET", server.url, "/")
        assert server.num_connections == 2


@pytest.mark.parametrize("into", [True, False])
def test_a_body_cut_short_is_an_error(transport: Transport, into: bool) -> None:
    def script(connection: Connection) -> None:
        connection.request()
        connection.send(answer(200, b"x" * 10, length=100_000))

    buffer = memoryview(bytearray(100_000)) if into else None
    with serving(script, echo) as server:
        with pytest.raises(EndpointUnreachable, match="closed in the middle"):
            transport.request("GET", server.url, "/", into=buffer)
        assert transport.request("PUT", server.url, "/", body=b"next").body == b"next"


@pytest.mark.parametrize(
    "garbage", [b"", b"SSH-2.0-OpenSSH\r\n", b"HTTP/1.1 abc\r\n\r\n", b"HTTP/1.1 200 OK\r\n" + b"x" * 100_000]
)
def test_what_is_no_http_is_unreachable(transport: Transport, garbage: bytes) -> None:
    def script(connection: Connection) -> None:
        connection.head()
        connection.send(garbage)

    with serving(script) as server, pytest.raises(EndpointUnreachable):
        transport.request("GET", server.url, "/")


def test_a_refused_connection_names_the_endpoint(transport: Transport) -> None:
    with serving(echo) as server:
        url = server.url
    with pytest.raises(EndpointUnreachable, match=f"{url}.*refused"):
        transport.request("GET", url, "/")


@pytest.mark.parametrize("url", ["http://no-such-host.invalid:1", "http://a..b:1", "http://[::1]:1"])
def test_hosts_that_cannot_be_reached_are_unreachable(transport: Transport, url: str) -> None:
    with pytest.raises(EndpointUnreachable) as caught:
        transport.request("GET", url, "/")
    assert url in caught.value.message


def test_an_endpoint_that_is_none_is_misconfigured(transport: Transport) -> None:
    with pytest.raises(Misconfigured, match="HOST:PORT"):
        transport.request("GET", "127.0.0.1:7070", "/")


def test_a_header_that_cannot_be_sent_leaves_no_socket_behind_and_takes_no_place(transport: Transport) -> None:
    with serving(echo) as server:
        for _ in range(quick_config().max_connections):
            with pytest.raises(ValueError, match="line break in the head"):
                transport.request("GET", server.url, "/", headers={"x": "a\nb"})
        assert transport.request("PUT", server.url, "/", body=b"next").body == b"next"


# --- silence


def stalls(connection: Connection) -> None:
    connection.request()
    connection.wait_for_close()


def test_silence_names_the_endpoint_and_its_length(transport: Transport) -> None:
    with serving(stalls) as server:
        with pytest.raises(DeadlineExceeded, match=f"GET /x: {server.url} was silent for 0.02 s"):
            transport.request("GET", server.url, "/x", timeout_s=0.02)
        assert server.num_connections == 1


def test_silence_on_a_kept_connection_is_not_repeated(transport: Transport) -> None:
    def script(connection: Connection) -> None:
        connection.request()
        connection.send(answer(200))
        stalls(connection)

    with serving(script, echo) as server:
        transport.request("GET", server.url, "/")
        with pytest.raises(DeadlineExceeded):
            transport.request("GET", server.url, "/", timeout_s=0.02)
        assert server.num_connections == 1


def test_silence_in_the_middle_of_a_body_is_noticed_and_the_connection_dropped(transport: Transport) -> None:
    def script(connection: Connection) -> None:
        connection.request()
        connection.send(answer(200, b"half", length=8))
        connection.wait_for_close()

    with serving(script, echo) as server:
        with pytest.raises(DeadlineExceeded):
            transport.request("GET", server.url, "/", into=memoryview(bytearray(8)), timeout_s=0.02)
        assert transport.request("PUT", server.url, "/", body=b"next").body == b"next"


def test_a_deadline_shortens_the_wait(transport: Transport) -> None:
    with serving(stalls) as server:
        for left_s in (0.02, 0.0):
            with pytest.raises(DeadlineExceeded):
                transport.request("GET", server.url, "/", deadline=Deadline(left_s))


def test_a_node_that_does_not_read_the_body_is_silent(transport: Transport) -> None:
    done = threading.Event()

    def script(connection: Connection) -> None:
        connection.head()
        done.wait(WAIT_S)

    with serving(script) as server:
        with pytest.raises(DeadlineExceeded):
            transport.request("PUT", server.url, "/", body=bytes(30_000_000), timeout_s=0.02)
        done.set()


# --- answers before the whole request was read


def refuses(error: StoreError, *, reset: bool) -> Callable[[Connection], None]:
    def script(connection: Connection) -> None:
        connection.head()
        connection.send(problem(error))
        if not reset:
            connection.sock.shutdown(socket.SHUT_WR)
            connection.wait_for_close()
        # Otherwise it is closed with bytes unread, which resets the connection.

    return script


@pytest.mark.parametrize("reset", [False, True])
@pytest.mark.parametrize("error", [BodyTooLarge("at most 5 bytes"), DiskFull("no room"), Busy("full")])
def test_an_answer_that_comes_before_the_body_was_sent_is_heard(transport: Transport, error: StoreError, reset: bool) -> None:
    with serving(refuses(error, reset=reset), echo) as server:
        with pytest.raises(type(error), match=error.message):
            transport.request("PUT", server.url, "/", body=bytes(30_000_000))
        assert transport.request("PUT", server.url, "/", body=b"next").body == b"next"
        assert server.num_connections == 2


def test_an_early_answer_on_a_kept_connection_is_heard_and_not_repeated(transport: Transport) -> None:
    def script(connection: Connection) -> None:
        connection.request()
        connection.send(answer(200))
        refuses(BodyTooLarge("at most 5 bytes"), reset=True)(connection)

    with serving(script, echo) as server:
        transport.request("GET", server.url, "/")
        with pytest.raises(BodyTooLarge):
            transport.request("PUT", server.url, "/", body=bytes(30_000_000))
        assert server.num_connections == 1


def test_a_connection_on_which_half_a_body_was_sent_is_dropped(transport: Transport) -> None:
    done = threading.Event()

    def script(connection: Connection) -> None:
        connection.head()
        connection.send(problem(BodyTooLarge("at most 5 bytes")))
        done.wait(WAIT_S)  # It stays open, and nobody reads the rest.

    with serving(script, echo) as server:
        with pytest.raises(BodyTooLarge):
            transport.request("PUT", server.url, "/", body=bytes(30_000_000), timeout_s=0.05)
        assert transport.request("PUT", server.url, "/", body=b"next", timeout_s=WAIT_S / 3).body == b"next"
        assert server.num_connections == 2
        done.set()


def test_an_early_success_is_no_answer(transport: Transport) -> None:
    def script(connection: Connection) -> None:
        connection.head()
        connection.send(answer(200, b"fine"))

    with serving(script) as server, pytest.raises(EndpointUnreachable):
        transport.request("PUT", server.url, "/", body=bytes(30_000_000))
