"""HTTP/1.1 over one socket, as much of it as Forebay's nodes speak, with few system calls and no copies of bodies.

`http.client` does the same and more; its parsing of headers alone takes longer than a node needs to answer for a small
object. Here a request's head and small body leave in one call, an answer's head is split by hand, and a body is received
straight into the caller's buffer. The grammar is that of RFC 9112; what is not understood is a broken connection, not a guess.

It knows nothing of chunks, retries or pools. A fault of the connection is an `OSError`.
"""

from __future__ import annotations

import select
import socket
from collections.abc import Callable, Mapping

__all__ = ["Answer", "Connection"]

_HEAD_BYTES = 32 * 1024  # Bound on the head of an answer.
_BUFFER_BYTES = 64 * 1024  # What is received at once while looking for its end.
_JOINED_BYTES = 32 * 1024  # A body up to this is copied behind the head, which is cheaper than a second segment.
_MAX_CHUNK_LINE_BYTES = 1024
_WOKEN_AT_BYTES = 512 * 1024  # Of a long body; docs/adr/0009 has the figures.
_NO_BODY = (204, 304)
_EXPECT_BODY = ("PUT", "POST")


class Connection:
    """A connection to one endpoint; opened by `connect`, used for one exchange after another.

    Parameters
    ----------
    host, port
        Where to connect to; an IPv6 address without brackets.

    Attributes
    ----------
    sock : socket or None
        None while it is closed.
    """

    __slots__ = ("_authority", "_buffer", "_end", "_start", "host", "port", "sock")

    def __init__(self, host: str, port: int) -> None:
        self.host = host
        self.port = port
        self.sock: socket.socket | None = None
        self._authority = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        self._buffer = bytearray()
        self._start = self._end = 0

    def connect(self, *, timeout_s: float, waits_on: Callable[[socket.socket], object] | None = None) -> None:
        """Open the connection; `waits_on` is given each socket before it is waited for, so that others may end that."""
        failed: OSError | None = None
        for family, kind, protocol, _, address in socket.getaddrinfo(self.host, self.port, type=socket.SOCK_STREAM):
            sock = socket.socket(family, kind, protocol)
            try:
                sock.settimeout(timeout_s)
                # A head must not wait for the acknowledgement of what went before it.
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                if waits_on is not None:
                    waits_on(sock)
                sock.connect(address)
                sock.getpeername()  # One that was shut down while it waited may seem to have succeeded.
            except OSError as exc:
                sock.close()
                failed = failed or exc
            except BaseException:
                sock.close()
                raise
            else:
                return self.adopt(sock)
        raise failed or ConnectionError(f"{self.host!r} has no address")

    def adopt(self, sock: socket.socket) -> None:
        """Speak over a socket that is connected already."""
        self.sock = sock
        self._buffer, self._start, self._end = bytearray(_BUFFER_BYTES), 0, 0

    def set_timeout(self, timeout_s: float) -> None:
        """How long a call waits for the other side from now on."""
        assert self.sock is not None
        self.sock.settimeout(timeout_s)

    def can_be_read(self) -> bool:
        """Of an idle connection: whether the other side closed it, or sent what nobody has asked for."""
        poll = select.poll()
        poll.register(self.sock, select.POLLIN)  # type: ignore[arg-type]
        return self._end > self._start or bool(poll.poll(0))

    def close(self) -> None:
        """Close the connection, if it is open."""
        sock, self.sock = self.sock, None
        if sock is not None:
            sock.close()

    def head(self, method: str, path: str, *, headers: Mapping[str, str], size_bytes: int | None) -> bytes:
        """The head of a request; None as the size is for a request without a body."""
        lines = [f"{method} {path} HTTP/1.1", f"host: {self._authority}", *(f"{k}: {v}" for k, v in headers.items())]
        if size_bytes is not None or method in _EXPECT_BODY:
            lines.append(f"content-length: {size_bytes or 0}")
        text = "\r\n".join(lines)
        if text.count("\r") != len(lines) - 1 or text.count("\n") != len(lines) - 1:
            raise ValueError(f"a line break in the head of {method} {path!r}")
        return f"{text}\r\n\r\n".encode("latin-1")

    def send(self, head: bytes, part: memoryview | None = None) -> None:
        """Send the head of a request and the first part of its body."""
        assert self.sock is not None
        if part is None or not part.nbytes:
            self.sock.sendall(head)
        elif part.nbytes <= _JOINED_BYTES:
            self.sock.sendall(head + part)
        else:
            sent = self.sock.sendmsg([head, part])
            if sent < len(head):
                self.sock.sendall(head[sent:])
                sent = len(head)
            self.sock.sendall(part[sent - len(head) :])

    def send_more(self, part: memoryview) -> None:
        """Send the next part of the body."""
        assert self.sock is not None
        self.sock.sendall(part)

    def receive(self, *, method: str) -> Answer:
        """Receive the head of the answer to a request that was sent with `method`."""
        while True:
            status, headers, closes = _parse_head(self._head())
            if status >= 200:
                return Answer(self, status, headers, closes=closes, has_body=method != "HEAD" and status not in _NO_BODY)

    def _head(self) -> bytes:
        """The next head, without its empty line."""
        return self._take_until(b"\r\n\r\n", limit=_HEAD_BYTES)

    def _take_until(self, end: bytes, *, limit: int) -> bytes:
        """The bytes before the next `end`, which is taken, too."""
        searched = self._start
        while True:
            found = self._buffer.find(end, searched, self._end)
            if found >= 0:
                taken = bytes(self._buffer[self._start : found])
                self._start = found + len(end)
                return taken
            if self._end - self._start >= limit:
                raise ConnectionError(f"no end of a head or line within {limit} bytes of an answer")
            if self._end == len(self._buffer):
                self._move_to_front()
            searched = max(self._start, self._end - len(end) + 1)
            self._end += self._receive_into(memoryview(self._buffer)[self._end :])

    def _move_to_front(self) -> None:
        kept = self._end - self._start
        self._buffer[:kept] = self._buffer[self._start : self._end]
        self._start, self._end = 0, kept

    def _receive_into(self, view: memoryview) -> int:
        assert self.sock is not None
        count = self.sock.recv_into(view)
        if count == 0:
            raise ConnectionError("the connection was closed in the middle of an answer")
        return count

    def take_into(self, view: memoryview, *, seen: Callable[[memoryview], object] | None = None) -> None:
        """Fill `view` with the next bytes: what is buffered, then straight from the socket.

        `seen` is given every part once, in order, while the kernel receives the next one.
        """
        taken = min(len(view), self._end - self._start)
        if taken:
            view[:taken] = self._buffer[self._start : self._start + taken]
            self._start += taken
            if seen is not None:
                seen(view[:taken])
        woken_at = 1
        while taken < len(view):
            # Woken for each packet, a reader spends more time on waking up than on copying, and the sender on waking it.
            wanted = _WOKEN_AT_BYTES if len(view) - taken >= 2 * _WOKEN_AT_BYTES else 1
            if wanted != woken_at:
                self._wake_at(wanted)
                woken_at = wanted
            count = self._receive_into(view[taken:])
            if seen is not None:
                seen(view[taken : taken + count])
            taken += count
        if woken_at != 1:
            self._wake_at(1)  # All of the end came at once; the next answer is short and must be noticed.

    def _wake_at(self, size_bytes: int) -> None:
        assert self.sock is not None
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, size_bytes)

    def take_line(self) -> bytes:
        """The next line, without its end."""
        return self._take_until(b"\r\n", limit=_MAX_CHUNK_LINE_BYTES)


class Answer:
    """An answer whose head has come and whose body may be taken, once.

    Attributes
    ----------
    headers : dict
        Names in lower case.
    length : int or None
        Bytes of the body; None if only its end will tell.
    is_complete : bool
        Whether the body was taken whole, so that the next answer begins behind it.
    closes : bool
        Whether the node closes the connection after this.
    """

    __slots__ = ("_chunked", "_connection", "closes", "headers", "is_complete", "length", "status")

    def __init__(self, connection: Connection, status: int, headers: dict[str, str], *, closes: bool, has_body: bool) -> None:
        self._connection = connection
        self.status = status
        self.headers = headers
        self.closes = closes
        self._chunked = has_body and "chunked" in headers.get("transfer-encoding", "").lower()
        self.length = _length_of(headers) if has_body and not self._chunked else None if has_body else 0
        if self.length is None and not self._chunked:
            raise ConnectionError(f"an answer of status {status} does not say how long it is")
        self.is_complete = self.length == 0

    def read_into(self, view: memoryview, *, seen: Callable[[memoryview], object] | None = None) -> None:
        """Take the whole body, which must be as long as `view`; see `Connection.take_into`."""
        assert self.length == len(view)
        self._connection.take_into(view, seen=seen)
        self.is_complete = True

    def read(self, *, limit: int) -> bytes | None:
        """Take the whole body; None, and the connection is of no more use, if it is longer than `limit`."""
        if self.length is not None:
            if self.length > limit:
                return None
            body = bytearray(self.length)
            if not self.is_complete:
                self.read_into(memoryview(body))
            return bytes(body)
        pieces, total = [], 0
        while True:
            size = _chunk_size(self._connection.take_line())
            total += size
            if total > limit:
                return None
            if size == 0:
                break
            piece = bytearray(size)
            self._connection.take_into(memoryview(piece))
            pieces.append(piece)
            if self._connection.take_line():
                raise ConnectionError("a piece of a chunked body is longer than it said")
        while self._connection.take_line():
            pass  # Trailers, which nobody sends us.
        self.is_complete = True
        return b"".join(pieces)


def _parse_head(head: bytes) -> tuple[int, dict[str, str], bool]:
    status_line, _, rest = head.decode("latin-1").partition("\r\n")
    version, _, status = status_line.partition(" ")
    if version not in ("HTTP/1.1", "HTTP/1.0") or not status[:3].isdecimal():
        raise ConnectionError(f"no HTTP answer: {status_line[:60]!r}")
    headers: dict[str, str] = {}
    for line in rest.split("\r\n") if rest else ():
        name, colon, value = line.partition(":")
        if not colon:
            raise ConnectionError(f"no header: {line[:60]!r}")
        headers[name.lower()] = value.strip()
    connection = headers.get("connection", "").lower()
    return int(status[:3]), headers, "close" in connection or (version == "HTTP/1.0" and "keep-alive" not in connection)


def _length_of(headers: Mapping[str, str]) -> int | None:
    text = headers.get("content-length")
    if text is None:
        return None
    if not text.isdecimal():
        raise ConnectionError(f"content-length {text[:40]!r} is no number")
    return int(text)


def _chunk_size(line: bytes) -> int:
    digits = line.partition(b";")[0].strip()
    if not digits or digits.strip(b"0123456789abcdefABCDEF"):
        raise ConnectionError(f"no size of a chunk: {line[:40]!r}")
    return int(digits, 16)
