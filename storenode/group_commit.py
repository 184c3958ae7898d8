"""Calls that wait while another one commits are committed together by the next.

Theory of operation
-------------------
A commit costs its syncs, hardly its size. So callers queue up, and the first of the queue *leads*: it takes those behind it
along, commits for all, hands out the outcomes, and wakes whoever is first then. All others sleep until they are done or
lead. Exactly one leads while the queue is not empty: leadership begins when a call joins an empty queue, and is passed on in
the same critical section that takes the finished calls off it, so no wake-up can be lost.

A group is bounded as one call is (`num_fitting`), in the order of arrival, so nobody is overtaken. A caller gives up after
``timeout_s``: if its group is being committed then, its outcome is unknown, as with any engine that does not answer.

It knows nothing of SQLite.
"""

from __future__ import annotations

import copy
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import islice

from client.errors import MetadataUnavailable, StoreError
from storenode.metastore import Txn, TxnResult, num_fitting

__all__ = ["GroupCommit", "Outcome"]

# What became of one call: the results of its transactions, or the error that it alone gets.
Outcome = list[TxnResult] | StoreError


@dataclass(slots=True, eq=False, kw_only=True)
class _Call:
    txns: Sequence[Txn]
    size_bytes: int
    outcome: Outcome | None = None
    leads: bool = False
    wake: threading.Event = field(default_factory=threading.Event)


class GroupCommit:
    """The queue in front of a commit. Thread-safe.

    Parameters
    ----------
    commit : callable
        Commits the transactions of several calls at once; the outcome of each call. An error that it raises is every call's.
    timeout_s : float
        How long a call waits for those before it.
    too_slow : callable
        The error of a call that waited for longer.
    """

    def __init__(
        self,
        commit: Callable[[Sequence[Sequence[Txn]]], Sequence[Outcome]],
        *,
        timeout_s: float,
        too_slow: Callable[[], StoreError],
    ) -> None:
        self._commit = commit
        self._timeout_s = timeout_s
        self._too_slow = too_slow
        # Held for moments only; never while anything is committed.
        self._mutex = threading.Lock()
        self._queue: deque[_Call] = deque()

    def run(self, txns: Sequence[Txn], *, size_bytes: int) -> list[TxnResult]:
        """Commit transactions, together with those of others. Raises what the commit raises, or `too_slow`."""
        call = _Call(txns=txns, size_bytes=size_bytes)
        with self._mutex:
            call.leads = not self._queue
            self._queue.append(call)
        if not call.leads:
            self._wait(call)
        if call.leads:
            self._lead(call)
        outcome = call.outcome
        assert outcome is not None
        if isinstance(outcome, StoreError):
            # Each thread raises an error of its own: a traceback belongs to one thread.
            raise copy.copy(outcome) from outcome
        return outcome

    def _wait(self, call: _Call) -> None:
        """Until `call` is done or leads."""
        if call.wake.wait(self._timeout_s):
            return
        with self._mutex:
            if call.wake.is_set():
                return
            # Whoever leads a group with this call in it finds its place in the queue by itself.
            self._queue.remove(call)
        raise self._too_slow()

    def _lead(self, own: _Call) -> None:
        with self._mutex:
            num_calls = num_fitting((len(call.txns), call.size_bytes) for call in self._queue)
            group = list(islice(self._queue, num_calls))
        assert group[0] is own
        outcomes: Sequence[Outcome] = [MetadataUnavailable("the thread that committed for this one was ended")] * num_calls
        try:
            outcomes = self._commit([call.txns for call in group])
        except StoreError as error:
            outcomes = [error] * num_calls
        finally:
            self._finish(group, outcomes)

    def _finish(self, group: Sequence[_Call], outcomes: Sequence[Outcome]) -> None:
        done = dict(zip(group, outcomes, strict=True))
        with self._mutex:
            for call, outcome in done.items():
                call.outcome, call.leads = outcome, False
                call.wake.set()
            while self._queue and self._queue[0] in done:
                self._queue.popleft()
            if self._queue:
                self._queue[0].leads = True
                self._queue[0].wake.set()
