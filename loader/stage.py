"""What goes into the hot path (`loader.prefetch`) and comes out of it: a spec of what to read, and stages of gathered rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from loader.arena import Column
from loader.assignment import Split
from loader.jobs import Job
from loader.receipt import Receipt

__all__ = ["Epochs", "Maker", "Stage", "StreamSpec"]

Int64s = npt.NDArray[np.int64]
T_co = TypeVar("T_co", covariant=True)
T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamSpec:
    """What one process reads of a stream.

    Attributes
    ----------
    split : Split
        What of each epoch is this rank's.
    epoch, start : int
        The epoch that it begins with, and the position in it.
    first, step : int
        Of the batches of an epoch, every `step`-th from `first` on: DataLoader worker w of n has (w, n).
    follow : bool
        Whether to go on with the epochs that follow, for whoever takes it over, or to end with the first.
    with_index : bool
        Whether the numbers of rows are wanted, too.
    seed : int
        Of the order.
    shuffle : bool
        False is written order.
    prefetch_bytes : int
        Decoded bytes fetched ahead, beside one block for each lane that is being read.
    num_threads : int
        Threads that fetch and decode; a maker has as many.
    """

    split: Split
    epoch: int
    start: int
    first: int
    step: int
    follow: bool
    with_index: bool
    seed: int
    shuffle: bool
    prefetch_bytes: int
    num_threads: int


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Stage:
    """The gathered rows of some batches.

    Attributes
    ----------
    columns : list of Column
        One for each column that is read.
    numbers : int64 [rows] or None
        Number of each row in its dataset, if wanted.
    pad : bool [rows]
        Which rows are repetitions.
    ends : list of int
        How many rows there are up to and including each batch.
    batches : range
        Numbers of the batches.
    components : int64 [rows] or None
        Which dataset each row is of, if numbers are wanted and there are several.
    epochs : int64 [rows] or None
        The epoch of this dataset in which the row comes; where there is one dataset, it is the stream's.
    """

    columns: list[Column]
    numbers: Int64s | None
    pad: npt.NDArray[np.bool_]
    ends: list[int]
    batches: range
    components: Int64s | None = None
    epochs: Int64s | None = None


class Maker(Protocol[T_co]):
    """What becomes of stages."""

    @property
    def in_threads(self) -> bool:
        """Whether jobs have pieces; else each hands a stage over as it is."""
        ...

    def jobs_of(self, stage: Stage) -> Iterator[Job[T_co]]:
        """What to do with a stage, in order."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Epochs(Generic[T]):
    """What each epoch has of its own; called with ``epoch=number``. Nothing here may refer to whoever holds the stager.

    Attributes
    ----------
    lane_order_of : callable
        The order along which its batches are cut into runs.
    maker_of : callable
        Makes what is handed over.
    receipt_of : callable
        A new receipt, which counts what it took.
    """

    lane_order_of: Callable[..., tuple[int, ...]]
    maker_of: Callable[..., Maker[T]]
    receipt_of: Callable[..., Receipt]
