"""What is known of a run: versions as the programs themselves say them, the machine, and how Forebay was set up."""

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

from benchmarks.store.servers import install_weed, nginx_binary

__all__ = ["facts"]

_NO_NGINX = "missing, so the limit of a GET is left out; on Debian: apt-get install nginx-light"


def facts(work: Path) -> dict[str, str]:
    """Name to value; `work` is where the servers keep their data."""
    nginx = nginx_binary()
    commit, changed = _said("git", "rev-parse", "--short", "HEAD"), _said("git", "status", "--porcelain", "-uno")
    return {
        "command": shlex.join(["python", "-m", "benchmarks.store", *sys.argv[1:]]),
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "Forebay": f"{version('forebay')}, commit {commit}{' with changes' if changed else ''}",
        "set up": "3 nodes, backend sqlite, consistency strong, 3 replicas, ack quorum, fsync, clients verify checksums",
        "SeaweedFS": _said(str(install_weed()), "version") + "; 3 volume servers, replication 002, fsync=true, maxMB=8",
        "nginx": _said(nginx, "-v") + "; sendfile, 1 worker" if nginx else _NO_NGINX,
        "Python": platform.python_version(),
        "machine": f"{os.cpu_count()} cores, {_cpu()}, Linux {platform.release()}, {_file_system(work)}",
        "load before": f"{os.getloadavg()[0]:.1f} processes ready to run, mean of a minute",
    }


def _said(*command: str) -> str:
    """The first line that a program says; nginx says its version on standard error."""
    ended = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    return ended.stdout.strip().partition("\n")[0]


def _cpu() -> str:
    found = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return found[1] if found else platform.machine()


def _file_system(path: Path) -> str:
    return _said("findmnt", "--noheadings", "--output", "FSTYPE", "--target", str(path))
