"""The loader beside its limit, in one run: ``make bench SUITE=loader``.

Tokens (40,000 x uint16[2048], batches of 64) and small rows (200,000 x float32[10] and a label, batches of 256), shuffled,
streamed from three nodes over loopback, then from a warm cache of decoded blocks in memory. The limit is the gather alone: one
`np.take` of the same rows out of one array.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt

from benchmarks.measure import Cell, Result, measure, report
from client import Client
from loader import ShardedDataset, ShardWriter
from storenode.embedded import EmbeddedCluster

Columns = dict[str, npt.NDArray[np.generic]]


def tokens(rng: np.random.Generator) -> Columns:
    """Rows of 2,048 tokens with the frequencies of language."""
    return {"tokens": np.minimum(rng.zipf(1.3, (40_000, 2048)), 60_000).astype(np.uint16)}


def small(rng: np.random.Generator) -> Columns:
    """Rows of ten floats and a label."""
    return {
        "features": rng.standard_normal((200_000, 10), np.float32),
        "label": rng.integers(0, 10, 200_000).astype(np.int64),
    }


def epoch_of(dataset: ShardedDataset) -> Callable[[], None]:
    """Reads one epoch to its end."""

    def read() -> None:
        for batch in dataset:
            assert batch

    return read


def gather_of(columns: Columns, *, batch_size: int, rng: np.random.Generator) -> Callable[[], None]:
    """The same rows in a shuffled order, by `np.take` alone."""
    rows = len(next(iter(columns.values())))
    order = rng.permutation(rows)
    outs = {name: np.empty((batch_size, *column.shape[1:]), column.dtype) for name, column in columns.items()}

    def read() -> None:
        for start in range(0, rows - batch_size + 1, batch_size):
            chosen = order[start : start + batch_size]
            for name, column in columns.items():
                np.take(column, chosen, axis=0, out=outs[name], mode="clip")

    return read


def main() -> None:
    """Measure both sets and report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--min-s", type=float, default=1.0, help="seconds of each side in each round")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/loader.json"))
    arguments = parser.parse_args()
    rng = np.random.default_rng(0)
    results: list[Result] = []
    with (
        tempfile.TemporaryDirectory(prefix="forebay-bench-") as directory,
        tempfile.TemporaryDirectory(prefix="forebay-cache-", dir="/dev/shm") as cache,
        EmbeddedCluster(Path(directory) / "cluster", nodes=3, port=0) as cluster,
    ):
        os.environ["FOREBAY_ENDPOINT"] = ",".join(cluster.endpoints)
        with Client() as client:
            client.buckets.create("bench")
        for name, columns, batch_size in (("tokens", tokens(rng), 64), ("small", small(rng), 256)):
            url = f"forebay://bench/{name}"
            types = {column: f"{a.dtype}{list(a.shape[1:]) or ''}".replace(" ", "") for column, a in columns.items()}
            with ShardWriter(url, columns=types) as writer:
                writer.write_batch(columns)
            rows = len(next(iter(columns.values())))
            with (
                ShardedDataset(url, batch_size=batch_size, shuffle=True) as remote,
                ShardedDataset(url, batch_size=batch_size, shuffle=True, cache_dir=cache) as cached,
            ):
                sides = {
                    "gather alone (the limit)": gather_of(columns, batch_size=batch_size, rng=rng),
                    "Forebay, warm cache": epoch_of(cached),
                    "Forebay, zstd over HTTP": epoch_of(remote),
                }
                cell = Cell(name=f"{name}, batches of {batch_size}", unit="samples", amount=rows, sides=sides)
                results += measure(cell, rounds=arguments.rounds, min_s=arguments.min_s)
    facts = {"backend": "sqlite", "consistency": "strong"}
    report(results, title="loader, one process, shuffled epochs", facts=facts, path=arguments.out)


if __name__ == "__main__":
    main()
