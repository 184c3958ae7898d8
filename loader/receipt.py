"""What one epoch cost on one rank: samples, stalls, bytes by source, failovers, processor time and, where told, energy.

Fields of a receipt:

    rank, epoch, samples          who read what; samples are those that were handed out
    stall_s                       seconds that the training loop waited for data
    stalls                        of waits that lasted: how long so far, for which blocks and nodes and since when
    bytes_cache                   decoded bytes from the cache
    bytes_local, bytes_remote     stored bytes from nodes on this machine, and on others
    bytes_other_zone              of the latter, those from outside of this machine's zone
    bytes_hedged                  of all stored bytes, those that a second node gave because the first was late
    bytes_wasted                  beside all these: received and thrown away
    hedges, failovers             reads that were asked of a second node; nodes that failed and were passed over
    blocks, read_amplification    blocks decoded, and how many times as many that is as if each were decoded once, by one rank
    blocks_kept                   blocks that were still in memory, decoded and verified, from the epoch before
    wall_s, cpu_s                 seconds from begin to end, and of the CPU in this process
    joules                        of the machine's CPUs; None where it is not told
    warnings                      why reading costs more than it would have to

What is read from the store counts when it is read: the first blocks of an epoch in the receipt of the epoch before. Blocks, and
bytes from the cache, count where they belong.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from client.replica import ReadTotals

__all__ = ["Meters", "Receipt", "joules_now", "receipt_table"]

_MAX_STALLS = 16
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
    store : callable
        What was read from the store.
    wall_s, cpu_s : callable
        Seconds, the latter of this process.
    joules : callable
        Energy of the machine's processors; None where it is not told.
    """

    store: Callable[[], ReadTotals]
    wall_s: Callable[[], float] = time.perf_counter
    cpu_s: Callable[[], float] = time.process_time
    joules: Callable[[], float | None] = joules_now

    def read(self) -> _Readings:
        """All of them."""
        return _Readings(store=asdict(self.store()), wall_s=self.wall_s(), cpu_s=self.cpu_s(), joules=self.joules())


@dataclass(frozen=True, slots=True, kw_only=True)
class _Readings:
    store: Mapping[str, int]
    wall_s: float
    cpu_s: float
    joules: float | None


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
        self._ended: _Readings | None = None
        self._stalls: deque[str] = deque(maxlen=_MAX_STALLS)
        # Fetching threads add to these.
        self._lock = threading.Lock()
        self._counts = {"bytes_cache": 0, "blocks": 0, "blocks_kept": 0}

    def begin(self, *, after: Receipt | None) -> None:
        """Start the meters. What was read from the store since the epoch before ended, ahead of this one, is this one's."""
        self._began = self._meters.read()
        if after is not None and after._ended is not None:
            self._began = replace(self._began, store=after._ended.store)

    def add(self, **counts: int) -> None:
        """Add to counters: decoded bytes from the cache, blocks decoded, blocks that were still in memory."""
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

    def note_stall(self, words: str) -> None:
        """Keep what a wait that lasts is for; of many the last ones."""
        self._stalls.append(words)

    def end(self) -> None:
        """Stop the meters."""
        self._ended = self._meters.read()

    def to_dict(self) -> dict[str, Any]:
        """The counters so far."""
        began, now = self._began, self._ended or self._meters.read()
        with self._lock:
            counts = dict(self._counts)
        return {
            "epoch": self._epoch,
            "samples": self.samples,
            "stall_s": self.stall_s,
            "stalls": list(self._stalls),
            **counts,
            **{name: number - began.store[name] for name, number in now.store.items()},
            "read_amplification": counts["blocks"] / (self.samples * self._blocks_per_sample) if self.samples else None,
            "wall_s": now.wall_s - began.wall_s,
            "cpu_s": now.cpu_s - began.cpu_s,
            "joules": None if now.joules is None or began.joules is None else now.joules - began.joules,
        }


def receipt_table(receipt: Mapping[str, Any]) -> str:
    """A receipt of a dataset as lines to read, one a field or two."""
    told = dict(receipt)
    amplification, joules = told["read_amplification"], told["joules"]
    lines = {
        "waited for data": f"{told['stall_s']:.2f} s of {told['wall_s']:.2f} s",
        "from the cache": f"{told['bytes_cache']:,} bytes",
        "from this machine": f"{told['bytes_local']:,} bytes",
        "from other machines": f"{told['bytes_remote']:,} bytes, {told['bytes_other_zone']:,} of them from other zones",
        "by second reads": f"{told['bytes_hedged']:,} bytes of these; {told['hedges']:,} second reads",
        "thrown away": f"{told['bytes_wasted']:,} bytes",
        "nodes passed over": f"{told['failovers']:,}",
        "blocks decoded": f"{told['blocks']:,}" + ("" if amplification is None else f", {amplification:.2f} times the least"),
        "kept in memory": f"{told['blocks_kept']:,} blocks of the epoch before",
        "CPU of this process": f"{told['cpu_s']:.2f} s",
        "energy of the CPUs": "not told by this machine" if joules is None else f"{joules:.0f} J",
    }
    table = [f"epoch {told['epoch']}, rank {told['rank']}: {told['samples']:,} samples in {told['wall_s']:.2f} s"]
    table += [f"  {name:20} {value}" for name, value in lines.items()]
    table += [f"  {kind}: {words}" for kind, field in (("stalled", "stalls"), ("warning", "warnings")) for words in told[field]]
    return "\n".join(table)
