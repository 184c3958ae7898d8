"""Which process a client belongs to.

A fork copies sockets, so that two processes would talk on one connection and read each other's answers. It does not copy
threads, so that work handed to a pool would wait for ever. Neither can be mended from outside: whoever forks opens a client of
its own in the child, and one that came along says so instead of hanging.
"""

from __future__ import annotations

import os

from client.errors import Misconfigured

__all__ = ["HomeProcess"]


class HomeProcess:
    """The process in which this value was made."""

    def __init__(self) -> None:
        self._id = os.getpid()

    def check(self) -> None:
        """Raise `Misconfigured` in any other process."""
        if os.getpid() != self._id:
            raise Misconfigured(
                f"this client was opened in process {self._id} and can't be used in process {os.getpid()}, its fork: "
                "open a client in each process"
            )
