"""The sample sets, made once from a seed and read by every side as the same arrays. Knows numpy and no loader."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

__all__ = ["BIG_TOKENS", "BLOBS", "SETS", "SMALL", "TOKENS", "Blobs", "Columns", "SampleSet", "load", "make"]

_BIG_ROWS: Final = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleSet:
    """Rows that look alike.

    Attributes
    ----------
    name : str
        In the reports.
    rows : int
        Samples of an epoch.
    batch_size : int
        What every side reads at once.
    what : str
        What a sample is.
    """

    name: str
    rows: int
    batch_size: int
    what: str


TOKENS = SampleSet(name="tokens", rows=40_000, batch_size=64, what="uint16[2048], zipf(1.3) up to 60,000")
BLOBS = SampleSet(name="blobs", rows=5_000, batch_size=32, what="55 to 165 kB of random bytes and a label")
SMALL = SampleSet(name="small", rows=200_000, batch_size=256, what="float32[10] and a label")
BIG_TOKENS = SampleSet(name="big tokens", rows=_BIG_ROWS, batch_size=64, what="the rows of tokens over and over, 4 GiB")
SETS: Final = {each.name: each for each in (TOKENS, BLOBS, SMALL, BIG_TOKENS)}


class Blobs:
    """A column of byte strings: a sequence over one file of all bytes and their offsets."""

    def __init__(self, data: npt.NDArray[np.uint8], offsets: npt.NDArray[np.int64]) -> None:
        self._data, self._offsets = data, offsets

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def __getitem__(self, row: int) -> bytes:
        return self._data[self._offsets[row] : self._offsets[row + 1]].tobytes()


Columns = Mapping[str, npt.NDArray[Any] | Blobs]


def make(directory: Path) -> None:
    """Write the arrays of all sets as files; what is there already stays."""
    directory.mkdir(parents=True, exist_ok=True)
    done = directory / "done"
    if done.exists():
        return
    rng = np.random.default_rng(0)
    tokens = np.minimum(rng.zipf(1.3, (TOKENS.rows, 2048)), 60_000).astype(np.uint16)
    sizes = rng.integers(55_000, 165_001, BLOBS.rows)
    columns: dict[str, npt.NDArray[Any]] = {
        "tokens": tokens,
        "blob": np.frombuffer(rng.bytes(int(sizes.sum())), np.uint8),
        "blob_offsets": np.concatenate(([0], np.cumsum(sizes))),
        "blob_label": rng.integers(0, 10, BLOBS.rows),
        "features": rng.standard_normal((SMALL.rows, 10), np.float32),
        "small_label": rng.integers(0, 10, SMALL.rows),
    }
    for name, column in columns.items():
        np.save(directory / f"{name}.npy", column)
    done.touch()


def load(chosen: SampleSet, directory: Path) -> Columns:
    """The columns of a set, over the files that `make` wrote."""

    def column(name: str) -> npt.NDArray[Any]:
        return np.load(directory / f"{name}.npy", mmap_mode="r")  # type: ignore[no-any-return]

    if chosen == BLOBS:
        return {"blob": Blobs(column("blob"), column("blob_offsets")), "label": column("blob_label")}
    if chosen == SMALL:
        return {"features": column("features"), "label": column("small_label")}
    return {"tokens": column("tokens")}
