"""Torch uses one thread for each thread of the loader that makes items, and as many as before for everybody else."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch

from loader.torch_threads import use_one_torch_thread
from tests.support.memory_store import MemoryDataset, dataset_bytes


@pytest.fixture(autouse=True)
def _three_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


def in_new_thread(call: Callable[[], Any]) -> Any:
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(call).result()


def test_one_thread_is_for_the_caller_alone() -> None:
    def ask() -> int:
        use_one_torch_thread()
        use_one_torch_thread()
        return torch.get_num_threads()

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda _: ask(), range(40))) == [1] * 40
    assert (torch.get_num_threads(), in_new_thread(torch.get_num_threads)) == (3, 3)


def test_transforms_have_one_thread_of_torch_each() -> None:
    content = dataset_bytes({"row": "int64"}, {"row": np.arange(20)})
    source = MemoryDataset(content, batch_size=2, num_threads=3, transform=lambda batch: torch.get_num_threads())
    assert list(source) == [1] * 10
    assert (torch.get_num_threads(), in_new_thread(torch.get_num_threads)) == (3, 3)
