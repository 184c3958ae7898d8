"""What is wanted: how many times as good as a peer, a limit or its own plainer way Forebay should be. A bar is added here."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from benchmarks.store.cells import GET_MANY, ONE_BY_ONE, PUT_MANY
from benchmarks.store.results import Figure, Result
from benchmarks.store.sides import Side

__all__ = ["BARS", "Bar"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """In `cell`, `side` is to be at least `wanted` times as good as `other`: of a cost, 1/`wanted` of it."""

    cell: str
    side: str
    other: str
    wanted: float
    figure: Figure = Figure.RATE

    def reached(self, results: Iterable[Result]) -> float | None:
        """What the ratio is; None where one of the two was not measured."""
        found = {result.side: result for result in results if result.cell == self.cell}
        if self.side not in found or self.other not in found:
            return None
        return self.figure.times_as_good(found[self.side], found[self.other])


def _bar(cell: str, other: str, wanted: float, *, side: str = Side.FOREBAY, figure: Figure = Figure.RATE) -> Bar:
    return Bar(cell=cell, side=side, other=other, wanted=wanted, figure=figure)


_LARGE_GETS = ("GET 8 MiB, 1 client", "GET 1 GiB, 1 client")

BARS = (
    *(_bar(cell, Side.NGINX, 0.9) for cell in _LARGE_GETS),
    *(_bar(cell, Side.VOLUME, 1.2) for cell in _LARGE_GETS),
    *(_bar(cell, Side.FILER, 2.5) for cell in _LARGE_GETS),
    _bar("PUT 8 MiB, 1 client", Side.VOLUME, 1.5),
    _bar("PUT 8 MiB, 1 client", Side.FILER, 3.0),
    _bar("GET 4 KiB, 1 client", Side.FILER, 2.0),
    _bar("GET 4 KiB, 1,000 in a call", ONE_BY_ONE(Side.FOREBAY), 10.0, side=GET_MANY),
    _bar("PUT 4 KiB, 1,000 in a call", ONE_BY_ONE(Side.FOREBAY), 5.0, side=PUT_MANY),
    _bar("GET 8 MiB, co-located", Side.FOREBAY, 3.0, side=Side.COLOCATED),
    _bar("GET 1 GiB, co-located", Side.FOREBAY, 3.0, side=Side.COLOCATED),
    *(
        _bar(cell, peer, 1.0, figure=figure)
        for cell in _LARGE_GETS
        for peer in (Side.VOLUME, Side.FILER)
        for figure in (Figure.SERVER_CPU, Figure.CPU)
    ),
)
