"""Items made in threads: ahead of use but not far, errors that name their rows, columns collated before the transform."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest
import torch

from loader.collate import Padded, pack, pad
from loader.errors import ColumnError, InvalidOption
from loader.items import RowNames
from loader.transforms import row_generator
from tests.support.memory_store import URL, MemoryDataset, dataset_bytes

DEADLINE_S = 20.0
ROWS = 60
CONTENT = dataset_bytes(
    {"row": "int64", "tokens": "int32[*]", "text": "str"},
    {
        "row": np.arange(ROWS),
        "tokens": [np.full(row % 5, row, np.int32) for row in range(ROWS)],
        "text": [f"row {row}" for row in range(ROWS)],
    },
)


def dataset(**options: Any) -> MemoryDataset:
    return MemoryDataset(CONTENT, **{"batch_size": 4, "num_threads": 2, **options})


@pytest.mark.parametrize("options", [{}, {"yield_samples": True}, {"batch_size": None}])
def test_transform_runs_in_the_loaders_threads_ahead_of_use(options: dict[str, Any]) -> None:
    made = threading.Semaphore(0)

    def transform(item: Any) -> str:
        made.release()
        return threading.current_thread().name

    stream = iter(dataset(transform=transform, **options))
    names = [next(stream)]
    # The first item, and others that nobody has asked for yet.
    assert all(made.acquire(timeout=DEADLINE_S) for _ in range(4))
    names += stream
    assert set(names) == {"forebay-make"}
    assert len(names) == (ROWS if options else ROWS // 4)


def test_no_more_items_are_made_than_the_threads_have_use_for() -> None:
    count, lock = 0, threading.Lock()

    def transform(batch: Any) -> Any:
        nonlocal count
        with lock:
            count += 1
        return batch

    for number, _ in enumerate(dataset(transform=transform, batch_size=1), start=1):
        # Those handed out, and 2 threads and 2 places more.
        assert count <= number + 4


@pytest.mark.parametrize(
    ("options", "note"),
    [
        ({}, f"batch 3 of epoch 0: rows 12, 14, 13, 15 of {URL}"),
        ({"batch_size": 12}, f"batch 1 of epoch 0: rows 12, 16, 20, 14, 18, 22, 13, 17 of {URL} and 4 more"),
        ({"yield_samples": True}, f"row 13 of {URL}, epoch 0"),
        ({"batch_size": None}, f"row 13 of {URL}, epoch 0"),
    ],
)
def test_error_of_a_transform_stays_what_it_is_and_names_the_rows(options: dict[str, Any], note: str) -> None:
    def transform(item: Any) -> Any:
        if 13 in item["row"].reshape(-1).tolist():
            raise KeyError("label")
        return item

    with pytest.raises(KeyError, match="label") as raised:
        list(dataset(transform=transform, **options))
    assert raised.value.__notes__ == [f"in {note}"]
    if not options:
        with pytest.raises(KeyError) as raised:
            dataset(transform=transform)[13]
        assert raised.value.__notes__ == [f"in row 13 of {URL}, epoch 0"]


def test_columns_are_collated_before_the_transform() -> None:
    seen = []

    def transform(batch: Any) -> Any:
        seen.append(type(batch["tokens"]))
        return batch

    collate = {"tokens": pad(value=-1), "text": "/".join, "row": torch.sum}
    first, *_ = dataset(collate=collate, transform=transform)
    assert seen[0] is Padded
    assert first["tokens"].values.tolist() == [[-1, -1, -1], [2, 2, -1], [1, -1, -1], [3, 3, 3]]
    assert first["tokens"].lengths.tolist() == [0, 2, 1, 3]
    assert (first["text"], int(first["row"])) == ("row 0/row 2/row 1/row 3", 6)


def test_packed_batches_say_where_rows_begin() -> None:
    batches = list(dataset(collate={"tokens": pack()}, batch_size=7, shuffle=True))
    for batch in batches:
        bounds = batch["tokens"].cu_seqlens.tolist()
        for place, row in enumerate(batch["row"].tolist()):
            assert batch["tokens"].values[bounds[place] : bounds[place + 1]].tolist() == [row] * (row % 5)
    assert sum(len(batch["row"]) for batch in batches) == ROWS


def test_wrong_collate_functions_are_named() -> None:
    with pytest.raises(InvalidOption, match="collate makes columns of whole batches"):
        dataset(collate={"tokens": pad()}, batch_size=None)
    with pytest.raises(ColumnError, match="'tokens': expected one of the columns that are read, row"):
        list(dataset(collate={"tokens": pad()}, columns=["row"]))
    with pytest.raises(ColumnError, match="takes a ragged column") as raised:
        list(dataset(collate={"text": pad()}))
    assert raised.value.__notes__[0] == "in collate of column 'text'"


def test_samples_of_a_large_batch_are_shared_by_threads_and_keep_their_rows() -> None:
    source = dataset(transform=lambda sample, rng: (int(sample["row"]), rng.random()), batch_size=50, yield_samples=True)
    assert sorted(source) == [(row, row_generator(seed=0, epoch=0, row=row).random()) for row in range(ROWS)]


def test_rows_of_several_datasets_are_named_and_drawn_for_by_their_own_epochs() -> None:
    numbers, components, epochs = np.array([[3, 5, 3, 3], [0, 0, 1, 0], [0, 0, 7, 1]])
    rows = RowNames(datasets=["a", "b"], numbers=numbers, components=components, epochs=epochs)
    assert list(rows) == [("a", 3), ("a", 5), ("b", 3), ("a", 3)]
    assert str(rows) == "rows 3, 5 of a, row 3 of b, row 3 of a"
    draws = [generator.random() for generator in rows.generators(2)]
    expected = [(0, 3), (0, 5), (7, 3), (1, 3)]
    assert draws == [row_generator(seed=2, epoch=epoch, row=row).random() for epoch, row in expected]
    assert len(set(draws)) == 4


def test_sample_that_is_asked_for_by_its_number_is_that_of_the_epoch() -> None:
    source = dataset(transform=lambda sample, rng: (int(sample["row"]), rng.random()), batch_size=None, seed=5)
    source.set_epoch(3)
    streamed = dict(source)
    source.set_epoch(3)
    assert source[17] == (17, streamed[17]) == (17, row_generator(seed=5, epoch=3, row=17).random())
    assert source[-1][0] == ROWS - 1
