"""The cells: what is measured, with how many clients, on which sides. The first side of a cell is the one that is judged."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from benchmarks.store.clients import ONE, SIXTEEN, Crowd
from benchmarks.store.operations import MIB, Get, GetMany, Operation, Put, PutMany
from benchmarks.store.results import Figure, Unit
from benchmarks.store.sides import Side

__all__ = ["CELLS", "GET_MANY", "ONE_BY_ONE", "PUT_MANY", "Cell", "Entry"]

GIB = 1024 * MIB
GET_MANY, PUT_MANY = "Forebay get_many", "Forebay put_many"
ONE_BY_ONE = "{}, one by one".format


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """What a side does in a cell."""

    side: Side
    operation: Operation


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One thing that is measured.

    Attributes
    ----------
    name : str
        Says what and with how many clients.
    entries : mapping
        By the name that it has in the report.
    stream : Operation, optional
        What another client repeats on the same side all the while.
    figure : Figure
        What the cell is about; the chart shows it.
    """

    name: str
    unit: Unit
    entries: Mapping[str, Entry]
    crowd: Crowd = ONE
    stream: Operation | None = None
    figure: Figure = Figure.RATE


def _alike(operation: Operation, *sides: Side) -> dict[str, Entry]:
    """All sides do the same."""
    return {side: Entry(side=side, operation=operation) for side in sides}


def _one_by_one(operation: Operation, *sides: Side) -> dict[str, Entry]:
    """Sides beside one that does many in one call, each with a call for each object."""
    return {ONE_BY_ONE(side): Entry(side=side, operation=operation) for side in sides}


_READERS = (Side.FOREBAY, Side.NGINX, Side.VOLUME, Side.FILER)
_WRITERS = (Side.FOREBAY, Side.FILE, Side.FILES_3, Side.VOLUME, Side.FILER)
_LOCAL_READERS = (Side.COLOCATED, Side.FOREBAY, Side.FILE)
_PEERS = (Side.VOLUME, Side.FILER)

# Several objects of each size, so that no side reads from one node or one disk block alone; all fit into the page cache.
_GET_8M = Get(size_bytes=8 * MIB, num_objects=16)
_GET_1G = Get(size_bytes=GIB, num_objects=1)
_GET_4K = Get(size_bytes=4096, num_objects=1000)
_GET_4K_MANY = GetMany(size_bytes=4096, num_objects=1000)
_PUT_8M = Put(size_bytes=8 * MIB)
_PUT_4K = Put(size_bytes=4096)
_PUT_4K_MANY = PutMany(size_bytes=4096)

CELLS = (
    Cell(name="GET 8 MiB, 1 client", unit=Unit.MB, entries=_alike(_GET_8M, *_READERS)),
    Cell(name="GET 8 MiB, 16 clients", unit=Unit.MB, entries=_alike(_GET_8M, *_READERS), crowd=SIXTEEN),
    Cell(name="GET 1 GiB, 1 client", unit=Unit.MB, entries=_alike(_GET_1G, *_READERS)),
    Cell(name="PUT 8 MiB, 1 client", unit=Unit.MB, entries=_alike(_PUT_8M, *_WRITERS)),
    Cell(name="PUT 8 MiB, 16 clients", unit=Unit.MB, entries=_alike(_PUT_8M, *_WRITERS), crowd=SIXTEEN),
    Cell(name="GET 4 KiB, 1 client", unit=Unit.REQUESTS, entries=_alike(_GET_4K, *_READERS)),
    Cell(
        name="GET 4 KiB, 1,000 in a call",
        unit=Unit.REQUESTS,
        entries={
            GET_MANY: Entry(side=Side.FOREBAY, operation=_GET_4K_MANY),
            **_one_by_one(_GET_4K, Side.FOREBAY, Side.NGINX, *_PEERS),
        },
    ),
    Cell(name="PUT 4 KiB, 1 client", unit=Unit.REQUESTS, entries=_alike(_PUT_4K, *_WRITERS)),
    Cell(
        name="PUT 4 KiB, 1,000 in a call",
        unit=Unit.REQUESTS,
        entries={
            PUT_MANY: Entry(side=Side.FOREBAY, operation=_PUT_4K_MANY),
            **_one_by_one(_PUT_4K, Side.FOREBAY, *_PEERS),
        },
    ),
    Cell(
        name="GET 4 KiB beside a stream of 8 MiB GETs",
        unit=Unit.REQUESTS,
        entries=_alike(_GET_4K, Side.FOREBAY, *_PEERS),
        stream=_GET_8M,
        figure=Figure.P99,
    ),
    Cell(name="GET 8 MiB, co-located", unit=Unit.MB, entries=_alike(_GET_8M, *_LOCAL_READERS)),
    Cell(name="GET 1 GiB, co-located", unit=Unit.MB, entries=_alike(_GET_1G, *_LOCAL_READERS)),
)
