"""The report: tables in Markdown, for the terminal as for the documentation, and the same figures as JSON. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict

from benchmarks.store.bars import Bar
from benchmarks.store.cells import Cell
from benchmarks.store.mixed import MIXED, Memory, MixedResult
from benchmarks.store.results import Figure, Result
from benchmarks.tables import NONE, fact_list, short, table

__all__ = ["bar_table", "cell_table", "mixed_table", "to_json", "to_markdown"]

MIB = 1024 * 1024


def cell_table(cell: Cell, results: Sequence[Result]) -> str:
    """One cell; `results` are its sides, the judged one first."""
    first, cost = results[0], cell.unit.thousand
    header = ["side", f"{cell.unit.label}/s", "least to most", f"{first.side} is", "p50 ms", "p99 ms"]
    header += [f"CPU s/{cost}: servers", "client", "servers' peak MiB"]
    if cell.stream is not None:
        header.append("stream MB/s")
    rows = []
    for result in results:
        times = cell.figure.times_as_good(first, result)
        row = [result.side, short(result.median), f"{short(result.rates[0])} to {short(result.rates[-1])}"]
        row += [NONE if result is first or times is None else f"{times:.2f}x"]
        row += [f"{result.p50_ms:.2f}", _number(result.p99_ms)]
        row += [_number(result.server_cpu_s), _number(result.client_cpu_s)]
        row.append(NONE if result.server_peak_bytes is None else f"{result.server_peak_bytes / MIB:,.0f}")
        if result.stream_mb_per_s is not None:
            row.append(short(result.stream_mb_per_s))
        rows.append(row)
    crowd = f", {cell.crowd.processes} processes x {cell.crowd.threads} threads" if cell.crowd.clients > 1 else ""
    by = f", compared by {cell.figure.value}" if cell.figure is not Figure.RATE else ""
    return f"**{cell.name}**{crowd}{by}\n\n{table(header, rows)}\n"


def mixed_table(result: MixedResult) -> str:
    """The long run."""
    title = f"**{MIXED}**: {result.clients} clients, {result.seconds:.0f} s"
    errors = f"{len(result.errors)} errors" + (f", the first: {result.errors[0]}" if result.errors else "")
    figures = f"{result.calls_per_s:,.0f} calls/s, p50 {result.p50_ms:.2f} ms, p99 {result.p99_ms:.2f} ms, {errors}"
    header = ["resident memory, MiB", "start", "end", "most", "a minute, second half"]
    rows = [_memory_row("three nodes", result.nodes), _memory_row("client processes", result.client_processes)]
    return f"{title}; {figures}\n\n{table(header, rows)}\n"


def bar_table(bars: Sequence[Bar], results: Sequence[Result]) -> str:
    """What was wanted and what was reached, where both sides were measured."""
    rows = []
    for bar in bars:
        reached = bar.reached(results)
        if reached is not None:
            verdict = "PASS" if reached >= bar.wanted else "short"
            rows.append([bar.cell, bar.side, bar.other, bar.figure.value, f"{reached:.2f}x", f"{bar.wanted:.1f}x", verdict])
    header = ["cell", "side", "beside", "by", "reached", "wanted", "verdict"]
    return f"**Bars**\n\n{table(header, rows, texts=4)}\n"


def to_markdown(
    facts: Mapping[str, str], cells: Sequence[Cell], results: Sequence[Result], bars: Sequence[Bar], mixed: MixedResult | None
) -> str:
    """The whole report; cells without results are left out."""
    parts = [fact_list(facts)]
    for cell in cells:
        found = [result for result in results if result.cell == cell.name]
        parts += [cell_table(cell, found)] if found else []
    parts += [] if mixed is None else [mixed_table(mixed)]
    return "\n".join([*parts, bar_table(bars, results)])


def to_json(facts: Mapping[str, str], results: Sequence[Result], bars: Sequence[Bar], mixed: MixedResult | None) -> str:
    """The same figures."""
    document = {
        "facts": facts,
        "results": [asdict(result) | {"unit": result.unit.label, "median": result.median} for result in results],
        "bars": [asdict(bar) | {"figure": bar.figure.value, "reached": bar.reached(results)} for bar in bars],
        "mixed": None if mixed is None else asdict(mixed),
    }
    return json.dumps(document, indent=1)


def _memory_row(name: str, memory: Memory) -> list[str]:
    sizes = [memory.samples_bytes[0], memory.samples_bytes[-1], max(memory.samples_bytes)]
    return [name, *(f"{size / MIB:,.0f}" for size in sizes), f"{memory.slope_bytes_per_min / MIB:+,.1f}"]


def _number(value: float | None) -> str:
    return NONE if value is None else f"{value:.2f}"
