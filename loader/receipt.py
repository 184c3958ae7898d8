"""What one epoch cost on one rank: samples, stalls, bytes by source, failovers, processor time and, where told, energy."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

__all__ = ["Receipt", "joules_now"]

_RAPL = Path("/sys/class/powercap")


@dataclass(slots=True, kw_only=True)
class Receipt:
    """Counters of one epoch; threads add to them through `add`.

    Attributes
    ----------
    counts : dict
        ``samples`` rows handed out; ``stall_s`` seconds that the training loop waited for data; ``bytes_cache`` and
        ``bytes_remote`` stored or decoded bytes by source; ``blocks`` blocks decoded; ``failovers`` reads that had to move on
        to another replica.
    """

    epoch: int
    counts: dict[str, float] = field(
        default_factory=lambda: {
            "samples": 0,
            "stall_s": 0.0,
            "bytes_cache": 0,
            "bytes_remote": 0,
            "blocks": 0,
            "failovers": 0,
        }
    )
    _began_s: float = field(default_factory=time.perf_counter)
    _cpu_began_s: float = field(default_factory=time.process_time)
    _joules_began: float | None = field(default_factory=lambda: joules_now())
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, **counts: float) -> None:
        """Add to counters."""
        with self._lock:
            for name, value in counts.items():
                self.counts[name] += value

    @contextmanager
    def stalled(self) -> Iterator[None]:
        """Count the time inside as time that the training loop waited."""
        began_s = time.perf_counter()
        try:
            yield
        finally:
            self.add(stall_s=time.perf_counter() - began_s)

    def to_dict(self) -> dict[str, float | int | None]:
        """The counters so far, with seconds of wall clock and CPU of this process, and joules of the machine's CPUs."""
        joules = joules_now()
        with self._lock:
            counts: Mapping[str, float] = dict(self.counts)
        spent = joules - self._joules_began if joules is not None and self._joules_began is not None else None
        return {
            "epoch": self.epoch,
            **counts,
            "wall_s": time.perf_counter() - self._began_s,
            "cpu_s": time.process_time() - self._cpu_began_s,
            "joules": spent,
        }


def joules_now() -> float | None:
    """Energy that the CPU packages have used so far, from Linux's powercap; None where the machine does not tell."""
    total = None
    for counter in sorted(_RAPL.glob("intel-rapl:[0-9]/energy_uj")):
        try:
            total = (total or 0.0) + int(counter.read_text()) / 1e6
        except OSError:
            return None  # Readable for root only on most machines; unknown is not zero.
    return total
