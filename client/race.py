"""One read as a race: its caller asks one node, and when that is late, another thread asks another.

Theory of operation
-------------------
Both runs take their nodes from one list, so that none is asked twice, and each has a buffer of its own: the caller's, and one
that is made for the second run. The first that has verified bytes wins and ends the other's attempt, which closes its
connection. The caller's thread is woken up by that, and only then copies the bytes from the other buffer into its own, so
nothing ever writes into a buffer that somebody else reads. The loser's bytes count as wasted.

`Lookout` is the one thread that knows when reads are late. A read that is not costs it nothing: it is put on a list and taken
off again. If that thread itself comes late, the process was short of CPU time, and so were the reads: they are looked at once
more before anybody else is asked.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from client.attempt import Attempt
from client.errors import StoreError
from client.in_flight import ThreadPool
from client.manifest import Ref
from client.retry import Deadline

__all__ = ["Lookout", "Race"]

log = logging.getLogger(__name__)


class Race:
    """The state of one read.

    Parameters
    ----------
    ref : Ref
        The chunk.
    buffer : memoryview
        The caller's.
    start : int
        Of the bytes in the chunk.
    nodes : iterator of str
        Whom to ask, one after another.
    failed : dict of str to StoreError
        Takes what each node said that could not give the bytes.
    deadline : Deadline
        Of the whole.

    Attributes
    ----------
    first : Attempt
        The caller's.
    second : Attempt or None
        Once there is one: the other thread's.
    second_buffer : bytearray
        Its buffer.
    winner : Attempt or None
        Who has the bytes.
    asked : dict of str to float
        The nodes that are being asked, and since when.
    wasted_bytes : int
        What came and was of no use.
    """

    def __init__(
        self,
        ref: Ref,
        buffer: memoryview,
        *,
        start: int,
        nodes: Iterator[str],
        failed: dict[str, StoreError],
        deadline: Deadline,
    ) -> None:
        self.ref = ref
        self.start = start
        self.buffer = buffer
        self.deadline = deadline
        self.first = Attempt(deadline)
        self.second: Attempt | None = None
        self.winner: Attempt | None = None
        self.second_buffer = bytearray()
        self.failed = failed
        self.asked: dict[str, float] = {}
        self.wasted_bytes = 0
        self._nodes = nodes
        self._lock = threading.Lock()
        self._nodes_lock = threading.Lock()
        self._num_running = 1
        self._second_over: threading.Event | None = None

    def next(self) -> str | None:
        """The next node to ask; None if there is none or the read is over."""
        # Whoever comes meanwhile needs what this one is waiting for, the newest layout.
        with self._nodes_lock:
            return None if self.winner is not None else next(self._nodes, None)

    def begin_second(self) -> Attempt:
        """Let another thread run, too."""
        with self._lock:
            self._num_running += 1
            self._second_over = threading.Event()
            self.second = Attempt(self.deadline)
            if self.winner is not None:
                self.second.end()
            return self.second

    def win(self, attempt: Attempt) -> bool:
        """Whether this attempt is the first with verified bytes; the other one is ended then."""
        with self._lock:
            if self.winner is not None:
                return False
            self.winner = attempt
        other = self.second if attempt is self.first else self.first
        if other is not None:
            other.end()
        return True

    def waste(self, num_bytes: int) -> None:
        """Note that bytes came that are of no use."""
        with self._lock:
            self.wasted_bytes += num_bytes

    def leave(self, attempt: Attempt) -> bool:
        """Note that a run is over; whether it was the last one."""
        with self._lock:
            self._num_running -= 1
            if attempt is not self.first and self._second_over is not None:
                self._second_over.set()
            return not self._num_running

    def await_second(self) -> None:
        """Wait until the second run has won or is over, or the time is."""
        if self.winner is None and self._second_over is not None and self.second is not None:
            left_s = self.deadline.remaining_s()
            if not self._second_over.wait(None if left_s == math.inf else left_s):
                self.second.end()

    def end(self) -> None:
        """End all attempts: whatever they would bring, the read has failed."""
        for attempt in (self.first, self.second):
            if attempt is not None:
                attempt.end()


@dataclass(slots=True, kw_only=True)
class _Due:
    """When to look at a read next, how patient to be, and whether it was let off once."""

    at_s: float
    patience_s: float
    excused: bool = False


class Lookout:
    """Notices which reads are late. Thread-safe.

    Parameters
    ----------
    second_run : callable
        Is called in a thread of its own for a read that is late, with its race and the new attempt.
    may_run : callable
        Whether that is allowed now.
    max_running : int
        Second runs at once.
    clock : callable
        Monotonic seconds.
    """

    def __init__(
        self,
        second_run: Callable[[Race, Attempt], None],
        *,
        may_run: Callable[[Race], bool],
        max_running: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._second_run = second_run
        self._may_run = may_run
        self._max_running = max_running
        self._clock = clock
        self._pool = ThreadPool(max_running, name="forebay-hedge")
        self._changed = threading.Condition()
        self._due: dict[Race, _Due] = {}
        self._wakes_s = math.inf
        self._num_running = 0
        self._thread: threading.Thread | None = None
        self._closed = False

    def watch(self, race: Race, *, patience_s: float) -> None:
        """Look after a read until it is let go; it is late after `patience_s`, which may be infinite."""
        due_s = self._clock() + patience_s
        with self._changed:
            self._due[race] = _Due(at_s=due_s, patience_s=patience_s)
            if due_s < self._wakes_s and not self._closed:
                if self._thread is None:
                    self._thread = threading.Thread(target=self._watch, name="forebay-lookout", daemon=True)
                    self._thread.start()
                self._wakes_s = due_s
                self._changed.notify()

    def let_go(self, race: Race) -> None:
        """No second run of this read begins from now on."""
        with self._changed:
            del self._due[race]

    def under_way(self) -> list[Race]:
        """The reads that are being made."""
        with self._changed:
            return list(self._due)

    def close(self) -> None:
        """End the threads; second runs that are under way end first."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        if self._thread is not None:
            self._thread.join()
        self._pool.shutdown()

    def _watch(self) -> None:
        with self._changed:
            while not self._closed:
                now_s = self._clock()
                late_s = now_s - self._wakes_s
                for race, due in self._due.items():
                    if due.at_s <= now_s:
                        due.at_s = now_s + due.patience_s
                        if due.excused or late_s < due.patience_s / 2:
                            self._begin_second(race, due)
                        due.excused = True
                self._wakes_s = min((due.at_s for due in self._due.values()), default=math.inf)
                self._changed.wait(None if self._wakes_s == math.inf else max(0.0, self._wakes_s - self._clock()))

    def _begin_second(self, race: Race, due: _Due) -> None:
        """Begin the second run of a read, if that can be; else it is looked at again."""
        if self._num_running < self._max_running and self._may_run(race):
            self._num_running += 1
            self._pool.submit(self._run, race, race.begin_second())
            due.at_s = math.inf

    def _run(self, race: Race, attempt: Attempt) -> None:
        try:
            self._second_run(race, attempt)
        except Exception:
            # Nobody waits for this thread's result; the read goes on without it.
            log.exception("a second read of chunk %s failed", race.ref)
        finally:
            with self._changed:
                self._num_running -= 1
