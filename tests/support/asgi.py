"""Requests to an ASGI application without a server or a socket: what is sent when, and what comes back, as tests want it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote

from starlette.types import ASGIApp, Message

from client.errors import BodyTooLarge, TruncatedBody
from client.wire import EPOCH_HEADER
from storenode.protocol import RECEIVE_INTO, WHEN_GONE

__all__ = ["Answer", "ask", "call"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What an application sent.

    Attributes
    ----------
    status : int
        0 if it sent nothing.
    headers : dict
        Names in lower case.
    pieces : list of bytes
        The body as it was handed to the server.
    complete : bool
        Whether the response was ended; a server closes the connection in the middle otherwise.
    """

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    pieces: list[bytes] = field(default_factory=list)
    complete: bool = False

    @property
    def body(self) -> bytes:
        return b"".join(self.pieces)

    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> str:
        """The code of the problem that it is."""
        assert self.headers["content-type"] == "application/problem+json", self
        problem = self.json()
        assert problem["status"] == self.status, problem
        return str(problem["type"]).removeprefix("urn:forebay:error:")


async def ask(
    app: ASGIApp,
    method: str,
    path: str,
    *,
    headers: Mapping[str, str] | None = None,
    body: bytes | Iterable[bytes] = b"",
    announce: bool | int = True,
    vanish: bool = False,
    stall: bool = False,
    gone: asyncio.Event | None = None,
    waiting: asyncio.Event | None = None,
    leave: asyncio.Event | None = None,
) -> Answer:
    """Send a request and gather the response.

    Parameters
    ----------
    path : str
        As on the wire: quoted, with its query.
    body : bytes or iterable of bytes
        One message each.
    announce : bool or int
        Whether Content-Length is sent, or which.
    vanish : bool
        The client goes away instead of ending the body.
    stall : bool
        The client sends nothing more instead of ending the body.
    gone : asyncio.Event, optional
        The client goes away when it is set.
    waiting : asyncio.Event, optional
        Set when the application has received everything and waits for more.
    leave : asyncio.Event, optional
        When it is set the client goes away, after all that it had to send.
    """
    pieces = [body] if isinstance(body, bytes) else list(body)
    scope = _scope(method, path, headers=headers or {}, size=sum(map(len, pieces)), announce=announce)
    gone = gone or asyncio.Event()
    if vanish:
        gone.set()
    client = _Client(pieces, ends=not (vanish or stall), gone=gone, waiting=waiting)
    scope["extensions"] = {RECEIVE_INTO: client.receive_into, WHEN_GONE: client.then.append}
    async with _leaving(leave, client.then):
        await app(scope, client.receive, client.send)
    return client.answer(has_body=method != "HEAD")


def _scope(method: str, path: str, *, headers: Mapping[str, str], size: int, announce: bool | int) -> dict[str, Any]:
    # An epoch as any client gives it; routes that have nothing to do with chunks do not look at it.
    sent = {EPOCH_HEADER: "0", **{name.lower(): value for name, value in headers.items()}}
    if announce is not False and (size or announce is not True):
        sent["content-length"] = str(size if announce is True else announce)
    raw_path, _, query = path.partition("?")
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": unquote(raw_path),
        "raw_path": raw_path.encode(),
        "query_string": query.encode(),
        "root_path": "",
        "headers": [(name.encode(), value.encode("latin-1")) for name, value in sent.items()],
        "server": ("127.0.0.1", 7070),
        "client": ("127.0.0.1", 1),
    }


class _Client:
    """What the application sees of the client, and what it sent to it.

    Attributes
    ----------
    then : list of callable
        What the application wants to be told when the client goes away.
    """

    def __init__(self, pieces: Sequence[bytes], *, ends: bool, gone: asyncio.Event, waiting: asyncio.Event | None) -> None:
        self._coming: list[Message] = [
            {"type": "http.request", "body": piece, "more_body": not (ends and number == len(pieces) - 1)}
            for number, piece in enumerate(pieces)
        ]
        self._gone = gone
        self._waiting = waiting
        self._came: list[Message] = []
        self.then: list[Callable[[], None]] = []

    async def receive(self) -> Message:
        if self._coming:
            return self._coming.pop(0)
        if self._waiting is not None:
            self._waiting.set()
        await self._gone.wait()
        return {"type": "http.disconnect"}

    async def receive_into(self, view: memoryview, progress: Callable[[int], None]) -> None:
        filled, more = 0, True
        while more:
            message = await self.receive()
            if message["type"] == "http.disconnect":
                raise TruncatedBody("the client went away")
            piece, more = message["body"], message["more_body"]
            if filled + len(piece) > len(view):
                raise BodyTooLarge("the body is longer than announced")
            view[filled : filled + len(piece)] = piece
            filled += len(piece)
            progress(len(piece))
        if filled < len(view):
            raise TruncatedBody("the body ended early")

    async def send(self, message: Message) -> None:
        # What a server holds on to must not change later, so it is looked at only in the end.
        self._came.append(message)
        await asyncio.sleep(0)

    def answer(self, *, has_body: bool) -> Answer:
        if not self._came:
            return Answer()
        start, rest = self._came[0], self._came[1:]
        assert start["type"] == "http.response.start", start
        answer = Answer(
            status=start["status"],
            headers={name.decode(): value.decode("latin-1") for name, value in start["headers"]},
            pieces=[bytes(message.get("body", b"")) for message in rest],
            complete=bool(rest) and not rest[-1].get("more_body", False),
        )
        announced = answer.headers.get("content-length")
        if answer.complete and announced is not None and has_body:
            assert int(announced) == len(answer.body), "a server would refuse this"
        return answer


@asynccontextmanager
async def _leaving(leave: asyncio.Event | None, then: list[Callable[[], None]]) -> AsyncIterator[None]:
    async def tell() -> None:
        await (leave or asyncio.Event()).wait()
        then[0]()

    telling = asyncio.create_task(tell())
    try:
        yield
    finally:
        telling.cancel()


def call(app: ASGIApp, method: str, path: str, **options: Any) -> Answer:
    """`ask`, in an event loop of its own."""
    return asyncio.run(ask(app, method, path, **options))
