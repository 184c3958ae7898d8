"""Whoever works on a store: with the client that it was given, or with one of its own, which it closes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from types import TracebackType
from typing import Self

from client import Client
from client.objects import ObjectStore

__all__ = ["StoreUser", "opened_store"]


@contextmanager
def opened_store(client: ObjectStore | None, endpoints: str | list[str] | None) -> Iterator[ObjectStore]:
    """`client`, or if it is None a client of `endpoints`, which is closed in the end."""
    if client is not None:
        yield client
        return
    with Client(endpoints) as own:
        yield own


class StoreUser:
    """Has a store until it is closed; a context manager.

    Parameters
    ----------
    client, endpoints
        As for `opened_store`.
    """

    def __init__(self, client: ObjectStore | None, endpoints: str | list[str] | None) -> None:
        self._lent = ExitStack()
        self._store = self._lent.enter_context(opened_store(client, endpoints))

    def close(self) -> None:
        """Close the connections, if they are its own."""
        self._lent.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()
