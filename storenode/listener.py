"""Addresses on this machine: taking one, and keeping one for a process that is not there yet."""

from __future__ import annotations

import socket

from client.errors import Misconfigured

__all__ = ["BACKLOG", "begin", "reserve", "url_of"]

BACKLOG = 1024


def begin(bound: socket.socket) -> None:
    """Listen on a socket that `reserve` made. Raises `Misconfigured` if somebody took its address meanwhile."""
    try:
        bound.listen(BACKLOG)
    except OSError as exc:
        host, port = bound.getsockname()[:2]
        raise _taken(host, port, exc) from exc


def reserve(host: str, port: int) -> socket.socket:
    """A socket that is bound and does not listen: connecting to it is refused, and nobody is given its port by chance.

    A process on the same machine may still listen on the address, which is what it is kept for. Raises `Misconfigured`
    if somebody listens there.
    """
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    except socket.gaierror as exc:
        raise Misconfigured(f"the address {host!r} is not known here: {exc.strerror}") from exc
    bound = socket.socket(family, kind)
    try:
        # A node that restarts must not wait until the connections of its last life have timed out. And Linux lets sockets
        # that all have this option share an address as long as one of them at most listens.
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
    except OSError as exc:
        bound.close()
        raise _taken(host, port, exc) from exc
    return bound


def url_of(bound: socket.socket, *, host: str) -> str:
    """The URL of a socket that was bound to `host`."""
    return f"http://{f'[{host}]' if ':' in host else host}:{bound.getsockname()[1]}"


def _taken(host: str, port: int, exc: OSError) -> Misconfigured:
    return Misconfigured(
        f"can't listen on {host}:{port}: {exc.strerror}. Stop what uses it, or choose another (--port, FOREBAY_PORT; "
        "0 takes a free one)"
    )
