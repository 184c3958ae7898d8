"""Stores as a client sees them: what is sent to a client process so that it can connect, and the connection it then has.

Connections do as little as Python can between the call and the socket, so that what is measured is the store. The peers that
speak HTTP are in `http_stores`.
"""

from __future__ import annotations

import os
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from client import Client

__all__ = ["BUCKET", "Connection", "Files", "Forebay", "ForebayConnection", "Store"]

BUCKET = "bench"


class Connection(Protocol):
    """One client's way to a store. Each method raises if it could not do all it was asked for."""

    def get_into(self, key: str, buffer: memoryview) -> None:
        """Fill the buffer with an object, which is exactly as large."""
        ...

    def put(self, key: str, body: bytearray) -> None:
        """Return once the object is durable; the body may be changed afterwards."""
        ...


class Store(Protocol):
    """How to reach a store; picklable."""

    def connect(self, stack: ExitStack) -> Connection:
        """Open a connection that is closed with the stack."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Forebay:
    """Three nodes.

    Attributes
    ----------
    colocated : bool
        Whether clients may read the chunk files of nodes on their own machine.
    """

    endpoints: tuple[str, ...]
    colocated: bool

    def connect(self, stack: ExitStack) -> ForebayConnection:
        # Read when a client is made. A process of ours has clients of one kind at a time.
        os.environ["FOREBAY_COLOCATED"] = str(self.colocated).lower()
        return ForebayConnection(stack.enter_context(Client(list(self.endpoints))))


class ForebayConnection:
    """The public client. Reads are verified by it."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def get_into(self, key: str, buffer: memoryview) -> None:
        count = self._client.get_into(BUCKET, key, buffer)
        if count != len(buffer):
            raise EOFError(f"{key} ended after {count} of {len(buffer)} bytes")

    def put(self, key: str, body: bytearray) -> None:
        self._client.put(BUCKET, key, body)

    def get_many(self, keys: list[str]) -> None:
        """Get whole objects in one call."""
        self._client.get_many([(BUCKET, key, 0, None) for key in keys])

    def put_many(self, items: list[tuple[str, bytearray]]) -> None:
        """Put objects in one call."""
        self._client.put_many([(BUCKET, key, body) for key, body in items])


@dataclass(frozen=True, slots=True, kw_only=True)
class Files:
    """Plain files: what the file system alone can do.

    Attributes
    ----------
    copies : int
        How many of each are written.
    """

    root: Path
    copies: int

    def connect(self, stack: ExitStack) -> Files:
        return self

    def get_into(self, key: str, buffer: memoryview) -> None:
        with (self.root / f"{key}.0").open("rb", buffering=0) as file:
            received = 0
            while received < len(buffer):  # One read moves less than 2 GiB, and may move less than it was asked for.
                count = file.readinto(buffer[received:])
                if not count:
                    raise EOFError(f"{key} ended after {received} of {len(buffer)} bytes")
                received += count

    def put(self, key: str, body: bytearray) -> None:
        with ExitStack() as stack:
            files = [stack.enter_context((self.root / f"{key}.{n}").open("wb", buffering=0)) for n in range(self.copies)]
            for file in files:
                file.write(body)
            # All are written before the first is flushed, so that the kernel may write them out together.
            for file in files:
                os.fsync(file.fileno())
