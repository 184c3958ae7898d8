"""The whole path on one machine, on real data: store, shards, training on two ranks, and a node that dies on the way.

``make demo`` runs it. It starts three storage nodes, writes two datasets into them as zstd-compressed shards (the handwritten
digits of scikit-learn, and 20 MB of Python source text), trains a small network on each under torchrun, kills one node with
SIGKILL in the middle of an epoch, and compares the stream of samples with that of an undisturbed epoch. It exits 0 only if
everything held.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import blake3
import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from sklearn.datasets import load_digits

from client import Client
from examples.text import python_sources
from examples.train import make_task, stream_digest
from loader import ShardedDataset, ShardWriter
from storenode.embedded import EmbeddedCluster

TEXT_BYTES = 20_000_000
TEXT_ROW_BYTES = 256
WORLD_SIZE = 2
MIN_ACCURACY = 0.95

console = Console(width=110)


def write_digits() -> None:
    """1,797 handwritten digits, a fifth of them held out."""
    images, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(images))
    held_out = len(images) // 5
    for name, rows in (("test", order[:held_out]), ("train", order[held_out:])):
        with ShardWriter(f"forebay://demo/digits/{name}", columns={"image": "uint8[64]", "label": "uint8"}) as writer:
            writer.write_batch({"image": images[rows].astype(np.uint8), "label": labels[rows].astype(np.uint8)})


def write_text() -> None:
    """Rows of 256 bytes of source text, in small blocks: the epoch then reads from the store until its end."""
    rows = python_sources(min_bytes=TEXT_BYTES, row_bytes=TEXT_ROW_BYTES)
    with ShardWriter(
        "forebay://demo/text", columns={"bytes": f"uint8[{TEXT_ROW_BYTES}]"}, num_lanes=32, block_size_bytes=64 * 1024
    ) as writer:
        writer.write_batch({"bytes": rows})


def undisturbed_digests(name: str) -> list[list[str]]:
    """For each rank, the digest of its stream in each epoch, read without training while all nodes live."""
    task = make_task(name)
    digests = []
    for rank in range(WORLD_SIZE):
        with ShardedDataset(
            task.url, batch_size=task.batch_size, shuffle=True, seed=7, rank=rank, world_size=WORLD_SIZE
        ) as dataset:
            digests.append([digest_of_epoch(dataset) for _ in range(task.epochs)])
    return digests


def digest_of_epoch(dataset: ShardedDataset) -> str:
    """The digest of the next epoch's stream."""
    hasher = blake3.blake3()
    for batch in dataset:
        stream_digest(batch, hasher)
    return str(hasher.hexdigest())


def train(name: str, out: Path, *, victim: int | None = None) -> list[dict[str, Any]]:
    """Run examples/train.py under torchrun with two ranks; what each rank reports."""
    out.mkdir()
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={WORLD_SIZE}"]
    command += ["-m", "examples.train", name, "--out", str(out)]
    if victim is not None:
        command += ["--victim", str(victim)]
    subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    return [json.loads((out / f"rank-{rank}.json").read_text()) for rank in range(WORLD_SIZE)]


def accuracy(weights: Path) -> float:
    """Share of the held-out digits that the trained network reads right."""
    model = make_task("digits").model
    model.load_state_dict(torch.load(weights, weights_only=True))
    right = total = 0
    with ShardedDataset("forebay://demo/digits/test", batch_size=256, rank=0, world_size=1) as dataset, torch.no_grad():
        for batch in dataset:
            right += int((model(batch["image"].float() / 16).argmax(1) == batch["label"]).sum())
            total += len(batch["label"])
    return right / total


def stored_bytes(receipt: dict[str, Any]) -> int:
    """Bytes from the store, from nodes here and elsewhere."""
    return int(receipt["bytes_local"] + receipt["bytes_remote"])


def report(name: str, ranks: list[dict[str, Any]], undisturbed: list[list[str]]) -> bool:
    """Print what training `name` was like; whether its stream was the undisturbed one in every epoch."""
    epochs = list(zip(*(rank["epochs"] for rank in ranks), strict=True))
    receipts = [rank["receipt"] for epoch in epochs for rank in epoch]
    total = {field: sum(receipt[field] for receipt in receipts) for field in ("samples", "bytes_cache", "stall_s", "failovers")}
    stored = sum(map(stored_bytes, receipts))
    seconds = sum(max(rank["seconds"] for rank in epoch) for epoch in epochs)
    table = Table(title=name, show_header=False, title_justify="left")
    table.add_row("samples/s, 2 ranks, training included", f"{total['samples'] / seconds:,.0f}")
    table.add_row("loss by epoch", " ".join(f"{epoch[0]['loss']:.3f}" for epoch in epochs))
    table.add_row("bytes from the store / from the cache", f"{stored:,} / {total['bytes_cache']:,}")
    table.add_row("seconds waited for data", f"{total['stall_s']:.2f} of {seconds * WORLD_SIZE:.2f}")
    table.add_row("reads that moved to another replica", f"{total['failovers']:,}")
    digests = [[epoch["digest"] for epoch in rank["epochs"]] for rank in ranks]
    for rank, (found, expected) in enumerate(zip(digests, undisturbed, strict=True)):
        same = "all epochs the same" if found == expected else "DIFFERENT"
        table.add_row(f"stream of rank {rank}, first epoch", found[0][:32])
        table.add_row("  undisturbed", f"{expected[0][:32]}, {same}")
    console.print(table)
    return digests == undisturbed


def main() -> int:
    """Run the demo; the exit status."""
    began_s = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="forebay-demo-") as directory:
        work = Path(directory)
        with EmbeddedCluster(work / "cluster", nodes=3, port=0) as cluster:
            os.environ["FOREBAY_ENDPOINT"] = ",".join(cluster.endpoints)
            console.print(f"3 storage nodes at {os.environ['FOREBAY_ENDPOINT']}")
            with Client() as client:
                client.buckets.create("demo")
            write_digits()
            write_text()
            with Client() as client:
                for info in client.walk("demo"):
                    console.print(f"  forebay://demo/{info.key}: {info.size:,} bytes, {info.record.replicas} replicas")
            undisturbed = {name: undisturbed_digests(name) for name in ("digits", "text")}
            checks = {"digits: same stream": report("digits", train("digits", work / "digits"), undisturbed["digits"])}
            score = accuracy(work / "digits" / "model.pt")
            console.print(f"digits: {score:.1%} of the held-out images read right")
            checks[f"digits: accuracy of {MIN_ACCURACY:.0%}"] = score >= MIN_ACCURACY
            victim = cluster.node_ids[-1]
            console.print(f"text: node {victim} gets SIGKILL after a third of the first epoch")
            ranks = train("text", work / "text", victim=cluster.pid(victim))
            checks["text: same stream although a node died"] = report("text", ranks, undisturbed["text"])
            checks["text: the node is dead"] = not cluster.running(victim)
            # A client that has heard of the death asks the other replicas at once, so moves need not be many.
            checks["text: a whole epoch was read from the other two"] = all(
                stored_bytes(rank["epochs"][-1]["receipt"]) > 0 for rank in ranks
            )
            checks["text: loss fell below that of guessing"] = ranks[0]["epochs"][-1]["loss"] < np.log(256)
    for check, held in checks.items():
        console.print(f"{'ok    ' if held else 'FAILED'} {check}")
    console.print(f"{time.perf_counter() - began_s:.0f} s")
    return 0 if all(checks.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
