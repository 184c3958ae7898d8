"""Ragged columns as the tensors that models take: padded to one length, or packed one after another.

Each is given as ``ShardedDataset(collate={column: pad()})`` and applied to the column of each batch, in the loader's threads. A
function of one's own gets a `loader.ragged.Ragged` for a ragged column, a tensor for a fixed one, and a list for any other;
what it returns is the batch's column.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any, Final, NamedTuple

import numpy as np
import torch

from loader.errors import ColumnError, InvalidOption
from loader.ragged import Ragged

__all__ = ["Collate", "Packed", "Padded", "pack", "pad"]

Collate = Callable[[Any], Any]

# Up to this length one assignment through a mask of all steps is faster than one copy for each row.
_SHORT: Final = 256
_MAX_STEPS: Final = (1 << 31) - 1


class Padded(NamedTuple):
    """Rows padded to one length.

    Attributes
    ----------
    values : tensor [rows, length, *shape]
        Each row from its first step on, then the padding value.
    lengths : int64 tensor [rows]
        Steps of each row that are its own.
    """

    values: torch.Tensor
    lengths: torch.Tensor


class Packed(NamedTuple):
    """Rows one after another, as attention over sequences of varying length takes them.

    Attributes
    ----------
    values : tensor [total, *shape]
        All rows.
    cu_seqlens : int32 tensor [rows + 1]
        Row r is ``values[cu_seqlens[r]:cu_seqlens[r + 1]]``.
    max_seqlen : int
        Steps of the longest row.
    """

    values: torch.Tensor
    cu_seqlens: torch.Tensor
    max_seqlen: int


def pad(*, value: float = 0, length: int | None = None, multiple: int = 1) -> Collate:
    """Pads the rows of a ragged column to one length; gives `Padded`.

    Parameters
    ----------
    value : number
        What the padding is.
    length : int, optional
        Of all batches; longer rows are cut. By default the longest row's.
    multiple : int
        Without a `length`: round up to a multiple of this.
    """
    if multiple < 1 or (length is not None and length < 1):
        raise InvalidOption(f"length={length}, multiple={multiple}: expected 1 or more")
    return partial(_pad, value=value, length=length, multiple=multiple)


def pack() -> Collate:
    """Packs the rows of a ragged column without copying them; gives `Packed`."""
    return _pack


def _pad(rows: object, *, value: float, length: int | None, multiple: int) -> Padded:
    ragged = _ragged(rows, "pad()")
    longest = int(ragged.lengths.max(initial=0))
    to = -(-longest // multiple) * multiple if length is None else length
    out = np.full((len(ragged), to, *ragged.values.shape[1:]), value, ragged.values.dtype)
    lengths = np.minimum(ragged.lengths, to)
    if longest <= to <= _SHORT:
        out[np.arange(to) < lengths[:, np.newaxis]] = ragged.values
    else:
        for row, (start, end) in zip(out, pairwise(ragged.offsets.tolist()), strict=True):
            row[: end - start] = ragged.values[start : min(end, start + to)]
    return Padded(values=torch.from_numpy(out), lengths=torch.from_numpy(lengths))


def _pack(rows: object) -> Packed:
    ragged = _ragged(rows, "pack()")
    if len(ragged.values) > _MAX_STEPS:
        raise InvalidOption(f"pack(): a batch of {len(ragged.values)} steps, but int32 cu_seqlens count up to {_MAX_STEPS}")
    cu_seqlens = torch.from_numpy(ragged.offsets.astype(np.int32))
    return Packed(values=torch.from_numpy(ragged.values), cu_seqlens=cu_seqlens, max_seqlen=int(ragged.lengths.max(initial=0)))


def _ragged(rows: object, name: str) -> Ragged:
    if not isinstance(rows, Ragged):
        raise ColumnError(f"{name} takes a ragged column, such as int32[*], found {type(rows).__name__}")
    return rows
