"""A user's transform, and random numbers for it that come again: the same ones for the same row of the same epoch.

What a transform draws from Python's, numpy's or torch's global generators depends on which thread came first, and is other
after a resume. So it may take ``rng``, a `numpy.random.Generator` that is a pure function of (seed, epoch, row): whatever the
batch size, world size, workers or number of resumes, a row is augmented in the same way. With whole batches ``rng`` is that
of the batch's first row, and ``rngs`` has one for each row.

docs/FORMAT.md, section 2.4, specifies the draws. torchvision's transforms draw from torch's global generator and can't be told
otherwise; for others, ``torch.Generator().manual_seed(int(rng.integers(2**63)))`` makes one of torch's.
"""

from __future__ import annotations

import inspect
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final, overload

import blake3
import numpy as np
import numpy.typing as npt

from loader.errors import InvalidOption

__all__ = ["ItemTransform", "RowGenerators", "Transform", "row_generator"]

Transform = Callable[..., Any]
"""Takes an item, and ``rng`` or ``rngs`` if it names them; what it returns is the item."""

_KEY_CONTEXT: Final = b"forebay row-philox-1\x00"


@lru_cache(maxsize=1024)
def _key(seed: int, epoch: int) -> npt.NDArray[np.uint64]:
    material = _KEY_CONTEXT + struct.pack("<QQ", seed, epoch)
    return np.frombuffer(blake3.blake3(material).digest(length=16), "<u8").astype(np.uint64)


def row_generator(*, seed: int, epoch: int, row: int) -> np.random.Generator:
    """A new generator of a row in an epoch, at its beginning."""
    return np.random.Generator(np.random.Philox(key=_key(seed, epoch), counter=np.array([0, 0, 0, row], np.uint64)))


class RowGenerators(Sequence[np.random.Generator]):
    """A generator for each of some rows, made when it is asked for.

    Parameters
    ----------
    seed : int
        Of the stream.
    epochs, rows : int64 [rows]
        The epoch and the number of each row, of the dataset that it is of.
    """

    def __init__(self, *, seed: int, epochs: npt.NDArray[np.int64], rows: npt.NDArray[np.int64]) -> None:
        self._seed = seed
        self._epochs = epochs
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, place: int) -> np.random.Generator: ...
    @overload
    def __getitem__(self, place: slice) -> RowGenerators: ...
    def __getitem__(self, place: int | slice) -> np.random.Generator | RowGenerators:
        if isinstance(place, slice):
            return RowGenerators(seed=self._seed, epochs=self._epochs[place], rows=self._rows[place])
        return row_generator(seed=self._seed, epoch=int(self._epochs[place]), row=int(self._rows[place]))


@dataclass(frozen=True, slots=True, kw_only=True)
class ItemTransform:
    """A transform, and which generators it takes."""

    call: Transform
    takes_rng: bool
    takes_rngs: bool

    @classmethod
    def of(cls, call: Transform, *, whole_batches: bool) -> ItemTransform:
        """What `call` takes is told by its signature; raises `InvalidOption` if it wants `rngs` of a single sample."""
        try:
            names = inspect.signature(call).parameters
        except ValueError:  # Some of C's have none.
            return cls(call=call, takes_rng=False, takes_rngs=False)
        if "rngs" in names and not whole_batches:
            raise InvalidOption("the transform takes rngs, one for each row of a batch, but gets single samples: take rng")
        return cls(call=call, takes_rng="rng" in names, takes_rngs="rngs" in names)

    def __call__(self, item: Any, generators: RowGenerators) -> Any:
        """The transformed item, whose rows have these generators."""
        given: dict[str, Any] = {}
        if self.takes_rng:
            given["rng"] = generators[0]
        if self.takes_rngs:
            given["rngs"] = generators
        return self.call(item, **given)
