"""Many objects on a small cluster, and what grows with them: ``make bench SUITE=scale``.

Three nodes on SQLite, two copies, objects of three chunks of 1 KiB, all different: writes them in groups, lists all, verifies
all by re-hashing every copy; then a fourth node is given data, and the first one drained. Beside the time stands the CPU time
of nodes and client, and the resident memory of each process, which is read twice a second.
"""

from __future__ import annotations

import argparse
import os
import random
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.store.usage import cpu_s, peak_bytes, reset_peaks, resident_bytes
from client import Client
from client.anchoring import commit_many
from client.catalog import Commit
from client.errors import StoreError
from client.record import ObjectRecord
from client.upload import make_content
from client.verify import verify
from client.write_id import new_write_id
from storenode.embedded import EmbeddedCluster

NODES, REPLICAS = 3, 2
CHUNKS, CHUNK_BYTES = 3, 1024
BUCKET = "many"
# Objects written together, and how many such groups are under way.
GROUP, WRITERS = 256, 4
SAMPLE_S = 0.5
MIB = 1024 * 1024


@dataclass(slots=True, kw_only=True)
class Phase:
    """What one phase took.

    Attributes
    ----------
    curve : list of tuple
        Samples: seconds since its begin, and MiB of each node and of the client.
    """

    name: str
    objects: int
    wall_s: float = 0.0
    nodes_cpu_s: float = 0.0
    client_cpu_s: float = 0.0
    peaks: list[float] = field(default_factory=list)
    curve: list[tuple[float, list[float]]] = field(default_factory=list)


class Watch:
    """Runs phases and watches the processes of nodes and this one meanwhile."""

    def __init__(self, cluster: EmbeddedCluster, phases: list[Phase]) -> None:
        self._pids = [cluster.pid(node_id) for node_id in cluster.node_ids]
        self._phases = phases

    def run(self, name: str, work: Callable[[], int]) -> None:
        """Do `work`, which returns how many objects it went through."""
        every = [*self._pids, os.getpid()]
        reset_peaks(every)
        phase = Phase(name=name, objects=0)
        before = cpu_s(self._pids), cpu_s([os.getpid()])
        began_s, ended = time.perf_counter(), threading.Event()

        def sample() -> None:
            while True:
                phase.curve.append((time.perf_counter() - began_s, [resident_bytes([pid]) / MIB for pid in every]))
                if ended.wait(SAMPLE_S):
                    return

        sampler = threading.Thread(target=sample, name="sampler")
        sampler.start()
        try:
            phase.objects = work()
        finally:
            ended.set()
            sampler.join()
        phase.wall_s = time.perf_counter() - began_s
        phase.nodes_cpu_s, phase.client_cpu_s = cpu_s(self._pids) - before[0], cpu_s([os.getpid()]) - before[1]
        phase.peaks = [peak_bytes([pid]) / MIB for pid in every]
        self._phases.append(phase)
        Console().print(f"{name}: {phase.objects:,} objects in {phase.wall_s:.1f} s")


def fill(client: Client, num_objects: int) -> int:
    """Write all objects in groups, chunks first, then names."""
    chance = random.Random(num_objects)
    groups: Iterator[list[tuple[str, list[bytes]]]] = (
        [
            (f"run-{index // 1000:04d}/sample-{index:027d}", [chance.randbytes(CHUNK_BYTES) for _ in range(CHUNKS)])
            for index in range(first, min(first + GROUP, num_objects))
        ]
        for first in range(0, num_objects, GROUP)
    )
    with ThreadPoolExecutor(WRITERS) as writers, ThreadPoolExecutor(WRITERS * NODES) as requests:
        waiting = []
        for group in groups:
            waiting.append(writers.submit(write, client, group, requests))
            if len(waiting) > WRITERS:
                waiting.pop(0).result()
        for future in waiting:
            future.result()
    return num_objects


def write(client: Client, group: Sequence[tuple[str, list[bytes]]], requests: ThreadPoolExecutor) -> None:
    """Write one group of objects."""
    uploader = client.uploader(REPLICAS, ack="all")
    refs = uploader.store_many([chunk for _, chunks in group for chunk in chunks], executor=requests)
    writes = []
    for number, (key, _) in enumerate(group):
        content = make_content(refs[number * CHUNKS : (number + 1) * CHUNKS], uploader)
        record = ObjectRecord(write_id=new_write_id(), content=content, ack="all", replicas=REPLICAS, created_s=time.time())
        writes.append(Commit(bucket=BUCKET, key=key, record=record))
    for outcome in commit_many(client.catalog, writes, uploader, refs_of=lambda record: record.content.refs):
        if isinstance(outcome, StoreError):
            raise outcome


def list_all(client: Client) -> int:
    """Go through the whole listing."""
    return sum(1 for _ in client.walk(BUCKET))


def verify_all(client: Client, num_objects: int) -> int:
    """Re-hash every copy of every chunk."""
    health = verify(client, client.walk(BUCKET))
    expected = num_objects * CHUNKS * REPLICAS
    if not health.clean or (health.objects, health.copies_ok) != (num_objects, expected):
        raise AssertionError(f"expected {num_objects} clean objects with {expected} copies, found {health.to_json()}")
    return health.objects


@dataclass(frozen=True, slots=True, kw_only=True)
class Move:
    """Copies that a change of the layout made, of all copies, and the share that had to move."""

    name: str
    made: int
    copies: int
    ideal: float


def reshape(cluster: EmbeddedCluster, client: Client, watch: Watch, *, num_objects: int) -> Iterator[Move]:
    """Give data to the spare node, then drain the first one; each until all nodes hold what they should."""
    (spare,), first = cluster.spares, cluster.node_ids[0]
    copies = num_objects * CHUNKS * REPLICAS
    placed = len(cluster.node_ids) - len(cluster.spares)
    for kind, node_id, ideal in (("add", spare, 1 / (placed + 1)), ("drain", first, 1 / (placed + 1))):
        before = {each: names_in(path) for each, path in cluster.data_dirs.items()}
        watch.run(kind, partial(change, client, kind, node_id, num_objects=num_objects))
        made = sum(len(names_in(path) - before[each]) for each, path in cluster.data_dirs.items())
        yield Move(name=kind, made=made, copies=copies, ideal=ideal)


def change(client: Client, kind: str, node_id: str, *, num_objects: int) -> int:
    """Change the layout, and wait until the older one is retired."""
    client.admin("POST", "/v1/admin/layout", json={"change": kind, "nodes": [node_id]})
    while client.admin("GET", "/v1/admin/layout")["older"]:
        time.sleep(SAMPLE_S)
    return num_objects


def names_in(data_dir: Path) -> set[str]:
    """The copies on a node's disk."""
    return {name for _, _, names in os.walk(data_dir / "chunks") for name in names}


def report(phases: Sequence[Phase]) -> list[Table]:
    """The times, and the memory of each process over them."""
    num_nodes = max(len(phase.peaks) for phase in phases) - 1
    times = Table("phase", "s", "objects/s", "CPU s of nodes", "of the client", "CPU µs an object")
    memory = Table("phase", *(f"node {number + 1}, MiB: a quarter, half, end, peak" for number in range(num_nodes)), "client")
    for phase in phases:
        rate = phase.objects / phase.wall_s
        cpu = phase.nodes_cpu_s + phase.client_cpu_s
        figures = (f"{phase.wall_s:.1f}", f"{rate:,.0f}", f"{phase.nodes_cpu_s:.1f}", f"{phase.client_cpu_s:.1f}")
        times.add_row(phase.name, *figures, f"{1e6 * cpu / phase.objects:,.0f}")
        curve = [sample for _, sample in phase.curve]
        marks = (curve[len(curve) // 4], curve[len(curve) // 2], curve[-1], phase.peaks)
        *nodes, client = (", ".join(f"{mark[at]:.0f}" for mark in marks) for at in range(len(phase.peaks)))
        memory.add_row(phase.name, *nodes, *[""] * (num_nodes - len(nodes)), client)
    return [times, memory]


def moves(found: Sequence[Move]) -> Table:
    """What changes of the layout moved."""
    table = Table("change", "copies made", "of all", "ideal", "of the ideal")
    for move in found:
        share = move.made / move.copies
        table.add_row(move.name, f"{move.made:,}", f"{share:.4f}", f"{move.ideal:.4f}", f"{share / move.ideal:.3f}")
    return table


def main() -> None:
    """Fill, list and verify, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--objects", type=int, default=100_000)
    parser.add_argument("--dir", type=Path, default=Path(), help="where the cluster's directory is made")
    options = parser.parse_args()
    phases: list[Phase] = []
    with tempfile.TemporaryDirectory(dir=options.dir) as directory:
        with EmbeddedCluster(directory, nodes=NODES) as cluster, Client(list(cluster.endpoints)) as client:
            client.buckets.create(BUCKET, replicas=REPLICAS)
            watch = Watch(cluster, phases)
            watch.run("write", lambda: fill(client, options.objects))
            watch.run("list", lambda: list_all(client))
            watch.run("verify", lambda: verify_all(client, options.objects))
        show(report(phases))  # Already, for the rest takes as long.
        with EmbeddedCluster(directory, nodes=NODES + 1) as cluster, Client(list(cluster.endpoints)) as client:
            watch = Watch(cluster, phases)
            found = list(reshape(cluster, client, watch, num_objects=options.objects))
            watch.run("verify again", lambda: verify_all(client, options.objects))
        show([*report(phases), moves(found)])  # Before the directory is removed, which takes minutes.


def show(tables: Sequence[Table]) -> None:
    """Print tables."""
    for table in tables:
        Console(width=160).print(table)


if __name__ == "__main__":
    main()
