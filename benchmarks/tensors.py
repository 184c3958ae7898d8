"""Models and checkpoints beside their peers and limits, in one run: ``make bench SUITE=tensors``.

A state of float32 tensors (64 MiB each, and some small ones), R=2, quorum, three nodes on this machine. Saving: beside two
local copies that are hashed (BLAKE3) and fsynced, as two nodes must do at least, torch.save with fsync, and torch's own
distributed checkpoint to files. Loading: into tensors that are there, beside the bare GET of the same object into one buffer,
and on the host of the nodes beside torch.load(mmap=True) followed by a read of every byte, where the files were just written,
are on the disk, or were read from there. And: bytes that a second save sends, how long ``async_save`` keeps the training loop,
what resharded loads read, and eight readers of a new model beside a writer.
"""

from __future__ import annotations

import argparse
import itertools
import multiprocessing
import os
import queue
import statistics
import tempfile
import threading
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from blake3 import blake3
from torch.distributed.checkpoint.filesystem import FileSystemWriter
from torch.distributed.checkpoint.state_dict_saver import async_save, save

from benchmarks.measure import Cell, Result, measure, report
from client import Client
from loader import TensorReader, load_tensors, save_tensors
from loader.checkpoint import CheckpointWriter, SavePlanner
from loader.series import Series
from storenode.embedded import EmbeddedCluster

MIB = 1 << 20
LARGE_BYTES = 64 * MIB
NUM_SMALL = 100
PUBLISHED = 20
READERS = 8
Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """What all parts measure with."""

    size_bytes: int
    rounds: int
    directory: Path
    client: Client
    remote: Client

    def forget(self) -> None:
        """Have the kernel drop all files from memory."""
        for path in self.directory.rglob("*"):
            if path.is_file():
                with path.open("rb") as file:
                    os.fdatasync(file.fileno())
                    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def state(size_bytes: int) -> Tensors:
    """A state of about this size."""
    large = {f"layers.{n}.weight": torch.randn(LARGE_BYTES // 4) for n in range(max(1, size_bytes // LARGE_BYTES))}
    return {**large, **{f"layers.{n}.bias": torch.randn(1000) for n in range(NUM_SMALL)}}


def renew(tensors: Tensors, *, every: int = 1) -> None:
    """Change every `every`-th large tensor, in each of its chunks."""
    for number, name in enumerate(name for name in tensors if name.endswith("weight")):
        if number % every == 0:
            tensors[name][:: MIB // 4].add_(1.0)


def bytes_of(tensor: torch.Tensor) -> memoryview:
    """The tensor's memory."""
    return tensor.view(torch.uint8).numpy().data


def save_cells(bench: Bench, tensors: Tensors) -> list[Result]:
    """Saves of a state of which every chunk is new."""

    def copies() -> None:
        renew(tensors)
        for copy in ("a", "b"):
            with (bench.directory / f"copy-{copy}").open("wb", buffering=0) as file:
                for tensor in tensors.values():
                    view = bytes_of(tensor)
                    blake3(view).digest()
                    while len(view):
                        view = view[file.write(view) :]
                os.fsync(file.fileno())

    def forebay() -> None:
        renew(tensors)
        save_tensors("forebay://models/saved", tensors, client=bench.client)

    def pickled() -> None:
        renew(tensors)
        with (bench.directory / "pickled.pt").open("wb") as file:
            torch.save(tensors, file)
            file.flush()
            os.fsync(file.fileno())

    def checkpoint() -> None:
        renew(tensors)
        save(tensors, storage_writer=FileSystemWriter(bench.directory / "dcp"), no_dist=True)

    def forebay_checkpoint() -> None:
        renew(tensors)
        writer = CheckpointWriter("forebay://models/checkpoint", client=bench.client)
        save(tensors, storage_writer=writer, planner=SavePlanner(), no_dist=True)

    sides = {
        "two local copies, hashed, fsynced": copies,
        "Forebay, save_tensors, R=2": forebay,
        "Forebay, checkpoint, R=2": forebay_checkpoint,
        "torch.save, one copy, fsynced": pickled,
        "torch checkpoint to files, one copy": checkpoint,
    }
    name = f"save {bench.size_bytes // MIB} MiB, all new"
    return measure(Cell(name=name, unit="MB", amount=total(tensors) / 1e6, sides=sides), rounds=bench.rounds, min_s=0)


def load_cells(bench: Bench, tensors: Tensors) -> list[Result]:
    """Loads into memory that is there."""
    url = "forebay://models/loaded"
    info = save_tensors(url, tensors, client=bench.client)
    with (bench.directory / "loaded.pt").open("wb") as file:
        torch.save(tensors, file)
    into = {name: torch.empty_like(tensor) for name, tensor in tensors.items()}
    buffer = bytearray(info.size)

    def mapped() -> None:
        found = torch.load(bench.directory / "loaded.pt", mmap=True, weights_only=True)
        for name, tensor in into.items():
            tensor.copy_(found[name])

    def touch(found: Tensors) -> None:
        for tensor in found.values():
            tensor.view(torch.int64 if tensor.numel() % 2 == 0 else torch.int32).sum()

    def touched() -> None:
        touch(torch.load(bench.directory / "loaded.pt", mmap=True, weights_only=True))

    def forebay_touched() -> None:
        touch(load_tensors(url, mmap=True, client=bench.client))

    amount = total(tensors) / 1e6
    over_http = {
        "GET into one buffer (the data plane)": lambda: bench.remote.get_into("models", "loaded", buffer),
        "Forebay, load_tensors into tensors": lambda: load_tensors(url, into=into, client=bench.remote),
    }
    near = {
        "torch.load(mmap), every byte summed": touched,
        "torch.load(mmap), copied into tensors": mapped,
        "Forebay, load_tensors into tensors, verified": lambda: load_tensors(url, into=into, client=bench.client),
        "Forebay, load_tensors(mmap), verified": lambda: load_tensors(url, mmap=True, client=bench.client),
        "Forebay, load_tensors(mmap), verified and summed": forebay_touched,
    }
    results = measure(Cell(name="load over HTTP", unit="MB", amount=amount, sides=over_http), rounds=bench.rounds, min_s=1)
    results += measure(Cell(name="load on the host", unit="MB", amount=amount, sides=near), rounds=bench.rounds, min_s=1)
    cell = Cell(name="load on the host, from the disk", unit="MB", amount=amount, sides=near)
    results += measure(cell, rounds=bench.rounds, min_s=0, before=bench.forget)
    bench.forget()
    cell = replace(cell, name="load on the host, read from the disk before")
    return results + measure(cell, rounds=bench.rounds, min_s=1)


def second_save(bench: Bench) -> str:
    """Bytes that are sent by a save of which a tenth of the tensors changed."""
    changing = {f"part.{number}": torch.randn(bench.size_bytes // 160) for number in range(40)}
    save_tensors("forebay://models/second", changing, client=bench.client)
    for number in range(4):
        changing[f"part.{10 * number}"] = torch.randn(bench.size_bytes // 160)
    with counted_puts(bench.client) as sent:
        save_tensors("forebay://models/second", changing, client=bench.client)
    return f"second save, 10 % of the tensors changed: {sent['bytes'] / total(changing):.2%} of the bytes were sent"


def blocking(bench: Bench, tensors: Tensors) -> str:
    """How long ``async_save`` keeps its caller, beside a whole save."""
    with warnings.catch_warnings(), CheckpointWriter(client=bench.client) as writer:
        warnings.simplefilter("ignore")
        whole, kept = [], []
        for number in range(bench.rounds + 1):
            renew(tensors)
            began_s = time.perf_counter()
            save(
                tensors,
                checkpoint_id=f"forebay://models/sync-{number}",
                storage_writer=writer,
                planner=SavePlanner(),
                no_dist=True,
            )
            whole.append(time.perf_counter() - began_s)
            renew(tensors)
            began_s = time.perf_counter()
            done: Any = async_save(
                tensors,
                checkpoint_id=f"forebay://models/async-{number}",
                storage_writer=writer,
                planner=SavePlanner(),
                no_dist=True,
            )
            kept.append(time.perf_counter() - began_s)
            done.result()
    # The first one makes the staging buffers.
    blocked = statistics.median(kept[1:]) / statistics.median(whole[1:])
    return f"async_save keeps its caller for {blocked:.1%} of a save; the first time for {kept[0] / whole[0]:.1%}"


def resharded(bench: Bench) -> list[str]:
    """Bytes that a quarter of a table costs, along each dimension."""
    table = torch.randn(8192, 4096)
    save_tensors("forebay://models/table", {"table": table}, client=bench.client)
    lines = []
    for name, index in (
        ("rows", slice(2048, 4096)),
        ("columns", (slice(None), slice(1024, 2048))),
        ("1/64 of the columns", (slice(None), slice(64, 128))),
    ):
        with TensorReader("forebay://models/table", client=bench.remote) as reader:
            before = replace(bench.remote.chunks.reads)
            part = reader.load_slice("table", index)
            read = bench.remote.chunks.reads.http_bytes - before.http_bytes
        lines.append(f"a slice of {name}: read {read / part.nbytes:.3f} of the bytes that it has")
    return lines


def watched(bench: Bench) -> str:
    """How long a follower of a series takes to see that another step was published."""
    series = Series("forebay://models/series", client=bench.client)
    for step in (0, 1):
        save_tensors(series.url_of(step), {"step": torch.tensor(step)}, client=bench.client)
    series.publish(0)
    seen: queue.Queue[float] = queue.Queue()

    def follow() -> None:
        for _ in itertools.islice(Series("forebay://models/series", client=bench.remote).watch(), PUBLISHED + 1):
            seen.put(time.perf_counter())

    follower = threading.Thread(target=follow)
    follower.start()
    seen.get(timeout=60)
    took = []
    for number in range(PUBLISHED):
        began_s = time.perf_counter()
        series.publish((number + 1) % 2)
        took.append(seen.get(timeout=60) - began_s)
    follower.join()
    return f"a follower sees what was published after {statistics.median(took) * 1e3:.0f} ms, at most {max(took) * 1e3:.0f}"


def fan_out(bench: Bench, tensors: Tensors, endpoints: list[str]) -> str:
    """One new model, read by many processes at once, while another client writes."""
    save_tensors("forebay://models/fresh", tensors, client=bench.client)
    alone = read_together(endpoints, readers=1)[0]
    body = os.urandom(8 * MIB)

    def write_for(ended: Callable[[], bool]) -> list[float]:
        took: list[float] = []
        number = 0
        while not ended() or len(took) < 5:
            fresh = number.to_bytes(8, "little") + body[8:]
            began_s = time.perf_counter()
            bench.client.put("models", f"write-{number % 8}", fresh)
            took.append(time.perf_counter() - began_s)
            number += 1
        return took

    deadline_s = time.monotonic() + 3
    quiet = statistics.median(write_for(lambda: time.monotonic() > deadline_s))
    rate, nodes, beside = read_together(endpoints, readers=READERS, meanwhile=write_for)
    most = max(nodes.values()) / (sum(nodes.values()) / len(nodes))
    return (
        f"{READERS} readers of one new model: {rate:,.0f} MB/s together, one alone {alone:,.0f}; the busiest of "
        f"{len(nodes)} nodes sends {most:.2f} of the mean; a PUT of 8 MiB takes {beside / quiet:.2f} of what it does alone"
    )


def read_together(
    endpoints: list[str], *, readers: int, meanwhile: Callable[[Callable[[], bool]], list[float]] | None = None
) -> tuple[float, Counter[str], float]:
    """MB/s of all readers, bytes that each node sent, and the median of what was done meanwhile."""
    context = multiprocessing.get_context("spawn")
    ready, results = context.Barrier(readers + 1), context.Queue()
    processes = [context.Process(target=read_model, args=(endpoints, ready, results)) for _ in range(readers)]
    for process in processes:
        process.start()
    ready.wait()
    began_s = time.perf_counter()
    took = [] if meanwhile is None else meanwhile(lambda: not any(process.is_alive() for process in processes))
    found = [results.get() for _ in processes]
    for process in processes:
        process.join()
    ended_s = max(ended for _, _, ended in found) - began_s
    nodes = sum((nodes for _, nodes, _ in found), Counter[str]())
    return sum(size for size, _, _ in found) / 1e6 / ended_s, nodes, statistics.median(took) if took else 0.0


def read_model(endpoints: list[str], ready: Any, results: Any) -> None:
    """One reader: loads the model into tensors over HTTP, and says how many bytes came from which node, and when it ended."""
    os.environ["FOREBAY_COLOCATED"] = "false"
    with Client(endpoints) as client, TensorReader("forebay://models/fresh", client=client) as reader:
        nodes = Counter[str]()
        fetch = client.chunks.fetch_into

        def counting(node_id: str, ref: Any, buffer: memoryview, **options: Any) -> None:
            fetch(node_id, ref, buffer, **options)
            nodes[node_id] += len(buffer)

        client.chunks.fetch_into = counting  # type: ignore[method-assign]
        into = {name: torch.empty(reader.shape(name), dtype=reader.dtype(name)) for name in reader}
        ready.wait()
        reader.load(into=into)
        results.put((total(into), nodes, time.perf_counter()))


@contextmanager
def counted_puts(client: Client) -> Iterator[Counter[str]]:
    """Bytes of chunks that the client sends meanwhile."""
    sent, put = Counter[str](), client.chunks.put

    def counting(node_id: str, ref: Any, payload: Any, **options: Any) -> Any:
        sent["bytes"] += ref.size
        return put(node_id, ref, payload, **options)

    client.chunks.put = counting  # type: ignore[method-assign]
    try:
        yield sent
    finally:
        client.chunks.put = put  # type: ignore[method-assign]


def total(tensors: Tensors) -> int:
    """Bytes of all tensors."""
    return sum(tensor.nbytes for tensor in tensors.values())


def main() -> None:
    """Measure all parts and report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mib", type=int, default=1024, help="size of the state")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--dir", type=Path, help="where nodes and files go; a temporary directory by default")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/tensors.json"))
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore", message="torch.distributed is disabled")
    with (
        tempfile.TemporaryDirectory(prefix="forebay-bench-", dir=arguments.dir) as directory,
        EmbeddedCluster(Path(directory) / "cluster", nodes=3, port=0) as cluster,
        Client(endpoints := list(cluster.endpoints)) as client,
    ):
        client.buckets.create("models", replicas=2)
        os.environ["FOREBAY_COLOCATED"] = "false"
        with Client(endpoints) as remote:
            del os.environ["FOREBAY_COLOCATED"]
            tensors = state(arguments.mib * MIB)
            bench = Bench(
                size_bytes=arguments.mib * MIB,
                rounds=arguments.rounds,
                directory=Path(directory),
                client=client,
                remote=remote,
            )
            results = save_cells(bench, tensors) + load_cells(bench, tensors)
            lines = [blocking(bench, tensors), *resharded(bench), second_save(bench)]
            lines += [watched(bench), fan_out(bench, tensors, endpoints)]
    facts = {"backend": "sqlite", "replicas": "2", "said": "\n".join(lines)}
    report(results, title="tensors and checkpoints", facts=facts, path=arguments.out)
    print("\n".join(lines))


if __name__ == "__main__":
    main()
