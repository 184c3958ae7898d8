"""Measures of an order of rows that lie sorted by class. Pure."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = ["Quality", "measure"]

Int64s = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Quality:
    """Of one order.

    Attributes
    ----------
    batch, batches : float
        Variance of the number of rows of a class in a batch, and in that many batches after each other, over the same of a full
        shuffle: 1 is as good as that.
    neighbours : float
        Correlation of the places in the data set that rows one after the other come from.
    """

    batch: float
    batches: float
    neighbours: float


def measure(order: Int64s, *, num_classes: int, batch_size: int, num_batches: int) -> Quality:
    """The quality of `order`, which names each row by its place in a data set sorted by class, classes being equally large."""
    rows_per_class = len(order) // num_classes
    classes = order // rows_per_class
    places = order.astype(np.float64)
    return Quality(
        batch=_variance(classes, num_classes=num_classes, size=batch_size),
        batches=_variance(classes, num_classes=num_classes, size=batch_size * num_batches),
        neighbours=float(np.corrcoef(places[:-1], places[1:])[0, 1]),
    )


def _variance(classes: Int64s, *, num_classes: int, size: int) -> float:
    """Variance of class counts in stretches of `size` rows, over what a full shuffle has: hypergeometric."""
    stretches = len(classes) // size
    cells = np.repeat(np.arange(stretches), size) * num_classes + classes[: stretches * size]
    counts = np.bincount(cells, minlength=stretches * num_classes)
    share, rows = 1 / num_classes, len(classes)
    expected = size * share * (1 - share) * (rows - size) / (rows - 1)
    return float(np.mean((counts - size * share) ** 2) / expected)
