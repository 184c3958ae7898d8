"""The one blocking HTTP transport: kept-alive connections, bodies received into the caller's buffers.

It speaks HTTP through `client.http1`, keeps connections, and turns faults and error responses into `StoreError`s. It knows
nothing of chunks, names or retries.

A connection is kept only after an exchange that both sides have completed: the whole request sent, the whole answer read.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass

from typing_extensions import Buffer

from client.config import ClientConfig
from client.errors import BodyTooLarge, DeadlineExceeded, EndpointUnreachable, TruncatedBody
from client.http1 import Answer, Connection
from client.process import HomeProcess
from client.retry import Deadline
from client.wire import PROTOCOL, PROTOCOL_HEADER, check_protocol, error_of, parse_endpoint

__all__ = ["Response", "Transport"]

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
        Timeouts, the token and the number of idle connections kept.
    """

    def __init__(self, config: ClientConfig) -> None:
        self._config = config
        self._home = HomeProcess()
        self._lock = threading.Lock()
        self._idle: dict[str, list[Connection]] = {}
        self._closed = False

    def request(
        self,
        method: str,
        url: str,
        path: str,
        *,
        headers: Mapping[str, str] | None = None,
        body: Buffer | None = None,
        into: memoryview | None = None,
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
        into : memoryview, optional
            Of bytes. Receives the body of a successful answer, which must have exactly this length.
        timeout_s : float, optional
            Longest silence of the node; the configured ``read_timeout_s`` if not given.
        deadline : Deadline, optional
            Makes that shorter when there is less time left.
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
        self._home.check()
        sent = {PROTOCOL_HEADER: str(PROTOCOL), **(headers or {})}
        if self._config.token:
            sent["authorization"] = f"Bearer {self._config.token}"
        timeout_s = self._patience_s(timeout_s, deadline)
        node_id = node_id or url
        view = None if body is None else memoryview(body).cast("B")
        answer = None
        connection, reused = self._borrow(url)
        try:
            try:
                answer = self._exchange(connection, method, path, headers=sent, body=view, timeout_s=timeout_s)
            except OSError as exc:
                # A kept-alive connection may have been closed by the node while idle. Every request may be repeated
                # (writes carry ids), so that costs one fresh connection and no error. Silence is not such a case.
                if not reused or isinstance(exc, TimeoutError):
                    raise
                connection.close()
                connection = self._connect(url)
                answer = self._exchange(connection, method, path, headers=sent, body=view, timeout_s=timeout_s)
            return _receive(answer, into=into, node_id=node_id)
        except TimeoutError as exc:
            message = f"{method} {path}: {url} was silent for {timeout_s:.3g} s"
            raise DeadlineExceeded(message, node_id=node_id) from exc
        except OSError as exc:
            raise EndpointUnreachable(f"{method} {path}: no answer from {url}: {exc!r}", node_id=node_id) from exc
        finally:
            self._give_back(url, connection, answer)

    def close(self) -> None:
        """Close the idle connections; those in use are closed when they are given back."""
        with self._lock:
            self._closed = True
            idle = [connection for pool in self._idle.values() for connection in pool]
            self._idle.clear()
        for connection in idle:
            connection.close()

    def _patience_s(self, timeout_s: float | None, deadline: Deadline | None) -> float:
        """How long the node may be silent."""
        longest_s = self._config.read_timeout_s if timeout_s is None else timeout_s
        return max(_SHORTEST_TIMEOUT_S, longest_s if deadline is None else min(longest_s, deadline.remaining_s()))

    def _exchange(
        self,
        connection: Connection,
        method: str,
        path: str,
        *,
        headers: Mapping[str, str],
        body: memoryview | None,
        timeout_s: float,
    ) -> Answer:
        if connection.sock is None:
            connect_timeout_s = min(self._config.connect_timeout_s, timeout_s)
            try:
                connection.connect(timeout_s=connect_timeout_s)
            except TimeoutError as exc:
                # Nothing was asked yet, so nobody was silent: there is no such endpoint, or no way to it.
                raise ConnectionError(f"no connection within {connect_timeout_s:.3g} s") from exc
            except UnicodeError as exc:
                raise ConnectionError(f"{connection.host!r} is no name of a host") from exc
        connection.set_timeout(timeout_s)
        try:
            connection.send(method, path, headers=headers, body=body)
        except OSError:
            answer = _early_answer(connection, method=method)
            if answer is None:
                raise
            return answer
        return connection.receive(method=method)

    def _borrow(self, url: str) -> tuple[Connection, bool]:
        while True:
            with self._lock:
                idle = self._idle.get(url)
                connection = idle.pop() if idle else None
            if connection is None:
                return self._connect(url), False
            if not connection.can_be_read():
                return connection, True
            connection.close()

    def _connect(self, url: str) -> Connection:
        host, port = parse_endpoint(url)
        return Connection(host, port)

    def _give_back(self, url: str, connection: Connection, answer: Answer | None) -> None:
        """Keep a connection whose exchange is complete; otherwise the rest of a body would be read as the next answer."""
        if answer is not None and answer.is_complete and not answer.closes:
            with self._lock:
                pool = self._idle.setdefault(url, [])
                if not self._closed and len(pool) < self._config.max_idle_connections:
                    pool.append(connection)
                    return
        connection.close()


def _early_answer(connection: Connection, *, method: str) -> Answer | None:
    """What a node said before it stopped to take the request's body: that it is too large, or that it is busy."""
    try:
        connection.set_timeout(_EARLY_ANSWER_S)
        answer = connection.receive(method=method)
    except OSError:
        return None
    answer.closes = True  # The node does not know where the next request would begin.
    return answer if answer.status >= 400 else None


def _receive(answer: Answer, *, into: memoryview | None, node_id: str) -> Response:
    headers = answer.headers
    if not 200 <= answer.status < 300:
        raise error_of(answer.status, headers, answer.read(limit=_MAX_ERROR_BYTES) or b"", node_id=node_id)
    check_protocol(headers.get(PROTOCOL_HEADER))
    if into is None:
        body = answer.read(limit=_MAX_ANSWER_BYTES)
        if body is None:
            raise BodyTooLarge(f"the answer of {node_id} is longer than {_MAX_ANSWER_BYTES} bytes", node_id=node_id)
        return Response(status=answer.status, headers=headers, body=body, size=len(body))
    if answer.length != len(into):
        raise TruncatedBody(f"expected {len(into)} bytes from {node_id}, it announced {answer.length}", node_id=node_id)
    answer.read_into(into)
    return Response(status=answer.status, headers=headers, body=b"", size=len(into))
