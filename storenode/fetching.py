"""Fetching what a disk lacks: large chunks one by one, small ones as groups that are read and made durable together.

A chunk alone costs a request and two waits on the disk, whatever its size; a group costs a request to each node that is asked
and two waits as a whole (`storenode.chunkgroup`). What comes of one chunk is no other's matter.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor, Future

from client.errors import StoreError
from client.frames import MAX_SMALL_BYTES
from client.manifest import Ref
from storenode.chunkgroup import MAX_MEMBERS
from storenode.repair import Copies

__all__ = ["Fetching"]

# Of a group, which is in memory twice while it is written. Within what a batch may hold.
_GROUP_BYTES = 4 * 1024 * 1024

# Told what became of a chunk: None if it is here now, durably. Of one that several want, only the first is told that it came.
Then = Callable[[Ref, StoreError | None], None]
# A chunk, and how many replicas its record asks for.
Wanted = tuple[Ref, int]


class Fetching:
    """Chunks on their way to this node. For one thread, which is the one that is told of them.

    Parameters
    ----------
    copies : Copies
        This node's disk and its peers.
    executor : Executor
        Runs the fetches.
    max_in_flight : int
        Chunks or groups at once, in memory as a whole; a group has up to 4 MiB.
    """

    def __init__(self, copies: Copies, executor: Executor, *, max_in_flight: int) -> None:
        self._copies = copies
        self._executor = executor
        self._max_in_flight = max_in_flight
        self._group: dict[Wanted, list[Then]] = {}
        self._group_bytes = 0
        self._under_way: deque[tuple[dict[Wanted, list[Then]], Future[list[StoreError | None]]]] = deque()

    def add(self, ref: Ref, *, replicas: int, then: Then) -> None:
        """Fetch a chunk some time until `finish`. May wait for others, and tell of them."""
        wanted = (ref, replicas)
        if not 0 < ref.size <= MAX_SMALL_BYTES:
            self._submit({wanted: [then]}, self._restore_one)
            return
        if wanted in self._group:
            self._group[wanted].append(then)
            return
        if len(self._group) == MAX_MEMBERS or self._group_bytes + ref.size > _GROUP_BYTES:
            self._submit_group()
        self._group[wanted] = [then]
        self._group_bytes += ref.size

    def finish(self) -> None:
        """Wait until everything was fetched, or can't be."""
        self._submit_group()
        while self._under_way:
            self._settle()

    def _submit_group(self) -> None:
        group, self._group, self._group_bytes = self._group, {}, 0
        if group:
            self._submit(group, self._copies.restore_small)

    def _submit(self, group: dict[Wanted, list[Then]], restore: Callable[[list[Wanted]], list[StoreError | None]]) -> None:
        if len(self._under_way) >= self._max_in_flight:
            self._settle()
        self._under_way.append((group, self._executor.submit(restore, list(group))))

    def _restore_one(self, wanted: list[Wanted]) -> list[StoreError | None]:
        ((ref, replicas),) = wanted
        try:
            self._copies.restore(ref, replicas=replicas)
        except StoreError as error:
            return [error]
        return [None]

    def _settle(self) -> None:
        group, future = self._under_way.popleft()
        for ((ref, _), thens), error in zip(group.items(), future.result(), strict=True):
            for then in thens if error is not None else thens[:1]:
                then(ref, error)
