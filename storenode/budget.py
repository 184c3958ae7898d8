"""A bound on what requests hold together: bytes of bodies, or places. It belongs to the event loop and takes no lock."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from types import TracebackType

from client.errors import Busy
from storenode.threads import BUSY_RETRY_S

__all__ = ["Budget", "Held"]


class Budget:
    """An amount of which requests take parts and give them back.

    Parameters
    ----------
    what : str
        What is counted, for messages.
    limit : int
        How much there is.
    """

    def __init__(self, what: str, *, limit: int) -> None:
        self._what = what
        self._limit = limit
        self.taken = 0

    def take(self, amount: int = 1) -> Held:
        """Take `amount`; raises `Busy` if that much is not left."""
        if self.taken + amount > self._limit:
            raise Busy(
                f"this node holds {self.taken} {self._what} of at most {self._limit}, and this request needs {amount}",
                retry_after_s=BUSY_RETRY_S,
            )
        self.taken += amount
        return Held(self, amount)


def _nothing() -> None:
    pass


class Held:
    """A part of a budget, given back at the end of its ``with`` block, or later where `keep_until` says so."""

    def __init__(self, budget: Budget, amount: int) -> None:
        self._budget = budget
        self._amount = amount
        self._holders = 1  # The block itself.
        self._then: Callable[[], None] = _nothing

    def keep_until(self, tasks: Iterable[asyncio.Future[object]], *, then: Callable[[], None] = _nothing) -> None:
        """Hold it until all of `tasks` are done, too; `then` is called when it is given back."""
        self._then = then
        for task in tasks:
            self._holders += 1
            task.add_done_callback(self._let_go)

    def _let_go(self, _: object) -> None:
        self._holders -= 1
        if not self._holders:
            self._budget.taken -= self._amount
            self._then()

    def __enter__(self) -> Held:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._let_go(None)
