"""The one blocking HTTP transport: kept-alive connections, bodies received into the caller's buffers.

It speaks HTTP through `client.http1` over the connections that `client.connections` keeps, and turns faults and error responses
into `StoreError`s. It knows nothing of chunks, names or retries.

A connection is kept only after an exchange that both sides have completed: the whole request sent, the whole answer read.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import TypeAlias, TypeVar

from typing_extensions import Buffer

from client.config import ClientConfig
from client.connections import Connections
from client.errors import BodyTooLarge, DeadlineExceeded, EndpointUnreachable, StoreError, TruncatedBody
from client.http1 import Answer, Connection
from client.process import HomeProcess
from client.retry import NEVER, Deadline
from client.wire import PROTOCOL, PROTOCOL_HEADER, TIMEOUT_HEADER, check_protocol, error_of

__all__ = ["Into", "Response", "Sending", "Transport"]

T = TypeVar("T")
Into: TypeAlias = memoryview | Callable[[Mapping[str, str], int], memoryview | None]

_MAX_ERROR_BYTES = 64 * 1024
_MAX_ANSWER_BYTES = 256 * 1024 * 1024  # More than the largest chunk, and than any document.
_EARLY_ANSWER_S = 0.05  # An answer that made sending fail is here already.
_SHORTEST_TIMEOUT_S = 0.001  # To a socket 0 means not to wait at all, which is another mode.


@dataclass(frozen=True, slots=True, kw_only=True)
class Response:
    """A successful answer.

    Attributes
    ----------
    headers : mapping
        Names in lower case.
    body : bytes
        Empty if it was received into the caller's buffer.
    size : int
        Bytes of the body.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes
    size: int


class Transport:
    """Sends requests over a pool of connections per endpoint. Thread-safe.

    Parameters
    ----------
    config : ClientConfig
        Timeouts, the token and the bounds on connections.
    token : callable, optional
        Gives the token for a request instead, for who makes its own.

    Attributes
    ----------
    connections : Connections
        To all endpoints.
    """

    def __init__(self, config: ClientConfig, *, token: Callable[[], str] | None = None) -> None:
        self._config = config
        self._token: Callable[[], str | None] = token or (lambda: config.token)
        self._home = HomeProcess()
        self.connections = Connections(max_open=config.max_connections, max_idle=config.max_idle_connections)

    def request(
        self,
        method: str,
        url: str,
        path: str,
        *,
        headers: Mapping[str, str] | None = None,
        body: Buffer | None = None,
        into: Into | None = None,
        seen: Callable[[memoryview], object] | None = None,
        timeout_s: float | None = None,
        deadline: Deadline | None = None,
        node_id: str = "",
    ) -> Response:
        """Send one request and receive its whole answer.

        Parameters
        ----------
        url : str
            Address of a node, ``http://host:port``.
        path : str
            Path and query, already quoted.
        into : memoryview or callable, optional
            Of bytes. Receives the body of a successful answer, which must have exactly this length. A function is given the
            answer's headers and the length of its body, and gives the buffer, or None to have the body as a whole.
        seen : callable, optional
            Is given each part of `into` once, in order, as soon as it has come: a checksum taken meanwhile costs no time.
        timeout_s : float, optional
            Longest silence of the node; the configured ``read_timeout_s`` if not given.
        deadline : Deadline, optional
            Makes that shorter when there is less time left, and is passed on: the node does not work for longer either.
        node_id : str
            Named in errors; the URL if not given.

        Raises
        ------
        EndpointUnreachable
            No connection, or it broke.
        DeadlineExceeded
            The node was silent for too long.
        TruncatedBody
            The answer does not have the length of `into`.
        StoreError
            What the node's problem document says.
        """
        view = None if body is None else memoryview(body).cast("B")
        size_bytes = None if view is None else len(view)
        with self.begin(
            method,
            url,
            path,
            headers=headers,
            size_bytes=size_bytes,
            timeout_s=timeout_s,
            deadline=deadline,
            node_id=node_id,
        ) as sending:
            if view is not None:
                sending.send(view)
            return sending.finish(into=into, seen=seen)

    def begin(
        self,
        method: str,
        url: str,
        path: str,
        *,
        headers: Mapping[str, str] | None = None,
        size_bytes: int | None,
        timeout_s: float | None = None,
        deadline: Deadline | None = None,
        node_id: str = "",
    ) -> Sending:
        """A request whose body, of `size_bytes`, is sent part by part; the other parameters are those of `request`."""
        self._home.check()
        sent = {PROTOCOL_HEADER: str(PROTOCOL), **(headers or {})}
        if token := self._token():
            sent["authorization"] = f"Bearer {token}"
        if deadline is not None and deadline.remaining_s() < math.inf:
            sent[TIMEOUT_HEADER] = str(int(deadline.remaining_s() * 1000))
        return Sending(
            self,
            method,
            url,
            path,
            headers=sent,
            size_bytes=size_bytes,
            timeout_s=self._patience_s(timeout_s, deadline),
            deadline=deadline or NEVER,
            node_id=node_id,
        )

    def close(self) -> None:
        """Close the idle connections; those in use are closed when they are given back."""
        self.connections.close()

    def _patience_s(self, timeout_s: float | None, deadline: Deadline | None) -> float:
        """How long the node may be silent."""
        longest_s = self._config.read_timeout_s if timeout_s is None else timeout_s
        return max(_SHORTEST_TIMEOUT_S, longest_s if deadline is None else min(longest_s, deadline.remaining_s()))

    def open(self, connection: Connection, *, timeout_s: float, deadline: Deadline) -> None:
        """Open a connection; raises `ConnectionError`."""
        connect_timeout_s = min(self._config.connect_timeout_s, timeout_s)
        try:
            connection.connect(timeout_s=connect_timeout_s, waits_on=deadline.waits_on)
        except TimeoutError as exc:
            # Nothing was asked yet, so nobody was silent: there is no such endpoint, or no way to it.
            raise ConnectionError(f"no connection within {connect_timeout_s:.3g} s") from exc
        except UnicodeError as exc:
            raise ConnectionError(f"{connection.host!r} is no name of a host") from exc


class Sending:
    """One request: its body is sent part by part, then its answer is received. For one thread at a time.

    A context manager. Left before `finish`, it closes the connection, so that the node sees a body cut short.
    """

    __slots__ = (
        "_answer", "_connection", "_deadline", "_head", "_method", "_node_id", "_num_sent", "_parts", "_path", "_reused",
        "_timeout_s", "_transport", "_url",
    )  # fmt: skip

    def __init__(
        self,
        transport: Transport,
        method: str,
        url: str,
        path: str,
        *,
        headers: Mapping[str, str],
        size_bytes: int | None,
        timeout_s: float,
        deadline: Deadline,
        node_id: str,
    ) -> None:
        self._transport = transport
        self._deadline = deadline
        self._method, self._url, self._path = method, url, path
        self._timeout_s = timeout_s
        self._node_id = node_id or url
        self._parts: list[memoryview] = []
        self._num_sent = -1  # Not even the head.
        self._answer: Answer | None = None
        self._connection, self._reused = transport.connections.borrow(url)
        try:
            self._head = self._connection.head(method, path, headers=headers, size_bytes=size_bytes)
        except ValueError:
            self.__exit__(None, None, None)
            raise

    def send(self, part: memoryview) -> None:
        """Send the next bytes of the body, which must not change before the end. Raises what `Transport.request` does."""
        self._parts.append(part)
        self._patiently(self._flush)

    def finish(self, *, into: Into | None = None, seen: Callable[[memoryview], object] | None = None) -> Response:
        """Receive the answer; parameters and errors are those of `Transport.request`."""
        answer = self._patiently(self._receive_head)
        try:
            return _receive(answer, into=into, seen=seen, node_id=self._node_id)
        except OSError as exc:
            self._deadline.check()
            raise self._named(exc) from exc
        except StoreError as error:
            if error.retry_after_s:
                self._transport.connections.leave_alone(self._url, error)
            raise

    def __enter__(self) -> Sending:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._deadline.waits_on(None)
        answer = self._answer
        # After less than a complete exchange the rest of a body would be read as the next answer.
        reusable = answer is not None and answer.is_complete and not answer.closes
        self._transport.connections.give_back(self._url, self._connection, reusable=reusable)

    def _patiently(self, step: Callable[[], T]) -> T:
        """Take a step, on a fresh connection if the kept one turns out to be dead."""
        try:
            return step()
        except OSError as exc:
            self._deadline.check()
            # A kept-alive connection may have been closed by the node while idle. Every request may be repeated
            # (writes carry ids), so that costs one fresh connection and no error. Silence is not such a case.
            if not self._reused or isinstance(exc, TimeoutError):
                raise self._named(exc) from exc
        self._deadline.waits_on(None)
        self._connection.close()
        self._connection, self._reused, self._num_sent = self._transport.connections.connect(self._url), False, -1
        try:
            return step()
        except OSError as exc:
            self._deadline.check()
            raise self._named(exc) from exc

    def _flush(self) -> None:
        if self._answer is not None:
            return  # It came early, so that nobody wants the rest of the body.
        connection = self._connection
        if self._num_sent < 0:
            if connection.sock is None:
                self._transport.open(connection, timeout_s=self._timeout_s, deadline=self._deadline)
            else:
                self._deadline.waits_on(connection.sock)
            connection.set_timeout(self._timeout_s)
        try:
            if self._num_sent < 0:
                connection.send(self._head, self._parts[0] if self._parts else None)
                self._num_sent = min(1, len(self._parts))
            while self._num_sent < len(self._parts):
                connection.send_more(self._parts[self._num_sent])
                self._num_sent += 1
        except OSError:
            self._answer = _early_answer(connection, method=self._method)
            if self._answer is None:
                raise

    def _receive_head(self) -> Answer:
        if self._num_sent < len(self._parts) or self._num_sent < 0:
            self._flush()
        if self._answer is None:
            self._answer = self._connection.receive(method=self._method)
        return self._answer

    def _named(self, exc: OSError) -> StoreError:
        if isinstance(exc, TimeoutError):
            message = f"{self._method} {self._path}: {self._url} was silent for {self._timeout_s:.3g} s"
            return DeadlineExceeded(message, node_id=self._node_id)
        message = f"{self._method} {self._path}: no answer from {self._url}: {exc!r}"
        return EndpointUnreachable(message, node_id=self._node_id)


def _early_answer(connection: Connection, *, method: str) -> Answer | None:
    """What a node said before it stopped to take the request's body: that it is too large, or that it is busy."""
    try:
        connection.set_timeout(_EARLY_ANSWER_S)
        answer = connection.receive(method=method)
    except OSError:
        return None
    answer.closes = True  # The node does not know where the next request would begin.
    return answer if answer.status >= 400 else None


def _receive(answer: Answer, *, into: Into | None, seen: Callable[[memoryview], object] | None, node_id: str) -> Response:
    headers = answer.headers
    if not 200 <= answer.status < 300:
        raise error_of(answer.status, headers, answer.read(limit=_MAX_ERROR_BYTES) or b"", node_id=node_id)
    check_protocol(headers.get(PROTOCOL_HEADER))
    view = into(headers, answer.length or 0) if callable(into) else into
    if view is None:
        body = answer.read(limit=_MAX_ANSWER_BYTES)
        if body is None:
            raise BodyTooLarge(f"the answer of {node_id} is longer than {_MAX_ANSWER_BYTES} bytes", node_id=node_id)
        return Response(status=answer.status, headers=headers, body=body, size=len(body))
    if answer.length != len(view):
        raise TruncatedBody(f"expected {len(view)} bytes from {node_id}, it announced {answer.length}", node_id=node_id)
    answer.read_into(view, seen=seen)
    return Response(status=answer.status, headers=headers, body=b"", size=len(view))
