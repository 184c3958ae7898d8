"""Several ranks of a training job on this machine: processes joined by gloo."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any

import torch.distributed as dist
import torch.multiprocessing as mp

__all__ = ["run_ranks"]


def run_ranks(work: Callable[..., None], *args: Any, world_size: int) -> None:
    """Run ``work(rank, *args)`` in `world_size` processes of one process group; raises what the first of them raised.

    Parameters
    ----------
    work : callable
        Of a module's top level.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"tcp://127.0.0.1:{free.getsockname()[1]}"
    mp.spawn(_run, args=(work, args, world_size, address), nprocs=world_size)  # type: ignore[attr-defined, no-untyped-call]


def _run(rank: int, work: Callable[..., None], args: tuple[Any, ...], world_size: int, address: str) -> None:
    dist.init_process_group("gloo", init_method=address, rank=rank, world_size=world_size)
    try:
        work(rank, *args)
    finally:
        dist.destroy_process_group()
