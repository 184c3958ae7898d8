"""A trainer or a node is killed at any stage of a save: the last checkpoint loads, and the new one is whole or is not there."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable
from itertools import count
from typing import Any

import pytest
import torch
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict_saver import save

from client.client import Client
from loader import load_tensors
from loader.checkpoint import CheckpointWriter, SavePlanner
from loader.series import Series
from tests.support.cluster import CHUNK_BYTES, LiveCluster, eventually

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:torch.distributed is disabled:UserWarning")]

URL = "forebay://data/run"
NUM_LARGE = 5
# Each large tensor is a chunk; the small ones and the header are one each; then comes the commit.
NUM_STAGES = NUM_LARGE + 4


def state(step: int) -> dict[str, torch.Tensor]:
    large = {f"large.{number}": torch.full((CHUNK_BYTES // 4,), float(100 * step + number)) for number in range(NUM_LARGE)}
    return {**large, "step": torch.tensor(step), "bias": torch.full((10,), float(step))}


def save_step(client: Client, step: int, *, before_stage: Callable[[int], None]) -> None:
    """Save a step and call `before_stage` with 0, 1, 2, ... before each chunk is sent, and before and after the commit."""
    stages = count()
    put, commit = client.chunks.put, client.catalog.commit

    def watched_put(*args: Any, **options: Any) -> Any:
        before_stage(next(stages))
        return put(*args, **options)

    def watched_commit(*args: Any, **options: Any) -> Any:
        before_stage(NUM_STAGES - 2)
        info = commit(*args, **options)
        before_stage(NUM_STAGES - 1)
        return info

    client.chunks.put, client.catalog.commit = watched_put, watched_commit  # type: ignore[method-assign]
    save(
        dict(state(step)),
        storage_writer=CheckpointWriter(f"{URL}/step-{step:012d}", client=client),
        planner=SavePlanner(),
        no_dist=True,
    )


def train(endpoints: list[str], step: int, die_at: int) -> None:
    def die(stage: int) -> None:
        if stage == die_at:
            os.kill(os.getpid(), signal.SIGKILL)

    with Client(endpoints) as client:
        save_step(client, step, before_stage=die)


def whole_steps(client: Client) -> list[int]:
    """The steps that are there; each must be whole, and right in every byte."""
    steps = [member.step for member in Series(URL, client=client).members()]
    for step in steps:
        found = load_tensors(f"{URL}/step-{step:012d}", client=client)
        assert found.keys() == state(step).keys()
        assert all(torch.equal(found[name], tensor) for name, tensor in state(step).items())
    return steps


def test_a_trainer_is_killed_at_every_stage_of_a_save(cluster: LiveCluster) -> None:
    endpoints = list(cluster.endpoints)
    with cluster.client() as client:
        save_step(client, 1, before_stage=lambda stage: None)
    for stage in range(NUM_STAGES):
        trainer = multiprocessing.get_context("fork").Process(target=train, args=(endpoints, 2 + stage, stage))
        trainer.start()
        trainer.join(60)
        assert trainer.exitcode == -signal.SIGKILL, f"stage {stage} was not reached"
        with cluster.client() as client:
            steps = whole_steps(client)
            assert steps == [1] + ([2 + stage] if stage == NUM_STAGES - 1 else [])
    # What came to nothing has no name, and whoever goes on saves the same step.
    with cluster.client() as client:
        save_step(client, 2, before_stage=lambda stage: None)
        assert whole_steps(client) == [1, 2, NUM_STAGES + 1]


@pytest.mark.parametrize("stage", range(NUM_STAGES))
def test_a_node_is_killed_at_every_stage_of_a_save(cluster: LiveCluster, stage: int) -> None:
    with cluster.client() as client:
        save_step(client, 1, before_stage=lambda stage: None)
    victim = cluster.node_ids[stage % 3]
    with cluster.client() as client:

        def kill(now: int) -> None:
            if now == stage:
                cluster.kill(victim)

        try:
            save_step(client, 2, before_stage=kill)
        except CheckpointException:
            assert whole_steps(client) in ([1], [1, 2])
        else:
            assert whole_steps(client) == [1, 2]
    cluster.restart(victim)
    with cluster.client() as client:
        infos = [member.info for member in Series(URL, client=client).members()]
        eventually(lambda: all(cluster.is_whole(client, info) for info in infos), what="every copy is there again")
