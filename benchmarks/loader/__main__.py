"""Measures the cells and reports; see the package."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path

from benchmarks.chart import chart
from benchmarks.loader.cells import CELLS
from benchmarks.loader.peers import python as peers_python
from benchmarks.loader.report import bar_table, cell_table, groups, to_json, to_markdown
from benchmarks.loader.results import Result
from benchmarks.loader.rounds import Amounts, Where, measure
from benchmarks.loader.sets import make
from benchmarks.loader.sides.forebay import BUCKET
from benchmarks.machine import run_facts
from benchmarks.store.servers import nginx, nginx_binary
from benchmarks.tables import fact_list
from client import Client
from storenode.embedded import EmbeddedCluster

_FULL = Amounts(rounds=5, min_s=2.0, max_s=4.0, epochs=5)
_QUICK = Amounts(rounds=2, min_s=0.3, max_s=1.0, epochs=2)


def main() -> None:
    """Measure what was asked for."""
    arguments = _arguments()
    # As with Ctrl-C, what was started is ended.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("benchmarks.loader: terminated"))
    amounts = _QUICK if arguments.quick else _FULL
    amounts = replace(amounts, rounds=arguments.rounds or amounts.rounds, min_s=arguments.min_s or amounts.min_s)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    facts = run_facts("benchmarks.loader", arguments.out.parent) | {
        "set up": "3 nodes on the same machine, backend sqlite, consistency strong; loaders in one process, without workers",
    }
    results: list[Result] = []
    with _where(arguments.out.parent, keep=arguments.keep) as where:
        for cell in CELLS:
            if any(fnmatchcase(cell.name, pattern) for pattern in arguments.cells):
                measured, versions = measure(cell, where, amounts)
                results += measured
                facts |= versions
                print(cell_table(cell, results), flush=True)
                _write(arguments.out, facts, results)  # Each time, so that what comes later can't take it away.
    print(fact_list(facts))
    print(bar_table(results))
    print(f"written to {arguments.out}; the tables and the chart are beside it")


@contextmanager
def _where(results: Path, *, keep: Path | None) -> Iterator[Where]:
    """Three nodes, a server of files over HTTP, and directories, which are removed at the end unless they are to be kept."""
    # Below the results, so that data meet a disk and not a /tmp in memory.
    with tempfile.TemporaryDirectory(prefix="loader-", dir=results) as made:
        work = (keep or Path(made)).resolve()
        files = work / "files"
        files.mkdir(parents=True, exist_ok=True)
        make(work / "arrays")
        python = peers_python()
        if nginx_binary() is None:
            sys.exit("benchmarks.loader needs nginx, from which peers read over HTTP; on Debian: apt-get install nginx-light")
        with (
            EmbeddedCluster(work / "cluster", nodes=3, port=0) as cluster,
            nginx(files, Path(made).resolve() / "nginx") as (url, _),
        ):
            os.environ["FOREBAY_ENDPOINT"] = ",".join(cluster.endpoints)
            os.environ["FOREBAY_COLOCATED"] = "false"
            with Client() as client:
                if BUCKET not in client.buckets.list():
                    client.buckets.create(BUCKET)
            yield Where(work=work, arrays=work / "arrays", files_url=url, peers_python=python)


def _write(path: Path, facts: dict[str, str], results: Sequence[Result]) -> None:
    path.write_text(to_json(facts, results))
    path.with_suffix(".md").write_text(to_markdown(facts, results))
    path.with_suffix(".svg").write_text(chart(groups(results), subtitle=f"{facts['Forebay']}; {facts['machine']}"))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.loader", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few and short rounds, for development")
    parser.add_argument("--rounds", type=int, default=0, help="how often each side has its turn in a cell")
    parser.add_argument("--min-s", type=float, default=0.0, help="seconds of a turn")
    parser.add_argument("--cells", nargs="+", default=["*"], metavar="GLOB", help="names of cells, such as 'tokens*'")
    parser.add_argument("--keep", type=Path, help="a directory for the data sets, which is used again if it has them already")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/loader.json"))
    return parser.parse_args()


if __name__ == "__main__":
    main()
