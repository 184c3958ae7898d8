"""Gathered rows as what a training loop gets: dicts of tensors, per batch or per sample.

A fixed column becomes a tensor [rows, *shape] that shares memory with its staging buffer; the rows of a ragged column become a
list of tensors, which share memory in the same way; text, bytes and JSON stay Python values in a list. ``_index`` (row number
in the dataset) comes on request, ``_pad`` only with the rows of a batch that repeats some.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Sequence
from itertools import pairwise
from typing import Any, Final, NoReturn

import numpy as np
import torch
from torch.utils.data._utils.collate import default_collate_fn_map

from loader.arena import Column
from loader.errors import InvalidOption
from loader.ragged import Ragged
from loader.stage import Stage

__all__ = ["Batch", "batches_of", "samples_of"]

_UNBIND_ROWS: Final = 1024


class Batch(dict[str, Any]):
    """A batch of rows: tensors or lists by column name. It is whole; a DataLoader must not collate it again."""


def _refuse_collate(batches: Any, *, collate_fn_map: Any = None) -> NoReturn:
    raise InvalidOption(
        "the dataset yields whole batches, so DataLoader must not batch them again: use DataLoader(dataset, batch_size=None), "
        "or ShardedDataset(..., batch_size=None) for single samples, or yield_samples=True"
    )


# Without this, default_collate would nest batches in batches without a word.
default_collate_fn_map[Batch] = _refuse_collate


def batches_of(
    stage: Stage, names: Sequence[str], *, with_index: bool = False, as_ragged: Container[str] = ()
) -> Iterator[Batch]:
    """The batches of a stage. Ragged columns that are named in `as_ragged` stay `Ragged`."""
    bounds = [0, *stage.ends]
    names, columns = _columns(stage, names, with_index=with_index, as_ragged=as_ragged)
    pieces = [_cut(column, bounds) for column in columns]
    padded = _padded_from(stage)
    for start, values in zip(bounds, zip(*pieces, strict=True), strict=False):
        batch = Batch(zip(names, values, strict=True))
        if start >= padded:
            batch["_pad"] = torch.from_numpy(stage.pad[start:])
        yield batch


def samples_of(stage: Stage, names: Sequence[str], *, with_index: bool = False) -> Iterator[dict[str, Any]]:
    """The rows of a stage, one dict each."""
    names, columns = _columns(stage, names, with_index=with_index)
    padded = _padded_from(stage)
    for first in range(0, len(stage.pad), _UNBIND_ROWS):
        part = slice(first, first + _UNBIND_ROWS)
        # unbind makes the views of all rows in one call; indexing row by row takes several times as long.
        values = [column[part].unbind(0) if isinstance(column, torch.Tensor) else column[part] for column in columns]
        for row, row_values in enumerate(zip(*values, strict=True), start=first):
            sample = dict(zip(names, row_values, strict=True))
            if row >= padded:
                sample["_pad"] = torch.from_numpy(stage.pad)[row]
            yield sample


def _columns(
    stage: Stage, names: Sequence[str], *, with_index: bool, as_ragged: Container[str] = ()
) -> tuple[list[str], list[Any]]:
    names = list(names)
    columns: list[Any] = [
        column if name in as_ragged and isinstance(column, Ragged) else _tensors(column)
        for name, column in zip(names, stage.columns, strict=True)
    ]
    if with_index:
        assert stage.numbers is not None
        names.append("_index")
        columns.append(torch.from_numpy(stage.numbers))
        if stage.components is not None:
            names.append("_component")
            columns.append(torch.from_numpy(stage.components))
    return names, columns


def _cut(column: Any, bounds: Sequence[int]) -> Sequence[Any]:
    if isinstance(column, torch.Tensor):
        # One call makes the views of all batches.
        return torch.split(column, [end - start for start, end in pairwise(bounds)])
    return [column[start:end] for start, end in pairwise(bounds)]


def _tensors(column: Column) -> torch.Tensor | list[Any]:
    if isinstance(column, np.ndarray):
        return torch.from_numpy(column)
    if isinstance(column, Ragged):
        # One call makes the views of all rows.
        return list(torch.split(torch.from_numpy(column.values), column.lengths.tolist())) if len(column) else []
    return column


def _padded_from(stage: Stage) -> int:
    """The row that the batch with repeated rows begins at, which can only be the last; past the end if there is none."""
    if not stage.pad.any():
        return len(stage.pad)
    return stage.ends[-2] if len(stage.ends) > 1 else 0
