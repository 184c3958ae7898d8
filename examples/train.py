"""Train a small network from a Forebay dataset, on one rank of a torchrun job.

Run by examples/quickstart.py as ``torchrun --nproc-per-node 2 examples/train.py digits``; it works against any cluster that
``FOREBAY_ENDPOINT`` names. Two tasks: ``digits`` classifies 8 x 8 images, ``text`` predicts the next byte of source code.
Each epoch's stream is hashed as it is consumed, so that a run in which a node died can be held against an undisturbed one.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import blake3
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from loader import ShardedDataset

WINDOW = 16  # Bytes of context from which the text model predicts the next one.
STRIDE = 16  # It predicts every sixteenth byte, which keeps an epoch short on two cores.


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """What is trained on which dataset."""

    url: str
    model: nn.Module
    batch_size: int
    epochs: int
    learning_rate: float
    prefetch_bytes: int


def make_task(name: str) -> Task:
    """The task called `name`, with the same initial weights on every rank."""
    torch.manual_seed(0)
    if name == "digits":
        model: nn.Module = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
        url, batch_size, epochs, rate = "forebay://demo/digits/train", 16, 12, 0.005
        return Task(url=url, model=model, batch_size=batch_size, epochs=epochs, learning_rate=rate, prefetch_bytes=1 << 20)
    model = nn.Sequential(
        nn.Embedding(256, 16),
        nn.Flatten(2),
        nn.Linear(WINDOW * 16, 128),
        nn.ReLU(),
        nn.Linear(128, 256),
    )
    # Little is fetched ahead, so that the node's death meets an epoch that still needs it.
    return Task(url="forebay://demo/text", model=model, batch_size=128, epochs=2, learning_rate=0.002, prefetch_bytes=1 << 20)


def loss_of(model: nn.Module, batch: dict[str, Any]) -> torch.Tensor:
    """Mean cross-entropy of a batch; rows that only fill up a short last batch do not count."""
    if "image" in batch:
        logits = model(batch["image"].float() / 16)
        losses = nn.functional.cross_entropy(logits, batch["label"].long(), reduction="none")
    else:
        windows = batch["bytes"].long().unfold(1, WINDOW + 1, STRIDE)
        logits = model(windows[..., :WINDOW])
        losses = nn.functional.cross_entropy(logits.flatten(0, 1), windows[..., WINDOW].flatten(), reduction="none")
        losses = losses.view(windows.shape[:2]).mean(1)
    if "_pad" in batch:
        losses = losses[~batch["_pad"]]
    return losses.mean() if len(losses) else losses.sum()


def stream_digest(batch: dict[str, Any], hasher: Any) -> None:
    """Add a batch's rows, in order, to the digest of the stream."""
    for name in sorted(batch):
        hasher.update(batch[name].contiguous().numpy().tobytes())


def train(task: Task, *, victim: int | None) -> dict[str, Any]:
    """Train for the task's epochs; rank 0 kills process `victim` after a third of the first one."""
    rank = dist.get_rank()
    model = DistributedDataParallel(task.model)
    optimizer = torch.optim.Adam(model.parameters(), lr=task.learning_rate)
    epochs = []
    with ShardedDataset(
        task.url, batch_size=task.batch_size, shuffle=True, seed=7, prefetch_bytes=task.prefetch_bytes
    ) as dataset:
        for epoch in range(task.epochs):
            began_s, hasher, losses = time.perf_counter(), blake3.blake3(), []
            for step, batch in enumerate(dataset):
                if victim is not None and epoch == 0 and rank == 0 and step == len(dataset) // 3:
                    os.kill(victim, signal.SIGKILL)
                stream_digest(batch, hasher)
                optimizer.zero_grad()
                loss = loss_of(model, batch)
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                losses.append(loss.detach())
            mean = torch.stack(losses).mean()
            dist.all_reduce(mean)
            seconds = time.perf_counter() - began_s
            epochs.append(
                {
                    "loss": mean.item() / dist.get_world_size(),
                    "digest": hasher.hexdigest(),
                    "seconds": seconds,
                    "receipt": dataset.receipt(),
                }
            )
    return {"rank": rank, "epochs": epochs}


def main() -> None:
    """Train, and write what happened to ``OUT/rank-N.json``; rank 0 also saves the weights."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("task", choices=["digits", "text"])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--victim", type=int, help="process id of a storage node to kill in the middle of the epoch")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    try:
        task = make_task(arguments.task)
        report = train(task, victim=arguments.victim)
        (arguments.out / f"rank-{report['rank']}.json").write_text(json.dumps(report))
        if report["rank"] == 0:
            torch.save(task.model.state_dict(), arguments.out / "model.pt")
    finally:
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
