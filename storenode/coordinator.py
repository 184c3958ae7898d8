"""What one node does for the whole cluster: a list of small duties, each done again and again by whoever is the owner.

A duty is a function of the fence (`storenode.ownership`). It looks at the metadata, does at most one bounded piece of what it
finds undone, and compares the fence in every transaction. It keeps nothing that it could not do without: the next owner
begins with what the metadata says. A duty that fails does not keep the others from theirs.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import TypeAlias

from client.errors import StoreError
from storenode.outage import Outages
from storenode.ownership import Fence, Ownership
from storenode.worker import Worker

__all__ = ["Coordinator", "Duty"]

log = logging.getLogger(__name__)

Duty: TypeAlias = Callable[[Fence], None]


class Coordinator:
    """Does the duties while this node is the owner, and tries to become it while there is none, in a thread.

    Parameters
    ----------
    ownership : Ownership
        Of the task.
    duties : mapping of str to callable
        By name, for the log.
    period_s : float
        Between two rounds.
    """

    def __init__(self, ownership: Ownership, *, duties: Mapping[str, Duty], period_s: float) -> None:
        self._ownership = ownership
        self._duties = dict(duties)
        self._period_s = period_s
        self._fence: Fence | None = None
        self._outages = Outages(log)
        self._worker = Worker("coordinator", self.step, base_s=period_s, max_s=10 * period_s)

    def start(self) -> None:
        """Begin."""
        self._worker.start()

    def stop(self) -> None:
        """End after the duty in hand."""
        self._worker.stop()

    def step(self) -> float:
        """One round of all duties, if this node is the owner; returns the seconds until the next."""
        fence = self._ownership.claim()
        if fence is not None and fence != self._fence:
            log.info("this node is now the coordinator of the cluster")
        self._fence = fence
        for name, duty in self._duties.items():
            if fence is None or self._worker.stopping:
                break
            try:
                duty(fence)
            except StoreError as error:
                self._outages.failed(f"the coordinator's {name}", error)
            else:
                self._outages.succeeded(f"the coordinator's {name}")
        return self._period_s
