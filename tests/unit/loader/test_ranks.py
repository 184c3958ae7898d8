"""Where rank and world size come from, and what is refused."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch.distributed as dist
from torch._C._distributed_c10d import HashStore
from torch.distributed.device_mesh import init_device_mesh

from loader.errors import InvalidOption
from loader.ranks import resolve_ranks, worker_of


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def process_group() -> Iterator[None]:
    dist.init_process_group("gloo", store=HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_arguments_win_and_one_rank_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolve_ranks(None, None) == (0, 1)
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("WORLD_SIZE", "8")
    assert resolve_ranks(None, None) == (3, 8)
    assert resolve_ranks(1, 2) == (1, 2)
    assert resolve_ranks(np.int64(1), np.int64(2)) == (1, 2)  # type: ignore[arg-type]


def test_process_group_and_mesh_bring_their_own_rank(process_group: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("WORLD_SIZE", "8")
    assert resolve_ranks(None, None) == (0, 1)
    assert resolve_ranks(None, dist.group.WORLD) == (0, 1)
    assert resolve_ranks(None, init_device_mesh("cpu", (1,))) == (0, 1)
    mesh = init_device_mesh("cpu", (1, 1), mesh_dim_names=("dp", "tp"))
    assert resolve_ranks(None, mesh["dp"]) == (0, 1)
    with pytest.raises(InvalidOption, match=r"a DeviceMesh of 2 dimensions: .*mesh\['dp'\]"):
        resolve_ranks(None, mesh)
    with pytest.raises(InvalidOption, match="rank=0 beside a mesh"):
        resolve_ranks(0, mesh["dp"])


@pytest.mark.parametrize(
    ("rank", "world_size", "message"),
    [
        (1, None, "give both, or neither"),
        (None, 2, "give both, or neither"),
        (2, 2, "ranks are 0 to world_size - 1"),
        (-1, 2, "ranks are 0 to world_size - 1"),
        (None, "four", "expected a number, a DeviceMesh or a process group"),
    ],
)
def test_contradictions_are_refused(rank: int | None, world_size: object, message: str) -> None:
    with pytest.raises(InvalidOption, match=message):
        resolve_ranks(rank, world_size)


def test_environment_must_hold_numbers_that_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "two")
    with pytest.raises(InvalidOption, match="RANK and WORLD_SIZE must be whole numbers"):
        resolve_ranks(None, None)
    monkeypatch.setenv("RANK", "2")
    with pytest.raises(InvalidOption, match="rank=2 of world_size=1"):
        resolve_ranks(None, None)


def test_main_process_is_no_worker() -> None:
    assert worker_of() is None
