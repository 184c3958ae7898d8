"""What one epoch cost on one rank: samples, stalls, bytes by source, failovers, processor time and, where told, energy."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Meters", "Receipt", "joules_now"]

_RAPL = Path("/sys/class/powercap")


def joules_now() -> float | None:
    """Energy that the CPU packages have used so far, from Linux's powercap; None where the machine does not tell."""
    total = None
    for counter in sorted(_RAPL.glob("intel-rapl:[0-9]/energy_uj")):
        try:
            total = (total or 0.0) + int(counter.read_text()) / 1e6
        except OSError:
            return None  # Readable for root only on most machines; unknown is not zero.
    return total


@dataclass(frozen=True, slots=True, kw_only=True)
class Meters:
    """What a receipt reads at its begin and its end; each tells a total that grows.

    Attributes
    ----------
    failovers : callable
        Reads that had to move on to another replica.
    wall_s, cpu_s : callable
        Seconds, the latter of this process.
    joules : callable
        Energy of the machine's processors; None where it is not told.
    """

    failovers: Callable[[], int]
    wall_s: Callable[[], float] = time.perf_counter
    cpu_s: Callable[[], float] = time.process_time
    joules: Callable[[], float | None] = joules_now

    def read(self) -> tuple[int, float, float, float | None]:
        """All of them."""
        return self.failovers(), self.wall_s(), self.cpu_s(), self.joules()


class Receipt:
    """Counters of one epoch, or of the part of one that an iteration reads.

    Parameters
    ----------
    epoch : int
        Which one.
    blocks_per_sample : float
        Blocks that the dataset has for each of its rows: as many would be decoded if no block were read by two ranks.
    meters : Meters
        What is read at the begin and at the end.

    Attributes
    ----------
    samples : int
        Rows handed out.
    stall_s : float
        Seconds that the training loop waited for data.
    """

    def __init__(self, *, epoch: int, blocks_per_sample: float, meters: Meters) -> None:
        self.samples = 0
        self.stall_s = 0.0
        self._epoch = epoch
        self._blocks_per_sample = blocks_per_sample
        self._meters = meters
        self._began = meters.read()
        self._ended: tuple[int, float, float, float | None] | None = None
        # Fetching threads add to these.
        self._lock = threading.Lock()
        self._counts = {"bytes_cache": 0, "bytes_remote": 0, "blocks": 0}

    def add(self, **counts: int) -> None:
        """Add to counters: decoded bytes from the cache, stored bytes from the store, blocks decoded."""
        with self._lock:
            for name, value in counts.items():
                self._counts[name] += value

    @contextmanager
    def stalled(self) -> Iterator[None]:
        """Count the time inside as time that the training loop waited."""
        began_s = self._meters.wall_s()
        try:
            yield
        finally:
            self.stall_s += self._meters.wall_s() - began_s

    def end(self) -> None:
        """Stop the meters."""
        self._ended = self._meters.read()

    def to_dict(self) -> dict[str, float | int | None]:
        """The counters so far, with seconds of wall clock and CPU of this process, and joules of the machine's CPUs."""
        failovers, wall_s, cpu_s, joules = self._ended or self._meters.read()
        began_failovers, began_wall_s, began_cpu_s, began_joules = self._began
        with self._lock:
            counts = dict(self._counts)
        return {
            "epoch": self._epoch,
            "samples": self.samples,
            "stall_s": self.stall_s,
            **counts,
            "read_amplification": counts["blocks"] / (self.samples * self._blocks_per_sample) if self.samples else None,
            "failovers": failovers - began_failovers,
            "wall_s": wall_s - began_wall_s,
            "cpu_s": cpu_s - began_cpu_s,
            "joules": None if joules is None or began_joules is None else joules - began_joules,
        }
