"""A server of a few lines on 127.0.0.1, for tests of what a client makes of a connection that misbehaves.

A test gives it a script for each connection in the order in which they are accepted: a function that reads from the socket
and writes what it likes. The socket is closed when the function returns.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from client.errors import StoreError, to_problem
from client.wire import encode_json

__all__ = ["Connection", "Request", "Script", "SocketServer", "answer", "each", "echo", "problem", "serving"]

WAIT_S = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What a client sent."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes


class Connection:
    """The server's end of one connection."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self._file = sock.makefile("rb")

    def head(self) -> Request | None:
        """Read a request without its body; None if the client closed."""
        line = self._file.readline()
        if not line:
            return None
        method, path, _ = line.decode("ascii").split(" ")
        headers = {}
        while (line := self._file.readline().rstrip(b"\r\n")) != b"":
            name, _, value = line.decode("latin-1").partition(":")
            headers[name.lower()] = value.strip()
        return Request(method=method, path=path, headers=headers, body=b"")

    def request(self) -> Request | None:
        """Read a whole request; None if the client closed."""
        head = self.head()
        if head is None:
            return None
        body = self._file.read(int(head.headers.get("content-length", 0)))
        return Request(method=head.method, path=head.path, headers=head.headers, body=body)

    def send(self, data: bytes) -> None:
        self.sock.sendall(data)

    def wait_for_close(self) -> None:
        """Read until the client closes."""
        while self._file.read(65536):
            pass

    def close(self) -> None:
        self._file.close()
        self.sock.close()


Script = Callable[[Connection], object]


def answer(status: int = 200, body: bytes = b"", *, length: int | None = None, headers: str = "") -> bytes:
    """A response; `length` announces another number of bytes than come."""
    announced = len(body) if length is None else length
    return f"HTTP/1.1 {status} Status\r\ncontent-length: {announced}\r\n{headers}\r\n".encode() + body


def problem(error: StoreError, *, headers: str = "") -> bytes:
    """The response of a node that fails with `error`."""
    return answer(error.status, encode_json(to_problem(error)), headers=headers)


def echo(connection: Connection) -> None:
    """A script that sends back each request's body."""
    while request := connection.request():
        connection.send(answer(200, request.body))


def each(*answers: bytes) -> Script:
    """A script that gives these answers, one a request."""

    def script(connection: Connection) -> None:
        for data in answers:
            if connection.request() is None:
                return
            connection.send(data)
        connection.wait_for_close()

    return script


class SocketServer:
    """Accepts connections and runs their scripts, each in a thread; the last script serves all that come later."""

    def __init__(self, *scripts: Script) -> None:
        self._scripts = scripts
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._threads: list[threading.Thread] = []
        self._open: list[Connection] = []
        self.errors: list[BaseException] = []
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._acceptor = threading.Thread(target=self._accept, name="acceptor")
        self._acceptor.start()

    @property
    def num_connections(self) -> int:
        """Connections accepted so far."""
        return len(self._open)

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:  # the listener was shut down
                return
            connection = Connection(sock)
            script = self._scripts[min(len(self._open), len(self._scripts) - 1)]
            self._open.append(connection)
            thread = threading.Thread(target=self._serve, args=(connection, script), name="script")
            self._threads.append(thread)
            thread.start()

    def _serve(self, connection: Connection, script: Script) -> None:
        try:
            script(connection)
        except (ConnectionError, TimeoutError, ValueError):
            pass  # The client went away, or the test is over; the client's side is what is tested.
        except BaseException as error:
            self.errors.append(error)
        finally:
            connection.close()

    def close(self) -> None:
        """End everything and raise what a script met that it should not have."""
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._acceptor.join(WAIT_S)
        self._listener.close()
        for connection in self._open:
            with suppress(OSError):
                connection.sock.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(WAIT_S)
            assert not thread.is_alive(), "a script did not end"
        if self.errors:
            raise self.errors[0]


@contextmanager
def serving(*scripts: Script) -> Iterator[SocketServer]:
    """A server for the length of a block."""
    server = SocketServer(*scripts)
    try:
        yield server
    finally:
        server.close()
