"""What a side is asked to do. A side knows one loader, and is configured as that loader's own documentation recommends."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from benchmarks.loader.sets import Blobs, Columns, SampleSet

__all__ = ["Place", "Side", "Stream", "num_samples", "rows_of"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a side has one set, and how it is to be read.

    Attributes
    ----------
    names : tuple of str
        Columns of the set.
    data : Path
        The side's own directory for this set.
    url : str
        Under which `data` is served over HTTP.
    cache : Path
        A directory that may be used as a cache, and may be empty.
    compressed : bool
        Whether the data are stored with zstd, where the side knows that.
    cold : bool
        Whether nothing may be there beforehand: `data` is remote, and `cache` empty.
    """

    chosen: SampleSet
    names: tuple[str, ...]
    data: Path
    url: str
    cache: Path
    compressed: bool
    cold: bool


class Stream(Protocol):
    """An open loader: shuffled, in this process."""

    def epoch(self) -> Iterator[Any]:
        """One epoch, or what is left of it after `resume`: batches, or single samples."""
        ...

    def state(self, batches: int) -> object:
        """The state after so many batches of an epoch; None if there is none."""
        ...

    def resume(self, state: object) -> None:
        """Have the next epoch go on there."""
        ...

    def close(self) -> None:
        """Free what is open."""
        ...


class Side(Protocol):
    """One loader.

    Attributes
    ----------
    packages : tuple of str
        Whose versions the report gives.
    fills_cache : bool
        Whether a first epoch has to fill a cache before data are local. Others are given local files.
    """

    packages: tuple[str, ...]
    fills_cache: bool

    def write(self, columns: Columns, place: Place) -> None:
        """Store a set in the loader's own format."""
        ...

    def open(self, place: Place, *, batch_size: int | None) -> Stream:
        """Open it; without a batch size for single samples."""
        ...


def rows_of(columns: Columns, rows: int) -> Iterator[dict[str, Any]]:
    """Rows as most writers want them: arrays, byte strings, plain integers, by name. A set of more rows repeats what it has."""
    lists = {
        name: column.tolist() if not isinstance(column, Blobs) and column.ndim == 1 else column
        for name, column in columns.items()
    }
    have = len(next(iter(columns.values())))
    for row in range(rows):
        yield {name: column[row % have] for name, column in lists.items()}


def num_samples(item: Any) -> int:
    """Rows of a batch, whatever the loader makes of it."""
    if isinstance(item, dict):
        item = next(iter(item.values()))
    elif isinstance(item, (tuple, list)):
        item = item[0]
    return len(item)
