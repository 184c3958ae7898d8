"""Connections to etcd's members: opened, kept, bounded in number, and cut when the store is closed.

`http.client` speaks over them, not `client.http1`: etcd may want TLS, under which that module's ways to the socket (a segment
of two buffers, a low-water mark, a look whether anything has come) do not work, and beside the sync that a call costs etcd
the parsing of its few headers is nothing. Timeouts are the socket's, set anew before each wait from what is left.

A connection is kept only after an exchange that both sides completed. It knows nothing of etcd's messages.
"""

from __future__ import annotations

import select
import socket
import ssl
import threading
from collections.abc import Mapping
from contextlib import suppress
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from pathlib import Path

from client.errors import MetadataUnavailable, Misconfigured
from client.retry import Deadline
from storenode.etcd_address import Endpoint

__all__ = ["Connections", "NoConnection", "Reply", "tls_context"]

_PIECE_BYTES = 256 * 1024
_SHORTEST_TIMEOUT_S = 0.001  # To a socket 0 means not to wait at all, which is another mode.


class NoConnection(ConnectionError):
    """There is no connection, so nothing was asked."""


class Reply:
    """An answer whose head has come. Whoever has it closes it.

    Attributes
    ----------
    status : int
        HTTP's.
    """

    def __init__(self, pool: Connections, endpoint: Endpoint, connection: HTTPConnection, sock: socket.socket) -> None:
        self._pool = pool
        self._endpoint = endpoint
        self._connection = connection
        self._sock = sock
        self._response: HTTPResponse | None = None
        self._buffer = bytearray()

    def exchange(self, path: str, body: bytes, *, headers: Mapping[str, str], deadline: Deadline) -> None:
        """Send a request and receive the head of its answer."""
        self._wait_until(deadline)
        self._connection.request("POST", path, body, dict(headers))
        self._wait_until(deadline)
        self._response = self._connection.getresponse()

    @property
    def status(self) -> int:
        assert self._response is not None
        return self._response.status

    def body(self, *, limit: int, deadline: Deadline) -> tuple[bytes, bool]:
        """The body, or its first bytes if it is longer than `limit`, and whether that is all of it."""
        assert self._response is not None
        while len(self._buffer) <= limit:
            self._wait_until(deadline)
            piece = self._response.read(_PIECE_BYTES)
            if not piece:
                return bytes(self._buffer), True
            self._buffer += piece
        return bytes(self._buffer), False

    def line(self, *, limit: int, deadline: Deadline) -> bytes:
        """The next line of a body that goes on; raises `TimeoutError`, after which there is no next one."""
        assert self._response is not None
        searched = 0
        while (end := self._buffer.find(b"\n", searched)) < 0:
            searched = len(self._buffer)
            if searched > limit:
                raise ConnectionError(f"a message of more than {limit} bytes")
            self._wait_until(deadline)
            piece = self._response.read1(_PIECE_BYTES)
            if not piece:
                raise ConnectionError("the stream has ended")
            self._buffer += piece
        taken = bytes(self._buffer[:end])
        del self._buffer[: end + 1]
        return taken

    def close(self) -> None:
        """Let go of the connection, which is kept if the whole answer was taken."""
        response = self._response
        is_whole = response is not None and response.isclosed() and not response.will_close
        self._pool.give_back(self._endpoint, self._connection, keep=is_whole)
        if response is not None:
            response.close()

    def _wait_until(self, deadline: Deadline) -> None:
        self._sock.settimeout(max(_SHORTEST_TIMEOUT_S, deadline.remaining_s()))


class Connections:
    """A bounded number of connections. Thread-safe.

    Parameters
    ----------
    limit : int
        Connections at once, in use or idle.
    tls : ssl.SSLContext, optional
        Speak TLS, with this trust and identity.
    """

    def __init__(self, *, limit: int, tls: ssl.SSLContext | None) -> None:
        self._limit = limit
        self._tls = tls
        self._slots = threading.BoundedSemaphore(limit)
        self._lock = threading.Lock()
        self._idle: dict[Endpoint, list[HTTPConnection]] = {}
        self._used: dict[HTTPConnection, socket.socket] = {}
        self._closed = False

    def open(self, endpoint: Endpoint, *, deadline: Deadline) -> Reply:
        """A connection for one exchange; raises `NoConnection`, or `MetadataUnavailable` if too many are in use."""
        if not self._slots.acquire(timeout=deadline.remaining_s()):
            raise MetadataUnavailable(f"all {self._limit} connections to etcd are in use (FOREBAY_MAX_ETCD_CONNECTIONS)")
        try:
            connection, sock = self._kept(endpoint) or self._connect(endpoint, deadline=deadline)
        except BaseException:
            self._slots.release()
            raise
        with self._lock:
            self._used[connection] = sock
            closed = self._closed
        if closed:
            self.give_back(endpoint, connection, keep=False)
            raise NoConnection("the store was closed")
        return Reply(self, endpoint, connection, sock)

    def give_back(self, endpoint: Endpoint, connection: HTTPConnection, *, keep: bool) -> None:
        """End the use of a connection."""
        with self._lock:
            del self._used[connection]
            idle = self._idle.setdefault(endpoint, [])
            num_open = sum(map(len, self._idle.values())) + len(self._used)
            keep = keep and not self._closed and num_open < self._limit
            if keep:
                idle.append(connection)
        if not keep:
            connection.close()
        self._slots.release()

    def close(self) -> None:
        """Close all. Who waits for one that is in use finds it at its end."""
        with self._lock:
            self._closed = True
            idle = [connection for kept in self._idle.values() for connection in kept]
            self._idle.clear()
            for sock in self._used.values():
                with suppress(OSError):  # It broke by itself.
                    # Past SSLSocket's own, which would take its session from under the thread that reads.
                    socket.socket.shutdown(sock, socket.SHUT_RDWR)
        for connection in idle:
            connection.close()

    def _kept(self, endpoint: Endpoint) -> tuple[HTTPConnection, socket.socket] | None:
        while True:
            with self._lock:
                idle = self._idle.get(endpoint)
                connection = idle.pop() if idle else None
            if connection is None:
                return None
            sock = connection.sock
            # What can be read from an idle connection is its end. To find that out by a request would cost a write
            # its answer: nobody could say whether it happened.
            if sock is not None and not _can_be_read(sock):
                return connection, sock
            connection.close()

    def _connect(self, endpoint: Endpoint, *, deadline: Deadline) -> tuple[HTTPConnection, socket.socket]:
        timeout_s = max(_SHORTEST_TIMEOUT_S, deadline.remaining_s())
        if self._tls is None:
            connection = HTTPConnection(endpoint.host, endpoint.port, timeout=timeout_s)
        else:
            connection = HTTPSConnection(endpoint.host, endpoint.port, timeout=timeout_s, context=self._tls)
        try:
            connection.connect()
        except (OSError, HTTPException, UnicodeError) as exc:
            connection.close()
            raise NoConnection(f"no connection: {exc}") from exc
        return connection, connection.sock


def _can_be_read(sock: socket.socket) -> bool:
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    return bool(poll.poll(0))


def tls_context(*, ca_file: Path | None, cert_file: Path | None, key_file: Path | None) -> ssl.SSLContext:
    """Trust in the authorities in `ca_file`, by default the system's, and the identity in the other two if there is one.

    Raises
    ------
    Misconfigured
        If a file can't be used.
    """
    try:
        context = ssl.create_default_context(cafile=ca_file)
        if cert_file is not None:
            context.load_cert_chain(cert_file, key_file)
    except OSError as exc:
        files = ", ".join(str(path) for path in (ca_file, cert_file, key_file) if path is not None)
        raise Misconfigured(f"the files for TLS with etcd can't be used: {exc}; they are {files}") from exc
    return context
