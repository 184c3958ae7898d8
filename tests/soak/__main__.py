"""``python -m tests.soak --minutes M --seed S``: faults for M minutes, then checks. Exits with 1 if a promise was broken."""

from __future__ import annotations

import secrets
import signal
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from tests.soak.run import Settings, soak
from tests.soak.schedule import FAULTS, FaultKind


def main(
    minutes: Annotated[float, typer.Option(help="How long faults strike.")] = 10.0,
    seed: Annotated[int | None, typer.Option(help="Decides all choices; by default a new one.")] = None,
    only: Annotated[list[str] | None, typer.Option(help="Kinds of faults that strike; by default all.")] = None,
    keep: Annotated[Path | None, typer.Option(help="An empty directory for logs and data, which stay.")] = None,
) -> None:
    """Break a real cluster, and see whether it keeps its promises."""
    # So that processes are ended and disks unmounted, whoever stops this.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    seed = secrets.randbits(32) if seed is None else seed
    print(f"seed {seed}: to have it again, make soak MINUTES={minutes:g} SEED={seed}", flush=True)
    with tempfile.TemporaryDirectory(prefix="forebay-soak-") as temporary:
        directory = keep or Path(temporary)
        settings = Settings(seed=seed, faults_s=60 * minutes, only=_kinds(only or []))
        report = soak(settings, directory, on_event=lambda line: print(line, flush=True))
    print(report, flush=True)
    sys.exit(0 if report.ok else 1)


def _kinds(names: Sequence[str]) -> tuple[FaultKind, ...]:
    kinds = tuple(kind for kind in FAULTS if kind in names)
    if len(kinds) < len(set(names)):
        raise typer.BadParameter(f"expected some of {', '.join(FAULTS)}; found {', '.join(names)}", param_hint="--only")
    return kinds


if __name__ == "__main__":
    typer.run(main)
