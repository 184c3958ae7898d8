"""What is known of a run on any benchmark's account: commit, machine, load. As the programs themselves say it."""

from __future__ import annotations

import os
import platform
import re
import shlex
import subprocess
import sys
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

__all__ = ["run_facts", "said"]


def run_facts(module: str, work: Path) -> dict[str, str]:
    """Name to value, of the run of `module` that keeps its data in `work`."""
    commit, changed = said("git", "rev-parse", "--short", "HEAD"), said("git", "status", "--porcelain", "-uno")
    return {
        "command": shlex.join(["python", "-m", module, *sys.argv[1:]]),
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "Forebay": f"{version('forebay')}, commit {commit}{' with changes' if changed else ''}",
        "Python": platform.python_version(),
        "machine": f"{os.cpu_count()} cores, {_cpu()}, Linux {platform.release()}, {_file_system(work)}",
        "load before": f"{os.getloadavg()[0]:.1f} processes ready to run, mean of a minute",
    }


def said(*command: str) -> str:
    """The first line that a program says; nginx says its version on standard error."""
    ended = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    return ended.stdout.strip().partition("\n")[0]


def _cpu() -> str:
    found = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return found[1] if found else platform.machine()


def _file_system(path: Path) -> str:
    return said("findmnt", "--noheadings", "--output", "FSTYPE", "--target", str(path))
