"""Measures the cells and reports; see the package."""

from __future__ import annotations

import argparse
import shutil
import signal
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path

from benchmarks.chart import chart
from benchmarks.store.bars import BARS
from benchmarks.store.cells import CELLS, Cell
from benchmarks.store.chart import groups
from benchmarks.store.facts import facts
from benchmarks.store.mixed import MIXED, MixedResult, run_mixed
from benchmarks.store.report import bar_table, cell_table, mixed_table, to_json, to_markdown
from benchmarks.store.results import Result
from benchmarks.store.rounds import measure
from benchmarks.store.servers import nginx_binary
from benchmarks.store.sides import Side, running
from benchmarks.tables import fact_list

MIN_FREE_BYTES = 30 * 10**9  # what the cell that writes most leaves behind, until its directory is removed


def main() -> None:
    """Measure what was asked for."""
    arguments = _arguments()
    # As with Ctrl-C, what was started is ended.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("benchmarks.store: terminated"))
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    known = facts(arguments.out.parent)
    print(fact_list(known), flush=True)
    results: list[Result] = []
    for cell in CELLS:
        if _matches(cell.name, arguments.cells):
            results += _measure(_without_missing(cell), arguments)
            print(cell_table(cell, [result for result in results if result.cell == cell.name]), flush=True)
            _write(arguments.out, known, results, None)  # Each time, so that what comes later can't take it away.
    mixed = _mixed(arguments) if _matches(MIXED, arguments.cells) else None
    if mixed is not None:
        print(mixed_table(mixed))
    print(bar_table(BARS, results))
    _write(arguments.out, known, results, mixed)
    print(f"written to {arguments.out}; the tables and the chart are beside it")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.store", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--min-s", type=float, default=2.0, help="seconds of each side in each round")
    parser.add_argument("--mixed-s", type=float, default=300.0, help="seconds of the mixed load")
    parser.add_argument("--cells", default="*", metavar="GLOB", help="names of cells, such as 'GET 8 MiB*' or 'mixed*'")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/store.json"))
    return parser.parse_args()


def _measure(cell: Cell, arguments: argparse.Namespace) -> list[Result]:
    with _work(arguments) as work, running({entry.side for entry in cell.entries.values()}, Path(work)) as sides:
        return measure(cell, sides, rounds=arguments.rounds, min_s=arguments.min_s)


def _mixed(arguments: argparse.Namespace) -> MixedResult:
    with _work(arguments) as work, running({Side.FOREBAY}, Path(work)) as sides:
        return run_mixed(sides[Side.FOREBAY], seconds=arguments.mixed_s)


def _work(arguments: argparse.Namespace) -> tempfile.TemporaryDirectory[str]:
    """A directory for the servers' data. Not in /tmp, which may lie in memory, where fsync costs nothing."""
    free = shutil.disk_usage(arguments.out.parent).free
    if free < MIN_FREE_BYTES:
        sys.exit(f"{arguments.out.parent} has {free / 1e9:.0f} GB free, and {MIN_FREE_BYTES / 1e9:.0f} GB are needed")
    return tempfile.TemporaryDirectory(prefix="work-", dir=arguments.out.parent.resolve())


def _write(path: Path, known: Mapping[str, str], results: Sequence[Result], mixed: MixedResult | None) -> None:
    """JSON, Markdown and SVG side by side."""
    path.write_text(to_json(known, results, BARS, mixed))
    path.with_suffix(".md").write_text(to_markdown(known, CELLS, results, BARS, mixed))
    subtitle = f"{known['Forebay']}; {known['machine']}"
    path.with_suffix(".svg").write_text(chart(groups(CELLS, results, BARS), subtitle=subtitle))


def _without_missing(cell: Cell) -> Cell:
    if nginx_binary():
        return cell
    return replace(cell, entries={label: entry for label, entry in cell.entries.items() if entry.side is not Side.NGINX})


def _matches(name: str, glob: str) -> bool:
    return fnmatchcase(name.lower(), glob.lower())


if __name__ == "__main__":
    main()
