"""A bounded soak: everything at once, for a minute; FOREBAY_SOAK_SEED and FOREBAY_SOAK_SECONDS choose another."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.soak.clocks import WallClock, compiled
from tests.soak.run import Settings, soak

SEED = int(os.environ.get("FOREBAY_SOAK_SEED", "4"))
FAULTS_S = float(os.environ.get("FOREBAY_SOAK_SECONDS", "60"))
# Starting, healing, counting copies and looking at the history come on top.
AROUND_S = 600


@pytest.mark.timeout(FAULTS_S + AROUND_S)
def test_a_cluster_keeps_its_promises_while_everything_breaks(tmp_path: Path) -> None:
    report = soak(Settings(seed=SEED, faults_s=FAULTS_S), tmp_path)
    print(report)
    assert report.ok, str(report)
    assert report.history.counts["put ok"] > 10, "hardly anything happened"


def test_a_wall_clock_is_set_while_a_process_runs(tmp_path: Path) -> None:
    library = compiled(tmp_path)
    if library is None:
        pytest.skip("there is no C compiler")
    clock = WallClock(library, tmp_path / "clock")
    program = "import time\nwhile input():\n  print(int(time.time()), int(time.monotonic()), flush=True)"
    with subprocess.Popen(
        [sys.executable, "-c", program], env={**os.environ, **clock.environment}, text=True, stdin=-1, stdout=-1
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None

        def ask() -> tuple[int, int]:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write("?\n")
            process.stdin.flush()
            wall, monotonic = process.stdout.readline().split()
            return int(wall), int(monotonic)

        before = ask()
        clock.set(-7200)
        after = ask()
        process.stdin.write("\n")
    assert -7200 <= after[0] - before[0] < -7190
    assert 0 <= after[1] - before[1] < 10
