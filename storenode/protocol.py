"""HTTP on a connection: uvicorn's, and beside it two shorter ways, for long bodies that come and for small answers.

Through uvicorn alone the bytes of a body are copied five times on their way (out of the event loop's buffer, through the
parser, into the request's buffer, into a message, into the application's buffer), in pieces of 64 KiB that each pass through
Python. A chunk is 8 MiB. So the application may ask for the rest of a body by the extension `RECEIVE_INTO` of its ASGI scope:

    await scope["extensions"][RECEIVE_INTO](view, progress)

fills `view`, which must be as long as the body, and calls ``progress(size_bytes)`` whenever that many bytes more have come. Of
a body that ends early it raises `TruncatedBody`. Messages and the extension don't mix: of one request, one or the other.

A small read that needs no waiting takes no request, task or response at all: the application's `answer_now` is given the bytes
as they came and gives those to send. Whatever else comes goes uvicorn's way.

The parser sees the head of a long body's request and no more. It is replaced by a fresh one at the end of the body, of which
the length was announced, so that nothing behind it was read.

And because uvicorn takes and drops what is sent to a client that has gone, an application can ask to be told, by `WHEN_GONE`:

    scope["extensions"][WHEN_GONE](then)

calls ``then()`` if the client goes away before the response is complete. In the middle of a body that is received by the
other extension, `TruncatedBody` tells it instead.
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar, cast

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from client.errors import BodyTooLarge, TruncatedBody
from storenode.connections import Connections

__all__ = ["RECEIVE_INTO", "WHEN_GONE", "NodeProtocol"]

RECEIVE_INTO = "forebay.receive_into"
WHEN_GONE = "forebay.when_gone"
_SCRATCH_BYTES = 256 * 1024
_WOKEN_AT_BYTES = 512 * 1024
_HELD_BYTES = 16 * 1024
_READ = b"GET /v1/"


class NodeProtocol(asyncio.BufferedProtocol):
    """One connection, a `storenode.connections.Line`. Made by uvicorn, as its ``http`` implementation.

    Parameters
    ----------
    connections : Connections
        All of the node's.
    args
        From uvicorn.
    """

    # What is received outside of long bodies is handed on before the next read, so all connections of the loop share it.
    _scratch: ClassVar[memoryview] = memoryview(bytearray(_SCRATCH_BYTES))

    def __init__(self, *args: Any, connections: Connections, **kwargs: Any) -> None:
        self._connections = connections
        self.moved_s = 0.0
        self._http = _Http(self._receive_into, self._moved, *args, **kwargs)
        self._transport: asyncio.Transport
        self._rest: memoryview | None = None  # What is missing of a body that is being received into a buffer.
        self._progress: Callable[[int], None]
        self._filled: asyncio.Future[None]
        self._woken_at = 1

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See `asyncio.BaseProtocol`."""
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is one without being of the class.
        self._http.connection_made(cast(asyncio.Transport, _Corked(self._transport)))
        if not self._connections.opened(self):
            self._transport.write(self._connections.refusal)
            self._transport.close()

    def num_unsent_bytes(self) -> int:
        """See `Line`."""
        return self._transport.get_write_buffer_size()

    def is_idle(self) -> bool:
        """See `Line`."""
        return self._http.cycle is None or self._http.cycle.response_complete

    def cut_off(self) -> None:
        """See `Line`."""
        self._transport.abort()

    def _moved(self) -> None:
        self.moved_s = time.monotonic()

    def get_buffer(self, sizehint: int) -> memoryview:
        """Where the next bytes go."""
        return self._scratch if self._rest is None else self._rest

    def buffer_updated(self, nbytes: int) -> None:
        """Hand on what has come."""
        if self._rest is None:
            data = bytes(self._scratch[:nbytes])
            if not (data.startswith(_READ) and self._http.is_between_requests and self._answer_now(data)):
                self._http.data_received(data)
            return
        self._rest = self._rest[nbytes:]
        self._wake_at(_WOKEN_AT_BYTES if len(self._rest) >= 2 * _WOKEN_AT_BYTES else 1)
        self._progress(nbytes)
        if not self._rest:
            self._rest = None
            self._http.body_was_taken()
            if not self._filled.done():  # It may have been given up a moment ago.
                self._filled.set_result(None)

    def _answer_now(self, request: bytes) -> bool:
        answer = self._http.config.app.answer_now(request)  # type: ignore[union-attr]
        if answer is None:
            return False
        self._transport.writelines(answer)
        self._moved()
        self._http.was_active()
        return True

    def eof_received(self) -> None:
        """The client has sent its last byte; the connection is closed."""

    def connection_lost(self, exc: Exception | None) -> None:
        """See `asyncio.BaseProtocol`."""
        self._connections.closed(self)
        was_receiving = self._rest is not None
        if was_receiving:
            self._rest = None
            if not self._filled.done():
                self._filled.set_exception(TruncatedBody("the client went away in the middle of the body; nothing was stored"))
        self._http.connection_lost(exc)
        if not was_receiving:
            self._http.tell_gone()

    def pause_writing(self) -> None:
        """See `asyncio.BaseProtocol`."""
        self._http.pause_writing()

    def resume_writing(self) -> None:
        """See `asyncio.BaseProtocol`."""
        self._moved()
        self._http.resume_writing()

    async def _receive_into(self, cycle: RequestResponseCycle, view: memoryview, progress: Callable[[int], None]) -> None:
        if cycle.waiting_for_100_continue:
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            cycle.waiting_for_100_continue = False
        had = len(cycle.body)
        if had > len(view):
            raise BodyTooLarge(f"the body is longer than the {len(view)} bytes that were announced")
        view[:had], cycle.body = cycle.body, bytearray()
        if had:
            progress(had)
        if cycle.disconnected or (not cycle.more_body and had < len(view)):
            raise TruncatedBody(f"{len(view)} bytes were announced, {had} came; nothing was stored")
        if not cycle.more_body:
            return
        self._rest, self._progress = view[had:], progress
        if len(self._rest) >= 2 * _WOKEN_AT_BYTES:
            self._wake_at(_WOKEN_AT_BYTES)
        self._filled = asyncio.get_running_loop().create_future()
        self._http.flow.resume_reading()
        try:
            await self._filled
        finally:
            if self._rest is not None:
                # Given up. What the client still sends must not go on into a buffer that others have by now.
                self._rest = None
                self._http.give_up()

    def _wake_at(self, size_bytes: int) -> None:
        """Have the loop woken for so many bytes; for each packet it would spend more on waking up than on receiving."""
        if size_bytes != self._woken_at:
            self._woken_at = size_bytes
            self._transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, size_bytes)


class _Corked:
    """A transport that sends the head of a response together with what follows: each segment by itself wakes the client.

    What is written first is held until more is written, at most until the event loop's next turn.
    """

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._loop = asyncio.get_running_loop()
        self._held: bytes | None = None
        # Not looked up through here each time.
        self.pause_reading, self.resume_reading = transport.pause_reading, transport.resume_reading
        self.is_closing, self.get_extra_info = transport.is_closing, transport.get_extra_info

    def write(self, data: bytes | memoryview) -> None:
        """Send `data`, perhaps a little later."""
        held, self._held = self._held, None
        if held is not None:
            self._transport.writelines([held, data])
        elif isinstance(data, bytes) and len(data) <= _HELD_BYTES:
            self._held = data
            self._loop.call_soon(self._flush)
        else:
            self._transport.write(data)

    def close(self) -> None:
        """Close the connection when all is sent."""
        self._flush()
        self._transport.close()

    def _flush(self) -> None:
        held, self._held = self._held, None
        if held is not None:
            self._transport.write(held)


class _Http(HttpToolsProtocol):
    """uvicorn's protocol, which offers applications our extensions, and tells of requests that begin and end."""

    def __init__(self, receive_into: Callable[..., Any], moved: Callable[[], None], *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._receive_into = receive_into
        self._moved = moved
        self._served: RequestResponseCycle | None = None  # The one whose application asked to be told.
        self._then: Callable[[], None]
        self._is_in_message = False
        self._active_s = 0.0

    @property
    def is_between_requests(self) -> bool:
        """Whether the next byte begins a request, and its response may be written at once."""
        return not self._is_in_message and (self.cycle is None or self.cycle.response_complete) and not self.flow.write_paused

    def was_active(self) -> None:
        """Note that a request was answered past this protocol."""
        self._active_s = self.loop.time()
        if self.timeout_keep_alive_task is None:
            self.timeout_keep_alive_handler()

    def timeout_keep_alive_handler(self) -> None:
        """Close a connection that has been idle for long enough; otherwise look again when it could be."""
        left_s = self._active_s + self.timeout_keep_alive - self.loop.time()
        if left_s <= 0:
            super().timeout_keep_alive_handler()
        else:
            self.timeout_keep_alive_task = self.loop.call_later(left_s, self.timeout_keep_alive_handler)

    def on_message_begin(self) -> None:
        """Begin a request's head."""
        self._is_in_message = True
        super().on_message_begin()

    def on_message_complete(self) -> None:
        """End a request."""
        self._is_in_message = False
        super().on_message_complete()

    def on_headers_complete(self) -> None:
        """Begin a request."""
        super().on_headers_complete()
        self._moved()
        # Of this very request: by the time the application asks, the parser may be at the next one.
        extensions: Any = {
            RECEIVE_INTO: partial(self._receive_into, self.cycle),
            WHEN_GONE: partial(self._when_gone, self.cycle),
        }
        self.scope["extensions"] = extensions

    def on_response_complete(self) -> None:
        """End it."""
        self._moved()
        self._served = None
        super().on_response_complete()

    def _when_gone(self, cycle: RequestResponseCycle, then: Callable[[], None]) -> None:
        self._served, self._then = cycle, then
        if cycle.disconnected:
            self.tell_gone()

    def tell_gone(self) -> None:
        """Tell the application of the present request that its client has gone."""
        cycle, self._served = self._served, None
        if cycle is not None:
            cycle.disconnected = True  # uvicorn says so only of the request that came last.
            self._then()

    def body_was_taken(self) -> None:
        """Go on behind the body that the parser has not seen."""
        self.parser = httptools.HttpRequestParser(self)
        self._is_in_message = False
        self.cycle.more_body = False

    def give_up(self) -> None:
        """Close the connection once the present request is answered: where the next one begins is not known."""
        cycle: RequestResponseCycle = self.cycle
        cycle.keep_alive = False
        self.flow.pause_reading()
