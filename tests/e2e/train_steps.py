"""A few training steps on a dataset, for a machine or a container beside the cluster: prints which rows it saw, and the losses.

python -m tests.e2e.train_steps forebay://bucket/dataset
"""

from __future__ import annotations

import json
import sys

import torch

from loader import ShardedDataset

STEPS = 8


def main(url: str) -> None:
    """Train a linear model on the columns x, y and row."""
    torch.manual_seed(0)
    model = torch.nn.Linear(16, 1)
    optimiser = torch.optim.SGD(model.parameters(), lr=0.05)
    rows: list[int] = []
    losses: list[float] = []
    for _, batch in zip(range(STEPS), ShardedDataset(url, batch_size=64, shuffle=True, seed=3), strict=False):
        loss = torch.nn.functional.mse_loss(model(batch["x"])[:, 0], batch["y"])
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        rows += batch["row"].tolist()
        losses.append(round(loss.item(), 4))
    print(json.dumps({"rows": rows, "losses": losses}))


if __name__ == "__main__":
    main(sys.argv[1])
