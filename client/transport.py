"""The one blocking HTTP transport: kept-alive connections, bodies received into the caller's buffers.

It is `http.client`, which reads straight into a buffer and sends any bytes-like object without copying; on loopback that
moved more bytes a second than urllib3, httpx or pycurl. It knows nothing of chunks, names or retries. It turns foreign
exceptions and error responses into `StoreError`s.
"""

from __future__ import annotations

import http.client
import socket
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

from typing_extensions import Buffer

from client.config import ClientConfig
from client.errors import DeadlineExceeded, EndpointUnreachable, InvalidRequest, Misconfigured
from client.wire import PROTOCOL, PROTOCOL_HEADER, check_protocol, error_of

__all__ = ["Response", "Transport"]

_MAX_ERROR_BYTES = 64 * 1024


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
        self._lock = threading.Lock()
        self._idle: dict[str, list[http.client.HTTPConnection]] = {}
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
            Receives the body of a successful answer, which must have exactly this length.
        timeout_s : float, optional
            Longest silence of the node; the configured ``read_timeout_s`` if not given.
        node_id : str
            Named in errors; the URL if not given.

        Raises
        ------
        EndpointUnreachable
            No connection, or it broke.
        DeadlineExceeded
            The node was silent for too long.
        StoreError
            What the node's problem document says.
        """
        sent = {PROTOCOL_HEADER: str(PROTOCOL), **(headers or {})}
        if self._config.token:
            sent["authorization"] = f"Bearer {self._config.token}"
        if body is not None:
            sent["content-length"] = str(memoryview(body).nbytes)
        timeout_s = self._config.read_timeout_s if timeout_s is None else timeout_s
        node_id = node_id or url
        connection, reused = self._borrow(url)
        while True:
            try:
                response = self._exchange(connection, method, path, headers=sent, body=body, timeout_s=timeout_s)
                break
            except (http.client.HTTPException, OSError) as exc:
                connection.close()
                # A kept-alive connection may have been closed by the node while idle. Every request may be repeated
                # (writes carry ids), so that costs one fresh connection and no error. Silence is not such a case.
                if not reused or isinstance(exc, TimeoutError):
                    raise _unreachable(exc, method, url, path, node_id=node_id) from exc
                connection, reused = self._connect(url), False
        try:
            answer = _receive(response, into=into, node_id=node_id)
        except (http.client.HTTPException, OSError) as exc:
            connection.close()
            raise _unreachable(exc, method, url, path, node_id=node_id) from exc
        except BaseException:
            # Part of the body may still be on its way, so that nobody else may use this connection.
            if not response.isclosed():
                connection.close()
            else:
                self._give_back(url, connection)
            raise
        self._give_back(url, connection)
        return answer

    def close(self) -> None:
        """Close the idle connections; those in use are closed when they are given back."""
        with self._lock:
            self._closed = True
            idle = [connection for pool in self._idle.values() for connection in pool]
            self._idle.clear()
        for connection in idle:
            connection.close()

    def _exchange(
        self,
        connection: http.client.HTTPConnection,
        method: str,
        path: str,
        *,
        headers: Mapping[str, str],
        body: Buffer | None,
        timeout_s: float,
    ) -> http.client.HTTPResponse:
        if connection.sock is None:
            connection.timeout = self._config.connect_timeout_s
            connection.connect()
        connection.sock.settimeout(timeout_s)
        connection.request(method, path, body=None if body is None else memoryview(body), headers=dict(headers))
        return connection.getresponse()

    def _borrow(self, url: str) -> tuple[http.client.HTTPConnection, bool]:
        with self._lock:
            idle = self._idle.get(url)
            if idle:
                return idle.pop(), True
        return self._connect(url), False

    def _connect(self, url: str) -> http.client.HTTPConnection:
        parts = urlsplit(url)
        if parts.scheme != "http" or not parts.hostname:
            raise Misconfigured(f"endpoint {url!r}: expected http://HOST:PORT")
        return http.client.HTTPConnection(parts.hostname, parts.port or 80)

    def _give_back(self, url: str, connection: http.client.HTTPConnection) -> None:
        with self._lock:
            pool = self._idle.setdefault(url, [])
            if not self._closed and connection.sock is not None and len(pool) < self._config.max_idle_connections:
                pool.append(connection)
                return
        connection.close()


def _receive(response: http.client.HTTPResponse, *, into: memoryview | None, node_id: str) -> Response:
    headers = {name.lower(): value for name, value in response.getheaders()}
    if response.status >= 400:
        raise error_of(response.status, headers, response.read(_MAX_ERROR_BYTES), node_id=node_id)
    check_protocol(headers.get(PROTOCOL_HEADER))
    if into is None:
        body = response.read()
        return Response(status=response.status, headers=headers, body=body, size=len(body))
    if response.length != len(into):
        raise InvalidRequest(f"expected {len(into)} bytes from {node_id}, it announced {response.length}")
    received = 0
    while received < len(into):
        count = response.readinto(into[received:])
        if count == 0:
            raise http.client.IncompleteRead(b"", len(into) - received)
        received += count
    response.read()  # Nothing is left; this tells http.client so, which frees the connection.
    return Response(status=response.status, headers=headers, body=b"", size=received)


def _unreachable(exc: Exception, method: str, url: str, path: str, *, node_id: str) -> EndpointUnreachable | DeadlineExceeded:
    if isinstance(exc, TimeoutError | socket.timeout):
        return DeadlineExceeded(f"{method} {path}: {url} was silent for too long", node_id=node_id)
    return EndpointUnreachable(f"{method} {path}: no answer from {url}: {exc!r}", node_id=node_id)
