"""What processes use, read from ``/proc``: CPU seconds and resident memory, of each process and those it started."""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

__all__ = ["cpu_s", "peak_bytes", "reset_peaks", "resident_bytes", "tree"]

_PROC = Path("/proc")
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
# Positions in /proc/PID/stat (proc_pid_stat(5)), counted from what follows the command, which may hold spaces.
_PPID, _UTIME, _STIME = 1, 11, 12


def tree(pids: Iterable[int]) -> set[int]:
    """The processes and all their descendants that live now."""
    parents = {}
    for entry in _PROC.iterdir():
        if entry.name.isdigit():
            with suppress(OSError):  # It ended since the listing.
                parents[int(entry.name)] = int(_stat(int(entry.name))[_PPID])
    found: set[int] = set()
    added = set(pids)
    while added:
        found |= added
        added = {pid for pid, parent in parents.items() if parent in added}
    return found


def cpu_s(pids: Iterable[int]) -> float:
    """CPU seconds that processes have used since they started, in user mode and in the kernel."""
    stats = map(_stat, pids)
    return sum(int(stat[_UTIME]) + int(stat[_STIME]) for stat in stats) / _TICKS_PER_S


def resident_bytes(pids: Iterable[int]) -> int:
    """Memory that processes hold now, each for itself: what they share counts several times."""
    return sum(int((_PROC / str(pid) / "statm").read_text().split()[1]) * _PAGE_BYTES for pid in pids)


def reset_peaks(pids: Iterable[int]) -> None:
    """Let the peaks of processes begin anew."""
    for pid in pids:
        (_PROC / str(pid) / "clear_refs").write_text("5")  # proc_pid_clear_refs(5): resets VmHWM


def peak_bytes(pids: Iterable[int]) -> int:
    """Sum of the processes' own peaks of resident memory since `reset_peaks`, which they need not have reached together."""
    return sum(_status_kib(pid, "VmHWM:") for pid in pids) * 1024


def _stat(pid: int) -> list[str]:
    return (_PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()


def _status_kib(pid: int, name: str) -> int:
    lines = (_PROC / str(pid) / "status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name))
