"""Figures: of the rounds of one side in one cell, and which way of looking at them a cell or a bar takes. Pure."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

__all__ = ["Figure", "Result", "Unit", "percentile"]

MIN_CALLS_P99 = 100  # With fewer the 99th percentile is the worst call, which says nothing about the others.


class Unit(Enum):
    """What is counted, and 1,000 of it, for which CPU time is given."""

    MB = ("MB", "GB")
    REQUESTS = ("requests", "1,000 requests")

    def __init__(self, label: str, thousand: str) -> None:
        self.label, self.thousand = label, thousand


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """One side of one cell.

    Attributes
    ----------
    rates : tuple of float
        Amounts a second, of each round, from the least to the most.
    p50_ms, p99_ms : float
        Latency of one call, over all rounds; no 99th percentile of fewer than 100 calls.
    server_cpu_s, client_cpu_s : float
        CPU seconds for a thousand of the unit; None where others were served at the same time, or there are no servers.
    server_peak_bytes : int
        Highest resident memory of the servers while they were measured.
    stream_mb_per_s : float
        What the stream beside it got.
    """

    cell: str
    side: str
    unit: Unit
    rates: tuple[float, ...]
    calls: int
    p50_ms: float
    p99_ms: float | None
    server_cpu_s: float | None
    client_cpu_s: float | None
    server_peak_bytes: int | None
    stream_mb_per_s: float | None

    @property
    def median(self) -> float:
        """The middle rate."""
        return statistics.median(self.rates)


class Figure(Enum):
    """What two sides are compared by; the value is its name in the report."""

    RATE = "rate"
    P99 = "p99 latency"
    SERVER_CPU = "CPU of the servers"
    CPU = "CPU of servers and client"

    def times_as_good(self, result: Result, other: Result) -> float | None:
        """How many times as good the first result is; None where either has no such figure."""
        if self is Figure.RATE:
            return result.median / other.median
        ours, theirs = self._cost(result), self._cost(other)
        return theirs / ours if ours and theirs else None

    def _cost(self, result: Result) -> float | None:
        if self is Figure.P99:
            return result.p99_ms
        if self is Figure.CPU and result.server_cpu_s is not None and result.client_cpu_s is not None:
            return result.server_cpu_s + result.client_cpu_s
        return result.server_cpu_s


def percentile(values: Sequence[float], share: float) -> float:
    """The least value that `share` of all values do not exceed (nearest rank); `values` are sorted and not empty."""
    assert 0 < share <= 1
    return values[math.ceil(share * len(values)) - 1]
