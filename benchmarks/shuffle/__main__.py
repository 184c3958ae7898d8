"""Measures the orders and reports; see the package."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from benchmarks.loader.peers import python as peers_python
from benchmarks.machine import run_facts
from benchmarks.shuffle.orders import forebay, full
from benchmarks.shuffle.quality import Quality, measure
from benchmarks.tables import fact_list, table

MIB: Final = 1 << 20
# ImageNet by its numbers, sorted by class.
ROWS, CLASSES, ROW_BYTES, BATCH_SIZE, BATCHES = 1_280_000, 1_000, 110_000, 256, 20
LANES, BLOCK_BYTES, SHARD_BYTES = 256, MIB, 64 * MIB
# py1e's own default on one node covers all of these rows, and so has them all on the local disk; the other is its least.
PY1E_BLOCKS = (4_000_000, 1 << 18)


def main() -> None:
    """Compute all orders, measure, print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.shuffle", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/shuffle.json"))
    arguments = parser.parse_args()
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    buffer_rows = LANES * BLOCK_BYTES // ROW_BYTES
    found = {"Forebay, 256 lanes of 1 MiB blocks: 256 MiB": _forebay(), "full shuffle": full(ROWS, seed=1)}
    peers = _peers(buffer_rows)
    found |= {
        f"MosaicML py1e, blocks of {PY1E_BLOCKS[0]:,} rows: all of the data on disk": peers[f"py1e {PY1E_BLOCKS[0]}"],
        f"MosaicML py1e, blocks of {PY1E_BLOCKS[1]:,} rows: 29 GB on disk": peers[f"py1e {PY1E_BLOCKS[1]}"],
        "LitData, chunks of 64 MiB": peers["litdata"],
        f"WebDataset, shards of 64 MiB, a buffer of {buffer_rows:,} rows: 256 MiB": peers["webdataset"],
    }
    measured = {
        name: measure(order, num_classes=CLASSES, batch_size=BATCH_SIZE, num_batches=BATCHES) for name, order in found.items()
    }
    facts = run_facts("benchmarks.shuffle", arguments.out.parent)
    report = f"{fact_list(facts)}\n{_table(measured)}\n"
    print(report)
    arguments.out.write_text(json.dumps({"facts": facts, "orders": {name: asdict(one) for name, one in measured.items()}}))
    arguments.out.with_suffix(".md").write_text(report)


def _forebay() -> npt.NDArray[np.int64]:
    return forebay(ROWS, num_lanes=LANES, block_rows=BLOCK_BYTES // ROW_BYTES, batch_size=BATCH_SIZE, seed=0)


def _peers(buffer_rows: int) -> dict[str, npt.NDArray[np.int64]]:
    with tempfile.TemporaryDirectory() as directory:
        options: dict[str, object] = {"rows": ROWS, "shard_rows": SHARD_BYTES // ROW_BYTES, "buffer_rows": buffer_rows}
        options |= {"py1e_blocks": PY1E_BLOCKS, "out": directory}
        command = [str(peers_python()), "-m", "benchmarks.shuffle.peer_orders", json.dumps(options)]
        subprocess.run(command, check=True, env={**os.environ, "PYTHONPATH": os.getcwd()}, stdout=subprocess.DEVNULL)
        return {path.stem: np.load(path) for path in Path(directory).glob("*.npy")}


def _table(measured: Mapping[str, Quality]) -> str:
    header = ["order", f"in a batch of {BATCH_SIZE}", f"in {BATCHES} batches", "correlation of neighbours"]
    rows = [[name, f"{one.batch:.2f}", f"{one.batches:.2f}", f"{one.neighbours:+.4f}"] for name, one in measured.items()]
    return table(header, rows)


if __name__ == "__main__":
    main()
