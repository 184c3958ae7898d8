"""One request and its response as they pass by, and what ends it before its answer: its client left, or has no more time.

Theory of operation
-------------------
Every route awaits whatever takes long: a thread's call, the next bytes, a client that takes none. So a request is ended in one
way for all, by cancelling its task. Calls that wait for a thread are dropped then, those that have begun are not followed by
another, and what was held is given back as for any error. What is durable by then stays so; nobody is told of it.

That the client left is told by the connection (`storenode.protocol`). When its time is over is looked at for all requests
together every `LOOK_S`, because a timer for each would cost as much as the rest of a small read's way through here.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from starlette.datastructures import Headers
from starlette.types import Message, Receive, Scope, Send

from client.errors import DeadlineExceeded, InvalidRequest, StoreError
from client.retry import Deadline
from client.wire import PROTOCOL, PROTOCOL_HEADER, TIMEOUT_HEADER, check_protocol
from storenode.bodies import ResponseAborted
from storenode.protocol import WHEN_GONE

__all__ = ["DEADLINE", "Deadlines", "Exchange"]

DEADLINE = "forebay.deadline"  # In the scope of a request whose client named its time: a `client.retry.Deadline`.
LOOK_S = 0.05
# The rest of a body that was refused is received and dropped up to this length, because a client that sends all before it
# reads would otherwise never see the answer.
_DROPPED_BYTES = 256 * 1024 * 1024
_CLIENT_LEFT = 499  # Nobody receives it; it is how such requests are counted, as with other servers.
_PROTOCOL = (PROTOCOL_HEADER.encode(), str(PROTOCOL).encode())
_PROTOCOL_NAME, _TIMEOUT_NAME = PROTOCOL_HEADER.encode(), TIMEOUT_HEADER.encode()
_MAX_TIMEOUT_DIGITS = 12


@dataclass(slots=True, eq=False)
class Exchange:
    """One request and its response.

    Attributes
    ----------
    ended : Exception or None
        Why it was ended before its answer.
    """

    scope: Scope
    _receive: Receive
    _send: Send
    status: int = 0
    received_bytes: int = 0
    sent_bytes: int = 0
    began_s: float = field(default_factory=time.monotonic)
    ended: StoreError | ResponseAborted | None = None
    _task: asyncio.Task[object] | None = field(default_factory=asyncio.current_task)
    _received_all: bool = False

    def begin(self, deadlines: Deadlines) -> None:
        """Look at what the client says of itself, and listen for that it leaves.

        Raises
        ------
        ProtocolMismatch, InvalidRequest
            If it speaks another protocol.
        DeadlineExceeded
            If it has no time left.
        """
        when_gone: Callable[[Callable[[], None]], None] | None = self.scope.get("extensions", {}).get(WHEN_GONE)
        if when_gone is not None:
            when_gone(self._client_left)
        version = timeout = None
        for name, value in self.scope["headers"]:
            if name == _PROTOCOL_NAME:
                version = value.decode("latin-1")
            elif name == _TIMEOUT_NAME:
                timeout = value
        check_protocol(version)
        if timeout is not None:
            if not timeout.isdigit() or len(timeout) > _MAX_TIMEOUT_DIGITS:
                raise InvalidRequest(f"{TIMEOUT_HEADER}: {timeout[:40]!r}: expected a number of milliseconds")
            timeout_s = int(timeout) / 1000
            if not timeout_s:
                raise DeadlineExceeded("the client had no time left for this request; nothing was begun")
            self.scope[DEADLINE] = Deadline(timeout_s)
            deadlines.add(self, timeout_s=timeout_s)

    def end(self, reason: StoreError | ResponseAborted) -> None:
        """Cancel what is done for it."""
        if self.ended is None:
            self.ended = reason
            assert self._task is not None
            self._task.cancel()

    async def receive(self) -> Message:
        """See ASGI."""
        message = await self._receive()
        if message["type"] == "http.request":
            self.received_bytes += len(message.get("body", b""))
            self._received_all = not message.get("more_body", False)
        return message

    async def send(self, message: Message) -> None:
        """See ASGI."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = [*message.get("headers", ()), _PROTOCOL]
            if self.status >= 400 and self._has_too_much_left():
                headers.append((b"connection", b"close"))
            message = {**message, "headers": headers}
        else:
            self.sent_bytes += len(message.get("body", b""))
        await self._send(message)

    def _client_left(self) -> None:
        self.status = self.status or _CLIENT_LEFT
        self.end(ResponseAborted("the client went away"))

    def _has_too_much_left(self) -> bool:
        """Whether more of the body may be on its way than is worth receiving."""
        headers = Headers(scope=self.scope)
        if self._received_all:
            return False
        announced = headers.get("content-length", "0")
        return "transfer-encoding" in headers or not announced.isdecimal() or int(announced) > _DROPPED_BYTES


class Deadlines:
    """Ends requests whose client has no more time. It belongs to the event loop."""

    def __init__(self) -> None:
        self._end_s: dict[Exchange, float] = {}
        self._loop: asyncio.AbstractEventLoop | None = None  # The one in which the next look is due.

    def add(self, exchange: Exchange, *, timeout_s: float) -> None:
        """End `exchange` when so much time has passed since it began, unless it is removed before."""
        self._end_s[exchange] = exchange.began_s + timeout_s
        loop = asyncio.get_running_loop()
        if self._loop is not loop:
            self._loop = loop
            loop.call_later(LOOK_S, self._look)

    def remove(self, exchange: Exchange) -> None:
        """Forget a request that is over."""
        self._end_s.pop(exchange, None)

    def _look(self) -> None:
        now_s = time.monotonic()
        for exchange, end_s in self._end_s.items():
            if end_s <= now_s:
                given_s = end_s - exchange.began_s
                exchange.end(DeadlineExceeded(f"it was not done within the {given_s:.3g} s that the client had left"))
        if self._end_s:
            asyncio.get_running_loop().call_later(LOOK_S, self._look)
        else:
            self._loop = None
