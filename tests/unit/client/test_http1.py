"""The grammar of an answer: heads and bodies in any pieces, and nothing guessed from what is malformed."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from client.http1 import Connection


@contextmanager
def _answered(*pieces: bytes) -> Iterator[Connection]:
    """A connection whose other side has sent `pieces` and closed."""
    near, far = socket.socketpair()
    connection = Connection("test", 80)
    with near, far:
        near.settimeout(5)
        connection.adopt(near)
        sender = threading.Thread(target=_send, args=(far, pieces))
        sender.start()
        try:
            yield connection
        finally:
            near.shutdown(socket.SHUT_RDWR)  # Whoever still sends learns that nobody reads.
            sender.join()


def _send(far: socket.socket, pieces: tuple[bytes, ...]) -> None:
    with suppress(OSError):
        for piece in pieces:
            far.sendall(piece)
        far.shutdown(socket.SHUT_WR)


def _framed(body: bytes, *, chunk_sizes: list[int]) -> bytes:
    """`body` in the chunked coding, cut as given."""
    coded, start = b"", 0
    for size in chunk_sizes:
        part = body[start : start + size]
        if part:
            coded += b"%x;ext=1\r\n%s\r\n" % (len(part), part)
        start += size
    rest = body[start:]
    return coded + (b"%X\r\n%s\r\n" % (len(rest), rest) if rest else b"") + b"0\r\nX-Trailer: t\r\n\r\n"


@given(
    bodies=st.lists(st.binary(max_size=300), min_size=1, max_size=4),
    chunked=st.booleans(),
    sizes=st.lists(st.integers(1, 50), max_size=5),
)
def test_answers_follow_each_other_whatever_their_framing(bodies: list[bytes], chunked: bool, sizes: list[int]) -> None:
    wire = b"".join(
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + _framed(body, chunk_sizes=sizes)
        if chunked
        else b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nX-A:  b \r\n\r\n%s" % (len(body), body)
        for body in bodies
    )
    with _answered(wire) as connection:
        for body in bodies:
            answer = connection.receive(method="GET")
            assert answer.read(limit=1000) == body
            assert answer.is_complete
            assert chunked or answer.headers["x-a"] == "b"


def test_heads_of_any_number_pass_through_one_buffer() -> None:
    wire = b"HTTP/1.1 100 Continue\r\n\r\n" + b"HTTP/1.1 204 No Content\r\nx: %s\r\n\r\n" % (b"y" * 20_000) * 20
    with _answered(*(wire[start : start + 7000] for start in range(0, len(wire), 7000))) as connection:
        for _ in range(20):
            answer = connection.receive(method="GET")
            assert (answer.status, answer.length, len(answer.headers["x"])) == (204, 0, 20_000)


def test_a_body_goes_straight_into_the_buffer_and_no_further() -> None:
    body = bytes(range(256)) * 1000
    buffer = bytearray(len(body) + 1)
    with _answered(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(body), body[:70_000], body[70_000:]) as connection:
        connection.receive(method="GET").read_into(memoryview(buffer)[:-1])
    assert buffer == body + b"\0"


@pytest.mark.parametrize(
    ("wire", "message"),
    [
        (b"SSH-2.0-OpenSSH\r\n\r\n", "no HTTP answer"),
        (b"HTTP/1.1 2x0 OK\r\n\r\n", "no HTTP answer"),
        (b"HTTP/1.1 200 OK\r\nno colon\r\n\r\n", "no header"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: -1\r\n\r\n", "is no number"),
        (b"HTTP/1.1 200 OK\r\n\r\nuntil the end", "does not say how long"),
        (b"HTTP/1.1 200 OK\r\nx: " + b"y" * 70_000, "no end of a head"),
        (b"HTTP/1.1 200 OK\r\n", "closed in the middle"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nshort", "closed in the middle"),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n", "no size of a chunk"),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n-1\r\n", "no size of a chunk"),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nabc\r\n", "longer than it said"),
    ],
)
def test_what_is_malformed_is_a_broken_connection(wire: bytes, message: str) -> None:
    with _answered(wire) as connection, pytest.raises(ConnectionError, match=message):
        connection.receive(method="GET").read(limit=1000)


@pytest.mark.parametrize("framing", [b"content-length: 11", b"transfer-encoding: chunked"])
def test_a_body_over_the_limit_is_not_received(framing: bytes) -> None:
    with _answered(b"HTTP/1.1 200 OK\r\n%s\r\n\r\nb\r\nhello world" % framing) as connection:
        answer = connection.receive(method="GET")
        assert answer.read(limit=10) is None
        assert not answer.is_complete


@pytest.mark.parametrize(
    ("head", "closes"),
    [
        (b"HTTP/1.1 204 No\r\n\r\n", False),
        (b"HTTP/1.1 204 No\r\nConnection: Close\r\n\r\n", True),
        (b"HTTP/1.0 204 No\r\n\r\n", True),
        (b"HTTP/1.0 204 No\r\nConnection: keep-alive\r\n\r\n", False),
    ],
)
def test_an_answer_says_whether_the_connection_lives_on(head: bytes, closes: bool) -> None:
    with _answered(head) as connection:
        assert connection.receive(method="GET").closes is closes


class _Generous:
    """A socket that has `at_once` bytes whenever it is asked, and notes at how many it is to wake its reader."""

    def __init__(self, at_once: int) -> None:
        self.at_once = at_once
        self.woken_at = 1
        self.most = 1

    def recv_into(self, view: memoryview) -> int:
        return min(len(view), self.at_once)

    def setsockopt(self, level: int, option: int, value: int) -> None:
        assert (level, option) == (socket.SOL_SOCKET, socket.SO_RCVLOWAT)
        self.woken_at = value
        self.most = max(self.most, value)


@pytest.mark.parametrize("at_once", [100_000, 600_000, 1 << 20, 1_100_000, 7 << 20, 8 << 20])
def test_a_reader_is_woken_for_anything_again_however_a_long_body_comes(at_once: int) -> None:
    connection = Connection("test", 80)
    generous = _Generous(at_once)
    connection.adopt(generous)  # type: ignore[arg-type]
    connection.take_into(memoryview(bytearray(8 << 20)))
    assert generous.most > 100_000
    assert generous.woken_at == 1
