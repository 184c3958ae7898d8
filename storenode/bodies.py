"""Bodies of requests and responses as ASGI messages: bounded, and given up when the other side falls silent.

A body that ends early is `TruncatedBody`, whether it was cut off or the client went away. A response that can't be completed
raises `ResponseAborted`: nothing more is sent, so the server closes the connection, and the client sees that bytes are
missing.
"""

from __future__ import annotations

import asyncio

from starlette.types import Receive, Send
from typing_extensions import Buffer

from client.errors import BodyTooLarge, TruncatedBody

__all__ = ["BodyReceiver", "BodySender", "ResponseAborted"]

# What one message to the server holds. Larger ones would wait in its buffer, smaller ones cost time.
_SENT_AT_ONCE = 1024 * 1024
_RECEIVED_AT_ONCE = 1024 * 1024


class ResponseAborted(Exception):
    """The response has begun and can't be completed; the message is for the log."""


class BodyReceiver:
    """The body of a request, piece by piece.

    Parameters
    ----------
    receive : callable
        Of the ASGI request.
    stall_timeout_s : float
        How long the client may send nothing.

    Attributes
    ----------
    received_bytes : int
        How much came so far.
    """

    def __init__(self, receive: Receive, *, stall_timeout_s: float) -> None:
        self._receive = receive
        self._stall_timeout_s = stall_timeout_s
        self._more = True
        self.received_bytes = 0

    async def piece(self) -> bytes | None:
        """The next bytes, perhaps none; None at the end.

        Raises
        ------
        TruncatedBody
            If the client goes away or stops sending in the middle.
        """
        if not self._more:
            return None
        try:
            # A client that stops sending without closing would hold its share of memory for ever.
            async with asyncio.timeout(self._stall_timeout_s):
                message = await self._receive()
        except TimeoutError as exc:
            raise TruncatedBody(f"nothing came for {self._stall_timeout_s:g} s in the middle of the body") from exc
        if message["type"] == "http.disconnect":
            raise TruncatedBody("the client went away in the middle of the body; nothing was stored")
        self._more = message.get("more_body", False)
        body: bytes = message.get("body", b"")
        self.received_bytes += len(body)
        return body

    async def large_piece(self) -> bytearray | None:
        """The next mebibyte or so; None at the end. Raises `TruncatedBody`."""
        gathered = bytearray()
        while len(gathered) < _RECEIVED_AT_ONCE and (piece := await self.piece()) is not None:
            gathered += piece
        return gathered or None

    async def whole(self, *, max_bytes: int) -> bytes:
        """All of a body of at most `max_bytes`. Raises `BodyTooLarge`, `TruncatedBody`."""
        body = bytearray()
        while (piece := await self.piece()) is not None:
            body += piece
            if len(body) > max_bytes:
                raise BodyTooLarge(f"the body is longer than {max_bytes} bytes, the limit for this request")
        return bytes(body)


class BodySender:
    """Sends the body of a response that has begun.

    Parameters
    ----------
    send : callable
        Of the ASGI request.
    stall_timeout_s : float
        How long the client may take for one piece.
    """

    def __init__(self, send: Send, *, stall_timeout_s: float) -> None:
        self._send = send
        self._stall_timeout_s = stall_timeout_s

    async def piece(self, data: Buffer) -> None:
        """Send bytes, which must not change afterwards: the server may hold on to them without copying.

        Raises
        ------
        ResponseAborted
            If the client takes none of them for too long.
        """
        view = memoryview(data)
        for start in range(0, len(view), _SENT_AT_ONCE):
            try:
                # Waits while the server's buffer is full. A client that stops reading would otherwise hold a file's map or
                # a reader's chunks for ever.
                async with asyncio.timeout(self._stall_timeout_s):
                    await self._send(_body(view[start : start + _SENT_AT_ONCE], more=True))
            except TimeoutError as exc:
                raise ResponseAborted(f"the client took nothing for {self._stall_timeout_s:g} s") from exc

    async def end(self) -> None:
        """Complete the response."""
        await self._send(_body(b"", more=False))


def _body(data: bytes | memoryview, *, more: bool) -> dict[str, object]:
    return {"type": "http.response.body", "body": data, "more_body": more}
