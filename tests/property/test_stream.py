"""Whole streams, from blocks to tensors, over any dataset and any chain of geometries: the order is the epoch's, exactly."""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterator
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from loader.assignment import TAILS, Tail
from loader.epoch import SharedEpoch
from loader.order import LaneOrder, position_number, row_number
from loader.ranks import Worker
from tests.support.memory_store import MemoryDataset, dataset_bytes, open_reader

# By name: columns beside the row's number, with one row in a block, a few, many, and as many as happen to fit.
COLUMNS = {
    "wide": {"data": "uint8[1024]"},
    "some": {"data": "float32[25]"},
    "narrow": {"data": "uint16"},
    "text": {"data": "str"},
    "ragged": {"data": "int32[*,3]"},
}

datasets = st.tuples(st.one_of(st.integers(0, 20), st.integers(0, 200)), st.integers(1, 17), st.sampled_from(sorted(COLUMNS)))
worlds = st.sampled_from([1, 2, 3, 4, 7, 12, 20])
batch_sizes = st.one_of(st.integers(1, 12), st.just(300))
tails = st.sampled_from(TAILS)


@functools.cache
def content_of(num_rows: int, num_lanes: int, kind: str) -> bytes:
    columns = {"row": "int64", **COLUMNS[kind]}
    data: Any = ["-" * (row * 37 % 300) + str(row) for row in range(num_rows)]
    if kind == "ragged":
        data = [ragged_value(row) for row in range(num_rows)]
    elif kind != "text":
        shape = (num_rows, *(int(size) for size in COLUMNS[kind]["data"].partition("[")[2].rstrip("]").split(",") if size))
        numbers = np.arange(num_rows).reshape(-1, *[1] * (len(shape) - 1))
        data = np.broadcast_to(numbers, shape).astype(COLUMNS[kind]["data"].partition("[")[0])
    return dataset_bytes(columns, {"row": np.arange(num_rows), "data": data}, num_lanes=num_lanes)


def ragged_value(row: int) -> Any:
    """Every seventh is empty, every twentieth larger than a block."""
    return np.full((300 if row % 20 == 3 else row % 7, 3), row, np.int32)


@functools.cache
def epoch_order(content: bytes, seed: int, epoch: int, shuffle: bool) -> list[int]:
    """The row number at each position of an epoch."""
    reader, _ = open_reader(content)
    order = np.full(reader.index.num_rows, -1)
    for lane in range(reader.index.num_lanes):
        blocks = reader.table(lane).rows
        lane_order = LaneOrder(
            digest=reader.index.digest, seed=seed, epoch=epoch, lane=lane, block_rows=blocks, shuffle=shuffle
        )
        indexes = [
            lane_order.block_start(int(block)) + lane_order.rows_of_visit(visit)
            for visit, block in enumerate(lane_order.visits)
        ]
        index = np.concatenate(indexes) if indexes else np.empty(0, np.int64)
        lanes = np.full(len(index), lane)
        positions = position_number(lanes, np.arange(len(index)), num_lanes=reader.index.num_lanes)
        order[positions] = row_number(lanes, index, num_lanes=reader.index.num_lanes)
    return order.tolist()


def check_content(batch: Any, kind: str) -> None:
    rows = batch["row"].tolist()
    assert batch["_index"].tolist() == rows
    if kind == "ragged":
        assert all(np.array_equal(found, ragged_value(row)) for found, row in zip(batch["data"], rows, strict=True))
    elif kind == "text":
        assert batch["data"] == ["-" * (row * 37 % 300) + str(row) for row in rows]
    else:
        kind_of = {"wide": torch.uint8, "some": torch.float32, "narrow": torch.uint16}[kind]
        assert batch["data"].dtype == kind_of
        expected = torch.tensor(rows).reshape(-1, *[1] * (batch["data"].ndim - 1))
        assert (batch["data"].to(torch.int64) == expected % (256 if kind == "wide" else 1 << 16)).all()


def kept_rows(batch: Any) -> list[int]:
    pad = batch.get("_pad", torch.zeros(len(batch["row"]), dtype=torch.bool))
    return [row for row, repeated in zip(batch["row"].tolist(), pad.tolist(), strict=True) if not repeated]


def run_ranks(
    content: bytes, *, world_size: int, state: dict[str, Any] | None, take: int | None, **options: Any
) -> tuple[list[list[Any]], dict[str, Any]]:
    """The batches of each rank, at most `take` of them, and the state afterwards, which is the same on all ranks."""
    batches, states = [], []
    for rank in range(world_size):
        dataset = MemoryDataset(content, rank=rank, world_size=world_size, with_index=True, num_threads=1, **options)
        if state is not None:
            dataset.load_state_dict(state)
        stream = iter(dataset)
        if take is None:
            batches.append(list(stream))
        else:
            # Ranks that `uneven` leaves without a last batch have come to the end.
            batches.append([batch for _, batch in zip(range(take), stream, strict=False)])
        states.append(dataset.state_dict())
        dataset.close()
    return batches, states[0] if all(state == states[0] for state in states) else {"states": states}


@settings(max_examples=60)
@given(
    shape=datasets,
    stops=st.lists(st.tuples(worlds, batch_sizes, st.integers(1, 4), st.sampled_from([0, 4096, 1 << 20])), max_size=3),
    last=st.tuples(worlds, batch_sizes),
    tail=tails,
    shuffle=st.booleans(),
    epoch=st.integers(0, 3),
)
@example(shape=(0, 3, "some"), stops=[], last=(2, 4), tail="pad", shuffle=True, epoch=0)
@example(shape=(1, 8, "some"), stops=[], last=(4, 2), tail="pad", shuffle=True, epoch=0)
@example(shape=(90, 4, "ragged"), stops=[(2, 3, 4, 0)], last=(3, 5), tail="pad", shuffle=True, epoch=0)
@example(shape=(5, 17, "wide"), stops=[(2, 1, 1, 0)], last=(20, 3), tail="uneven", shuffle=True, epoch=1)
def test_chain_of_resumes_is_the_epochs_order(
    shape: tuple[int, int, str],
    stops: list[tuple[int, int, int, int]],
    last: tuple[int, int],
    tail: Tail,
    shuffle: bool,
    epoch: int,
) -> None:
    content = content_of(*shape)
    order = epoch_order(content, 11, epoch, shuffle)
    position_of = {row: position for position, row in enumerate(order)}
    state, consumed, num_rows = None, 0, shape[0]
    dataset = MemoryDataset(content, seed=11, shuffle=shuffle)
    dataset.set_epoch(epoch)
    state = dataset.state_dict()
    dataset.close()
    for world_size, batch_size, take, prefetch_bytes in [*stops, (*last, 10_000, 4096)]:
        batches, state = run_ranks(
            content,
            world_size=world_size,
            state=state,
            take=take if take < 10_000 else None,
            batch_size=batch_size,
            seed=11,
            shuffle=shuffle,
            tail=tail,
            prefetch_bytes=prefetch_bytes,
        )
        # Nothing was overwritten while later batches were made.
        for rank_batches in batches:
            for batch in rank_batches:
                check_content(batch, shape[2])
        for number in range(max(map(len, batches))):
            rows = [row for rank_batches in batches if number < len(rank_batches) for row in kept_rows(rank_batches[number])]
            end = min(num_rows, consumed + world_size * batch_size)
            assert sorted(position_of[row] for row in rows) == list(range(consumed, end))
            consumed = end
            if tail == "pad":
                assert len({len(rank_batches[number]["row"]) for rank_batches in batches}) == 1
        if "states" in state:
            assert tail == "uneven"  # Some ranks have come to the end one batch before the others.
            return
        if state["epoch"] > epoch:
            break
        assert state["samples_consumed"] == consumed
    lost = num_rows - consumed
    assert lost < world_size * batch_size if tail == "drop" else lost == 0
    assert (state["epoch"], state["samples_consumed"]) == (epoch + 1, 0)


@settings(max_examples=25)
@given(shape=datasets, global_size=st.sampled_from([1, 6, 12, 24]), shuffle=st.booleans())
def test_equal_global_batch_sizes_have_equal_global_batches(
    shape: tuple[int, int, str], global_size: int, shuffle: bool
) -> None:
    content, seen = content_of(*shape), []
    for world_size in (1, 2, 3, 12):
        if global_size % world_size == 0:
            ranks, _ = run_ranks(
                content, world_size=world_size, state=None, take=None, batch_size=global_size // world_size, shuffle=shuffle
            )
            seen.append([sorted(row for batch in batches for row in kept_rows(batch)) for batches in zip(*ranks, strict=True)])
    assert all(batches == seen[0] for batches in seen)


def forked(dataset: MemoryDataset) -> MemoryDataset:
    """A copy as a forked worker has it: its own attributes, and the same shared memory."""
    child = copy.copy(dataset)
    child._epoch = SharedEpoch.__new__(SharedEpoch)
    child._epoch.__dict__.update(dataset._epoch.__dict__)
    return child


def loader_of(dataset: MemoryDataset, num_workers: int, base_seed: int) -> Iterator[Any]:
    """Items in the order in which a DataLoader yields those of its workers."""
    streams = []
    for number in range(num_workers):
        worker = Worker(number=number, num_workers=num_workers, base_seed=base_seed)
        with patch("loader.stream.worker_of", lambda worker=worker: worker):
            streams.append(iter(forked(dataset)))
    while streams:
        for stream in streams.copy():
            try:
                yield next(stream)
            except StopIteration:
                streams.remove(stream)


@settings(max_examples=40)
@given(
    shape=datasets,
    geometry=st.tuples(st.sampled_from([1, 2, 3, 7]), st.one_of(st.none(), batch_sizes)),
    num_workers=st.integers(1, 5),
    yield_samples=st.booleans(),
    start=st.floats(0, 1),
    tail=tails,
)
def test_workers_make_the_batches_of_one_process(
    shape: tuple[int, int, str],
    geometry: tuple[int, int | None],
    num_workers: int,
    yield_samples: bool,
    start: float,
    tail: Tail,
) -> None:
    world_size, batch_size = geometry
    yield_samples = yield_samples and batch_size is not None
    # Interleaving single samples of several workers is the loader's own order.
    assume(not yield_samples or num_workers == 1)
    content = content_of(*shape)
    for rank in range(world_size):
        alone, base = (
            MemoryDataset(
                content,
                batch_size=batch_size,
                yield_samples=yield_samples,
                rank=rank,
                world_size=world_size,
                tail=tail,
                shuffle=True,
                with_index=True,
                num_threads=1,
            )
            for _ in range(2)
        )
        state = {**alone.state_dict(), "samples_consumed": int(start * shape[0])}
        for dataset in (alone, base):
            dataset.load_state_dict(state)
        for epoch in range(2):
            assert (alone.epoch, base.epoch) == (epoch, epoch)
            expected, found = list(alone), list(loader_of(base, num_workers, base_seed=100 + epoch))
            assert [item["_index"].tolist() for item in found] == [item["_index"].tolist() for item in expected]
            assert [item.get("_pad") is None for item in found] == [item.get("_pad") is None for item in expected]
            if epoch == 0 and not yield_samples:
                left = base.state_at(batches=0)
                assert (left["epoch"], left["samples_consumed"]) == (0, state["samples_consumed"])


@settings(max_examples=40)
@given(
    shape=datasets,
    batch_size=batch_sizes,
    breaks=st.lists(st.integers(0, 40), max_size=4),
    yield_samples=st.booleans(),
    world_size=st.sampled_from([1, 3]),
)
def test_breaking_off_and_going_on_changes_nothing(
    shape: tuple[int, int, str], batch_size: int, breaks: list[int], yield_samples: bool, world_size: int
) -> None:
    content = content_of(*shape)
    whole, broken = (
        MemoryDataset(
            content,
            batch_size=batch_size,
            yield_samples=yield_samples,
            rank=0,
            world_size=world_size,
            shuffle=True,
            with_index=True,
            num_threads=1,
        )
        for _ in range(2)
    )
    expected = [item["_index"].tolist() for item in whole]
    found: list[Any] = []
    for wanted in breaks:
        if len(found) < len(expected):
            for _, item in zip(range(wanted), broken, strict=False):
                found.append(item["_index"].tolist())
    found += [item["_index"].tolist() for item in broken] if broken.epoch == 0 else []
    assert found == expected
    assert (whole.epoch, broken.epoch) == (1, 1)
