"""A body that is worked on while it comes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from client.checksum import SEGMENT_BYTES
from client.errors import DiskFailed, StoreError, TruncatedBody
from storenode.arriving import PART_BYTES, Arriving, receive
from storenode.protocol import RECEIVE_INTO

SIZE = 3 * PART_BYTES + 1000


async def settled() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


def test_a_part_is_given_once_there_is_enough_of_whole_segments() -> None:
    async def scenario() -> None:
        arriving = Arriving(memoryview(bytearray(SIZE)))
        first = asyncio.create_task(arriving.part(0))
        arriving.received(PART_BYTES - 1)
        await settled()
        assert not first.done()
        arriving.received(SEGMENT_BYTES + 7)
        assert len(await first) == PART_BYTES + SEGMENT_BYTES
        # Who comes later gets all that is there by then.
        arriving.received(PART_BYTES)
        assert len(await arriving.part(0)) == 2 * PART_BYTES + SEGMENT_BYTES
        arriving.received(SIZE - 2 * PART_BYTES - SEGMENT_BYTES - 6)
        assert len(await arriving.part(PART_BYTES)) == SIZE - PART_BYTES

    asyncio.run(scenario())


def test_several_consumers_each_get_every_byte() -> None:
    payload = bytes(range(256)) * (SIZE // 256 + 1)

    async def consume(arriving: Arriving) -> bytes:
        taken = b""
        while len(taken) < SIZE:
            taken += await arriving.part(len(taken))
        return taken

    async def scenario() -> list[bytes]:
        arriving = Arriving(memoryview(bytearray(SIZE)))
        tasks = [asyncio.create_task(consume(arriving)) for _ in range(3)]
        for start in range(0, SIZE, 300_000):
            piece = payload[start : min(start + 300_000, SIZE)]
            arriving.buffer[start : start + len(piece)] = piece
            arriving.received(len(piece))
            await settled()
        return list(await asyncio.gather(*tasks))

    assert asyncio.run(scenario()) == [payload[:SIZE]] * 3


def test_everybody_is_told_that_the_rest_will_not_come() -> None:
    async def scenario() -> list[Any]:
        arriving = Arriving(memoryview(bytearray(SIZE)))
        tasks = [asyncio.create_task(arriving.part(start)) for start in (0, PART_BYTES)]
        await settled()
        arriving.fail(DiskFailed("x"))
        return await asyncio.gather(*tasks, arriving.part(0), return_exceptions=True)

    assert [type(outcome) for outcome in asyncio.run(scenario())] == [DiskFailed] * 3


def scope_of(come: Callable[[memoryview, Callable[[int], None]], Any]) -> dict[str, Any]:
    return {"extensions": {RECEIVE_INTO: come}}


def test_a_slow_client_is_waited_for_as_long_as_something_comes() -> None:
    async def drip(view: memoryview, progress: Callable[[int], None]) -> None:
        for _ in range(6):
            await asyncio.sleep(0.02)
            progress(1)

    async def scenario() -> bytes:
        arriving = Arriving(memoryview(bytearray(6)))
        await receive(scope_of(drip), arriving, stall_timeout_s=0.08)
        return bytes(await arriving.part(0))

    assert asyncio.run(scenario()) == bytes(6)


@pytest.mark.parametrize("how", ["stalls", "breaks off"])
def test_a_body_that_does_not_come_fails_for_all(how: str) -> None:
    async def come(view: memoryview, progress: Callable[[int], None]) -> None:
        progress(1)
        if how == "breaks off":
            raise TruncatedBody("gone")
        await asyncio.Event().wait()

    async def scenario() -> StoreError:
        arriving = Arriving(memoryview(bytearray(6)))
        with pytest.raises(TruncatedBody) as caught:
            await receive(scope_of(come), arriving, stall_timeout_s=0.02)
        with pytest.raises(TruncatedBody):
            await arriving.part(0)
        return caught.value

    assert ("nothing came" in asyncio.run(scenario()).message) == (how == "stalls")


def test_a_request_that_is_ended_leaves_nobody_waiting() -> None:
    async def never(view: memoryview, progress: Callable[[int], None]) -> None:
        await asyncio.Event().wait()

    async def scenario() -> None:
        arriving = Arriving(memoryview(bytearray(6)))
        task = asyncio.create_task(receive(scope_of(never), arriving, stall_timeout_s=60.0))
        await settled()
        task.cancel()
        with pytest.raises(StoreError, match="was ended"):
            await arriving.part(0)

    asyncio.run(scenario())
