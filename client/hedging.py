"""When a read is late, who is slow, and how much may be read twice: the policy of hedged reads, without threads or I/O.

Theory of operation
-------------------
A read is late once it takes twice as long as the slowest twentieth of the reads of its kind that this node answered lately
(Dean and Barroso, "The Tail at Scale"), and at least `least_s`. A kind is a way (on this host or not) and a power of four of
the size, so that small reads are compared with small ones. While a node has answered too few, all nodes together are the
measure. Only reads that ended well are samples: what was given up early is a bound, and would lower the measure. If none but a
slow node could help, a read is late eight times later.

A node is slow when its score is high: a moving average over its reads of how many times as long they took as the median of
their kind over all nodes. A read that another node had to finish counts as the worst. Four of these in a row, or some more
among good ones, are enough. Slow nodes are asked last. Now and then one read goes to where it would go otherwise, and a good
answer or two make the node an ordinary one again; such a read is hedged early, by the measure of the others. The pause between
two such reads doubles up to `again_s`, because whoever was short of CPU time for a moment takes good nodes for slow ones.

Among the others, a node with several more reads under way than another one is asked after it.

What is received and thrown away is bounded by a bucket of tokens, one for each byte: each byte that is read adds a fraction
of one, a hedge takes as many as it has bytes and brings back what was not wasted.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

__all__ = ["Kind", "Paces", "WasteBudget", "kind_of"]

Kind: TypeAlias = tuple[bool, int]
"""Of a read: whether the node is on this host, and a class of sizes."""

_KEPT = 32  # Samples of a node and kind.
_KEPT_OF_ALL = 128
_ENOUGH = 8
_LATE = 2.0  # Times the 95th percentile.
_UNKNOWN_S = 0.1  # When a read is late of whose kind too few were seen.
_WORST = 8.0
_SLOW = 4.0
_WEIGHT = 0.15  # Of the newest read in a score: after four of the worst, an ordinary node is slow.
_FIRST_PAUSE = 1 / 16  # Of `again_s`.
# Of those beyond, the one that was used longest ago is forgotten.
_MAX_NODES = 1024
_MAX_MEASURES = 4096
_LOAD_STEP = 4  # Reads under way. Fewer would take readers of the same chunk to all its replicas, and it into all their memory.


@dataclass(slots=True)
class _Standing:
    """What is known of one node."""

    score: float = 1.0
    again_s: float = 0.0
    pause_s: float = 0.0
    num_under_way: int = 0


class _Measure:
    """Seconds that the last reads of a kind took."""

    __slots__ = ("_num_new", "_samples", "late_s", "usual_s")

    def __init__(self, *, kept: int) -> None:
        self._samples: deque[float] = deque(maxlen=kept)
        self._num_new = 0
        self.usual_s = _UNKNOWN_S / _SLOW
        self.late_s = _UNKNOWN_S

    def add(self, took_s: float) -> None:
        self._samples.append(took_s)
        self._num_new += 1
        # Sorting them for each read would cost more than all else here.
        if len(self._samples) >= _ENOUGH and self._num_new >= len(self._samples) // 8:
            ordered, self._num_new = sorted(self._samples), 0
            self.usual_s = ordered[len(ordered) // 2]
            self.late_s = _LATE * ordered[int(0.95 * (len(ordered) - 1))]

    @property
    def is_known(self) -> bool:
        return len(self._samples) >= _ENOUGH


class Paces:
    """How fast nodes have answered lately. Thread-safe.

    Parameters
    ----------
    least_s : float
        No read is late before this, and no node slow whose reads take less.
    again_s : float
        The longest pause before a slow node is asked again.
    clock : callable
        Monotonic seconds.
    """

    def __init__(self, *, least_s: float, again_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._least_s = least_s
        self._again_s = again_s
        self._clock = clock
        self._lock = threading.Lock()
        self._standings: OrderedDict[str, _Standing] = OrderedDict()
        self._measures: OrderedDict[tuple[str, Kind], _Measure] = OrderedDict()
        self._all: dict[Kind, _Measure] = {}

    def load(self, node_id: str) -> int:
        """How much is under way there, in steps: to be asked after others only if it is clearly more."""
        standing = self._standings.get(node_id)
        return 0 if standing is None else standing.num_under_way // _LOAD_STEP

    def slow(self, node_ids: Sequence[str]) -> dict[str, float]:
        """Which of `node_ids`, given as they would be asked if all were alike, are to be asked last, and how slow they are.

        The first one is left out now and then although it is slow: it is to be tried again.
        """
        with self._lock:
            slow = {node_id: self._standings[node_id].score for node_id in node_ids if self._is_slow(node_id)}
            if slow and node_ids[0] in slow and self._standings[node_ids[0]].again_s <= self._clock():
                self._pause(self._standings[node_ids[0]])
                del slow[node_ids[0]]
        return slow

    def patience_s(self, node_id: str, kind: Kind, *, other: str) -> float:
        """After how long a read of a node is late, if `other` would be asked then."""
        with self._lock:
            measure = self._measures.get((node_id, kind))
            if measure is None or not measure.is_known or self._is_slow(node_id):
                measure = self._all.get(kind)
            patience_s = max(self._least_s, _UNKNOWN_S if measure is None else measure.late_s)
            # A slow one helps only if this one is slower still.
            return patience_s * _WORST if self._is_slow(other) and not self._is_slow(node_id) else patience_s

    def begin(self, node_id: str) -> None:
        """Note that a read begins. It ends with one of the following."""
        with self._lock:
            self._standing(node_id).num_under_way += 1

    def answered(self, node_id: str, kind: Kind, took_s: float) -> None:
        """Note that a read of a node ended well, and how long it took."""
        with self._lock:
            every = self._all.get(kind)
            if every is None:
                every = self._all[kind] = _Measure(kept=_KEPT_OF_ALL)
            standing = self._standing(node_id)
            standing.num_under_way -= 1
            self._score(standing, min(_WORST, took_s / max(self._least_s / _SLOW, every.usual_s)))
            every.add(took_s)
            measure = self._measures.get((node_id, kind))
            if measure is None:
                measure = self._measures[node_id, kind] = _Measure(kept=_KEPT)
            self._measures.move_to_end((node_id, kind))
            measure.add(took_s)
            if len(self._measures) > _MAX_MEASURES:
                self._measures.popitem(last=False)

    def beaten(self, node_id: str) -> None:
        """Note that another node had to finish what was asked of this one."""
        with self._lock:
            standing = self._standing(node_id)
            standing.num_under_way -= 1
            self._score(standing, _WORST)

    def untold(self, node_id: str) -> None:
        """Note that a read ended in a way that says nothing about how fast the node is."""
        with self._lock:
            self._standing(node_id).num_under_way -= 1

    def _score(self, standing: _Standing, ratio: float) -> None:
        was_slow = standing.score >= _SLOW
        standing.score += _WEIGHT * (ratio - standing.score)
        if standing.score >= _SLOW and not was_slow:
            standing.pause_s = _FIRST_PAUSE * self._again_s
            self._pause(standing)

    def _pause(self, standing: _Standing) -> None:
        standing.again_s = self._clock() + standing.pause_s
        standing.pause_s = min(self._again_s, 2 * standing.pause_s)

    def _is_slow(self, node_id: str) -> bool:
        standing = self._standings.get(node_id)
        return standing is not None and standing.score >= _SLOW

    def _standing(self, node_id: str) -> _Standing:
        standing = self._standings.get(node_id)
        if standing is None:
            standing = self._standings[node_id] = _Standing()
        self._standings.move_to_end(node_id)
        if len(self._standings) > _MAX_NODES:
            self._standings.popitem(last=False)
        return standing


def kind_of(size_bytes: int, *, on_this_host: bool) -> Kind:
    """The kind of a read."""
    return on_this_host, size_bytes.bit_length() // 2


class WasteBudget:
    """Bytes that may be received in vain: a share of all that are read, and a few at once. Thread-safe.

    Parameters
    ----------
    share : float
        Of what is read; 0 allows none.
    burst_bytes : int
        As many may be wasted before anything was read, or after a while in which nothing was.
    """

    def __init__(self, *, share: float, burst_bytes: int) -> None:
        self._share = share
        self._burst_bytes = float(burst_bytes if share else 0)
        self._left = self._burst_bytes
        self._lock = threading.Lock()

    def earn(self, num_bytes: int) -> None:
        """Note that bytes were read."""
        with self._lock:
            self._left = min(self._burst_bytes, self._left + self._share * num_bytes)

    def take(self, num_bytes: int) -> bool:
        """Whether so many bytes may be read twice now; more than the burst may if nothing was wasted lately."""
        with self._lock:
            if self._left <= 0 or self._left < min(num_bytes, self._burst_bytes):
                return False
            self._left -= num_bytes
            return True

    def give_back(self, num_bytes: int) -> None:
        """Of what was taken, so much was not wasted."""
        with self._lock:
            self._left = min(self._burst_bytes, self._left + num_bytes)
