"""One thread of torch's for each of ours: what DataLoader sees to in its worker processes, for threads.

Every thread that calls torch has a team of OpenMP threads of its own, as large as the machine has cores. With several threads
that make items the teams get into each other's way, and wait by spinning: on a busy machine an operation on a batch then took
25 times its CPU seconds.
"""

from __future__ import annotations

import threading

import torch

__all__ = ["use_one_torch_thread"]


def use_one_torch_thread() -> None:
    """Have torch do what this thread asks for in this thread alone, from now on; nothing changes for others.

    `torch.set_num_threads` is for the calling thread, but also for all that ask torch for something for the first time later
    on. So another thread sets it back for those.
    """
    before = torch.get_num_threads()
    if before > 1:
        torch.set_num_threads(1)
        restoring = threading.Thread(target=torch.set_num_threads, args=(before,), name="forebay-torch-threads")
        restoring.start()
        restoring.join()
