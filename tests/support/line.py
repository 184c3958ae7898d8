"""A connection to a node whose other end a test holds: the real protocol, with no socket and no server."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import uvicorn
from starlette.types import Receive, Scope, Send
from uvicorn.server import ServerState

from client.errors import BodyTooLarge, TruncatedBody
from storenode.connections import Connections
from storenode.protocol import RECEIVE_INTO, WHEN_GONE, NodeProtocol

__all__ = ["BODY", "HEAD", "NEXT", "READ", "App", "Line", "settled"]

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
