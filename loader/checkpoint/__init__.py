"""Checkpoints of many ranks as one object of tensors, through `torch.distributed.checkpoint`.

Saving: torch plans → `writer` stores each rank's shards → `index` composes one file of all → one commit. Loading: `reader`
tells torch what there is and reads what it asks for. `planner` and `values` hold what is no tensor, as JSON; `staging` copies
a state for `async_save`.
"""

from __future__ import annotations

from loader.checkpoint.planner import LoadPlanner, SavePlanner
from loader.checkpoint.reader import CheckpointReader
from loader.checkpoint.writer import CheckpointWriter

__all__ = ["CheckpointReader", "CheckpointWriter", "LoadPlanner", "SavePlanner"]
