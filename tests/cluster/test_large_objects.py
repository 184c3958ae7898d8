"""An object larger than memory is allowed to be: every process that touches it stays small."""

from __future__ import annotations

import filecmp
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.cluster import LiveCluster

MIB = 1024 * 1024
OBJECT_BYTES = 2048 * MIB
MAX_RESIDENT_BYTES = 300 * MIB
STATUS_FOLLOWS = "--- status ---"
# A command tells its own peak: what wait4 says of a child begins with the size of the process that started it.
COMMAND_WITH_STATUS = f"""
import sys
from pathlib import Path
from client.cli import main
try:
    main()
finally:
    print({STATUS_FOLLOWS!r}, Path("/proc/self/status").read_text())
"""


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_gib_pass_through_small_processes_and_are_counted_three_times() -> None:
    # Not pytest's tmp_path, which it keeps: this needs ten gigabytes.
    with tempfile.TemporaryDirectory(prefix="forebay-large-") as directory, _cluster(Path(directory)) as cluster:
        source, back = Path(directory, "source"), Path(directory, "back")
        _write_random(source, seed=1)
        _forebay(cluster, "bucket", "create", "big")
        sizes = [
            _forebay(cluster, "put", str(source), "big/object")[0],
            _forebay(cluster, "get", "big/object", str(back))[0],
        ]
        assert filecmp.cmp(source, back, shallow=False)
        sizes += [_peak_resident_bytes(cluster.pid(node_id)) for node_id in cluster.node_ids]
        assert max(sizes) <= MAX_RESIDENT_BYTES, [size // MIB for size in sizes]
        _, verified = _forebay(cluster, "verify", "big")
        assert "3 of 3 copies each" in verified


@contextmanager
def _cluster(directory: Path) -> Iterator[LiveCluster]:
    with LiveCluster(directory / "cluster", environment={}, nodes=3, port=0) as cluster:
        yield cluster


def _write_random(path: Path, *, seed: int) -> None:
    draws = random.Random(seed)
    with path.open("wb") as file:
        for _ in range(OBJECT_BYTES // (64 * MIB)):
            file.write(draws.randbytes(64 * MIB))


def _forebay(cluster: LiveCluster, *arguments: str) -> tuple[int, str]:
    """Run a command; its peak resident size in bytes, and what it printed."""
    environment = {**os.environ, "FOREBAY_ENDPOINT": ",".join(cluster.endpoints)}
    environment.pop("FOREBAY_CHUNK_SIZE_BYTES", None)
    command = [sys.executable, "-c", COMMAND_WITH_STATUS, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, f"{' '.join(arguments)}: exit {done.returncode}: {done.stderr[-1000:]}"
    printed, _, status = done.stdout.rpartition(STATUS_FOLLOWS)
    return _peak_of(status), printed


def _peak_resident_bytes(pid: int) -> int:
    return _peak_of(Path(f"/proc/{pid}/status").read_text())


def _peak_of(status: str) -> int:
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM"))
