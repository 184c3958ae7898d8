"""Who reads: the rank and world size of a data-parallel job, the run that it is part of, and the DataLoader worker within it.

Rank and world size mean *data-parallel*: with tensor or pipeline parallelism, ranks that work on the same rows must give the
same rank. Where they come from, the first that says both:

1. the arguments: numbers, a DeviceMesh or a process group;
2. torch.distributed, once it is initialised;
3. ``RANK`` and ``WORLD_SIZE``, which torchrun sets, and Kubernetes operators that run it or do as it does;
4. ``SLURM_PROCID`` and ``SLURM_STEP_NUM_TASKS``, which srun sets. (Not ``SLURM_NTASKS``: a batch script has it, too, and is no
   rank of as many.)
5. ``JOB_COMPLETION_INDEX`` of an indexed Job of Kubernetes, and ``WORLD_SIZE``.

A job that says none of them is rank 0 of 1. One that says half of it is refused: to guess would be to read everything on
each rank, or a part of it on the only one.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from operator import index
from typing import Any, Final

from loader.errors import InvalidOption

__all__ = ["Worker", "resolve_ranks", "resolve_run_id", "worker_of"]

_RANK_VARIABLES: Final = (
    ("RANK", "WORLD_SIZE"),
    ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS"),
    ("JOB_COMPLETION_INDEX", "WORLD_SIZE"),
)
# Not TORCHELASTIC_RESTART_COUNT: each agent of torchrun counts for itself, and only the failures of its own workers.
_RUN_VARIABLES: Final = (
    ("TORCHELASTIC_RUN_ID",),
    ("SLURM_JOB_ID", "SLURM_STEP_ID", "SLURM_RESTART_COUNT"),
)
_RUN_ID: Final = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,99}")


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
    for names in _RANK_VARIABLES:
        if all(name in os.environ for name in names):
            return _number(names[0]), _number(names[1])
    for name in ("RANK", "WORLD_SIZE", "JOB_COMPLETION_INDEX"):
        if name in os.environ:
            known = "; ".join(" and ".join(names) for names in _RANK_VARIABLES)
            raise InvalidOption(
                f"{name}={os.environ[name]} is set, but with nothing that says the rest. Pairs that are known: {known}. "
                "Or give rank and world_size; a process that is to read everything by itself is rank=0 of world_size=1"
            )
    return 0, 1


def _number(name: str) -> int:
    try:
        return int(os.environ[name])
    except ValueError as exc:
        raise InvalidOption(f"the variable {name} must be a whole number, found {os.environ[name]!r}") from exc


def resolve_run_id(run_id: str | None) -> str:
    """What all ranks of one start of a job have in common, and no other start has, but for those that torchrun makes itself.

    Parameters
    ----------
    run_id : str, optional
        By default what torchrun or Slurm says; Slurm also how often the job was started again.

    Raises
    ------
    InvalidOption
        If nobody says it, or it is not what a part of a key may be.
    """
    origin = "run_id"
    if run_id is None:
        for origin, *more in _RUN_VARIABLES:
            # "none" is torchrun's id of a job that was given none, and so of all of them.
            if os.environ.get(origin, "none") != "none":
                run_id = ".".join(os.environ[name] for name in (origin, *more) if name in os.environ)
                break
        else:
            raise InvalidOption(
                "ranks agree on their lanes under the id of the run, and neither torchrun (--rdzv-id ID, or --standalone) nor "
                "Slurm gives one: give run_id=..., the same on all ranks and another one each time that the job starts"
            )
    if _RUN_ID.fullmatch(run_id) is None:
        raise InvalidOption(f"{origin}={run_id[:100]!r}: expected 1 to 100 letters, digits, '.', '_' or '-', not '.' first")
    return run_id


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
