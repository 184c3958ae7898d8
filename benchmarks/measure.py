"""Timing in rounds: every side of a cell once per round, so that noise meets all of them alike; medians and spreads."""

from __future__ import annotations

import json
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

__all__ = ["Cell", "Result", "measure", "report"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One thing that is measured, on several sides.

    Attributes
    ----------
    name : str
        What is done.
    unit : str
        Of `amount`, such as MB or requests; figures are amounts a second.
    amount : float
        How much one call of a side does.
    sides : mapping
        For each side, what does it once.
    """

    name: str
    unit: str
    amount: float
    sides: Mapping[str, Callable[[], object]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """Figures of one side of a cell: amounts a second over the rounds, sorted."""

    cell: str
    side: str
    unit: str
    figures: tuple[float, ...]

    @property
    def median(self) -> float:
        """The middle figure."""
        return statistics.median(self.figures)


def measure(cell: Cell, *, rounds: int, min_s: float, before: Callable[[], object] = lambda: None) -> list[Result]:
    """Measure a cell: one call to warm up, then in each round calls for at least `min_s` seconds on each side.

    `before` is called ahead of each side's turn, which is not counted.
    """
    figures: dict[str, list[float]] = {side: [] for side in cell.sides}
    for call in cell.sides.values():
        call()
    for _ in range(rounds):
        for side, call in cell.sides.items():
            before()
            calls, began_s = 0, time.perf_counter()
            while calls == 0 or time.perf_counter() - began_s < min_s:
                call()
                calls += 1
            figures[side].append(calls * cell.amount / (time.perf_counter() - began_s))
    return [
        Result(cell=cell.name, side=side, unit=cell.unit, figures=tuple(sorted(values))) for side, values in figures.items()
    ]


def report(results: Sequence[Result], *, title: str, facts: Mapping[str, str], path: Path) -> None:
    """Print the table and write the same as JSON, with the commit and what else is known of the run."""
    table = Table("cell", "side", "median a second", "least", "most", "of the first", title=title, title_justify="left")
    first: dict[str, float] = {}
    for result in results:
        first.setdefault(result.cell, result.median)
        table.add_row(
            result.cell,
            result.side,
            f"{result.median:,.0f} {result.unit}",
            f"{result.figures[0]:,.0f}",
            f"{result.figures[-1]:,.0f}",
            f"{result.median / first[result.cell]:.2f}",
        )
    Console().print(table)
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
    document = {"title": title, "commit": commit, **facts, "results": [asdict(r) | {"median": r.median} for r in results]}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=1))
    Console().print(f"written to {path}")
