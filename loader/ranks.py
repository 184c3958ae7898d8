"""Who reads: the rank and world size of a data-parallel job, and the DataLoader worker within it.

Both mean *data-parallel*: with tensor or pipeline parallelism, ranks that work on the same rows must give the same rank.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from operator import index
from typing import Any

from loader.errors import InvalidOption

__all__ = ["Worker", "resolve_ranks", "worker_of"]


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
    if world_size is not None and not hasattr(world_size, "__index__"):
        if rank is not None:
            raise InvalidOption(f"rank={rank} beside a mesh or a process group, which brings the rank: give only the latter")
        rank, world_size = _ranks_of_group(world_size)
    if (rank is None) != (world_size is None):
        raise InvalidOption(f"rank={rank} and world_size={world_size}: give both, or neither")
    if rank is None or world_size is None:
        rank, world_size = _ambient_ranks()
    if not 0 <= rank < world_size:
        raise InvalidOption(f"rank={rank} of world_size={world_size}: ranks are 0 to world_size - 1")
    return index(rank), index(world_size)


def _ranks_of_group(group: Any) -> tuple[int, int]:
    import torch.distributed as dist

    if hasattr(group, "get_local_rank"):
        if group.ndim != 1:
            raise InvalidOption(f"a DeviceMesh of {group.ndim} dimensions: give its data-parallel one, as mesh['dp']")
        return int(group.get_local_rank()), int(group.size())
    if not isinstance(group, dist.ProcessGroup):
        raise InvalidOption(f"world_size={group!r}: expected a number, a DeviceMesh or a process group")
    return dist.get_rank(group), dist.get_world_size(group)


def _ambient_ranks() -> tuple[int, int]:
    import torch.distributed as dist

    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    try:
        return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    except ValueError as exc:
        raise InvalidOption("the variables RANK and WORLD_SIZE must be whole numbers") from exc


@dataclass(frozen=True, slots=True, kw_only=True)
class Worker:
    """A DataLoader worker.

    Attributes
    ----------
    number, num_workers : int
        Which one of how many.
    base_seed : int
        The same in all workers of one DataLoader iterator.
    """

    number: int
    num_workers: int
    base_seed: int


def worker_of() -> Worker | None:
    """The DataLoader worker that this process is; None in the main process."""
    from torch.utils.data import get_worker_info

    info = get_worker_info()
    return None if info is None else Worker(number=info.id, num_workers=info.num_workers, base_seed=info.seed - info.id)
