"""Tensors that share memory: each byte is stored once, and the tensors share memory again when they are loaded.

Of tensors whose bytes overlap, one that holds all of them in order is the *owner* and is stored as any tensor; the others are
*ties*: views of the owner's bytes, written into the file's metadata. If none holds them all, the bytes are stored as an entry
of their own, under a name that says so, and all are ties.

Source of the problem: https://huggingface.co/docs/safetensors/torch_shared_tensors; the format itself has no sharing.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

import torch

from loader.errors import TensorsCorrupt
from loader.tensors.dtypes import torch_dtype

__all__ = ["SHARED_PREFIX", "Tie", "tie"]

SHARED_PREFIX: Final = "forebay.shared/"
"""Of entries that hold what several tensors lie in."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tie:
    """A tensor that lies in another one's bytes.

    Attributes
    ----------
    owner : str
        The entry whose bytes these are.
    offset : int
        Bytes from the owner's first to this tensor's first element.
    dtype : str
        ``str`` of torch's dtype.
    shape, stride : tuple of int
        As torch has them, in elements.
    """

    owner: str
    offset: int
    dtype: str
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    def view(self, owner: torch.Tensor) -> torch.Tensor:
        """This tensor, as a view of its loaded, contiguous owner."""
        dtype = torch_dtype(self.dtype)
        flat = owner.reshape(-1).view(torch.uint8)[self.offset :]
        flat = flat[: flat.numel() // dtype.itemsize * dtype.itemsize].view(dtype)
        return flat.as_strided(self.shape, self.stride)

    def to_json(self) -> dict[str, Any]:
        """The tie as a JSON object."""
        return asdict(self)

    @classmethod
    def from_json(cls, name: str, value: object, *, owner_bytes: Mapping[str, int]) -> Tie:
        """Inverse of `to_json`; raises `TensorsCorrupt` for what does not lie within one of the entries `owner_bytes`."""
        try:
            assert isinstance(value, dict)
            tie = cls(**{**value, "shape": tuple(map(int, value["shape"])), "stride": tuple(map(int, value["stride"]))})
            itemsize = torch_dtype(tie.dtype).itemsize
            last = _last_element(tie.shape, tie.stride)
            fits = (
                min(tie.shape + tie.stride, default=0) >= 0
                and tie.offset >= 0
                and tie.offset % itemsize == 0
                and tie.offset + (last + 1) * itemsize <= owner_bytes[tie.owner]
            )
        except (AssertionError, TypeError, ValueError, KeyError, AttributeError) as exc:
            raise TensorsCorrupt(f"tensor {name!r} is tied in a way that can't be read: {str(value)[:200]}") from exc
        if not fits:
            raise TensorsCorrupt(f"tensor {name!r} is tied to bytes that {tie.owner!r} does not have: {str(value)[:200]}")
        return tie


def tie(tensors: Mapping[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], dict[str, Tie]]:
    """The tensors to store, by name, and those that lie in their bytes.

    What is stored keeps its strides where it shares no memory; owners are contiguous.
    """
    stored = dict(tensors)
    ties: dict[str, Tie] = {}
    by_storage: dict[tuple[str, int], list[str]] = defaultdict(list)
    for name, tensor in tensors.items():
        if tensor.numel() and not tensor.is_conj() and not tensor.is_neg():
            by_storage[str(tensor.device), tensor.untyped_storage().data_ptr()].append(name)
    for names in by_storage.values():
        for cluster in _overlapping(names, tensors):
            _tie_cluster(cluster, stored, ties)
    return stored, ties


def _tie_cluster(cluster: list[str], stored: dict[str, torch.Tensor], ties: dict[str, Tie]) -> None:
    extents = {name: _extent(stored[name]) for name in cluster}
    low, high = min(start for start, _ in extents.values()), max(end for _, end in extents.values())
    whole = [name for name in cluster if extents[name] == (low, high) and stored[name].is_contiguous()]
    owner = min(whole, default=SHARED_PREFIX + min(cluster))
    if not whole:
        bytes_of_all = torch.empty(0, dtype=torch.uint8, device=stored[cluster[0]].device)
        stored[owner] = bytes_of_all.set_(stored[cluster[0]].untyped_storage(), low, (high - low,), (1,))
    for name in cluster:
        if name != owner:
            tensor = stored.pop(name)
            ties[name] = Tie(
                owner=owner,
                offset=extents[name][0] - low,
                dtype=str(tensor.dtype),
                shape=tuple(tensor.shape),
                stride=tensor.stride(),
            )


def _overlapping(names: list[str], tensors: Mapping[str, torch.Tensor]) -> Iterator[list[str]]:
    """Groups of two or more of `names`, all of one storage, whose bytes overlap."""
    cluster: list[str] = []
    reach = 0
    for name in sorted(names, key=lambda name: _extent(tensors[name])):
        start, end = _extent(tensors[name])
        if cluster and start >= reach:
            if len(cluster) > 1:
                yield cluster
            cluster = []
        cluster.append(name)
        reach = max(reach, end) if len(cluster) > 1 else end
    if len(cluster) > 1:
        yield cluster


def _extent(tensor: torch.Tensor) -> tuple[int, int]:
    """The bytes of its storage that a tensor spans."""
    start = int(tensor.storage_offset()) * tensor.dtype.itemsize
    return start, start + (_last_element(tensor.shape, tensor.stride()) + 1) * tensor.dtype.itemsize


def _last_element(shape: Sequence[int], stride: Sequence[int]) -> int:
    """Where the last element lies, counted from the first; -1 if there is none."""
    if 0 in shape:
        return -1
    return sum((size - 1) * step for size, step in zip(shape, stride, strict=True))
