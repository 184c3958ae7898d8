"""Clients as processes of their own: they connect, warm up, and then repeat one operation for a time, on command.

They are the same for every side. Several clients are several processes with a few threads each, because the threads of one
Python process take turns. All begin at one moment, which the command names, and each calls until its time is over; the call
that is under way then is finished and counted, with the time it took.
"""

from __future__ import annotations

import http.client
import multiprocessing
import signal
import time
from array import array
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from multiprocessing.connection import Connection as Pipe
from types import TracebackType
from typing import Self

from benchmarks.store.operations import Operation
from benchmarks.store.stores import Store
from client import StoreError

__all__ = ["ONE", "SIXTEEN", "Crowd", "Fleet", "Tally", "repeat"]

_LEAD_S = 0.05  # from the command to the common start, so that it has reached every process
_READY_S = 120.0
_FAILURES = (StoreError, OSError, EOFError, http.client.HTTPException)


@dataclass(frozen=True, slots=True, kw_only=True)
class Crowd:
    """How many clients there are, in how many processes."""

    processes: int
    threads: int

    @property
    def clients(self) -> int:
        return self.processes * self.threads


ONE = Crowd(processes=1, threads=1)
SIXTEEN = Crowd(processes=4, threads=4)


@dataclass(slots=True, kw_only=True)
class Tally:
    """What clients did in one interval.

    Attributes
    ----------
    calls_per_s : float
        Sum over the clients, each by its own time.
    latencies_s : array of float
        Of each call that succeeded.
    errors : list of str
        What the others raised.
    """

    calls_per_s: float = 0.0
    latencies_s: array[float] = field(default_factory=lambda: array("d"))
    errors: list[str] = field(default_factory=list)

    def add(self, other: Tally) -> None:
        """Count what other clients did at the same time."""
        self.calls_per_s += other.calls_per_s
        self.latencies_s.extend(other.latencies_s)
        self.errors += other.errors


class Fleet:
    """Client processes, connected and warm. A context manager; they end with it.

    Parameters
    ----------
    store : Store
        What they connect to; it holds the operation's objects.
    operation : Operation
        What they repeat.
    crowd : Crowd
        How many they are.
    """

    def __init__(self, store: Store, operation: Operation, crowd: Crowd) -> None:
        # Spawned, not forked: a fork would begin with the threads' locks and the memory of this process.
        context = multiprocessing.get_context("spawn")
        self._pipes: list[Pipe] = []
        self._processes = []
        for index in range(crowd.processes):
            ours, theirs = context.Pipe()
            process = context.Process(
                target=_serve, args=(theirs, store, operation, index * crowd.threads, crowd.threads), daemon=True
            )
            process.start()
            theirs.close()  # So that its end is seen here.
            self._pipes.append(ours)
            self._processes.append(process)

    def __enter__(self) -> Self:
        try:
            for pipe in self._pipes:
                self._receive(pipe, timeout_s=_READY_S)
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    @property
    def pids(self) -> tuple[int, ...]:
        """The client processes."""
        return tuple(process.pid for process in self._processes if process.pid is not None)

    def start(self, seconds: float) -> None:
        """Let all clients begin together."""
        start_s = time.monotonic() + _LEAD_S  # One clock for all processes of a machine.
        for pipe in self._pipes:
            pipe.send((start_s, start_s + seconds))

    def collect(self) -> Tally:
        """Wait until all have ended, and sum up."""
        total = Tally()
        for pipe in self._pipes:
            total.add(self._receive(pipe))
        return total

    def close(self) -> None:
        """End the processes."""
        for pipe in self._pipes:
            pipe.close()
        for process in self._processes:
            process.join(timeout=10)
            process.kill()
            process.join()

    def _receive(self, pipe: Pipe, *, timeout_s: float | None = None) -> Tally:
        if not pipe.poll(timeout_s):
            raise TimeoutError(f"a client process was not ready after {timeout_s} s")
        try:
            tally: Tally = pipe.recv()
        except EOFError as exc:
            raise RuntimeError("a client process ended; its own message is above") from exc
        return tally


def repeat(step: Callable[[], None], *, start_s: float, end_s: float) -> Tally:
    """Call `step` from `start_s` until `end_s`, at least once; both on `time.monotonic`."""
    tally = Tally()
    time.sleep(max(0.0, start_s - time.monotonic()))
    began_s = now_s = time.monotonic()
    while True:
        try:
            step()
        except _FAILURES as error:
            now_s = time.monotonic()
            tally.errors.append(f"{type(error).__name__}: {error}")
        else:
            before_s, now_s = now_s, time.monotonic()
            tally.latencies_s.append(now_s - before_s)
        if now_s >= end_s:
            tally.calls_per_s = len(tally.latencies_s) / (now_s - began_s)
            return tally


def _serve(pipe: Pipe, store: Store, operation: Operation, first_client: int, num_threads: int) -> None:
    """A client process: ready, then one tally for each command, until the other end is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent as well, which then ends this process.
    with ExitStack() as stack:
        threads = stack.enter_context(ThreadPoolExecutor(num_threads))
        clients = range(first_client, first_client + num_threads)
        steps = [operation.prepare(store.connect(stack), client=client) for client in clients]
        _first_calls(steps)
        pipe.send(Tally())
        while True:
            try:
                start_s, end_s = pipe.recv()
            except EOFError:
                return
            turns = [threads.submit(repeat, step, start_s=start_s, end_s=end_s) for step in steps]
            total = Tally()
            for turn in turns:
                total.add(turn.result())
            pipe.send(total)


def _first_calls(steps: Sequence[Callable[[], None]]) -> None:
    """Open every connection, and fail at once if the operation does not work at all."""
    for step in steps:
        step()
