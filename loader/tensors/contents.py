"""What an object of tensors holds, by the names that were saved: whole tensors, shards of one, and ties.

A file's entries are what the safetensors format knows. The metadata under `METADATA_KEY` add what it can't say, as JSON: which
entries are the bytes of a dtype that it lacks, which tensors lie in another's bytes, and, in a checkpoint that many ranks
wrote, which entries are shards of one tensor (`loader.checkpoint.index`). Invariant: whatever the metadata say, each tensor
lies within its entries.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import torch

from loader.errors import FormatUnsupported, TensorsCorrupt
from loader.tensors.dtypes import torch_dtype, torch_type
from loader.tensors.header import TensorEntry, TensorsHeader
from loader.tensors.sharing import Tie

__all__ = ["HIDDEN_PREFIX", "METADATA_KEY", "Contents", "Shard", "Stored"]

METADATA_KEY: Final = "forebay"
HIDDEN_PREFIX: Final = "forebay."
"""Of entries that no caller named."""
_PARTS: Final = frozenset({"dtypes", "ties", "checkpoint"})


class Shard(NamedTuple):
    """An entry that holds the part of a tensor that begins at `offsets` and has the shape `sizes`."""

    entry: TensorEntry
    offsets: tuple[int, ...]
    sizes: tuple[int, ...]

    @property
    def spans(self) -> list[tuple[int, int]]:
        """Where it begins and ends in each dimension."""
        return [(offset, offset + size) for offset, size in zip(self.offsets, self.sizes, strict=True)]


class Stored(NamedTuple):
    """A tensor that is stored, in one or many shards that do not overlap.

    Attributes
    ----------
    dtype : torch.dtype
        Of the elements.
    shape : tuple of int
        Of the whole tensor.
    shards : tuple of Shard
        Together they cover it.
    """

    dtype: torch.dtype
    shape: tuple[int, ...]
    shards: tuple[Shard, ...]

    @property
    def num_bytes(self) -> int:
        """Bytes that its elements take."""
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True, slots=True, kw_only=True)
class Contents:
    """All tensors of an object.

    Attributes
    ----------
    tensors : mapping of str to Stored
        Those that have bytes of their own, owners of ties among them that no caller named.
    ties : mapping of str to Tie
        Those that lie in another's.
    metadata : mapping of str to str
        What the caller gave to keep.
    checkpoint : mapping or None
        What a checkpoint adds; see `loader.checkpoint.index`.
    """

    tensors: Mapping[str, Stored]
    ties: Mapping[str, Tie]
    metadata: Mapping[str, str]
    checkpoint: Mapping[str, Any] | None

    @classmethod
    def of(cls, header: TensorsHeader) -> Contents:
        """The contents of a file; raises `TensorsCorrupt` or `FormatUnsupported`."""
        metadata = dict(header.metadata)
        extra = _extra(metadata.pop(METADATA_KEY, "{}"))
        entries = {entry.name: entry for entry in header.entries}
        dtypes = {name: _bytes_dtype(name, dtype, entries.get(name)) for name, dtype in extra["dtypes"].items()}
        sizes = {name: entry.num_bytes for name, entry in entries.items()}
        ties = {name: Tie.from_json(name, value, owner_bytes=sizes) for name, value in extra["ties"].items()}
        checkpoint = extra.get("checkpoint")
        sharded = dict(_sharded(checkpoint, entries, dtypes)) if checkpoint is not None else {}
        taken = {shard.entry.name for stored in sharded.values() for shard in stored.shards}
        plain = {name: _plain(entry, dtypes.get(name)) for name, entry in entries.items() if name not in taken}
        return cls(tensors={**plain, **sharded}, ties=ties, metadata=metadata, checkpoint=checkpoint)

    def names(self) -> list[str]:
        """Names of all tensors, sorted."""
        return sorted([*(name for name in self.tensors if not name.startswith(HIDDEN_PREFIX)), *self.ties])

    def dtype(self, name: str) -> torch.dtype:
        """The dtype of a tensor that is there."""
        return torch_dtype(self.ties[name].dtype) if name in self.ties else self.tensors[name].dtype

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor that is there."""
        return self.ties[name].shape if name in self.ties else self.tensors[name].shape


def _extra(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as exc:
        raise TensorsCorrupt(f"the metadata {METADATA_KEY!r} are no JSON: {exc}") from exc
    if not isinstance(value, dict) or not all(isinstance(part, dict) for part in value.values()):
        raise TensorsCorrupt(f"the metadata {METADATA_KEY!r} are an object of objects, found {text[:200]}")
    if not value.keys() <= _PARTS:
        raise FormatUnsupported(f"the metadata {METADATA_KEY!r} speak of {', '.join(sorted(value))}: upgrade Forebay")
    return {"dtypes": {}, "ties": {}, **value}


def _bytes_dtype(name: str, dtype: object, entry: TensorEntry | None) -> torch.dtype:
    """The dtype of a tensor that is stored as bytes."""
    found = torch_dtype(str(dtype))
    if entry is None or entry.dtype != "U8" or entry.shape[-1:] != (found.itemsize,):
        raise TensorsCorrupt(f"{name!r} should be the bytes of a tensor of {found}, found {entry}")
    return found


def _plain(entry: TensorEntry, dtype: torch.dtype | None) -> Stored:
    dtype, shape = torch_type(entry) if dtype is None else (dtype, entry.shape[:-1])
    shard = Shard(entry=entry, offsets=(0,) * len(shape), sizes=shape)
    return Stored(dtype=dtype, shape=shape, shards=(shard,))


def _sharded(
    checkpoint: Mapping[str, Any], entries: Mapping[str, TensorEntry], dtypes: Mapping[str, torch.dtype]
) -> Iterator[tuple[str, Stored]]:
    try:
        for name, value in checkpoint["tensors"].items():
            dtype, shape = torch_dtype(value["dtype"]), tuple(map(int, value["shape"]))
            shards = tuple(
                Shard(entry=entries[entry], offsets=tuple(map(int, offsets)), sizes=tuple(map(int, sizes)))
                for entry, offsets, sizes in value["shards"]
            )
            for shard in shards:
                _check_shard(name, shard, dtype=dtype, shape=shape, stored=dtypes.get(shard.entry.name))
            # As many elements as the tensor has, none of them twice: so there is no hole.
            if sum(math.prod(shard.sizes) for shard in shards) != math.prod(shape) or _overlap(shards):
                raise TensorsCorrupt(
                    f"the {len(shards)} shards of tensor {name!r} are not the whole of its shape {list(shape)}"
                )
            yield name, Stored(dtype=dtype, shape=shape, shards=shards)
    except (KeyError, TypeError, ValueError, AttributeError) as exc:
        raise TensorsCorrupt(f"the tensors of the checkpoint can't be read: {exc!r}") from exc


def _overlap(shards: Sequence[Shard]) -> bool:
    """Whether two of the shards have an element in common."""
    some = [shard for shard in shards if math.prod(shard.sizes)]
    if len(some) < 2:
        return False
    # Only those are compared whose spans meet in the dimension that is cut most often.
    axis = max(range(len(some[0].offsets)), key=lambda number: len({shard.offsets[number] for shard in some}), default=None)
    if axis is None:
        return True  # Scalars.
    open_shards: list[Shard] = []
    for shard in sorted(some, key=lambda shard: shard.offsets[axis]):
        open_shards = [other for other in open_shards if other.spans[axis][1] > shard.offsets[axis]]
        if any(all(a < d and c < b for (a, b), (c, d) in zip(shard.spans, other.spans, strict=True)) for other in open_shards):
            return True
        open_shards.append(shard)
    return False


def _check_shard(name: str, shard: Shard, *, dtype: torch.dtype, shape: Sequence[int], stored: torch.dtype | None) -> None:
    within = len(shard.offsets) == len(shard.sizes) == len(shape) and all(
        offset >= 0 and size >= 0 and offset + size <= most
        for offset, size, most in zip(shard.offsets, shard.sizes, shape, strict=True)
    )
    found = _plain(shard.entry, stored)
    if not within or (found.dtype, found.shape) != (dtype, shard.sizes):
        raise TensorsCorrupt(
            f"a shard of tensor {name!r}, {dtype} of shape {list(shape)}, is said to be {list(shard.sizes)} at "
            f"{list(shard.offsets)}, found {found.dtype} of shape {list(found.shape)}"
        )
