"""Checkpoints of FSDP2 models on real nodes, saved by some ranks and loaded by others, and what is read for it."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

from client.client import Client
from loader import TensorReader, load_tensors
from loader.checkpoint import CheckpointReader, CheckpointWriter, LoadPlanner, SavePlanner
from tests.support.cluster import LiveCluster
from tests.support.ranks import run_ranks

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

URL = "forebay://data/run/step-3"
SIZES = (300, 1000, 7)


def sharded_model(world_size: int, *, seed: int) -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    """A model and its optimizer after a step, the same on every number of ranks."""
    torch.manual_seed(seed)
    mesh = init_device_mesh("cpu", (world_size,))
    net = torch.nn.Sequential(*(torch.nn.Linear(*pair) for pair in pairwise(SIZES)))
    for layer in net:
        fully_shard(layer, mesh=mesh)
    fully_shard(net, mesh=mesh)
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.1)
    net(torch.randn(4, SIZES[0])).square().sum().backward()
    optimizer.step()
    return net, optimizer


def state_of(net: torch.nn.Module, optimizer: torch.optim.Optimizer, *, step: int) -> dict[str, Any]:
    model, optim = get_state_dict(net, optimizer)
    return {"model": model, "optim": optim, "step": step, "loader": {"epoch": step, "samples_consumed": 1 << 33}}


def save_on(rank: int, endpoints: list[str], world_size: int) -> None:
    with CheckpointWriter(URL, endpoints=endpoints) as writer:
        save(state_of(*sharded_model(world_size, seed=1), step=3), storage_writer=writer, planner=SavePlanner())
        assert (writer.info is not None) == (rank == 0)


def load_on(rank: int, endpoints: list[str], world_size: int) -> None:
    wanted = whole(state_of(*sharded_model(world_size, seed=1), step=3))
    net, optimizer = sharded_model(world_size, seed=2)
    state = state_of(net, optimizer, step=0)
    with Client(endpoints) as client:
        before = replace(client.chunks.reads)
        load(state, storage_reader=CheckpointReader(URL, client=client), planner=LoadPlanner())
        read = client.chunks.reads.local_bytes + client.chunks.reads.http_bytes - before.local_bytes - before.http_bytes
        mine = sum(tensor.nbytes for tensor in local_tensors(state))
        assert mine <= read <= 1.05 * mine + 8 * 64 * 1024, (mine, read)
    set_state_dict(net, optimizer, model_state_dict=state["model"], optim_state_dict=state["optim"])
    found = whole(state_of(net, optimizer, step=3))
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        torch.testing.assert_close(found[name], tensor)
    assert state["step"] == 3 and state["loader"] == {"epoch": 3, "samples_consumed": 1 << 33}


def local_tensors(value: Any) -> list[torch.Tensor]:
    if isinstance(value, DTensor):
        return [value.to_local()]
    if isinstance(value, dict):
        return [tensor for item in value.values() for tensor in local_tensors(item)]
    return [value] if isinstance(value, torch.Tensor) else []


def whole(value: Any, name: str = "") -> dict[str, torch.Tensor]:
    if isinstance(value, dict):
        return {path: tensor for key, item in value.items() for path, tensor in whole(item, f"{name}.{key}").items()}
    if isinstance(value, DTensor):
        return {name: value.full_tensor()}
    return {name: value} if isinstance(value, torch.Tensor) else {}


@pytest.mark.parametrize(("savers", "loaders"), [(1, 2), (2, 4), (4, 1), (4, 2)])
def test_a_checkpoint_loads_on_another_number_of_ranks(cluster: LiveCluster, savers: int, loaders: int) -> None:
    run_ranks(save_on, cluster.endpoints, savers, world_size=savers)
    run_ranks(load_on, cluster.endpoints, loaders, world_size=loaders)
    # In one process, without torch.distributed: the file has the large tensors whole.
    with cluster.client() as client, TensorReader(URL, client=client) as reader:
        assert reader.shape("model.0.weight") == (SIZES[1], SIZES[0])
        assert "model.0.weight" in {shard.entry.name for shard in reader.contents.tensors["model.0.weight"].shards}
        assert all(torch.isfinite(tensor).all() for tensor in reader.load().values())


def save_columns(rank: int, endpoints: list[str]) -> None:
    mesh = init_device_mesh("cpu", (2,))
    table = torch.arange(2000.0 * 300).reshape(2000, 300)
    with CheckpointWriter(URL, endpoints=endpoints) as writer:
        save({"table": distribute_tensor(table, mesh, [Shard(1)])}, storage_writer=writer, planner=SavePlanner())


def test_a_tensor_that_is_cut_in_columns_comes_back_whole(cluster: LiveCluster) -> None:
    run_ranks(save_columns, cluster.endpoints, world_size=2)
    with cluster.client() as client:
        table = torch.arange(2000.0 * 300).reshape(2000, 300)
        assert torch.equal(load_tensors(URL, client=client)["table"], table)
        with TensorReader(URL, client=client) as reader:
            assert torch.equal(reader.load_slice("table", (slice(5, 1500, 7), slice(100, 200))), table[5:1500:7, 100:200])
