"""The chart of the store's figures: each cell's sides beside the judged one."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.chart import Group, Row
from benchmarks.store.bars import Bar
from benchmarks.store.cells import Cell
from benchmarks.store.results import Result

__all__ = ["groups"]


def groups(cells: Sequence[Cell], results: Sequence[Result], bars: Sequence[Bar]) -> list[Group]:
    """What `benchmarks.chart` draws; cells without results are left out."""
    drawn = []
    for cell in cells:
        title = cell.name if cell.figure.name == "RATE" else f"{cell.name} ({cell.figure.value})"
        if rows := _rows(cell, results, bars):
            drawn.append(Group(title=title, rows=rows))
    return drawn


def _rows(cell: Cell, results: Sequence[Result], bars: Sequence[Bar]) -> list[Row]:
    found = [result for result in results if result.cell == cell.name]
    wanted = {bar.other: bar.wanted for bar in bars if bar.cell == cell.name and bar.figure is cell.figure}
    rows = []
    for other in found[1:]:
        ratio = cell.figure.times_as_good(found[0], other)
        if ratio is not None:
            limit = cell.entries[other.side].side.is_limit
            rows.append(Row(label=f"as {other.side}", ratio=ratio, wanted=wanted.get(other.side), beside_limit=limit))
    return rows
