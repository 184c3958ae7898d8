"""The verified read: bytes of a chunk from whichever replica gives the right ones, soon.

One path serves applications, the node's own object routes, repair and the loader. It asks the replicas that placement
names, under the current layout and those that it has not replaced everywhere: trusted ones first, of those the ones that are
not slow, then near before far, and of the rest current holders before former ones. When the one that is asked is late, another
one is asked as well, and the first verified answer is taken (`client.race`, `client.hedging`). A copy that is corrupt is
reported to its node, which sets it aside and repairs it, but only after the reader has its bytes from another one.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import cache, partial
from itertools import compress

from client.attempt import Attempt, Overtaken
from client.chunks import ChunkClient
from client.cluster import Cluster
from client.config import ClientConfig
from client.errors import (
    AllReplicasFailed,
    ChunkCorrupt,
    ChunkNotFound,
    DeadlineExceeded,
    Forbidden,
    StoreError,
    Unauthenticated,
)
from client.group_read import SmallRead, read_group
from client.hedging import Paces, WasteBudget, kind_of
from client.manifest import Ref
from client.nearness import MACHINE, ZONES, Nearness
from client.placement import Layouts
from client.process import HomeProcess
from client.race import Lookout, Race
from client.retry import NEVER, Deadline
from client.together import make_requests

__all__ = ["ReadTotals", "ReplicaReader", "UnderWay"]

log = logging.getLogger(__name__)


@dataclass(slots=True, kw_only=True)
class ReadTotals:
    """What was read so far.

    Attributes
    ----------
    bytes_local, bytes_remote : int
        Bytes that were asked for, by where they came from: this machine, or another one.
    bytes_other_zone : int
        Of the latter, those from outside of this process's zone; 0 where that is not known.
    bytes_hedged : int
        Of all these, those that the second node gave that was asked.
    bytes_wasted : int
        Beside these: bytes that came and were thrown away, because another node was faster, or they were not right.
    hedges : int
        Reads for which a second node was asked.
    failovers : int
        How many times a read had to move on to another replica.
    """

    bytes_local: int = 0
    bytes_remote: int = 0
    bytes_other_zone: int = 0
    bytes_hedged: int = 0
    bytes_wasted: int = 0
    hedges: int = 0
    failovers: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class UnderWay:
    """A read that is being made: the chunk, and for how long which nodes have been asked for it."""

    ref: Ref
    asked_s: Mapping[str, float]


class ReplicaReader:
    """Reads chunks by reference, moving on from replicas that fail or are late. Thread-safe; to be closed.

    Parameters
    ----------
    config : ClientConfig
        Where this process is, and the bounds of hedging.
    clock : callable
        Monotonic seconds.
    """

    def __init__(
        self, cluster: Cluster, chunks: ChunkClient, config: ClientConfig, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._cluster = cluster
        self._chunks = chunks
        self._clock = clock
        self._home = HomeProcess()
        self._nearness = Nearness(zone=config.zone, machine=config.machine)
        self._paces = Paces(least_s=config.hedge_least_s, again_s=config.suspect_s, clock=clock)
        self._hedges = config.hedge_waste > 0
        self._budget = WasteBudget(share=config.hedge_waste, burst_bytes=config.hedge_burst_bytes)
        self._lookout = Lookout(
            self._run_second,
            may_run=lambda race: self._budget.take(len(race.buffer)),
            max_running=config.max_hedges,
            clock=clock,
        )
        self._lock = threading.Lock()
        self._totals = ReadTotals()

    def totals(self) -> ReadTotals:
        """What was read so far."""
        with self._lock:
            return ReadTotals(**{name: getattr(self._totals, name) for name in ReadTotals.__slots__})

    def under_way(self) -> list[UnderWay]:
        """The reads that are being made now."""
        now_s = self._clock()
        races = [(race.ref, dict(race.asked)) for race in self._lookout.under_way()]
        return [UnderWay(ref=ref, asked_s={node: now_s - at_s for node, at_s in asked.items()}) for ref, asked in races]

    def close(self) -> None:
        """End the threads that look after late reads."""
        self._lookout.close()

    def read_into(
        self,
        ref: Ref,
        buffer: memoryview,
        *,
        replicas: int,
        start: int = 0,
        exclude: Collection[str] = (),
        deadline: Deadline | None = None,
    ) -> None:
        """Fill `buffer` (of bytes) with the chunk's bytes from `start` on, verified.

        Parameters
        ----------
        replicas : int
            How many replicas the record that refers to the chunk asks for.
        exclude : collection of str
            Node ids not to ask.
        deadline : Deadline, optional
            Once it has passed no further replica is asked, and none is waited for longer.

        Raises
        ------
        AllReplicasFailed
            With what each replica said.
        Unauthenticated, Forbidden
            The token is not good, or not good for this.
        """
        self._home.check()
        failed: dict[str, StoreError] = {}
        layouts = self._cluster.layouts
        first = self._first_to_ask(ref, layouts, replicas=replicas, exclude=exclude)
        nodes = self._to_ask(ref, first, layouts, replicas=replicas, exclude=exclude, failed=failed)
        race = Race(ref, buffer, start=start, nodes=nodes, failed=failed, deadline=deadline or NEVER)
        patience_s = math.inf
        if self._hedges and len(first) > 1:
            patience_s = self._paces.patience_s(first[0], self._kind(first[0], len(buffer)), other=first[1])
        self._lookout.watch(race, patience_s=patience_s)
        try:
            self._run(race, race.first, buffer)
        finally:
            self._lookout.let_go(race)
        race.await_second()
        if race.winner is not None:
            if race.winner is race.second:
                buffer[:] = race.second_buffer
            if failed:
                self._add(failovers=len(failed))
        self.report_corrupt(ref, dict(failed))
        if race.winner is None:
            raise _all_failed(ref, failed)

    def read(
        self,
        ref: Ref,
        *,
        replicas: int,
        start: int = 0,
        end: int | None = None,
        exclude: Collection[str] = (),
        deadline: Deadline | None = None,
    ) -> bytearray:
        """The chunk's bytes ``[start, end)``, verified; see `read_into`."""
        data = bytearray((ref.size if end is None else end) - start)
        self.read_into(ref, memoryview(data), replicas=replicas, start=start, exclude=exclude, deadline=deadline)
        return data

    def read_small(
        self, wanted: Sequence[tuple[Ref, int]], *, exclude: Collection[str] = ()
    ) -> list[memoryview | AllReplicasFailed]:
        """Small chunks, verified, many of them by one request to a node.

        Parameters
        ----------
        wanted : sequence of (Ref, int)
            Chunks, within the bounds of `client.frames`, and how many replicas the record asks for that refers to each.
        exclude : collection of str
            Node ids not to ask.

        Returns
        -------
        list of memoryview or AllReplicasFailed
            For each its bytes, or what each replica said.
        """
        layouts = self._cluster.layouts
        group = [
            SmallRead(ref=ref, peers=list(self._first_to_ask(ref, layouts, replicas=replicas, exclude=exclude)))
            for ref, replicas in wanted
        ]
        read_group(group, self._chunks)
        for small in group:
            self.report_corrupt(small.ref, small.failed)
            if small.payload is not None:
                self._count(small.node_id, small.ref.size, hedged=False)
                self._add(failovers=len(small.failed))
        return [_all_failed(small.ref, small.failed) if small.payload is None else small.payload for small in group]

    def take_together(self, wanted: Sequence[tuple[Ref, memoryview]], *, replicas: int, executor: Executor) -> list[bool]:
        """Fill buffers with whole chunks that nodes on this host have in memory, many at a time; for each whether it was.

        There is nothing about such a read that could be late. Whatever was not filled is to be read by `read_into`.
        """
        filled = [False] * len(wanted)

        def take(node_id: str, numbers: Sequence[int]) -> None:
            taken = list(compress(numbers, self._chunks.take_together(node_id, [wanted[number] for number in numbers])))
            for number in taken:
                filled[number] = True
            if taken:
                self._count(node_id, sum(wanted[number][0].size for number in taken), hedged=False)

        make_requests(self._on_this_host(wanted, replicas=replicas), take, executor=executor)
        return filled

    def _on_this_host(self, wanted: Sequence[tuple[Ref, memoryview]], *, replicas: int) -> dict[str, list[int]]:
        """Which of the chunks are to be read from which node on this host."""
        chosen: dict[str, list[int]] = {}
        if here := self._chunks.colocated():
            layouts = self._cluster.layouts
            ranked = cache(partial(self._ranked, layouts=layouts))  # Many chunks have the same holders.
            for number, (ref, _) in enumerate(wanted):
                first = ranked(layouts.holders(ref.partition, count=replicas))
                if first and first[0] in here:
                    chosen.setdefault(first[0], []).append(number)
        return chosen

    def report_corrupt(self, ref: Ref, failed: Mapping[str, StoreError]) -> None:
        """Have the nodes verify their copies that, of all in `failed`, sent corrupt bytes."""
        for node_id, error in failed.items():
            if not isinstance(error, ChunkCorrupt):
                continue
            log.warning("corrupt bytes came for chunk %s; asking node %s to verify its copy", ref, node_id)
            try:
                self._chunks.verify(node_id, [ref])
            except StoreError as trouble:
                # Scrub will find the copy if this node lives on.
                log.warning("node %s could not be told of its corrupt chunk %s: %s", node_id, ref, trouble.message)

    def _first_to_ask(self, ref: Ref, layouts: Layouts, *, replicas: int, exclude: Collection[str]) -> tuple[str, ...]:
        """The holders that are known, in the order in which to ask them."""
        holders = layouts.holders(ref.partition, count=replicas)
        return self._ranked([node for node in holders if node not in exclude], layouts)

    def _ranked(self, nodes: Collection[str], layouts: Layouts) -> tuple[str, ...]:
        distances, here = self._nearness.of(layouts), self._chunks.colocated()
        alike = self._cluster.ranked(
            nodes, by=lambda node: (node not in here, distances.get(node, ZONES), self._paces.load(node))
        )
        slow = self._paces.slow(alike)
        return self._cluster.ranked(alike, by=lambda node: slow.get(node, 0.0)) if slow else alike

    def _to_ask(
        self,
        ref: Ref,
        first: Collection[str],
        layouts: Layouts,
        *,
        replicas: int,
        exclude: Collection[str],
        failed: Mapping[str, StoreError],
    ) -> Iterator[str]:
        """Whom to ask, one after another. If in the end nobody has it, the layouts are read anew: they may have changed."""
        yield from first
        if not any(isinstance(error, ChunkNotFound) for error in list(failed.values())):
            return
        try:
            newer = self._cluster.refresh().layouts
        except StoreError as trouble:
            log.warning(
                "chunk %s is on none of its nodes, and whether those have changed is not known: %s", ref, trouble.message
            )
            return
        if newer != layouts:
            holders = newer.holders(ref.partition, count=replicas)
            yield from self._ranked([node for node in holders if node not in exclude and node not in first], newer)

    def _run_second(self, race: Race, attempt: Attempt) -> None:
        self._add(hedges=1)
        race.second_buffer = bytearray(len(race.buffer))
        self._run(race, attempt, memoryview(race.second_buffer))

    def _run(self, race: Race, attempt: Attempt, buffer: memoryview) -> None:
        """Ask nodes until one has given the bytes, there is none left, or the attempt is ended."""
        try:
            while (node_id := race.next()) is not None and not self._ask(race, attempt, node_id, buffer):
                pass
        except Overtaken:
            return
        finally:
            if race.leave(attempt):
                self._settle(race)

    def _ask(self, race: Race, attempt: Attempt, node_id: str, buffer: memoryview) -> bool:
        """Whether a node gave the bytes."""
        if race.failed and not attempt.remaining_s():
            attempt.check()
            race.failed[node_id] = DeadlineExceeded("there was no time left to ask it", node_id=node_id)
            return False
        began_s, received = self._clock(), attempt.received
        race.asked[node_id] = began_s
        self._paces.begin(node_id)
        ended = self._paces.untold
        try:
            self._chunks.fetch_into(node_id, race.ref, buffer, start=race.start, deadline=attempt)
        except Overtaken:
            if attempt is race.first:
                ended = self._paces.beaten
            race.waste(attempt.received - received)
            raise
        except (Unauthenticated, Forbidden) as error:
            if attempt is race.first:
                race.end()
                raise  # The other nodes would say the same, and waiting changes nothing.
            # It may be this node's clock that is off: the first read goes on, and is told whether the token is good.
            race.failed[node_id] = error
            return False
        except StoreError as error:
            race.failed[node_id] = error
            race.waste(attempt.received - received)
            return False
        else:
            ended = partial(self._paces.answered, kind=self._kind(node_id, len(buffer)), took_s=self._clock() - began_s)
        finally:
            ended(node_id)
            del race.asked[node_id]
        if race.win(attempt):
            self._count(node_id, len(buffer), hedged=attempt is not race.first)
        else:
            race.waste(len(buffer))
        return True

    def _settle(self, race: Race) -> None:
        """Count, after the last run, what was wasted."""
        if race.second is not None:
            self._budget.give_back(max(0, len(race.buffer) - race.wasted_bytes))
        if race.wasted_bytes:
            self._add(bytes_wasted=race.wasted_bytes)

    def _count(self, node_id: str, num_bytes: int, *, hedged: bool) -> None:
        self._budget.earn(num_bytes)
        distance = self._nearness.of(self._cluster.layouts).get(node_id, ZONES)
        with self._lock:
            totals = self._totals
            if distance == MACHINE or node_id in self._chunks.colocated():
                totals.bytes_local += num_bytes
            else:
                totals.bytes_remote += num_bytes
                totals.bytes_other_zone += num_bytes * (distance == ZONES)
            totals.bytes_hedged += num_bytes * hedged

    def _add(self, **more: int) -> None:
        with self._lock:
            for name, number in more.items():
                setattr(self._totals, name, getattr(self._totals, name) + number)

    def _kind(self, node_id: str, size_bytes: int) -> tuple[bool, int]:
        return kind_of(size_bytes, on_this_host=node_id in self._chunks.colocated())


def _all_failed(ref: Ref, failed: Mapping[str, StoreError]) -> AllReplicasFailed:
    said = "; ".join(f"{node} said {error.title}: {error.message}" for node, error in failed.items())
    return AllReplicasFailed(
        f"chunk {ref} can't be read from any of {len(failed)} replicas: {said or 'the layout names no other replica'}",
        key=str(ref),
    )
