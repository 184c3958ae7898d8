"""Where rank and world size come from, and what is refused."""

from __future__ import annotations

import os
from collections.abc import Iterator

import numpy as np
import pytest
import torch.distributed as dist
from torch._C._distributed_c10d import HashStore
from torch.distributed.device_mesh import init_device_mesh

from loader.errors import InvalidOption
from loader.ranks import resolve_ranks, resolve_run_id, worker_of


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name in ("RANK", "WORLD_SIZE", "JOB_COMPLETION_INDEX") or name.startswith(("SLURM_", "TORCHELASTIC_")):
            monkeypatch.delenv(name)


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


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, (0, 1)),
        ({"RANK": "3", "WORLD_SIZE": "8", "SLURM_PROCID": "1", "SLURM_STEP_NUM_TASKS": "2"}, (3, 8)),
        ({"SLURM_PROCID": "1", "SLURM_STEP_NUM_TASKS": "2"}, (1, 2)),
        ({"SLURM_PROCID": "1", "SLURM_STEP_NUM_TASKS": "2", "WORLD_SIZE": "4"}, (1, 2)),
        # A batch script, which is no task of its job.
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "8"}, (0, 1)),
        ({"JOB_COMPLETION_INDEX": "5", "WORLD_SIZE": "6"}, (5, 6)),
    ],
)
def test_launchers_say_who_this_is(
    variables: dict[str, str], expected: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert resolve_ranks(None, None) == expected


@pytest.mark.parametrize("name", ["RANK", "WORLD_SIZE", "JOB_COMPLETION_INDEX"])
def test_half_of_what_a_launcher_says_is_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "1")
    with pytest.raises(InvalidOption, match=f"{name}=1 is set, but .*RANK and WORLD_SIZE; .*rank=0 of world_size=1"):
        resolve_ranks(None, None)
    assert resolve_ranks(0, 1) == (0, 1)


def test_environment_must_hold_numbers_that_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "two")
    monkeypatch.setenv("WORLD_SIZE", "1")
    with pytest.raises(InvalidOption, match="RANK must be a whole number, found 'two'"):
        resolve_ranks(None, None)
    monkeypatch.setenv("RANK", "2")
    with pytest.raises(InvalidOption, match="rank=2 of world_size=1"):
        resolve_ranks(None, None)


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"TORCHELASTIC_RUN_ID": "job-7", "TORCHELASTIC_RESTART_COUNT": "2", "SLURM_JOB_ID": "9"}, "job-7"),
        ({"TORCHELASTIC_RUN_ID": "none", "SLURM_JOB_ID": "9", "SLURM_STEP_ID": "0"}, "9.0"),
        ({"SLURM_JOB_ID": "9", "SLURM_STEP_ID": "0", "SLURM_RESTART_COUNT": "1"}, "9.0.1"),
    ],
)
def test_launchers_say_which_run_this_is(variables: dict[str, str], expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert resolve_run_id(None) == expected
    assert resolve_run_id("mine") == "mine"


def test_a_run_without_a_usable_id_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    with pytest.raises(InvalidOption, match=r"neither torchrun .* nor Slurm gives one: give run_id="):
        resolve_run_id(None)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "a/b")
    with pytest.raises(InvalidOption, match="TORCHELASTIC_RUN_ID='a/b': expected 1 to 100 letters"):
        resolve_run_id(None)
    for unusable in ("", "..", "x" * 101):
        with pytest.raises(InvalidOption, match=r"run_id='.*: expected 1 to 100 letters"):
            resolve_run_id(unusable)


def test_main_process_is_no_worker() -> None:
    assert worker_of() is None
