"""A long body from the socket into the application's buffer, beside uvicorn's way, on a connection that goes on afterwards."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import uvicorn
from starlette.types import Receive, Scope, Send
from uvicorn.server import ServerState

from client.errors import BodyTooLarge, TruncatedBody
from storenode.connections import Connections
from storenode.protocol import RECEIVE_INTO, WHEN_GONE, NodeProtocol

BODY = bytes(range(256)) * 8192  # 2 MiB
HEAD = b"PUT /x HTTP/1.1\r\nhost: a\r\ncontent-length: %d\r\n\r\n"
READ = b"GET /v1/records/b/k HTTP/1.1\r\nhost: a\r\n\r\n"
NEXT = b"GET /next HTTP/1.1\r\nhost: a\r\n\r\n"


class FakeSocket:
    def __init__(self) -> None:
        self.woken_at: list[int] = []

    def getsockname(self) -> tuple[str, int]:
        return ("127.0.0.1", 1)

    getpeername = getsockname

    def setsockopt(self, level: int, option: int, value: int) -> None:
        self.woken_at.append(value)


class FakeTransport(asyncio.Transport):
    """What the event loop gives a protocol: takes what is written, and knows whether reading is paused."""

    def __init__(self) -> None:
        super().__init__()
        self.written = bytearray()
        self.reading = True
        self.unsent = 0
        self.was_aborted = False
        self.was_closed = asyncio.Event()
        self.socket = FakeSocket()

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self.socket if name == "socket" else default

    def write(self, data: Any) -> None:
        self.written += data

    def writelines(self, list_of_data: Any) -> None:
        self.written += b"".join(list_of_data)

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True

    def is_closing(self) -> bool:
        return self.was_closed.is_set()

    def get_write_buffer_size(self) -> int:
        return self.unsent

    def close(self) -> None:
        self.was_closed.set()

    def abort(self) -> None:
        self.was_aborted = True


async def settled() -> None:
    """Until the application has done all that it can do by itself."""
    for _ in range(20):
        await asyncio.sleep(0)


class Line:
    """A connection whose other end the test holds."""

    def __init__(
        self,
        app: Callable[[Scope, Receive, Send], Awaitable[None]],
        *,
        connections: Connections | None = None,
        **settings: Any,
    ) -> None:
        config = uvicorn.Config(app, http="httptools", ws="none", lifespan="off", log_config=None, **settings)
        self.transport = FakeTransport()
        connections = connections or Connections(limit=10, patience_s=60.0, refusal=b"")
        self.protocol = NodeProtocol(config=config, server_state=ServerState(), app_state={}, connections=connections)
        self.protocol.connection_made(self.transport)

    async def send(self, data: bytes, *, at_once: int = 300_000) -> None:
        """Let bytes come as the event loop does: into the buffer that the protocol gives, and only while it reads."""
        while data:
            for _ in range(100):
                await asyncio.sleep(0)
                if self.transport.reading:
                    break
            assert self.transport.reading, f"nobody reads the last {len(data)} bytes"
            buffer = self.protocol.get_buffer(-1)
            count = min(len(buffer), len(data), at_once)
            buffer[:count] = data[:count]
            self.protocol.buffer_updated(count)
            data = data[count:]
        await settled()

    @property
    def answers(self) -> list[bytes]:
        return bytes(self.transport.written).split(b"HTTP/1.1 ")[1:]


class App:
    """Receives PUT bodies by the extension into a buffer of `size`, and answers with their length."""

    def __init__(self, size: int) -> None:
        self.buffer = bytearray(size)
        self.progress: list[int] = []
        self.paths: list[str] = []
        self.error: Exception | None = None
        self.gone: list[str] = []
        self.at_once: list[bytes] = []
        self.answers_reads = True
        self.may_answer = asyncio.Event()
        self.may_answer.set()

    def answer_now(self, request: bytes) -> list[bytes] | None:
        self.at_once.append(request)
        return [b"HTTP/1.1 200 ", b"at once"] if self.answers_reads else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.paths.append(scope["path"])
        scope["extensions"][WHEN_GONE](lambda: self.gone.append(scope["path"]))
        if scope["method"] == "PUT":
            try:
                await scope["extensions"][RECEIVE_INTO](memoryview(self.buffer), self.progress.append)
            except (TruncatedBody, BodyTooLarge) as error:
                self.error = error
        await self.may_answer.wait()
        text = str(sum(self.progress)).encode()
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(text))]})
        await send({"type": "http.response.body", "body": text})


@pytest.mark.parametrize("at_once", [1000, 65_536, 300_000, 1 << 30])
def test_a_body_fills_the_buffer_and_the_connection_goes_on(at_once: int) -> None:
    app = App(len(BODY))

    async def scenario() -> list[bytes]:
        line = Line(app)
        await line.send(HEAD % len(BODY) + BODY, at_once=at_once)
        await line.send(NEXT)
        return line.answers

    answers = asyncio.run(scenario())
    assert bytes(app.buffer) == BODY
    assert sum(app.progress) == len(BODY)
    assert (app.paths, len(answers)) == (["/x", "/next"], 2)
    assert answers[0].endswith(str(len(BODY)).encode())


def test_most_of_a_body_takes_the_short_way() -> None:
    app = App(len(BODY))

    async def scenario() -> None:
        line = Line(app)
        await line.send(HEAD % len(BODY) + BODY, at_once=1 << 30)

    asyncio.run(scenario())
    # What came with the head went through the parser; the rest came at once.
    assert len(app.progress) == 2
    assert app.progress[1] > len(BODY) - 300_000


def test_a_loop_is_woken_for_much_in_a_long_body_and_for_anything_at_its_end() -> None:
    app = App(len(BODY))

    async def scenario() -> list[int]:
        line = Line(app)
        await line.send(HEAD % len(BODY) + BODY)
        return line.transport.socket.woken_at

    woken_at = asyncio.run(scenario())
    assert woken_at[0] > 100_000
    assert woken_at[-1] == 1


def test_a_small_body_is_taken_from_what_the_parser_has() -> None:
    app = App(10)

    async def scenario() -> list[bytes]:
        line = Line(app)
        await line.send(HEAD % 10 + b"0123456789" + NEXT)
        return line.answers

    assert len(asyncio.run(scenario())) == 2
    assert (bytes(app.buffer), app.progress) == (b"0123456789", [10])


def test_a_client_that_asks_whether_to_go_on_is_told_so() -> None:
    app = App(len(BODY))

    async def scenario() -> bytes:
        line = Line(app)
        await line.send(b"PUT /x HTTP/1.1\r\nhost: a\r\ncontent-length: %d\r\nexpect: 100-continue\r\n\r\n" % len(BODY))
        told = bytes(line.transport.written)
        await line.send(BODY)
        return told

    assert asyncio.run(scenario()) == b"HTTP/1.1 100 Continue\r\n\r\n"
    assert bytes(app.buffer) == BODY


@pytest.mark.parametrize("sent", [0, 100_000, 600_000])
def test_a_client_that_goes_away_in_the_middle_is_noticed(sent: int) -> None:
    app = App(len(BODY))

    async def scenario() -> None:
        line = Line(app)
        await line.send(HEAD % len(BODY) + BODY[:sent])
        line.protocol.connection_lost(None)
        await settled()

    asyncio.run(scenario())
    assert isinstance(app.error, TruncatedBody)
    assert app.gone == []  # Once is enough.


@pytest.mark.parametrize(("size", "kind"), [(5, BodyTooLarge), (20, TruncatedBody)])
def test_a_body_that_is_not_as_long_as_the_buffer_is_an_error(size: int, kind: type[Exception]) -> None:
    app = App(size)

    async def scenario() -> None:
        line = Line(app)
        await line.send(HEAD % 10 + b"0123456789")

    asyncio.run(scenario())
    assert isinstance(app.error, kind)


def test_a_body_that_was_given_up_touches_the_buffer_no_more_and_ends_the_connection() -> None:
    buffer = bytearray(len(BODY))

    async def impatient(scope: Scope, receive: Receive, send: Send) -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await scope["extensions"][RECEIVE_INTO](memoryview(buffer), lambda size_bytes: None)
        await send({"type": "http.response.start", "status": 400, "headers": [(b"content-length", b"0")]})
        await send({"type": "http.response.body", "body": b""})

    async def scenario() -> tuple[Line, bytes]:
        line = Line(impatient)
        await line.send(HEAD % len(BODY) + BODY[:400_000])
        await asyncio.wait_for(line.transport.was_closed.wait(), 10)
        seen = bytes(buffer)
        line.protocol.get_buffer(-1)[:5] = b"later"
        return line, seen

    line, seen = asyncio.run(scenario())
    assert not line.transport.reading
    assert b"connection: close" in line.transport.written
    assert bytes(buffer) == seen


@pytest.mark.parametrize("then", ["the rest comes", "the client goes"])
def test_a_body_may_end_in_the_moment_in_which_it_is_given_up(then: str) -> None:
    app = App(len(BODY))

    async def scenario() -> None:
        line = Line(app)
        await line.send(HEAD % len(BODY) + BODY[:400_000])
        line.protocol._filled.cancel()
        if then == "the client goes":
            line.protocol.connection_lost(None)
        else:
            line.protocol.get_buffer(-1)[:] = BODY[400_000:]
            line.protocol.buffer_updated(len(BODY) - 400_000)
        for _ in range(20):
            await asyncio.sleep(0)

    asyncio.run(scenario())
    assert app.paths == ["/x"]


# --- answers at once


def test_a_read_is_answered_at_once_and_the_connection_goes_on() -> None:
    app = App(0)

    async def scenario() -> list[bytes]:
        line = Line(app)
        for _ in range(2):
            await line.send(READ)
            await line.send(NEXT)
        return line.answers

    answers = asyncio.run(scenario())
    assert [b"at once" in answer for answer in answers] == [True, False, True, False]
    assert app.at_once == [READ, READ]


def test_a_read_that_is_not_answered_at_once_goes_the_usual_way() -> None:
    app = App(0)
    app.answers_reads = False

    async def scenario() -> list[bytes]:
        line = Line(app)
        await line.send(READ)
        return line.answers

    assert len(asyncio.run(scenario())) == 1
    assert app.paths == ["/v1/records/b/k"]


def test_no_read_overtakes_a_request_under_way() -> None:
    app = App(0)

    async def scenario() -> list[bytes]:
        line = Line(app)
        app.may_answer.clear()
        await line.send(NEXT)
        line.protocol.get_buffer(-1)[: len(READ)] = READ
        line.protocol.buffer_updated(len(READ))
        app.may_answer.set()
        for _ in range(20):
            await asyncio.sleep(0)
        return line.answers

    assert len(asyncio.run(scenario())) == 2
    assert app.paths == ["/next", "/v1/records/b/k"]


@pytest.mark.parametrize("before", [b"GET /x HTTP/1.1\r\nhost: a\r\nx: ", HEAD % len(READ)])
def test_what_looks_like_a_read_in_the_middle_of_another_request_is_none(before: bytes) -> None:
    app = App(len(READ))

    async def scenario() -> None:
        line = Line(app)
        await line.send(before)
        await line.send(READ)

    asyncio.run(scenario())
    assert app.at_once == []


def test_a_client_that_does_not_take_its_answers_is_not_sent_more() -> None:
    app = App(0)

    async def scenario() -> None:
        line = Line(app)
        line.protocol.pause_writing()
        await line.send(READ)
        line.protocol.resume_writing()
        for _ in range(20):
            await asyncio.sleep(0)

    asyncio.run(scenario())
    assert app.at_once == []
    assert app.paths == ["/v1/records/b/k"]


def test_a_connection_is_closed_when_it_was_idle_for_long_enough_and_not_before() -> None:
    app = App(0)

    async def scenario() -> float:
        line = Line(app, timeout_keep_alive=0.2)
        clock = asyncio.get_running_loop().time
        for _ in range(4):
            await line.send(READ)
            await asyncio.sleep(0.1)
            assert not line.transport.is_closing()
        last_s = clock()
        await asyncio.wait_for(line.transport.was_closed.wait(), 10)
        return clock() - last_s

    assert asyncio.run(scenario()) > 0.05
    assert len(app.at_once) == 4


# --- clients that leave, and room for connections


class Waiting:
    """An application that answers when it is told to, and notes whose client has gone."""

    def __init__(self) -> None:
        self.gone: list[str] = []
        self.answer = asyncio.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope["extensions"][WHEN_GONE](lambda: self.gone.append(scope["path"]))
        await self.answer.wait()
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
        await send({"type": "http.response.body", "body": b""})


@pytest.mark.parametrize(("answered", "told"), [(False, ["/next"]), (True, [])])
def test_an_application_is_told_of_a_client_that_left_before_its_answer(answered: bool, told: list[str]) -> None:
    async def scenario() -> list[str]:
        app = Waiting()
        line = Line(app)
        await line.send(NEXT)
        if answered:
            app.answer.set()
            await settled()
        line.protocol.connection_lost(None)
        return app.gone

    assert asyncio.run(scenario()) == told


def test_an_application_whose_client_sent_more_requests_is_told_of_the_first_and_sends_nothing_more() -> None:
    async def scenario() -> tuple[list[str], bytes]:
        app = Waiting()
        line = Line(app)
        await line.send(NEXT + NEXT.replace(b"next", b"later"))
        line.protocol.connection_lost(None)
        app.answer.set()
        await settled()
        return app.gone, bytes(line.transport.written)

    assert asyncio.run(scenario()) == (["/next"], b"")


def test_an_application_whose_client_left_before_it_was_called_is_told_at_once() -> None:
    async def scenario() -> list[str]:
        app = Waiting()
        line = Line(app)
        line.protocol.get_buffer(-1)[: len(NEXT)] = NEXT
        line.protocol.buffer_updated(len(NEXT))
        line.protocol.connection_lost(None)
        await settled()
        return app.gone

    assert asyncio.run(scenario()) == ["/next"]


def test_a_connection_for_which_there_is_no_room_is_told_so_and_closed() -> None:
    async def scenario() -> tuple[bytes, bool, Line]:
        connections = Connections(limit=1, patience_s=60.0, refusal=b"HTTP/1.1 503 full\r\n\r\n")
        first = Line(Waiting(), connections=connections)
        await first.send(NEXT)
        refused = Line(Waiting(), connections=connections)
        refused.protocol.connection_lost(None)
        first.protocol.connection_lost(None)
        return bytes(refused.transport.written), refused.transport.is_closing(), Line(Waiting(), connections=connections)

    written, closed, third = asyncio.run(scenario())
    assert (written, closed) == (b"HTTP/1.1 503 full\r\n\r\n", True)
    assert not third.transport.is_closing()


def test_a_connection_is_idle_between_its_requests() -> None:
    async def scenario() -> list[bool]:
        app = Waiting()
        line = Line(app)
        seen = [line.protocol.is_idle()]
        await line.send(NEXT)
        seen.append(line.protocol.is_idle())
        app.answer.set()
        await settled()
        return [*seen, line.protocol.is_idle()]

    assert asyncio.run(scenario()) == [True, False, True]


@pytest.mark.parametrize("what", ["a request", "an answer", "room to write"])
def test_whatever_moves_is_noted(what: str) -> None:
    async def scenario() -> bool:
        app = Waiting()
        line = Line(app)
        if what == "an answer":
            await line.send(NEXT)
        line.protocol.moved_s = 0.0
        if what == "a request":
            await line.send(NEXT)
        elif what == "an answer":
            app.answer.set()
            await settled()
        else:
            line.protocol.resume_writing()
        return line.protocol.moved_s > 0.0

    assert asyncio.run(scenario())


def test_a_client_that_takes_nothing_loses_its_connection_at_once() -> None:
    async def scenario() -> bool:
        line = Line(Waiting(), connections=Connections(limit=1, patience_s=0.04, refusal=b""))
        line.transport.unsent = 5
        async with asyncio.timeout(10):
            while not line.transport.was_aborted:  # noqa: ASYNC110 - the transport only notes it
                await asyncio.sleep(0.001)
        return line.transport.is_closing()

    assert not asyncio.run(scenario())  # Closing would wait for the client.
