"""Many ranges of a file into many places: as few reads as make sense, as few copies as possible.

A range of `SMALL_BYTES` or more is received where it is wanted. Smaller ones that lie side by side, and the runs of a slice,
are read together into a buffer and copied apart; those buffers take no more than `MAX_SCRATCH_BYTES` at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from operator import attrgetter
from typing import Final

import numpy as np

from loader.tensors.region import Extent, Region

__all__ = ["GAP_BYTES", "MAX_SCRATCH_BYTES", "SMALL_BYTES", "Wanted", "gather"]

SMALL_BYTES: Final = 1 << 20
GAP_BYTES: Final = 64 * 1024
"""Bytes between two that are wanted which cost less than a request; nodes check as many at a time."""
SCRATCH_BYTES: Final = 8 << 20
MAX_SCRATCH_BYTES: Final = 64 << 20

ReadParts = Callable[[Iterable[tuple[memoryview, int]]], None]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Wanted:
    """Bytes of a tensor: where the first lies in the file, the memory they fill, and their region if that is several runs."""

    start: int
    out: memoryview
    region: Region | None = None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Read:
    """Adjacent bytes of the file, and what becomes of them once they lie in a buffer of their own; None if they do not."""

    start: int
    into: memoryview
    spread: Callable[[], None] | None = None


def gather(wanted: Iterable[Wanted], *, read_parts: ReadParts) -> None:
    """Fill all of `wanted`.

    Parameters
    ----------
    read_parts : callable
        Fills buffers from given positions of the file; `client.reader.ContentReader.read_parts`.
    """
    batch: list[_Read] = []
    scratch_bytes = 0
    for read in _reads(wanted):
        batch.append(read)
        scratch_bytes += len(read.into) if read.spread else 0
        if scratch_bytes >= MAX_SCRATCH_BYTES:
            _execute(batch, read_parts)
            batch, scratch_bytes = [], 0
    _execute(batch, read_parts)


def _execute(batch: list[_Read], read_parts: ReadParts) -> None:
    read_parts((read.into, read.start) for read in batch)
    for read in batch:
        if read.spread is not None:
            read.spread()


def _reads(wanted: Iterable[Wanted]) -> Iterator[_Read]:
    some = [want for want in wanted if len(want.out)]
    small: list[Wanted] = []
    end = 0
    for want in sorted(some, key=attrgetter("start")):
        if want.region is not None:
            yield from _runs(want, want.region)
        elif len(want.out) >= SMALL_BYTES:
            yield _Read(start=want.start, into=want.out)
        else:
            if small and (want.start - end > GAP_BYTES or want.start + len(want.out) - small[0].start > SCRATCH_BYTES):
                yield _together(small)
                small = []
            small.append(want)
            end = want.start + len(want.out)
    if small:
        yield _together(small)


def _together(group: list[Wanted]) -> _Read:
    first = group[0].start
    if len(group) == 1:
        return _Read(start=first, into=group[0].out)
    scratch = memoryview(bytearray(max(want.start + len(want.out) for want in group) - first))

    def spread() -> None:
        for want in group:
            want.out[:] = scratch[want.start - first :][: len(want.out)]

    return _Read(start=first, into=scratch, spread=spread)


def _runs(want: Wanted, region: Region) -> Iterator[_Read]:
    run_bytes = region.run_bytes
    base = want.start - region.first  # The tensor's.
    for extent in region.extents(gap_bytes=GAP_BYTES, most_bytes=SCRATCH_BYTES):
        out = want.out[extent.first * run_bytes :][: len(extent.runs) * run_bytes]
        if extent.end - extent.start == len(out):
            yield _Read(start=base + extent.start, into=out)
        else:
            yield _apart(extent, out, start=base + extent.start, run_bytes=run_bytes)


def _apart(extent: Extent, out: memoryview, *, start: int, run_bytes: int) -> _Read:
    scratch = memoryview(bytearray(extent.end - extent.start))

    def spread() -> None:
        windows = np.lib.stride_tricks.sliding_window_view(np.frombuffer(scratch, np.uint8), run_bytes)
        np.frombuffer(out, np.uint8).reshape(-1, run_bytes)[:] = windows[extent.runs]

    return _Read(start=start, into=scratch, spread=spread)
