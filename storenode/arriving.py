"""A chunk's body on its way in, and who works on it meanwhile: hashing, writing and forwarding don't wait for its end.

The body lies in one buffer that is filled from the front. Each consumer asks for the part behind the one it has done and gets
all that has come by then, at least `PART_BYTES` or the end: one that is slower gets larger parts, and none ever holds a thread
while it waits for the client.

It belongs to the event loop.
"""

from __future__ import annotations

import asyncio

from starlette.types import Scope

from client.checksum import SEGMENT_BYTES
from client.errors import DeadlineExceeded, StoreError, TruncatedBody
from storenode.protocol import RECEIVE_INTO

__all__ = ["PART_BYTES", "Arriving", "receive"]

PART_BYTES = 1024 * 1024


class Arriving:
    """A body that is being received.

    Parameters
    ----------
    buffer : memoryview
        Of bytes, as long as the body.
    """

    def __init__(self, buffer: memoryview) -> None:
        self.buffer = buffer
        self._received = 0
        self._error: StoreError | None = None
        self._more = asyncio.Event()

    def __len__(self) -> int:
        return len(self.buffer)

    def received(self, size_bytes: int) -> None:
        """Note that so many bytes more have come."""
        before, self._received = self._received, self._received + size_bytes
        if self._received == len(self.buffer) or self._received // PART_BYTES > before // PART_BYTES:
            self._more.set()

    def fail(self, error: StoreError) -> None:
        """Note that the rest will not come."""
        self._error = error
        self._more.set()

    async def part(self, start: int) -> memoryview:
        """The bytes from `start` on that are there: whole segments, `PART_BYTES` or more, or all to the end.

        Raises what `fail` was given.
        """
        while True:
            if self._error is not None:
                raise self._error
            whole = self._received == len(self.buffer)
            end = self._received if whole else self._received - self._received % SEGMENT_BYTES
            if whole or end - start >= PART_BYTES:
                return self.buffer[start:end]
            self._more.clear()
            await self._more.wait()


async def receive(scope: Scope, arriving: Arriving, *, stall_timeout_s: float) -> None:
    """Receive the body of the request into `arriving`, and tell it of every failure.

    Raises
    ------
    TruncatedBody
        If the client goes away, ends the body early, or sends nothing for too long.
    """
    clock = asyncio.get_running_loop().time

    def progress(size_bytes: int) -> None:
        arriving.received(size_bytes)
        patience.reschedule(clock() + stall_timeout_s)

    try:
        # A client that stops sending without closing would hold its share of memory for ever.
        async with asyncio.timeout(stall_timeout_s) as patience:
            await scope["extensions"][RECEIVE_INTO](arriving.buffer, progress)
    except TimeoutError as exc:
        error = TruncatedBody(f"nothing came for {stall_timeout_s:g} s in the middle of the body")
        arriving.fail(error)
        raise error from exc
    except StoreError as error:
        arriving.fail(error)
        raise
    except asyncio.CancelledError:
        arriving.fail(DeadlineExceeded("the request was ended in the middle of its body; nothing was stored"))
        raise
