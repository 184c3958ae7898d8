"""How the shards that many ranks have stored become one file, and what its metadata say of them.

Theory of operation
-------------------
Each rank stores its shards as chunks and reports them: a shard of 1 MiB or more as chunks of its own, smaller ones packed
together. `compose` puts all reports into the order of one safetensors file: packs first, each filled up to a multiple of 64
bytes, then large shards by the size of their elements, so that every tensor is aligned. Large shards that adjoin along the
first dimension lie one after another and become one entry: of a tensor that is sharded in rows, as FSDP does it, the file has
the tensor, whole, whatever the number of ranks was.

The metadata name, for each tensor that is not one whole entry, its shards, and hold the values that are no tensors.

Pure: chunks are references here, and no bytes.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from client.cluster import Anchor
from client.manifest import Ref
from loader.errors import InvalidOption
from loader.tensors.contents import HIDDEN_PREFIX, METADATA_KEY
from loader.tensors.header import DTYPE_BITS, TensorEntry, TensorsHeader

__all__ = ["CHECKPOINT_FORMAT", "Composed", "Pack", "RankReport", "StoredShard", "compose", "pack_bytes"]

CHECKPOINT_FORMAT: Final = 1
_ALIGN_BYTES: Final = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredShard:
    """A shard of a tensor, or all of it, as a rank has stored it.

    Attributes
    ----------
    name : str
        Of the tensor.
    dtype : str
        ``str`` of torch's dtype.
    shape : tuple of int
        Of the whole tensor.
    offsets, sizes : tuple of int
        Which part of it this is.
    stored_dtype : str
        As the file names it.
    stored_sizes : tuple of int
        Shape of the entry: `sizes`, and one dimension more if the elements are stored as bytes.
    num_bytes : int
        Of the part.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    stored_dtype: str
    stored_sizes: tuple[int, ...]
    num_bytes: int

    @property
    def is_whole(self) -> bool:
        """Whether it is the whole tensor."""
        return self.sizes == self.shape


@dataclass(frozen=True, slots=True, kw_only=True)
class Pack:
    """Shards that follow each other in the chunks `refs`, which hold nothing else but filling at the end."""

    shards: tuple[StoredShard, ...]
    refs: tuple[Ref, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class RankReport:
    """What one rank has stored of a checkpoint.

    Attributes
    ----------
    small, large : tuple of Pack
        Packs of small shards; single large ones.
    values : mapping of str to JSON
        What is no tensor, encoded.
    anchor : Anchor
        What holds all its chunks in place.
    """

    small: tuple[Pack, ...]
    large: tuple[Pack, ...]
    values: Mapping[str, Any]
    anchor: Anchor


@dataclass(frozen=True, slots=True, kw_only=True)
class Composed:
    """The file: its header, and the chunks of its data in order."""

    header: bytes
    refs: tuple[Ref, ...]


def pack_bytes(num_bytes: int) -> int:
    """Bytes of a pack whose shards have `num_bytes` together."""
    return -(-num_bytes // _ALIGN_BYTES) * _ALIGN_BYTES


def compose(
    reports: Sequence[RankReport], *, paths: Mapping[str, Sequence[str | int]], metadata: Mapping[str, str]
) -> Composed:
    """One file of what all ranks have stored.

    Parameters
    ----------
    paths : mapping of str to sequence
        For each name, where its value lies in the nested state dict.
    metadata : mapping of str to str
        Kept in the file.

    Raises
    ------
    InvalidOption
        If a name can't stand in a file of tensors, or a value has the name of a tensor.
    """
    small = [pack for report in reports for pack in report.small]
    large = sorted((pack for report in reports for pack in report.large), key=_rank)
    values = {name: value for report in reports for name, value in report.values.items()}
    shards = [shard for pack in (*small, *large) for shard in pack.shards]
    _check_names(shards, values)
    entries: list[TensorEntry] = []
    placed: dict[str, list[tuple[str, StoredShard]]] = defaultdict(list)
    end = 0
    for number, pack in enumerate(small):
        for shard in pack.shards:
            end = _append(entries, placed, shard, start=end)
        filled = pack_bytes(end)
        if filled > end:
            filling = TensorEntry(name=f"{HIDDEN_PREFIX}pad/{number}", dtype="U8", shape=(filled - end,), start=end, end=filled)
            entries.append(filling)
            end = filled
    for shard in _joined(pack.shards[0] for pack in large):
        end = _append(entries, placed, shard, start=end)
    extra = {METADATA_KEY: json.dumps(_extra(placed, values, paths), separators=(",", ":"))}
    refs = tuple(ref for pack in (*small, *large) for ref in pack.refs)
    return Composed(header=TensorsHeader.encode(entries, metadata={**metadata, **extra}), refs=refs)


def _rank(pack: Pack) -> tuple[int, str, tuple[int, ...]]:
    shard = pack.shards[0]
    return -DTYPE_BITS[shard.stored_dtype], shard.name, shard.offsets


def _check_names(shards: Iterable[StoredShard], values: Mapping[str, Any]) -> None:
    names = {shard.name for shard in shards}
    wrong = [name for name in names if not name or name == "__metadata__" or name.startswith(HIDDEN_PREFIX)]
    wrong += names & values.keys()
    if wrong:
        raise InvalidOption(f"can't be names of tensors in a checkpoint: {', '.join(map(repr, sorted(wrong)))}")


def _append(
    entries: list[TensorEntry], placed: dict[str, list[tuple[str, StoredShard]]], shard: StoredShard, *, start: int
) -> int:
    # A tensor that is one entry has its own name there, for any reader of the format.
    entry = shard.name if shard.is_whole else f"{HIDDEN_PREFIX}shard/{shard.name}@{','.join(map(str, shard.offsets))}"
    end = start + shard.num_bytes
    entries.append(TensorEntry(name=entry, dtype=shard.stored_dtype, shape=shard.stored_sizes, start=start, end=end))
    placed[shard.name].append((entry, shard))
    return end


def _joined(shards: Iterable[StoredShard]) -> Iterator[StoredShard]:
    """Shards that adjoin along the first dimension, of tensors that are cut along no other, as one."""
    waiting: StoredShard | None = None
    for shard in shards:
        if waiting is not None and _adjoin(waiting, shard):
            rows = waiting.sizes[0] + shard.sizes[0]
            # F4 counts elements of its last dimension in pairs; along the first one of several that makes no difference.
            stored_rows = waiting.stored_sizes[0] + shard.stored_sizes[0]
            waiting = replace(
                waiting,
                sizes=(rows, *shard.sizes[1:]),
                stored_sizes=(stored_rows, *shard.stored_sizes[1:]),
                num_bytes=waiting.num_bytes + shard.num_bytes,
            )
            continue
        if waiting is not None:
            yield waiting
        waiting = shard
    if waiting is not None:
        yield waiting


def _adjoin(one: StoredShard, other: StoredShard) -> bool:
    return (
        one.name == other.name
        and bool(one.sizes)
        and one.sizes[1:] == one.shape[1:] == other.sizes[1:]
        and one.offsets[0] + one.sizes[0] == other.offsets[0]
    )


def _extra(
    placed: Mapping[str, list[tuple[str, StoredShard]]], values: Mapping[str, Any], paths: Mapping[str, Sequence[str | int]]
) -> dict[str, Any]:
    tensors: dict[str, Any] = {}
    dtypes: dict[str, str] = {}
    for name, parts in sorted(placed.items()):
        first = parts[0][1]
        dtypes.update({entry: shard.dtype for entry, shard in parts if len(shard.stored_sizes) > len(shard.sizes)})
        if len(parts) > 1 or not first.is_whole:
            shards = [[entry, list(shard.offsets), list(shard.sizes)] for entry, shard in parts]
            tensors[name] = {"dtype": first.dtype, "shape": list(first.shape), "shards": shards}
    named = {name: list(path) for name, path in sorted(paths.items())}
    checkpoint = {"format": CHECKPOINT_FORMAT, "tensors": tensors, "values": dict(sorted(values.items())), "paths": named}
    return {"dtypes": dtypes, "ties": {}, "checkpoint": checkpoint}
