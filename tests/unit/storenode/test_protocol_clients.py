"""Clients that leave, that take nothing, and that are too many."""

from __future__ import annotations

import asyncio

import pytest
from starlette.types import Receive, Scope, Send

from storenode.connections import Connections
from storenode.protocol import WHEN_GONE
from tests.support.line import NEXT, Line, settled


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
