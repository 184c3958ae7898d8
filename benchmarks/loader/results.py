"""Figures of one side in one cell, over its rounds. Pure."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.loader.cells import Bar, Cell

__all__ = ["Result", "judged", "reached"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """One side of one cell.

    Attributes
    ----------
    figures : tuple of float
        Samples a second of each round, or seconds; from the least to the most.
    cpu_us : float or None
        CPU microseconds of the loader's process for a sample.
    resident_bytes : tuple of int
        After each round, mapped files included; or the peaks of each epoch, for memory.
    before_bytes : int
        Before the first epoch, for memory.
    """

    cell: str
    side: str
    figures: tuple[float, ...]
    in_seconds: bool
    cpu_us: float | None
    resident_bytes: tuple[int, ...]
    before_bytes: int = 0

    @property
    def median(self) -> float:
        """The middle figure."""
        return statistics.median(self.figures)

    def times_as_fast_as(self, other: Result) -> float:
        """By medians."""
        return other.median / self.median if self.in_seconds else self.median / other.median


def judged(cell: Cell, results: Sequence[Result]) -> tuple[Result | None, list[Result]]:
    """Forebay's result in a cell, if there is one, and those beside it."""
    found = [result for result in results if result.cell == cell.name]
    first = next((result for result in found if result.side == cell.sides[0].name), None)
    return first, [result for result in found if result is not first]


def reached(bar: Bar, cell: Cell, results: Sequence[Result]) -> tuple[str, float] | None:
    """Which side the bar is about, and the ratio; None where it was not measured."""
    first, others = judged(cell, results)
    limits = {side.name for side in cell.sides if side.is_limit}
    others = [other for other in others if (other.side == bar.other if bar.other else other.side not in limits)]
    if first is None or not others:
        return None
    return min(((other.side, first.times_as_fast_as(other)) for other in others), key=lambda pair: pair[1])
