"""One of several attempts at the same read, which another thread may end when it is needed no longer.

A thread that waits for a node sleeps in the kernel, and what wakes it up is the end of the connection that it waits on. So
whoever waits says on which one, and ending the attempt shuts that one down. All that is under way for it then ends with
`Overtaken`, which says nothing about the node.
"""

from __future__ import annotations

import contextlib
import socket
import threading

from client.errors import DeadlineExceeded
from client.retry import Deadline

__all__ = ["Attempt", "Overtaken"]


class Overtaken(Exception):
    """The attempt was ended from outside; nothing was learned."""


class Attempt(Deadline):
    """A deadline within another one, which may come at any moment. For one thread that works and others that may end it.

    Attributes
    ----------
    received : int
        Bytes that have come so far, of use or not.
    """

    def __init__(self, within: Deadline) -> None:
        self._within = within
        self._lock = threading.Lock()
        self._sock: socket.socket | None = None
        self._ended = False
        self.received = 0

    def remaining_s(self) -> float:
        """Seconds left, 0 once it has passed or was ended."""
        return 0.0 if self._ended else self._within.remaining_s()

    def check(self) -> None:
        """Raise `Overtaken` once it was ended."""
        if self._ended:
            raise Overtaken

    def took(self, num_bytes: int) -> None:
        """Note that more bytes have come; raises `DeadlineExceeded` if that took too long.

        A node that sends a little now and then is never silent.
        """
        self.received += num_bytes
        if not self._ended and not self._within.remaining_s():
            raise DeadlineExceeded(f"the time was over after {self.received} bytes")

    def waits_on(self, sock: socket.socket | None) -> None:
        """Shut this socket down at the end; None before it is closed or belongs to somebody else."""
        with self._lock:
            self._sock = sock
        if sock is not None:
            self.check()

    def end(self) -> None:
        """End it, and wake up the thread that works on it."""
        # Under the lock, or the socket could be lent to another read before it is shut down.
        with self._lock:
            self._ended = True
            if self._sock is not None:
                with contextlib.suppress(OSError):  # It was not connected yet, or is not any more.
                    self._sock.shutdown(socket.SHUT_RDWR)
