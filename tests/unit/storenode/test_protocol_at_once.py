"""Small reads that are answered before there is a request, and what must not be taken for one."""

from __future__ import annotations

import asyncio

import pytest

from tests.support.line import HEAD, NEXT, READ, App, Line


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
        line = Line(app, timeout_keep_alive=1.0)
        clock = asyncio.get_running_loop().time
        for _ in range(4):
            await line.send(READ)
            await asyncio.sleep(0.3)
            assert not line.transport.is_closing()
        last_s = clock()
        await asyncio.wait_for(line.transport.was_closed.wait(), 10)
        return clock() - last_s

    assert asyncio.run(scenario()) > 0.05
    assert len(app.at_once) == 4
