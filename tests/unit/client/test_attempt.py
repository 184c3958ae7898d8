"""Attempts that another thread ends: whoever waits for a node wakes up at once, and nothing is held against the node."""

from __future__ import annotations

import socket
import threading
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from client.attempt import Attempt, Overtaken
from client.colocated import Colocated
from client.errors import DeadlineExceeded
from client.http1 import Connection as HttpConnection
from client.retry import Deadline
from client.transport import Transport
from tests.support.fake_cluster import Clock, FakeCluster, quick_config
from tests.support.local_reads import PAYLOAD, REF
from tests.support.socket_server import Connection, answer, echo, serving

WAIT_S = 10.0
SIZE = 3_000_000


class Silent:
    """A script that answers the first requests and sends only a part of the next answer."""

    def __init__(self, *, num_answered: int, part: bytes) -> None:
        self._num_answered = num_answered
        self._part = part
        self.asked = threading.Event()
        self.closed = threading.Event()

    def __call__(self, connection: Connection) -> None:
        for _ in range(self._num_answered):
            connection.request()
            connection.send(answer(200, b"first"))
        connection.request()
        connection.send(self._part)
        self.asked.set()
        connection.wait_for_close()
        self.closed.set()


@pytest.mark.parametrize("num_answered", [0, 1])
@pytest.mark.parametrize("part", [b"", answer(200, length=SIZE), answer(200, bytes(SIZE // 2), length=SIZE)])
def test_whoever_waits_for_an_answer_wakes_up_and_the_connection_is_closed(num_answered: int, part: bytes) -> None:
    transport, attempt = Transport(quick_config(read_timeout_s=WAIT_S)), Attempt(Deadline(WAIT_S))
    script = Silent(num_answered=num_answered, part=part)
    with serving(script, echo) as server, ThreadPoolExecutor(1) as pool:
        for _ in range(num_answered):
            transport.request("GET", server.url, "/")
        read = pool.submit(
            transport.request, "GET", server.url, "/", into=memoryview(bytearray(SIZE)), seen=lambda p: None, deadline=attempt
        )
        assert script.asked.wait(WAIT_S)
        attempt.end()
        with pytest.raises(Overtaken):
            read.result(WAIT_S)
        assert script.closed.wait(WAIT_S)
        # It was not asked for again on a new connection.
        assert server.num_connections == 1
        assert transport.request("PUT", server.url, "/", body=b"next").body == b"next"
        transport.close()


def test_whoever_waits_for_a_connection_wakes_up() -> None:
    attempt, waiting = Attempt(Deadline(WAIT_S)), threading.Event()

    def waits_on(sock: socket.socket) -> None:
        attempt.waits_on(sock)
        waiting.set()

    with ExitStack() as stack:
        # Once its queue is full, nobody hears from a listener that accepts nothing.
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        for _ in range(4):
            one = stack.enter_context(socket.socket())
            one.setblocking(False)
            with suppress(BlockingIOError):
                one.connect(listener.getsockname())
        connection = HttpConnection(*listener.getsockname())
        connecting = stack.enter_context(ThreadPoolExecutor(1)).submit(connection.connect, timeout_s=WAIT_S, waits_on=waits_on)
        assert waiting.wait(WAIT_S)
        while not connecting.done():
            attempt.end()  # The first time may be before it has begun to connect, which only the deadline would end.
            wait([connecting], timeout=0.01)
        assert isinstance(connecting.exception(), OSError)


def test_an_attempt_that_was_ended_asks_nobody() -> None:
    transport, attempt = Transport(quick_config()), Attempt(Deadline(WAIT_S))
    attempt.end()
    with serving(echo) as server, pytest.raises(Overtaken):
        transport.request("GET", server.url, "/", deadline=attempt)
    transport.close()
    assert attempt.remaining_s() == 0


def test_a_connection_that_was_given_back_is_no_longer_the_attempts() -> None:
    transport, attempt = Transport(quick_config()), Attempt(Deadline(WAIT_S))
    with serving(echo) as server:
        transport.request("PUT", server.url, "/", body=b"mine", deadline=attempt)
        attempt.end()
        assert transport.request("PUT", server.url, "/", body=b"other").body == b"other"
        assert server.num_connections == 1
    transport.close()


def test_a_node_that_sends_a_little_now_and_then_meets_the_deadline() -> None:
    clock = Clock()
    attempt = Attempt(Deadline(10.0, clock=clock))
    attempt.took(5)
    clock.sleep(10.0)
    with pytest.raises(DeadlineExceeded, match="after 8 bytes"):
        attempt.took(3)


def test_whoever_waits_for_a_node_on_this_host_wakes_up(tmp_path: Path) -> None:
    path, attempt, fake = str(tmp_path / "door"), Attempt(Deadline(WAIT_S)), FakeCluster()
    fake.sockets = {"node-0": path}
    colocated = Colocated(fake.cluster, quick_config())
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener, ThreadPoolExecutor(1) as pool:
        listener.bind(path)
        listener.listen(1)
        assert "node-0" in colocated.nodes()
        buffer = memoryview(bytearray(len(PAYLOAD)))
        read = pool.submit(colocated.read_into, "node-0", REF, buffer, deadline=attempt)
        asked, _ = listener.accept()
        with asked:
            assert asked.recv(4096)
            attempt.end()
            with pytest.raises(Overtaken):
                read.result(WAIT_S)
            assert asked.recv(4096) == b""
        # The way is not given up for it.
        assert "node-0" in colocated.nodes()
    colocated.close()
