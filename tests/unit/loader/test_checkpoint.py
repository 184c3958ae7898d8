"""Checkpoints of one process through torch.distributed.checkpoint, over a store in memory."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import Future
from typing import Any

import numpy as np
import pytest
import torch
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict_loader import load as dcp_load
from torch.distributed.checkpoint.state_dict_saver import async_save
from torch.distributed.checkpoint.state_dict_saver import save as dcp_save

from client.errors import NotEnoughReplicas, ObjectNotFound
from loader import load_tensors, save_tensors
from loader.checkpoint import CheckpointReader, CheckpointWriter, LoadPlanner, SavePlanner
from loader.errors import InvalidOption, TensorMismatch
from tests.support.fake_store import FakeStore
from tests.support.memory_store import MemoryDataset, dataset_bytes
from tests.unit.loader.watched_store import WatchedChunks, watched_store

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled:UserWarning")

URL = "forebay://data/step-7"
MIB = 1 << 20


@pytest.fixture
def watched() -> Iterator[tuple[FakeStore, WatchedChunks]]:
    with watched_store(chunk_size_bytes=2 * MIB) as (store, _, chunks):
        yield store, chunks


@pytest.fixture
def store(watched: tuple[FakeStore, WatchedChunks]) -> FakeStore:
    return watched[0]


def model(*, width: int = 40) -> torch.nn.Module:
    return torch.nn.Sequential(torch.nn.Linear(10, width), torch.nn.ReLU(), torch.nn.Linear(width, 20_000))


def state_of(net: torch.nn.Module, *, step: int) -> dict[str, Any]:
    optimizer = torch.optim.AdamW(net.parameters())
    net(torch.randn(2, 10)).sum().backward()
    optimizer.step()
    loader = {"epoch": 1, "samples_consumed": 1 << 40, "dataset_digest": "ab" * 32, "shuffle": True}
    return {"model": net.state_dict(), "optimizer": optimizer.state_dict(), "loader": loader, "step": step}


def save(state: dict[str, Any], store: FakeStore, **options: Any) -> CheckpointWriter:
    writer = CheckpointWriter(URL, client=store, **options)
    dcp_save(state, storage_writer=writer, planner=SavePlanner(), no_dist=True)
    return writer


def load(state: dict[str, Any], store: FakeStore, **options: Any) -> None:
    dcp_load(state, storage_reader=CheckpointReader(URL, client=store), planner=LoadPlanner(**options), no_dist=True)


def cause_of(error: pytest.ExceptionInfo[CheckpointException]) -> BaseException:
    return error.value.failures[0][0]


def assert_same(one: Any, other: Any) -> None:
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other)
    elif isinstance(one, dict):
        assert one.keys() == other.keys()
        for key, value in one.items():
            assert_same(value, other[key])
    else:
        assert one == other and type(one) is type(other)


def test_a_state_comes_back_with_what_is_no_tensor(store: FakeStore) -> None:
    saved = state_of(model(), step=7)
    assert save(saved, store).info is not None
    found = state_of(model(), step=0)
    found["loader"] = dict.fromkeys(found["loader"], 0)
    load(found, store)
    assert_same(found, saved)


def test_the_checkpoint_is_an_object_of_tensors(store: FakeStore) -> None:
    saved = state_of(model(), step=7)
    save(saved, store, metadata={"run": "a"})
    tensors = load_tensors(URL, client=store)
    assert_same({name: tensors[f"model.{name}"] for name in saved["model"]}, dict(saved["model"]))


def test_an_object_of_tensors_loads_as_a_checkpoint(store: FakeStore) -> None:
    saved = dict(model().state_dict())
    save_tensors(URL, saved, client=store)
    found = dict(model().state_dict())
    load(found, store)
    assert_same(found, saved)


def test_a_second_save_sends_only_what_changed(watched: tuple[FakeStore, WatchedChunks]) -> None:
    store, chunks = watched
    state = {f"layer{number}": torch.randn(MIB // 2) for number in range(10)}
    save(state, store)
    first = sum(chunks.put_sizes)
    chunks.put_sizes.clear()
    state["layer3"] = torch.randn(MIB // 2)
    save(state, store)
    assert sum(chunks.put_sizes) < 0.11 * first


def test_async_save_stages_into_the_same_buffers_and_is_undisturbed(store: FakeStore) -> None:
    net = model()
    writer = CheckpointWriter(client=store)
    for step in range(3):
        saved = {name: tensor.clone() for name, tensor in net.state_dict().items()}
        done = async_save(
            {"model": net.state_dict(), "step": step},
            checkpoint_id=f"forebay://data/step-{step}",
            storage_writer=writer,
            planner=SavePlanner(),
            no_dist=True,
        )
        buffers = writer.state_dict_cache
        with torch.no_grad():
            for parameter in net.parameters():
                parameter.add_(1.0)
        assert isinstance(done, Future)
        done.result()
        assert_same(
            {f"model.{name}": tensor for name, tensor in saved.items()},
            load_tensors(f"forebay://data/step-{step}", client=store),
        )
    assert buffers is not None and writer.state_dict_cache is buffers


def test_part_of_a_checkpoint_loads(store: FakeStore) -> None:
    saved = state_of(model(), step=7)
    save(saved, store)
    found: dict[str, Any] = {"model": model().state_dict(), "step": 0, "new": torch.zeros(3)}
    load(found, store, allow_partial_load=True)
    assert_same(dict(found["model"]), dict(saved["model"]))
    assert found["step"] == 7 and not found["new"].any()


def test_all_that_does_not_fit_is_listed_at_once(store: FakeStore) -> None:
    save(state_of(model(), step=7), store)
    found: dict[str, Any] = {"model": model(width=41).state_dict(), "step": torch.zeros(1), "absent": 1}
    with pytest.raises(CheckpointException) as error:
        load(found, store)
    assert isinstance(cause_of(error), TensorMismatch)
    for words in (
        "'model.0.weight'",
        "[40, 10]",
        "[41, 10]",
        "'model.2.weight'",
        "'step' is no tensor",
        "'absent' is not in it",
    ):
        assert words in str(cause_of(error))


def test_values_are_never_pickled(store: FakeStore) -> None:
    with pytest.raises(CheckpointException) as error:
        save({"a": torch.zeros(1), "when": object()}, store)
    assert isinstance(cause_of(error), InvalidOption) and "'when' holds a builtins.object" in str(cause_of(error))
    writer = CheckpointWriter(URL, client=store)
    with pytest.raises(CheckpointException, match=r"planner=loader.checkpoint.SavePlanner"):
        dcp_save({"step": 1}, storage_writer=writer, no_dist=True)
    assert not store.fake_catalog.history
    save({"step": 1}, store)
    with pytest.raises(CheckpointException, match=r"planner=loader.checkpoint.LoadPlanner"):
        dcp_load({"step": 0}, storage_reader=CheckpointReader(URL, client=store), no_dist=True)


def test_a_save_that_failed_leaves_the_last_checkpoint(watched: tuple[FakeStore, WatchedChunks]) -> None:
    store, chunks = watched
    save({"a": torch.zeros(MIB)}, store)
    refused = 0

    def refuse(ref: Any) -> None:
        nonlocal refused
        refused += 1
        raise NotEnoughReplicas("no")

    chunks.before_put = refuse
    with pytest.raises(CheckpointException) as error:
        save({"a": torch.ones(MIB)}, store)
    assert isinstance(cause_of(error), NotEnoughReplicas) and refused
    assert not load_tensors(URL, client=store)["a"].any()


def test_two_savers_to_one_name(store: FakeStore) -> None:
    first = save({"step": 1}, store, if_none_match="*").info
    assert first is not None
    with pytest.raises(CheckpointException, match="step-7"):
        save({"step": 2}, store, if_none_match="*")
    save({"step": 3}, store, if_match=first.etag)
    found = {"step": 0}
    load(found, store)
    assert found == {"step": 3}


def test_a_missing_checkpoint_is_the_stores_error(store: FakeStore) -> None:
    with pytest.raises(CheckpointException) as error:
        load({"step": 0}, store)
    assert isinstance(cause_of(error), ObjectNotFound)


def test_a_save_that_begins_while_another_is_under_way_is_refused_and_disturbs_neither_bytes_nor_name(
    watched: tuple[FakeStore, WatchedChunks],
) -> None:
    store, chunks = watched
    writer, begun, go_on = CheckpointWriter(client=store), threading.Event(), threading.Event()

    def hold(ref: Any) -> None:
        begun.set()
        assert go_on.wait(30)

    def save_async(name: str, value: float) -> Future[Any]:
        state = {"a": torch.full((MIB,), value)}
        done = async_save(
            state, checkpoint_id=f"forebay://data/{name}", storage_writer=writer, planner=SavePlanner(), no_dist=True
        )
        assert isinstance(done, Future)
        return done

    chunks.before_put = hold
    first = save_async("first", 1.0)
    assert begun.wait(30)
    second = save_async("second", 2.0)
    with pytest.raises(InvalidOption, match="the save of forebay://data/first is under way"):
        second.result(30)
    go_on.set()
    first.result(30)
    assert {key for _, key in store.fake_catalog.history} == {"first"}
    assert (load_tensors("forebay://data/first", client=store)["a"] == 1.0).all()
    save_async("third", 3.0).result(30)
    assert (load_tensors("forebay://data/third", client=store)["a"] == 3.0).all()


def test_the_position_in_the_data_is_saved_with_the_weights(store: FakeStore) -> None:
    def dataset() -> MemoryDataset:
        rows = dataset_bytes({"n": "int64"}, {"n": np.arange(100)}, num_lanes=4)
        return MemoryDataset(rows, batch_size=10, shuffle=True, seed=3)

    whole = [batch["n"].tolist() for batch in dataset()]
    source, weights = dataset(), torch.zeros(3)
    for _, batch in zip(range(4), source, strict=False):
        assert len(batch["n"]) == 10
        weights += 1
    save({"weights": weights, "data": source}, store)
    source, weights = dataset(), torch.zeros(3)
    load({"weights": weights, "data": source}, store)
    assert (weights == 4).all()
    assert [batch["n"].tolist() for batch in source] == whole[4:]
