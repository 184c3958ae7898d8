"""What could not be done yet, and when to try it again: a bounded set with backoff and the oldest revision in it.

Pure: it takes the time as an argument and its randomness from outside, does no I/O and has no lock. The follower keeps
records in it whose chunks can't be had now, the repair of single copies keeps chunks. Who is turned away because the set is
full has to remember by other means that there is more to do.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Generic, TypeVar

__all__ = ["RetryQueue"]

K = TypeVar("K", bound=Hashable)


@dataclass(slots=True, kw_only=True)
class _Entry:
    revision: int
    due_s: float
    attempts: int


class RetryQueue(Generic[K]):
    """Keys to try again, each with the revision that it holds back. Not thread-safe.

    Parameters
    ----------
    limit : int
        Most keys that it holds.
    base_s, max_s : float
        The first and the longest backoff; it doubles, and half of it is drawn at random.
    uniform : callable
        Draws from ``[low, high]``.
    """

    def __init__(self, *, limit: int, base_s: float, max_s: float, uniform: Callable[[float, float], float]) -> None:
        self._limit = limit
        self._base_s = base_s
        self._max_s = max_s
        self._uniform = uniform
        self._entries: dict[K, _Entry] = {}

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def num_fresh(self) -> int:
        """Keys that have not failed yet since they were added."""
        return sum(entry.attempts == 0 for entry in self._entries.values())

    def add(self, key: K, *, revision: int, due_s: float) -> bool:
        """Remember `key`, to be tried at `due_s`; False if the set is full.

        A key that is in the set already keeps its older revision and is tried at the earlier of both times.
        """
        entry = self._entries.get(key)
        if entry is not None:
            entry.revision = min(entry.revision, revision)
            entry.due_s = min(entry.due_s, due_s)
            return True
        if len(self._entries) >= self._limit:
            return False
        self._entries[key] = _Entry(revision=revision, due_s=due_s, attempts=0)
        return True

    def due(self, now_s: float) -> list[K]:
        """The keys whose time has come, longest waiting first. They stay in the set."""
        found = [(entry.due_s, index) for index, entry in enumerate(self._entries.values()) if entry.due_s <= now_s]
        keys = list(self._entries) if found else []
        return [keys[index] for _, index in sorted(found)]

    def next_due_s(self) -> float | None:
        """When the next key's time comes; None if the set is empty."""
        return min((entry.due_s for entry in self._entries.values()), default=None)

    def oldest_revision(self) -> int | None:
        """The oldest revision that is held back; None if the set is empty."""
        return min((entry.revision for entry in self._entries.values()), default=None)

    def failed(self, key: K, *, now_s: float) -> int:
        """Put off `key` after a failed attempt; returns how many attempts have failed so far, 0 for an unknown key."""
        entry = self._entries.get(key)
        if entry is None:
            return 0
        ceiling_s: float = min(self._max_s, self._base_s * 2 ** min(entry.attempts, 32))
        # Half is kept fixed, so that a key never comes back at once; the other half spreads nodes that failed together.
        entry.due_s = now_s + ceiling_s / 2 + self._uniform(0.0, ceiling_s / 2)
        entry.attempts += 1
        return entry.attempts

    def done(self, key: K) -> None:
        """Forget `key`."""
        self._entries.pop(key, None)
