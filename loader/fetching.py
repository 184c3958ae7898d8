"""What the walk through a stream (`loader.prefetch`) has brought in: block tables, and the blocks of visits, into their slots.

A block that is still in its slot needs nothing. What is little and in memory, such as the places of cached large values, is
brought in by whoever asks, and block tables are, too. All else is fetched, verified and decoded by a pool of threads.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future

import numpy as np
import numpy.typing as npt

from loader.daemon_pool import DaemonPool
from loader.opened import OpenStream
from loader.plan import Visit
from loader.receipt import Receipt

__all__ = ["Fetching"]

_VISITS_PER_FETCH = 8


class Fetching:
    """Brings in what a stream needs.

    Parameters
    ----------
    opened : OpenStream
        Where it comes from, and goes to.
    num_threads : int
        Threads that fetch blocks.

    Attributes
    ----------
    threads : DaemonPool
        Closed by whoever made this, after the queue that what was gathered goes to.
    """

    def __init__(self, opened: OpenStream, *, num_threads: int) -> None:
        self._opened = opened
        self._num_threads = num_threads
        self._has_table = np.array([opened.has_table(lane) for lane in range(len(opened.lanes))], np.bool_)
        self.threads = DaemonPool(num_threads, name="forebay-fetch")

    def load_tables(self, lanes: npt.NDArray[np.int64]) -> None:
        """Have the block tables of `lanes` at hand, read together: each costs a request."""
        if not self._has_table.all():
            missing = np.flatnonzero((np.bincount(lanes, minlength=len(self._has_table)) > 0) & ~self._has_table)
            if len(missing):
                self._opened.load_tables(missing)
            self._has_table[missing] = True

    def begin(self, visits: Sequence[Visit], receipt: Receipt, *, fail: Callable[[BaseException], None]) -> list[Future[None]]:
        """Begin to bring in the blocks of some visits; what is done in threads.

        Parameters
        ----------
        receipt : Receipt
            Counts them.
        fail : callable
            Told at once of what goes wrong in a thread.
        """
        left = [visit for visit in visits if not self._is_at_hand(visit, receipt)]
        size = max(1, min(_VISITS_PER_FETCH, len(left) // (4 * self._num_threads)))
        groups = [left[first : first + size] for first in range(0, len(left), size)]
        return [self.threads.submit(self._fetch, group, receipt, fail) for group in groups]

    def _is_at_hand(self, visit: Visit, receipt: Receipt) -> bool:
        """Whether the block of a visit is in its slot now, because it was there or took no time to bring in."""
        if self._opened.reuse(visit):
            receipt.add(blocks_kept=1)
            return True
        cached_bytes = self._opened.fetch_now(visit)
        if cached_bytes is not None:
            receipt.add(bytes_cache=cached_bytes, blocks=1)
        return cached_bytes is not None

    def _fetch(self, visits: Sequence[Visit], receipt: Receipt, fail: Callable[[BaseException], None]) -> None:
        try:
            for visit in visits:
                if self.threads.is_closed:
                    return  # The queue was closed before, so that nothing is handed over of what is missing now.
                receipt.add(bytes_cache=self._opened.fetch(visit), blocks=1)
        except BaseException as error:
            fail(error)
            raise
