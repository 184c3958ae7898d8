"""The report: tables in Markdown, for the terminal as for the documentation, the same as JSON, and what is drawn. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict

from benchmarks.chart import Group, Row
from benchmarks.loader.cells import BARS, CELLS, FIRST_BATCH_S, Bar, Cell, Kind
from benchmarks.loader.results import Result, judged, reached
from benchmarks.tables import NONE, fact_list, short, table

__all__ = ["bar_table", "cell_table", "groups", "to_json", "to_markdown"]

MIB = 1024 * 1024


def cell_table(cell: Cell, results: Sequence[Result]) -> str:
    """One cell; `results` are of all cells."""
    first, others = judged(cell, results)
    assert first is not None
    if cell.kind is Kind.MEMORY:
        return _memory_table(cell, first)
    unit = "ms" if cell.in_seconds else "samples/s"
    header = ["side", unit, "least to most", f"{first.side} is"]
    if not cell.in_seconds:
        header += ["CPU us/sample", "resident MiB, first round", "last"]
    rows = []
    for result in (first, *others):
        values = [
            1e3 * figure if cell.in_seconds else figure for figure in (result.median, result.figures[0], result.figures[-1])
        ]
        row = [result.side, short(values[0]), f"{short(values[1])} to {short(values[2])}"]
        row.append(NONE if result is first else f"{first.times_as_fast_as(result):.2f}x")
        if result.cpu_us is not None:
            row += [f"{result.cpu_us:.2f}", *(f"{result.resident_bytes[place] / MIB:,.0f}" for place in (0, -1))]
        rows.append(row)
    return f"**{cell.name}**\n\n{table(header, rows)}\n"


def bar_table(results: Sequence[Result]) -> str:
    """What was wanted and what was reached, where it was measured."""
    rows = []
    for bar, cell in _bars():
        if (found := reached(bar, cell, results)) is not None:
            side, ratio = found
            beside = side if bar.other else f"{side}, the best peer"
            rows.append([cell.name, beside, f"{ratio:.2f}x", f"{bar.wanted:g}x", "PASS" if ratio >= bar.wanted else "short"])
    for cell in CELLS:
        first, _ = judged(cell, results)
        if cell.kind is Kind.FIRST and first is not None:
            verdict = "PASS" if first.median <= FIRST_BATCH_S else "short"
            rows.append([cell.name, "the clock", f"{first.median:.3f} s", f"{FIRST_BATCH_S:g} s", verdict])
    header = ["cell", "beside", "reached", "wanted", "verdict"]
    return f"**What was wanted, and what was reached**\n\n{table(header, rows, texts=2)}\n"


def groups(results: Sequence[Result]) -> list[Group]:
    """What `benchmarks.chart` draws."""
    drawn = []
    for cell in CELLS:
        first, others = judged(cell, results)
        if first is None or not others:
            continue
        found = {
            (bar.other or side[0]): bar.wanted for bar, of in _bars() if of is cell and (side := reached(bar, cell, results))
        }
        limits = {side.name for side in cell.sides if side.is_limit}
        rows = [
            Row(
                label=f"as {other.side}",
                ratio=first.times_as_fast_as(other),
                wanted=found.get(other.side),
                beside_limit=other.side in limits,
            )
            for other in others
        ]
        drawn.append(Group(title=cell.name, rows=rows))
    return drawn


def to_markdown(facts: Mapping[str, str], results: Sequence[Result]) -> str:
    """The whole report; cells without results are left out."""
    measured = {result.cell for result in results}
    tables = [cell_table(cell, results) for cell in CELLS if cell.name in measured]
    return "\n".join([fact_list(facts), *tables, bar_table(results)])


def to_json(facts: Mapping[str, str], results: Sequence[Result]) -> str:
    """The same figures."""
    document = {
        "facts": facts,
        "results": [asdict(result) | ({"median": result.median} if result.figures else {}) for result in results],
        "bars": [asdict(bar) | {"reached": reached(bar, cell, results)} for bar, cell in _bars()],
    }
    return json.dumps(document, indent=1)


def _bars() -> list[tuple[Bar, Cell]]:
    by_name = {cell.name: cell for cell in CELLS}
    return [(bar, by_name[bar.cell]) for bar in BARS]


def _memory_table(cell: Cell, result: Result) -> str:
    header = ["resident memory, MiB", "before", *(f"peak of epoch {number}" for number in range(len(result.resident_bytes)))]
    row = [result.side, *(f"{size / MIB:,.0f}" for size in (result.before_bytes, *result.resident_bytes))]
    return f"**{cell.name}**\n\n{table(header, [row])}\n"
