"""``python -m tests.soak --minutes M --seed S``: faults for M minutes, then checks. Exits with 1 if a promise was broken."""

from __future__ import annotations

import secrets
import sys
import tempfile
from pathlib import Path
from typing import Annotated

import typer

from tests.soak.run import Settings, soak


def main(
    minutes: Annotated[float, typer.Option(help="How long faults strike.")] = 10.0,
    seed: Annotated[int | None, typer.Option(help="Decides all choices; by default a new one.")] = None,
    keep: Annotated[Path | None, typer.Option(help="An empty directory for logs and data, which stay.")] = None,
) -> None:
    """Break a real cluster, and see whether it keeps its promises."""
    seed = secrets.randbits(32) if seed is None else seed
    print(f"seed {seed}: to have it again, make soak MINUTES={minutes:g} SEED={seed}", flush=True)
    with tempfile.TemporaryDirectory(prefix="forebay-soak-") as temporary:
        directory = keep or Path(temporary)
        report = soak(Settings(seed=seed, faults_s=60 * minutes), directory, on_event=lambda line: print(line, flush=True))
    print(report, flush=True)
    sys.exit(0 if report.ok else 1)


if __name__ == "__main__":
    typer.run(main)
