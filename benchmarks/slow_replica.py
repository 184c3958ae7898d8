"""Epochs while one of three replicas is slow: ``make bench SUITE=slow_replica``.

Three nodes over loopback, two copies of everything, one node behind a proxy that passes all its answers at 1 MB/s, or holds
each request back by 500 ms, or does neither. Each epoch is read by a new client, which has to find out anew. The second cell
reads a smaller set, and has beside each way to be slow the same for a client that calls nothing late or slow.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from benchmarks.measure import Cell, Result, measure, report
from client import Client
from client.objects import ObjectStore
from loader import ShardedDataset, ShardWriter
from storenode.embedded import EmbeddedCluster
from tests.support.slow_link import DetouredClient, SlowLink

ROW_BYTES, SMALL_ROWS, ROWS = 64 * 1024, 256, 8192
LEAST_S, NEVER_S = 0.01, 1e6
SLOWNESS: Mapping[str, Mapping[str, float]] = {
    "undisturbed": {},
    "one node at 1 MB/s": {"rate_bytes_per_s": 1e6},
    "one node 500 ms late": {"delay_s": 0.5},
}


class _Dataset(ShardedDataset):
    """Reaches one node over the link."""

    def __init__(self, url: str, bench: Bench) -> None:
        super().__init__(url, batch_size=32, shuffle=True)
        self._bench = bench

    def _connect(self) -> ObjectStore:
        bench = self._bench
        return DetouredClient(list(bench.cluster.endpoints[1:]), detours={bench.cluster.node_ids[0]: bench.link.url})


@dataclass(kw_only=True)
class Bench:
    """The cluster, the link to its first node, and the receipts of the epochs read on each side."""

    cluster: EmbeddedCluster
    link: SlowLink
    receipts: dict[str, list[dict[str, Any]]] = field(default_factory=dict)

    def epoch(self, url: str, *, side: str, slowness: Mapping[str, float], least_s: float) -> None:
        """Read an epoch with a new client."""
        self.link.slow_down(**slowness)
        os.environ["FOREBAY_HEDGE_LEAST_S"] = str(least_s)
        with _Dataset(url, self) as dataset:
            for batch in dataset:
                assert len(batch)
            self.receipts.setdefault(side, []).append(dataset.receipt())
        self.link.slow_down()


def sides_of(bench: Bench, url: str, *, with_plain: bool) -> dict[str, Callable[[], None]]:
    """An epoch for each way to be slow, also for who does not mind."""
    sides: dict[str, Callable[[], None]] = {}
    for side, slowness in SLOWNESS.items():
        sides[side] = partial(bench.epoch, url, side=f"{url}: {side}", slowness=slowness, least_s=LEAST_S)
        if with_plain and slowness:
            name = f"{side}, not minded"
            sides[name] = partial(bench.epoch, url, side=f"{url}: {name}", slowness=slowness, least_s=NEVER_S)
    return sides


def tell_waste(bench: Bench) -> None:
    """Print what was read in vain on each side, in the epoch in which it was most."""
    for side, receipts in bench.receipts.items():
        shares = [found["bytes_wasted"] / (found["bytes_local"] + found["bytes_remote"]) for found in receipts]
        hedges = [found["hedges"] for found in receipts]
        Console().print(f"{side}: at most {max(shares):.2%} wasted, {min(hedges)} to {max(hedges)} hedges an epoch")


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/slow_replica.json"))
    arguments = parser.parse_args()
    os.environ["FOREBAY_COLOCATED"] = "false"
    results: list[Result] = []
    with (
        tempfile.TemporaryDirectory(prefix="forebay-bench-") as directory,
        EmbeddedCluster(Path(directory) / "cluster", nodes=3, port=0) as cluster,
        SlowLink(int(cluster.endpoints[0].rpartition(":")[2])) as link,
    ):
        os.environ["FOREBAY_ENDPOINT"] = ",".join(cluster.endpoints)
        with Client() as client:
            client.buckets.create("bench", replicas=2)
        noise = np.random.default_rng(0).integers(0, 256, (ROWS, ROW_BYTES), np.uint8)
        bench = Bench(cluster=cluster, link=link)
        for name, rows, rounds in (("blobs", ROWS, arguments.rounds), ("few", SMALL_ROWS, 1)):
            url = f"forebay://bench/{name}"
            with ShardWriter(url, columns={"blob": f"uint8[{ROW_BYTES}]"}) as writer:
                writer.write_batch({"blob": noise[:rows]})
            amount = rows * ROW_BYTES / 1e6
            sides = sides_of(bench, url, with_plain=name == "few")
            results += measure(Cell(name=f"{amount:.0f} MB", unit="MB", amount=amount, sides=sides), rounds=rounds, min_s=0.0)
        tell_waste(bench)
    facts = {"nodes": "3", "replicas": "2", "path": "loopback"}
    report(results, title="epochs with one slow replica", facts=facts, path=arguments.out)


if __name__ == "__main__":
    main()
