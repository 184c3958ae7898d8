"""In which order tensors lie in an object, and where its chunks are cut, so that what did not change is not sent again.

A chunk is stored once, whoever refers to it. So a tensor of `OWN_CHUNK_BYTES` or more begins a chunk of its own and ends one:
when other tensors change, are added or go, its chunks are the same bytes. Smaller ones are packed together. The order is by
the size of an element, falling, so that every tensor is aligned to its elements (as safetensors itself orders them), then large
before small, then by name.

Pure: this module knows names and sizes only.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from loader.tensors.header import DTYPE_BITS, TensorEntry

__all__ = ["OWN_CHUNK_BYTES", "Piece", "chunks_of", "lay_out"]

OWN_CHUNK_BYTES: Final = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """Bytes ``[start, end)`` of the tensor `name`."""

    name: str
    start: int
    end: int


def lay_out(tensors: Iterable[tuple[str, str, tuple[int, ...], int]]) -> list[TensorEntry]:
    """Entries of the tensors ``(name, dtype, shape, bytes)`` in the order of the data."""
    entries: list[TensorEntry] = []
    end = 0
    for name, dtype, shape, num_bytes in sorted(tensors, key=_rank):
        entries.append(TensorEntry(name=name, dtype=dtype, shape=shape, start=end, end=end + num_bytes))
        end += num_bytes
    return entries


def chunks_of(entries: Sequence[TensorEntry], *, chunk_size_bytes: int) -> Iterator[list[Piece]]:
    """The pieces of each chunk of the data, in order; no chunk is larger than `chunk_size_bytes`."""
    packed: list[Piece] = []
    room = chunk_size_bytes
    for entry in entries:
        if entry.num_bytes >= min(OWN_CHUNK_BYTES, chunk_size_bytes):
            if packed:
                yield packed
                packed, room = [], chunk_size_bytes
            for start in range(0, entry.num_bytes, chunk_size_bytes):
                yield [Piece(name=entry.name, start=start, end=min(start + chunk_size_bytes, entry.num_bytes))]
        elif entry.num_bytes:
            if entry.num_bytes > room:
                yield packed
                packed, room = [], chunk_size_bytes
            packed.append(Piece(name=entry.name, start=0, end=entry.num_bytes))
            room -= entry.num_bytes
    if packed:
        yield packed


def _rank(tensor: tuple[str, str, tuple[int, ...], int]) -> tuple[int, bool, str]:
    name, dtype, _, num_bytes = tensor
    return -DTYPE_BITS[dtype], num_bytes < OWN_CHUNK_BYTES, name
