"""What the clients asked and saw, and what went wrong. Thread-safe, and nothing in it waits for anybody else.

A violation is a promise that was broken. That a call fails while faults strike breaks none; how many did is counted, for a soak
in which everything fails proves nothing.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from client.errors import (
    BodyTooLarge,
    DiskFull,
    InternalError,
    InvalidRequest,
    MetadataCorrupt,
    Misconfigured,
    NotEnoughReplicas,
    ObjectNotFound,
    PreconditionFailed,
    StoreError,
)
from client.record import Condition
from tests.support.linearizability import Kind, Operation

__all__ = ["NOTHING_NAMED", "History", "Seen", "now"]

# No fault in the schedule is a reason for one of these.
DEFECTS = (InternalError, MetadataCorrupt, Misconfigured, InvalidRequest, BodyTooLarge)
# The message promises that nothing was named, so a read that finds it nevertheless is a violation.
NOTHING_NAMED = (NotEnoughReplicas, DiskFull)
MAX_VIOLATIONS = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """A version of an object as somebody saw it."""

    tag: str
    etag: str
    version: int


@dataclass(kw_only=True)
class History:
    """Of one soak.

    Attributes
    ----------
    operations : list of Operation
        On contended keys.
    counts : Counter
        Calls by what they were and what came of them; faults by their kind.
    events : list of str
        What the nemesis did, with the seconds since the start.
    violations : list of str
        The first of them.
    """

    operations: list[Operation] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    events: list[str] = field(default_factory=list)
    violations: list[str] = field(default_factory=list)
    on_event: Callable[[str], None] = lambda line: None
    versions: list[tuple[str, int, int, int]] = field(default_factory=list)  # key, called, returned, version
    outdated: set[tuple[str, str]] = field(default_factory=set)  # key and tag that somebody saw, perhaps late
    broken: threading.Event = field(default_factory=threading.Event)
    started_s: float = field(default_factory=time.monotonic)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _tags: dict[str, str] = field(default_factory=dict)

    def count(self, what: str, number: int = 1) -> None:
        with self._lock:
            self.counts[what] += number

    def event(self, what: str) -> None:
        """Something that the nemesis or the soak did."""
        line = f"{time.monotonic() - self.started_s:8.1f} s  {what}"
        with self._lock:
            self.events.append(line)
        self.on_event(line)

    def violation(self, what: str) -> None:
        """A promise was broken."""
        with self._lock:
            if len(self.violations) < MAX_VIOLATIONS:
                self.violations.append(what)
        self.event(f"VIOLATION: {what}")
        self.broken.set()

    def failed(self, what: str, error: Exception) -> None:
        """A call that brought nothing."""
        self.count(f"{what} {error.code if isinstance(error, StoreError) else type(error).__name__}")
        if isinstance(error, DEFECTS) or not isinstance(error, StoreError | OSError):
            self.violation(f"{what}: {type(error).__name__}: {error}")

    def read(
        self, client: str, key: str, called: int, seen: Seen | None, *, what: str = "get", returned: int | None = None
    ) -> None:
        """A read of a contended key, which found this, and returned now or at another moment."""
        returned = now() if returned is None else returned
        self._add(
            Operation(client=client, kind="get", key=key, called=called, returned=returned, tag=seen.tag if seen else None)
        )
        self.count(f"{what} ok")
        if seen is not None:
            self._learn(key, seen)

    def read_tag(self, client: str, key: str, called: int, tag: str) -> None:
        """A read of a contended key that brought bytes alone."""
        self._add(Operation(client=client, kind="get", key=key, called=called, returned=now(), tag=tag))
        self.count("get ok")

    def read_weakly(self, key: str, tag: str, *, what: str) -> None:
        """A read that may be outdated."""
        self.count(f"{what} ok")
        with self._lock:
            self.outdated.add((key, tag))

    def wrote(self, client: str, kind: Kind, key: str, called: int, seen: Seen | None, condition: Condition) -> None:
        """A write that was acknowledged; `seen` is the version that it made, None for a delete."""
        returned = now()
        self._add(
            Operation(
                client=client,
                kind=kind,
                key=key,
                called=called,
                returned=returned,
                tag=seen.tag if seen else None,
                condition=condition,
            )
        )
        self.count(f"{kind} ok")
        if seen is not None:
            self._learn(key, seen)
            with self._lock:
                self.versions.append((key, called, returned, seen.version))

    def not_written(
        self, client: str, kind: Kind, key: str, called: int, tag: str | None, condition: Condition, error: Exception
    ) -> None:
        """A write that was refused, failed, or may have happened."""
        self.failed(kind, error)
        if isinstance(error, NOTHING_NAMED):
            return
        refused = isinstance(error, PreconditionFailed | ObjectNotFound)
        self._add(
            Operation(
                client=client,
                kind=kind,
                key=key,
                called=called,
                returned=now() if refused else None,
                tag=tag,
                outcome="refused" if refused else "unknown",
                condition=condition,
            )
        )

    def _add(self, operation: Operation) -> None:
        with self._lock:
            self.operations.append(operation)

    def _learn(self, key: str, seen: Seen) -> None:
        with self._lock:
            known = self._tags.setdefault(seen.etag, seen.tag)
        if known != seen.tag:
            self.violation(f"{key}: the ETag {seen.etag} stood for the write {known}, and for {seen.tag}")


def now() -> int:
    """The clock of all histories."""
    return time.monotonic_ns()
