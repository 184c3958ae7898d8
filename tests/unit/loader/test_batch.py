"""Batches and samples out of a gathered stage."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import default_collate, default_convert

from loader.batch import Batch, batches_of, samples_of
from loader.errors import InvalidOption
from loader.ragged import Ragged
from loader.stage import Stage

NAMES = ["x", "text", "ragged"]


def stage(num_rows: int, ends: list[int], *, pad: list[int] = (), numbers: bool = False) -> Stage:  # type: ignore[assignment]
    marked = np.zeros(num_rows, np.bool_)
    marked[list(pad)] = True
    return Stage(
        columns=[
            np.arange(num_rows * 2, dtype=np.uint16).reshape(num_rows, 2),
            [f"row {row}" for row in range(num_rows)],
            Ragged(
                values=np.concatenate([np.arange(row, dtype=np.float16) for row in range(num_rows)]),
                offsets=np.cumsum([0, *range(num_rows)]),
            ),
        ],
        numbers=np.arange(num_rows) * 10 if numbers else None,
        pad=marked,
        ends=ends,
        batches=range(len(ends)),
    )


def plain(item: Any) -> dict[str, Any]:
    def simple(value: Any) -> Any:
        if isinstance(value, list):
            return [simple(inner) for inner in value]
        return value.tolist() if isinstance(value, torch.Tensor) else value

    return {name: simple(value) for name, value in item.items()}


def test_batches_are_cut_where_they_end() -> None:
    batches = list(batches_of(stage(5, [2, 5], numbers=True), NAMES, with_index=True))
    assert all(isinstance(batch, Batch) for batch in batches)
    assert plain(batches[0]) == {
        "x": [[0, 1], [2, 3]],
        "text": ["row 0", "row 1"],
        "ragged": [[], [0.0]],
        "_index": [0, 10],
    }
    assert plain(batches[1])["text"] == ["row 2", "row 3", "row 4"]
    assert batches[1]["x"].dtype == torch.uint16
    assert batches[1]["ragged"][2].dtype == torch.float16


def test_batches_share_the_memory_of_their_stage() -> None:
    source = stage(4, [2, 4])
    second = list(batches_of(source, NAMES))[1]
    column = source.columns[0]
    assert isinstance(column, np.ndarray)
    column[2] = 99
    assert second["x"][0].tolist() == [99, 99]


def test_only_the_batch_that_repeats_rows_is_marked() -> None:
    first, last = batches_of(stage(5, [3, 5], pad=[4]), NAMES)
    assert "_pad" not in first
    assert last["_pad"].tolist() == [False, True]
    (alone,) = batches_of(stage(1, [1], pad=[0]), NAMES)
    assert alone["_pad"].tolist() == [True]


def test_samples_are_the_rows_one_by_one() -> None:
    samples = list(samples_of(stage(3, [2, 3], numbers=True), NAMES, with_index=True))
    assert [plain(sample) for sample in samples][2] == {"x": [4, 5], "text": "row 2", "ragged": [0.0, 1.0], "_index": 20}
    assert [type(sample) for sample in samples] == [dict] * 3
    assert samples[0]["x"].shape == (2,)


def test_samples_of_the_batch_that_repeats_rows_are_marked() -> None:
    samples = list(samples_of(stage(4, [2, 4], pad=[3]), NAMES))
    assert [sample["_pad"].item() if "_pad" in sample else None for sample in samples] == [None, None, False, True]


def test_samples_of_a_long_stage_are_all_there() -> None:
    found = list(samples_of(stage(2500, [2500]), ["x", "text", "ragged"]))
    assert [sample["text"] for sample in found] == [f"row {row}" for row in range(2500)]
    assert [int(sample["x"][0]) for sample in found] == [row * 2 for row in range(2500)]


def test_batch_is_refused_by_collation_and_passes_conversion() -> None:
    batches = list(batches_of(stage(4, [2, 4]), NAMES))
    with pytest.raises(InvalidOption, match=r"use DataLoader\(dataset, batch_size=None\)"):
        default_collate(batches)
    converted = default_convert(batches[0])  # type: ignore[no-untyped-call]
    assert isinstance(converted, Batch)
    assert plain(converted) == plain(batches[0])
    assert default_collate([{"x": torch.tensor(1)}, {"x": torch.tensor(2)}])["x"].tolist() == [1, 2]
