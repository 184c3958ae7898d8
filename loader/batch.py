"""Gathered rows as what a training loop gets: dicts of tensors, per batch or per sample.

A fixed column becomes a tensor [rows, *shape] that shares memory with its staging buffer; text, bytes and JSON stay Python
values in a list; ragged values become a list of tensors. ``_index`` (row number in the dataset) comes on request, ``_pad``
only in a batch that repeats rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NoReturn

import numpy as np
import torch
from torch.utils.data._utils.collate import default_collate_fn_map

from loader.arena import Column
from loader.errors import InvalidOption
from loader.prefetch import Stage

__all__ = ["Batch", "batches_of", "samples_of"]


class Batch(dict[str, Any]):
    """A batch of rows: tensors or lists by column name. It is whole; a DataLoader must not collate it again."""


def _refuse_collate(batches: Any, *, collate_fn_map: Any = None) -> NoReturn:
    raise InvalidOption(
        "the dataset yields whole batches, so DataLoader must not batch them again: use DataLoader(dataset, batch_size=None), "
        "or ShardedDataset(..., batch_size=None) for single samples, or yield_samples=True"
    )


# Without this, default_collate would nest batches in batches without a word.
default_collate_fn_map[Batch] = _refuse_collate


def batches_of(stage: Stage, names: Sequence[str], *, with_index: bool) -> Iterator[Batch]:
    """The batches of a stage."""
    columns = [_tensors(column) for column in stage.columns]
    numbers = torch.from_numpy(stage.plan.numbers)
    start = 0
    for end in stage.plan.share.ends.tolist():
        batch = Batch((name, column[start:end]) for name, column in zip(names, columns, strict=True))
        if with_index:
            batch["_index"] = numbers[start:end]
        pad = stage.plan.share.pad[start:end]
        if pad.any():
            batch["_pad"] = torch.from_numpy(pad)
        start = end
        yield batch


def samples_of(batch: Batch) -> Iterator[dict[str, Any]]:
    """The rows of a batch, one dict each."""
    names = list(batch)
    # unbind makes the views of all rows in one call; indexing row by row takes several times as long.
    columns = [value.unbind(0) if isinstance(value, torch.Tensor) else value for value in batch.values()]
    for values in zip(*columns, strict=True):
        yield dict(zip(names, values, strict=True))


def _tensors(column: Column) -> torch.Tensor | list[Any]:
    if isinstance(column, np.ndarray):
        return torch.from_numpy(column)
    if column and isinstance(column[0], np.ndarray):
        return [torch.from_numpy(value) for value in column]
    return column
