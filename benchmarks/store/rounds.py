"""One cell measured: its sides take turns, round after round, so that the noise of the machine meets all of them alike."""

from __future__ import annotations

import os
import time
from array import array
from collections.abc import Mapping
from contextlib import ExitStack

from benchmarks.store import usage
from benchmarks.store.cells import Cell
from benchmarks.store.clients import ONE, Fleet, Tally
from benchmarks.store.operations import Operation, new_body
from benchmarks.store.results import MIN_CALLS_P99, Result, Unit, percentile
from benchmarks.store.sides import Running, Side
from benchmarks.store.stores import Store

__all__ = ["load", "measure"]

_AFTER_S = 0.2


def measure(cell: Cell, sides: Mapping[Side, Running], *, rounds: int, min_s: float) -> list[Result]:
    """Load the objects, connect the clients of every side, and let each have `min_s` seconds in each round."""
    with ExitStack() as stack:
        lanes = [_Lane(stack, cell, label, sides[entry.side], entry.operation) for label, entry in cell.entries.items()]
        os.sync()  # What loading left in memory would be written out during the first rounds.
        for _ in range(rounds):
            for lane in lanes:
                lane.run(min_s)
        return [lane.result() for lane in lanes]


def load(store: Store, operation: Operation) -> None:
    """Store the objects that an operation reads."""
    with ExitStack() as stack:
        connection = store.connect(stack)
        for key, size_bytes in operation.objects.items():
            connection.put(key, new_body(size_bytes))


class _Lane:
    """One side in its cell: its clients, and what came of its turns."""

    def __init__(self, stack: ExitStack, cell: Cell, label: str, running: Running, operation: Operation) -> None:
        self._cell, self._label, self._operation = cell, label, operation
        load(running.store, operation)
        self._fleet = stack.enter_context(Fleet(running.store, operation, cell.crowd))
        self._stream: Fleet | None = None
        if cell.stream is not None:
            load(running.store, cell.stream)
            self._stream = stack.enter_context(Fleet(running.store, cell.stream, ONE))
        self._servers = usage.tree(running.pids)
        self._rates: list[float] = []
        self._streamed: list[float] = []
        self._latencies_s = array("d")
        self._server_cpu_s = self._client_cpu_s = 0.0
        self._peak_bytes = 0

    def run(self, seconds: float) -> None:
        """One turn."""
        usage.reset_peaks(self._servers)
        server_cpu_s, client_cpu_s = usage.cpu_s(self._servers), usage.cpu_s(self._fleet.pids)
        if self._stream is not None:
            self._stream.start(seconds)
        self._fleet.start(seconds)
        tally = self._checked(self._fleet.collect())
        if self._stream is not None:
            streamed = self._checked(self._stream.collect())
            self._streamed.append(streamed.calls_per_s)
        # What servers put off until they have answered, such as the last replica, is theirs to pay and not the next side's.
        time.sleep(_AFTER_S)
        self._server_cpu_s += usage.cpu_s(self._servers) - server_cpu_s
        self._client_cpu_s += usage.cpu_s(self._fleet.pids) - client_cpu_s
        self._peak_bytes = max(self._peak_bytes, usage.peak_bytes(self._servers))
        self._rates.append(tally.calls_per_s * self._amount)
        self._latencies_s.extend(tally.latencies_s)

    def result(self) -> Result:
        """The figures of all turns."""
        latencies_s = sorted(self._latencies_s)
        calls = len(latencies_s)
        thousands = calls * self._amount / 1000
        alone = self._cell.stream is None
        stream_mb = 0.0 if self._cell.stream is None else self._cell.stream.call_bytes / 1e6
        return Result(
            cell=self._cell.name,
            side=self._label,
            unit=self._cell.unit,
            rates=tuple(sorted(self._rates)),
            calls=calls,
            p50_ms=1e3 * percentile(latencies_s, 0.5),
            p99_ms=1e3 * percentile(latencies_s, 0.99) if calls >= MIN_CALLS_P99 else None,
            server_cpu_s=self._server_cpu_s / thousands if alone and self._servers else None,
            client_cpu_s=self._client_cpu_s / thousands if alone else None,
            server_peak_bytes=self._peak_bytes if self._servers else None,
            stream_mb_per_s=None if alone else sum(self._streamed) / len(self._streamed) * stream_mb,
        )

    @property
    def _amount(self) -> float:
        """How much one call does, in the cell's unit."""
        return self._operation.call_bytes / 1e6 if self._cell.unit is Unit.MB else self._operation.call_objects

    def _checked(self, tally: Tally) -> Tally:
        if tally.errors:
            raise RuntimeError(f"{self._cell.name}, {self._label}: {len(tally.errors)} calls failed: {tally.errors[0]}")
        return tally
