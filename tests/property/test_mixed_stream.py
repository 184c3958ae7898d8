"""Chains of resumes over several epochs, of one dataset and of mixtures, are the uninterrupted stream, whatever changes."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from loader.assignment import Tail
from loader.mixed import MixedDataset
from loader.mixture import Component, Mixture, whole_weights
from loader.stream import StreamDataset
from tests.property.test_stream import content_of, epoch_order, loader_of
from tests.support.memory_store import MemoryDataset, open_reader

Row = tuple[int, int]
"""Number of the dataset, and of the row in it."""

# Rows, lanes, columns and weight of each dataset.
datasets = st.tuples(
    st.one_of(st.integers(1, 9), st.integers(1, 120)), st.integers(1, 9), st.sampled_from(["some", "text", "wide"])
)
mixtures = st.lists(st.tuples(datasets, st.integers(1, 20)), min_size=1, max_size=3)
# Ranks, rows of each in a batch, batches that are taken, workers (0: the process itself), bytes fetched ahead.
worlds, batch_sizes, aheads = st.sampled_from([1, 2, 3, 5, 17]), st.integers(1, 12), st.sampled_from([0, 1 << 20])
stops = st.lists(st.tuples(worlds, batch_sizes, st.integers(1, 9), st.integers(0, 3), aheads), min_size=1, max_size=4)


@functools.cache
def mixture_order(
    shapes: tuple[tuple[tuple[int, int, str], int], ...], weights: tuple[int, ...], epoch_samples: int, seed: int, epoch: int
) -> list[Row]:
    """The rows of an epoch of a mixture, position by position."""
    contents = [content_of(rows, lanes, "some") for (rows, lanes, _), _ in shapes]
    components = tuple(
        Component(digest=open_reader(content)[0].index.digest, num_rows=rows, num_lanes=lanes, weight=weight)
        for content, ((rows, lanes, _), _), weight in zip(contents, shapes, weights, strict=True)
    )
    mixture = Mixture(components=components, seed=seed, epoch_samples=epoch_samples)
    found, before = [], mixture.before(epoch * epoch_samples)
    for position in range(epoch * epoch_samples, (epoch + 1) * epoch_samples):
        after = mixture.before(position + 1)
        (number,) = (number for number in range(len(after)) if after[number] != before[number])
        turn, place = divmod(before[number], components[number].num_rows)
        found.append((number, epoch_order(contents[number], seed, turn, True)[place]))
        before = after
    return found


def rows_of(batch: Any) -> list[Row]:
    pad = batch["_pad"].tolist() if "_pad" in batch else [False] * len(batch["row"])
    numbers = batch["_component"].tolist() if "_component" in batch else [0] * len(pad)
    return [row for row, repeated in zip(zip(numbers, batch["row"].tolist(), strict=True), pad, strict=True) if not repeated]


def take(dataset: StreamDataset, count: int) -> list[list[Row]]:
    """The next batches, over as many epochs as it takes, unless epochs have none."""
    found: list[list[Row]] = []
    while len(found) < count:
        before = len(found)
        for batch in dataset:
            found.append(rows_of(batch))
            if len(found) == count:
                break
        if len(found) == before and dataset.position.start == 0 and len(dataset) == 0:
            break
    return found


def take_of_workers(dataset: StreamDataset, count: int, num_workers: int) -> tuple[list[list[Row]], dict[str, Any]]:
    """The next batches of DataLoader workers, no further than the epoch, and the state that the main process has then."""
    stream = loader_of(dataset, num_workers, base_seed=7)  # type: ignore[arg-type]
    found = [rows_of(batch) for _, batch in zip(range(count), stream, strict=False)]
    return found, dataset.state_at(batches=len(found))


def check_chain(
    make: Callable[..., StreamDataset],
    order_of: Callable[[int], list[Row]],
    chain: list[tuple[int, int, int, int, int]],
    tail: Tail,
) -> None:
    state: dict[str, Any] | None = None
    epoch = consumed = 0
    for world_size, batch_size, count, num_workers, prefetch_bytes in chain:
        ranks, states = [], []
        for rank in range(world_size):
            options = {"batch_size": batch_size, "tail": tail, "prefetch_bytes": prefetch_bytes}
            dataset = make(rank=rank, world_size=world_size, **options)
            if state is not None:
                dataset.load_state_dict(state)
            if num_workers:
                batches, after = take_of_workers(dataset, count, num_workers)
            else:
                batches = take(dataset, count)
                after = dataset.state_dict()
            ranks.append(batches)
            states.append(after)
            dataset.close()
        assert all(after == states[0] for after in states)
        state = states[0]
        for parts in zip(*ranks, strict=True):
            order, size = order_of(epoch), world_size * batch_size
            while consumed == len(order) or (tail == "drop" and consumed + size > len(order)):
                epoch, consumed = epoch + 1, 0
                order = order_of(epoch)
            expected = order[consumed : consumed + size]
            assert sorted(row for part in parts for row in part) == sorted(expected)
            consumed += len(expected)
        if (state["epoch"], state["samples_consumed"]) != (epoch, consumed):
            # The end of the epoch was come to, and nothing of the next was taken.
            assert state["samples_consumed"] == 0
            assert tail == "drop" or consumed == len(order_of(epoch)) or not ranks[0]
            epoch, consumed = state["epoch"], 0


@settings(max_examples=15)
@given(shapes=mixtures, epoch_samples=st.integers(1, 150), chain=stops, tail=st.sampled_from(["pad", "drop"]))
@example(
    shapes=[((1, 4, "some"), 1), ((2, 1, "some"), 9)], epoch_samples=20, chain=[(17, 3, 2, 0, 0), (1, 1, 5, 2, 0)], tail="pad"
)
def test_chain_of_resumes_of_a_mixture_is_its_stream(
    shapes: list[tuple[tuple[int, int, str], int]], epoch_samples: int, chain: list[tuple[int, int, int, int, int]], tail: Tail
) -> None:
    shapes = [((rows, lanes, "some"), weight) for (rows, lanes, _), weight in shapes]
    weights = [weight for _, weight in shapes]

    def make(**options: Any) -> MixedDataset:
        parts = [MemoryDataset(content_of(*shape)) for shape, _ in shapes]
        more = {"epoch_samples": epoch_samples, "seed": 11, "shuffle": True, "with_index": True, "num_threads": 1}
        return MixedDataset(parts, weights=weights, **more, **options)  # type: ignore[arg-type]

    def order_of(epoch: int) -> list[Row]:
        return mixture_order(tuple(shapes), whole_weights(weights), epoch_samples, 11, epoch)

    check_chain(make, order_of, chain, tail)


@settings(max_examples=25)
@given(shape=datasets, chain=stops, tail=st.sampled_from(["pad", "drop"]), shuffle=st.booleans())
@example(shape=(1, 8, "some"), chain=[(3, 2, 3, 0, 0), (1, 1, 2, 3, 0)], tail="pad", shuffle=True)
def test_chain_of_resumes_over_epochs_is_the_stream(
    shape: tuple[int, int, str], chain: list[tuple[int, int, int, int, int]], tail: Tail, shuffle: bool
) -> None:
    content = content_of(*shape)

    def make(**options: Any) -> MemoryDataset:
        return MemoryDataset(content, seed=11, shuffle=shuffle, num_threads=1, **options)

    def order_of(epoch: int) -> list[Row]:
        return [(0, row) for row in epoch_order(content, 11, epoch, shuffle)]

    check_chain(make, order_of, chain, tail)


@settings(max_examples=15)
@given(shape=datasets, world_size=worlds, batch_size=batch_sizes, ahead=aheads)
@example(shape=(1, 4, "some"), world_size=17, batch_size=1, ahead=0)
def test_ranks_without_a_last_batch_go_on_with_the_next_epoch(
    shape: tuple[int, int, str], world_size: int, batch_size: int, ahead: int
) -> None:
    options: dict[str, Any] = {"batch_size": batch_size, "tail": "uneven", "prefetch_bytes": ahead, "num_threads": 1}
    seen: list[list[Row]] = [[], [], []]
    for rank in range(world_size):
        with MemoryDataset(content_of(*shape), rank=rank, world_size=world_size, shuffle=True, **options) as dataset:
            for epoch in range(3):
                assert dataset.epoch == epoch
                seen[epoch] += [row for batch in dataset for row in rows_of(batch)]
    assert all(sorted(rows) == [(0, row) for row in range(shape[0])] for rows in seen)


@pytest.mark.parametrize("tail", ["pad", "drop"])
def test_dataset_without_rows_has_epochs_without_batches(tail: Tail) -> None:
    def make(**options: Any) -> MemoryDataset:
        return MemoryDataset(content_of(0, 3, "some"), seed=11, num_threads=1, **options)

    check_chain(make, lambda epoch: [], [(2, 3, 2, 0, 0), (1, 1, 1, 2, 0)], tail)
