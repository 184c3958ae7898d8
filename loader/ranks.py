"""Who reads: the rank and world size of a data-parallel job, and the DataLoader worker within it.

Both mean *data-parallel*: with tensor or pipeline parallelism, ranks that work on the same rows must give the same rank.
"""

from __future__ import annotations

import os
from typing import Any

from loader.errors import InvalidOption

__all__ = ["resolve_ranks", "worker_of"]


def resolve_ranks(rank: int | None, world_size: int | Any | None) -> tuple[int, int]:
    """Rank and world size, from the arguments or from where the job runs.

    Parameters
    ----------
    rank : int, optional
        Needs `world_size`, and the other way round.
    world_size : int, DeviceMesh or ProcessGroup, optional
        A mesh of one dimension (``mesh["dp"]``) or a process group brings its own rank.

    Raises
    ------
    InvalidOption
        If only one of the two is given, or the rank is not below the world size.
    """
    if world_size is not None and not isinstance(world_size, int):
        return _ranks_of_group(world_size)
    if (rank is None) != (world_size is None):
        raise InvalidOption(f"rank={rank} and world_size={world_size}: give both, or neither")
    if rank is None or world_size is None:
        rank, world_size = _ambient_ranks()
    if not 0 <= rank < world_size:
        raise InvalidOption(f"rank={rank} of world_size={world_size}: ranks are 0 to world_size - 1")
    return rank, world_size


def _ranks_of_group(group: Any) -> tuple[int, int]:
    import torch.distributed as dist

    if hasattr(group, "get_local_rank"):
        if group.ndim != 1:
            raise InvalidOption(f"a DeviceMesh of {group.ndim} dimensions: give its data-parallel one, as mesh['dp']")
        return int(group.get_local_rank()), int(group.size())
    return dist.get_rank(group), dist.get_world_size(group)


def _ambient_ranks() -> tuple[int, int]:
    import torch.distributed as dist

    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    try:
        return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    except ValueError as exc:
        raise InvalidOption("the variables RANK and WORLD_SIZE must be whole numbers") from exc


def worker_of() -> tuple[int, int]:
    """This process's number among the DataLoader's workers and their count; (0, 1) in the main process."""
    from torch.utils.data import get_worker_info

    info = get_worker_info()
    return (0, 1) if info is None else (info.id, info.num_workers)
