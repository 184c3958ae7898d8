"""A long body from the socket into the application's buffer, beside uvicorn's way, on a connection that goes on afterwards."""

from __future__ import annotations

import asyncio

import pytest
from starlette.types import Receive, Scope, Send

from client.errors import BodyTooLarge, TruncatedBody
from storenode.protocol import RECEIVE_INTO
from tests.support.line import BODY, HEAD, NEXT, App, Line, settled


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
