"""The long run: mixed load on Forebay alone, with the resident memory of nodes and clients beside it, second by second.

Overwritten objects stay on disk, for a node deletes nothing, so the run writes some 60 MB a second.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.store import usage
from benchmarks.store.clients import Crowd, Fleet
from benchmarks.store.operations import Mixed
from benchmarks.store.results import percentile
from benchmarks.store.rounds import load
from benchmarks.store.sides import Running

__all__ = ["MIXED", "Memory", "MixedResult", "run_mixed", "slope_per_min"]

MIXED = "mixed GET and PUT"
_CROWD = Crowd(processes=2, threads=4)
_OPERATION = Mixed(objects_per_size=50)
_SAMPLE_S = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """Resident memory of some processes together, once a second."""

    samples_bytes: tuple[int, ...]

    @property
    def slope_bytes_per_min(self) -> float:
        """Growth over the second half of the run, when caches and pools are filled."""
        return slope_per_min(self.samples_bytes[len(self.samples_bytes) // 2 :], every_s=_SAMPLE_S)


@dataclass(frozen=True, slots=True, kw_only=True)
class MixedResult:
    """What came of it."""

    seconds: float
    clients: int
    calls_per_s: float
    p50_ms: float
    p99_ms: float
    errors: tuple[str, ...]
    nodes: Memory
    client_processes: Memory


def run_mixed(running: Running, *, seconds: float) -> MixedResult:
    """Load the nodes for `seconds`; an error is counted and does not end it."""
    load(running.store, _OPERATION)
    with Fleet(running.store, _OPERATION, _CROWD) as fleet:
        servers, began_s = usage.tree(running.pids), time.monotonic()
        nodes, clients = [], []
        fleet.start(seconds)
        while (elapsed_s := time.monotonic() - began_s) < seconds:
            nodes.append(usage.resident_bytes(servers))
            clients.append(usage.resident_bytes(fleet.pids))
            time.sleep(_SAMPLE_S - elapsed_s % _SAMPLE_S)
        tally = fleet.collect()
    latencies_s = sorted(tally.latencies_s)
    return MixedResult(
        seconds=seconds,
        clients=_CROWD.clients,
        calls_per_s=tally.calls_per_s,
        p50_ms=1e3 * percentile(latencies_s, 0.5),
        p99_ms=1e3 * percentile(latencies_s, 0.99),
        errors=tuple(tally.errors),
        nodes=Memory(samples_bytes=tuple(nodes)),
        client_processes=Memory(samples_bytes=tuple(clients)),
    )


def slope_per_min(samples: Sequence[float], *, every_s: float) -> float:
    """Slope of the straight line through the samples (least squares); 0 for fewer than two."""
    if len(samples) < 2:
        return 0.0
    minutes = [number * every_s / 60 for number in range(len(samples))]
    return statistics.linear_regression(minutes, samples).slope
