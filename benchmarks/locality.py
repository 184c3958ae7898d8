"""What locality saves on the network: ``make bench SUITE=locality``.

Four hosts (network namespaces on this machine, joined by a bridge) with a node and a rank on each; two copies of everything.
Each rank reads an epoch, with locality and without, as 4 ranks and as 3. The kernel counts what comes to the hosts over the
network, and the loader how often a block is decoded by any rank. Nothing here is timed. Needs root.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from client.client import Client
from loader import ShardWriter
from loader.reader import DatasetReader
from tests.support.hosts import HostCluster, can_have_hosts, running_hosts

URL = "forebay://bench/set"
HOSTS, LANES, GLOBAL_BATCH, ROW_BYTES = 4, 256, 768, 4096
# All hosts share this machine's processors: that one is slow is no reason to read from another.
PATIENT = {"FOREBAY_READ_TIMEOUT_S": "60", "FOREBAY_HEDGE_LEAST_S": "30"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """What an epoch took.

    Attributes
    ----------
    local_share : float
        Of the bytes that ranks read in the epoch, those from the node on their own host.
    read_amplification : float
        Blocks decoded by all ranks, for each block there is.
    network_share : float
        Bytes that came to hosts over the network, whatever for, for each byte of the dataset.
    """

    ranks: int
    locality: bool
    local_share: float
    read_amplification: float
    network_share: float


def epoch(cluster: HostCluster, *, ranks: int, locality: bool, num_blocks: int, stored_bytes: int) -> Figures:
    """Have ranks read an epoch."""
    options = {"batch_size": GLOBAL_BATCH // ranks, "shuffle": True, "locality": locality, "run_id": f"bench-{ranks}"}
    before = sum(host.received_bytes() for host in cluster.hosts)
    printed = cluster.run_ranks(["tests.support.reading_rank", URL, json.dumps(options)], world_size=ranks, environment=PATIENT)
    received = sum(host.received_bytes() for host in cluster.hosts) - before
    told = [json.loads(text) for text in printed]
    local, remote = (sum(rank["receipt"][name] for rank in told) for name in ("bytes_local", "bytes_remote"))
    return Figures(
        ranks=ranks,
        locality=locality,
        local_share=local / (local + remote),
        read_amplification=sum(rank["receipt"]["blocks"] for rank in told) / num_blocks,
        network_share=received / stored_bytes,
    )


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=49_152, help=f"of {ROW_BYTES} bytes")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/locality.json"))
    arguments = parser.parse_args()
    if not can_have_hosts():
        parser.error("this benchmark makes network namespaces: run it as root, with iproute2 and util-linux installed")
    rng = np.random.default_rng(0)
    with (
        tempfile.TemporaryDirectory(prefix="forebay-bench-") as directory,
        running_hosts(Path(directory), num_hosts=HOSTS, environment={"FOREBAY_RESERVE_BYTES": "0"}) as cluster,
        Client(cluster.endpoints) as client,
    ):
        client.buckets.create("bench", replicas=2)
        columns = {"row": "int64", "noise": f"uint8[{ROW_BYTES - 8}]"}
        with ShardWriter(URL, columns, "none", 64 * 1024, LANES, client=client) as writer:
            noise = rng.integers(0, 256, (arguments.rows, ROW_BYTES - 8), np.uint8)
            writer.write_batch({"row": np.arange(arguments.rows), "noise": noise})
        reader = DatasetReader(client, "bench", "set")
        figures = [
            epoch(cluster, ranks=ranks, locality=locality, num_blocks=reader.num_blocks, stored_bytes=reader.info.size)
            for ranks in (4, 3)
            for locality in (False, True)
        ]
    table = Table("ranks", "locality", "local", "read amplification", "network, of the dataset", title="locality")
    for row in figures:
        table.add_row(
            str(row.ranks),
            "on" if row.locality else "off",
            f"{row.local_share:.1%}",
            f"{row.read_amplification:.3f}",
            f"{row.network_share:.1%}",
        )
    Console().print(table)
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(
        json.dumps({"title": "locality", "commit": commit, "results": list(map(asdict, figures))}, indent=1)
    )


if __name__ == "__main__":
    main()
