"""Stopping a process for a while, for certain."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from pathlib import Path

__all__ = ["stop_process"]

_POLL_S = 0.001
_DEADLINE_S = 10.0


def stop_process(pid: int, send: Callable[[int], object]) -> None:
    """Send SIGSTOP and return when no thread of the process runs any more: some may do so for a moment after the signal."""
    send(signal.SIGSTOP)
    end_s = time.monotonic() + _DEADLINE_S
    while any(_state(task) not in "TZX" for task in Path(f"/proc/{pid}/task").iterdir()):
        assert time.monotonic() < end_s, f"process {pid} does not stop"
        time.sleep(_POLL_S)


def _state(task: Path) -> str:
    try:
        return (task / "stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:  # It has ended.
        return "X"
