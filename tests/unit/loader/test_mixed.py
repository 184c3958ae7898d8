"""Several datasets as one stream: exact counts, each in its own order, states that name all of them, and clear refusals."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pytest
from torch.utils.data import DataLoader
from torchdata.stateful_dataloader import StatefulDataLoader

from loader import MixedDataset, ShardedDataset
from loader.errors import ColumnError, InvalidOption, StateMismatch, StateUnavailable
from tests.support.memory_store import MemoryDataset, dataset_bytes

pytestmark = [
    pytest.mark.filterwarnings("ignore:This DataLoader will create"),
    pytest.mark.filterwarnings("ignore:'set_vital' is deprecated"),
]

SIZES, LANES = (300, 40, 7), (8, 4, 1)


def content(number: int, *, fill: int = 0) -> bytes:
    """Rows that tell which dataset they are of; the columns of the second are in another order."""
    rows = np.arange(SIZES[number])
    values: dict[str, Any] = {"row": rows + 1000 * number, "data": np.full((len(rows), 100), fill, np.uint8)}
    names = ["row", "data"] if number != 1 else ["data", "row"]
    kinds = {"row": "int64", "data": "uint8[100]"}
    return dataset_bytes({name: kinds[name] for name in names}, {name: values[name] for name in names}, num_lanes=LANES[number])


CONTENTS = [content(number) for number in range(3)]


def parts(contents: Sequence[Any] = CONTENTS) -> list[MemoryDataset]:
    return [MemoryDataset(each, shuffle=True) for each in contents]


def mixed(contents: Sequence[Any] = CONTENTS, **options: Any) -> MixedDataset:
    values = {"batch_size": 6, "shuffle": True, "seed": 3, "num_threads": 1, "weights": [0.6, 0.3, 0.1], "epoch_samples": 500}
    return MixedDataset(parts(contents), **{**values, **options})


def rows(batches: Iterable[Any]) -> list[list[int]]:
    return [batch["row"].tolist() for batch in batches]


def flat(batches: list[list[int]]) -> list[int]:
    return [row for batch in batches for row in batch]


EPOCHS = [rows(epoch) for source in [mixed()] for epoch in (source, source, source)]


def test_counts_follow_the_weights_and_rows_say_where_they_are_from() -> None:
    source = mixed(with_index=True, epoch_samples=4096)
    seen: Counter[int] = Counter()
    for batch in source:
        numbers, components = batch["_index"], batch["_component"]
        assert batch["row"].tolist() == (numbers + 1000 * components).tolist()
        seen.update(components.tolist())
    assert seen == {0: 2457, 1: 1229, 2: 410}
    assert (source.num_rows, len(source), source.receipt()["samples"]) == (4096, 683, 4096)
    source.close()


def test_each_dataset_comes_in_its_own_order_epoch_after_epoch() -> None:
    source = mixed(batch_size=1)
    stream = flat([batch for _ in range(3) for batch in rows(source)])
    for number, size in enumerate(SIZES):
        alone = MemoryDataset(CONTENTS[number], batch_size=1, shuffle=True, seed=3)
        own = [row for row in stream if row // 1000 == number]
        expected = [row for _ in range(len(own) // size + 1) for row in flat(rows(alone))]
        assert own == expected[: len(own)]
        alone.close()
    assert Counter(row // 1000 for row in stream).total() == 1500
    source.close()


def test_an_epoch_has_as_many_samples_as_the_datasets_have_rows_unless_told() -> None:
    source = mixed(epoch_samples=None)
    assert source.num_rows == sum(SIZES)
    assert len(flat(rows(source))) == sum(SIZES)
    assert source.epoch == 1
    source.set_epoch(7)
    assert source.state_dict()["epoch"] == 7
    source.close()


def test_epochs_go_on_without_a_gap_and_set_epoch_begins_any() -> None:
    source = mixed()
    for number in (1, 0, 2):
        source.set_epoch(number)
        assert rows(source) == EPOCHS[number]
    source.close()
    # The smallest dataset is gone through again and again, each time completely.
    counts = Counter(row for epoch in EPOCHS for row in flat(epoch) if row >= 2000)
    assert len(counts) == SIZES[2]
    assert max(counts.values()) - min(counts.values()) <= 1


@pytest.mark.parametrize(("world_size", "batch_size"), [(1, 6), (3, 2), (2, 5), (17, 1)])
def test_state_goes_on_in_any_geometry(world_size: int, batch_size: int) -> None:
    source = mixed()
    found = flat(rows(batch for _, batch in zip(range(31), source, strict=False)))
    state = json.loads(json.dumps(source.state_dict()))
    assert len(json.dumps(state)) < 1024
    source.close()
    rest: list[int] = []
    for rank in range(world_size):
        resumed = mixed(rank=rank, world_size=world_size, batch_size=batch_size, tail="uneven")
        resumed.load_state_dict(state)
        rest += flat(rows(resumed))
        assert resumed.epoch == 1
        resumed.close()
    assert sorted(found + rest) == sorted(flat(EPOCHS[0]))


@pytest.mark.parametrize("context", ["fork", pytest.param("forkserver", marks=pytest.mark.slow)])
def test_workers_make_the_same_batches_and_state_at_tells_where(context: str) -> None:
    source = mixed()
    loader = DataLoader(source, batch_size=None, num_workers=2, multiprocessing_context=context, persistent_workers=True)
    assert rows(loader) == EPOCHS[0]
    assert rows(loader) == EPOCHS[1]
    with pytest.raises(StateUnavailable):
        source.state_dict()
    state = source.state_at(batches=10)
    resumed = mixed()
    resumed.load_state_dict(state)
    assert rows(resumed) == EPOCHS[1][10:]
    for each in (source, resumed):
        each.close()


@pytest.mark.parametrize("num_workers", [0, 2])
def test_state_of_a_stateful_loader_is_taken_up(num_workers: int) -> None:
    source = mixed()
    workers: dict[str, Any] = {"num_workers": num_workers, "multiprocessing_context": "fork" if num_workers else None}
    loader = StatefulDataLoader(source, batch_size=None, **workers)
    stream = iter(loader)
    found = rows(next(stream) for _ in range(5))
    state = source.state_from(loader.state_dict())
    del stream
    resumed = mixed()
    resumed.load_state_dict(state)
    assert found + rows(resumed) == EPOCHS[0]
    for each in (source, resumed):
        each.close()


def test_state_reopens_the_versions_that_it_names() -> None:
    source = mixed()
    state = source.state_dict()
    newer = mixed([{1: CONTENTS[0], 2: content(0, fill=9)}, *CONTENTS[1:]])
    assert newer.digest != source.digest
    newer.load_state_dict(state)
    assert newer.digest == source.digest
    assert rows(newer) == EPOCHS[0]
    for each in (source, newer):
        each.close()


@pytest.mark.parametrize(
    ("options", "field", "message"),
    [
        ({"seed": 4}, "seed", "seed=3, the loader has seed=4"),
        ({"shuffle": False}, "shuffle", "shuffle=True"),
        ({"epoch_samples": 499}, "epoch_samples", "epoch_samples=500, the loader has epoch_samples=499"),
        ({"weights": [1, 1, 1]}, "weights", r"\[2457, 1229, 410\], the loader has \[1366, 1365, 1365\]"),
        ({"contents": [content(0, fill=9), *CONTENTS[1:]]}, "dataset_digest", "of dataset 0, forebay://data/set has"),
    ],
)
def test_state_of_another_mixture_is_refused_and_names_both_values(options: dict[str, Any], field: str, message: str) -> None:
    source, other = mixed(), mixed(**options)
    with pytest.raises(StateMismatch, match=message) as caught:
        other.load_state_dict(source.state_dict())
    assert caught.value.field == field
    alone = MemoryDataset(CONTENTS[0], shuffle=True, seed=3)
    with pytest.raises(StateMismatch, match="not at all, of a dataset alone"):
        source.load_state_dict(alone.state_dict())
    with pytest.raises(StateMismatch, match="dataset_digest"):
        alone.load_state_dict(source.state_dict())
    for each in (source, other, alone):
        each.close()


def test_locality_of_a_dataset_is_refused_and_not_ignored() -> None:
    near = ShardedDataset("forebay://data/a", rank=0, world_size=2, locality=True, run_id="run")
    with pytest.raises(InvalidOption, match="locality=True of a dataset in a mixture"):
        MixedDataset([near], weights=[1])


def test_columns_must_be_alike_and_the_error_lists_how_they_are_not() -> None:
    odd = dataset_bytes({"row": "int32", "more": "str"}, {"row": [1, 2], "more": ["", ""]})
    source = mixed([CONTENTS[0], odd], weights=[1, 1])
    with pytest.raises(ColumnError) as caught:
        len(source)
    message = str(caught.value)
    assert "'row': forebay://data/set has int64, forebay://data/set has int32" in message
    assert "'data': forebay://data/set has uint8[100], forebay://data/set has none" in message
    assert "'more': forebay://data/set has none, forebay://data/set has str" in message
    source.close()
    alike = mixed(columns=["row"])
    assert set(next(iter(alike))) == {"row"}
    alike.close()
    unknown = mixed(columns=["nothing"])
    with pytest.raises(ColumnError, match="'nothing'"):
        len(unknown)
    unknown.close()


def test_dataset_without_rows_is_refused_when_it_is_opened() -> None:
    empty = dataset_bytes({"row": "int64", "data": "uint8[100]"}, {"row": [], "data": np.empty((0, 100), "u1")})
    source = mixed([CONTENTS[0], empty], weights=[1, 1])
    with pytest.raises(InvalidOption, match="has no rows"):
        len(source)
    source.close()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weights": [1, 2]}, "a weight for each"),
        ({"weights": [1, 0, 1]}, "one number above 0"),
        ({"weights": [1, float("nan"), 1]}, "one number above 0"),
        ({"weights": [1e6, 1, 1e6]}, "would be none"),
        ({"epoch_samples": 0}, "epoch_samples=0"),
        ({"batch_size": 0}, "batch_size=0"),
    ],
)
def test_wrong_options_are_refused_before_anything_is_contacted(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidOption, match=message):
        mixed(**options)
