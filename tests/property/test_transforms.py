"""Items made in threads, under any chain of resumes: each sample once, and augmented as if nothing had happened."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from loader.collate import pad
from loader.transforms import RowGenerators, row_generator
from tests.support.memory_store import MemoryDataset, dataset_bytes


@functools.cache
def content_of(num_rows: int, num_lanes: int) -> bytes:
    tokens = [np.full(row % 7, row, np.int16) for row in range(num_rows)]
    values = {"row": np.arange(num_rows), "tokens": tokens}
    return dataset_bytes({"row": "int64", "tokens": "int16[*]"}, values, num_lanes=num_lanes)


def augment_batch(batch: Any, rng: np.random.Generator, rngs: RowGenerators) -> list[tuple[int, float]]:
    rows = batch["row"].tolist()
    draws = [generator.random() for generator in rngs]
    assert rng.random() == draws[0]
    for row, values, length in zip(rows, *batch["tokens"], strict=True):
        assert values[:length].tolist() == [row] * (row % 7)
        assert not values[length:].any()
    pad_marks = batch["_pad"].tolist() if "_pad" in batch else [False] * len(rows)
    return [pair for pair, repeated in zip(zip(rows, draws, strict=True), pad_marks, strict=True) if not repeated]


def augment_sample(sample: Any, rng: np.random.Generator) -> list[tuple[int, float]]:
    row = int(sample["row"])
    assert sample["tokens"].tolist() == [row] * (row % 7)
    return [] if sample.get("_pad") else [(row, rng.random())]


stops = st.tuples(st.sampled_from([1, 2, 3]), st.integers(1, 40), st.integers(0, 5), st.booleans(), st.integers(1, 3))


@settings(max_examples=30)
@given(num_rows=st.integers(0, 150), num_lanes=st.integers(1, 9), stops=st.lists(stops, min_size=1, max_size=4))
def test_every_sample_comes_once_and_augmented_alike(num_rows: int, num_lanes: int, stops: list[Any]) -> None:
    content = content_of(num_rows, num_lanes)
    state, found = MemoryDataset(content, seed=4, shuffle=True).state_dict(), []
    for place, (world_size, batch_size, take, whole_batches, num_threads) in enumerate(stops):
        states = []
        for rank in range(world_size):
            options: dict[str, Any] = {"transform": augment_batch, "collate": {"tokens": pad()}, "batch_size": batch_size}
            if not whole_batches:
                options = {"transform": augment_sample, "batch_size": batch_size, "yield_samples": True}
            source = MemoryDataset(
                content, rank=rank, world_size=world_size, seed=4, shuffle=True, num_threads=num_threads, **options
            )
            source.load_state_dict(state)
            limit = 10_000 if place == len(stops) - 1 else take * (1 if whole_batches else batch_size)
            for _, item in zip(range(limit), source, strict=False):
                found += item
            states.append(source.state_dict())
            source.close()
        assert all(other == states[0] for other in states)
        state = states[0]
        if state["epoch"]:
            break
    assert sorted(found) == [(row, row_generator(seed=4, epoch=0, row=row).random()) for row in range(num_rows)]
