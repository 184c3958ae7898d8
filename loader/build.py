"""Building a dataset from files: read and check by all cores, write in order.

The source's pieces are encoded ahead, a few at a time, by threads, or by processes where the work is Python's own (JSON) and
the input is large enough to pay for starting them; the writer takes the batches in the order of the input. Processes are
spawned, so a script that calls `build_dataset` needs the usual ``if __name__ == "__main__"``.

Memory is that of `loader.writer.ShardWriter` and `READ_AHEAD_BYTES`. This does not know what is shown of the progress.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing, contextmanager
from dataclasses import dataclass
from multiprocessing import connection
from typing import Final

from client.objects import ObjectStore
from client.parallel import bounded_map
from client.record import ObjectInfo
from loader.columns import ColumnType, EncodedColumn, Schema
from loader.errors import InvalidOption
from loader.index import DatasetIndex
from loader.source_rows import Piece, Source, SourceError
from loader.sources import open_source
from loader.writer import ShardWriter, usable_cores

__all__ = [
    "MAX_PARALLEL_PIECES",
    "MIN_PROCESS_BYTES",
    "READ_AHEAD_BYTES",
    "BuildPlan",
    "BuildResult",
    "build_dataset",
    "plan_build",
]

MIN_PROCESS_BYTES: Final = 32 << 20
"""Input from which on processes are worth starting: parsing it takes one about a second."""

MAX_PARALLEL_PIECES: Final = 16
"""More would only wait for the one thread that deals rows to the lanes."""
READ_AHEAD_BYTES: Final = 512 << 20
"""Input that is read and checked before the writer takes it; two pieces may always be."""

Batch = tuple[EncodedColumn, ...]
OnBytes = Callable[[int], None]


def _ignore(_num_bytes: int) -> None:
    pass


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildPlan:
    """What is going to be built.

    Attributes
    ----------
    exact : bool
        Whether the schema was inferred, so that further columns in the input are an error.
    """

    source: Source
    schema: Schema
    exact: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildResult:
    """What was built.

    Attributes
    ----------
    input_bytes : int
        Size of the input, as it lies in its files.
    seconds_s : float
        From the first row to the commit.
    """

    info: ObjectInfo
    index: DatasetIndex
    input_bytes: int
    seconds_s: float


def plan_build(inputs: Sequence[str | os.PathLike[str]], *, columns: Mapping[str, str | ColumnType] | None = None) -> BuildPlan:
    """Look at the inputs: what they are, and which columns they have.

    Parameters
    ----------
    inputs : sequence of path
        As `loader.sources.open_source` takes them.
    columns : mapping, optional
        The columns to take and their types; by default all of them, with types inferred from the first rows.

    Raises
    ------
    SourceError, ColumnError
        If an input can't be read, or no type fits a column.
    """
    source = open_source(inputs)
    schema = Schema.of(source.infer_columns() if columns is None else columns)
    return BuildPlan(source=source, schema=schema, exact=columns is None)


def build_dataset(
    inputs: Sequence[str | os.PathLike[str]] | BuildPlan,
    url: str,
    *,
    columns: Mapping[str, str | ColumnType] | None = None,
    compression: str = "zstd:3",
    block_size_bytes: int | None = None,
    num_lanes: int | None = None,
    endpoints: str | list[str] | None = None,
    client: ObjectStore | None = None,
    on_bytes: OnBytes = _ignore,
) -> BuildResult:
    """Build the dataset `url` from files. Row order is input order; nothing is visible before all of it is.

    Parameters
    ----------
    inputs : sequence of path, or BuildPlan
        What to build from, or what `plan_build` made of it.
    columns
        As for `plan_build`; left out with a plan.
    compression, block_size_bytes, num_lanes, endpoints, client
        As for `ShardWriter`.
    on_bytes : callable
        Told how many bytes of input are done since the last call.

    Raises
    ------
    RowError
        Names file, row and column of a row that doesn't fit.
    SourceError
        If an input can't be read.
    StoreError
        As `ShardWriter` raises it.
    """
    if isinstance(inputs, BuildPlan) and columns is not None:
        raise InvalidOption("columns: a plan has its columns already; give them to plan_build")
    plan = inputs if isinstance(inputs, BuildPlan) else plan_build(inputs, columns=columns)
    began_s = time.monotonic()
    with ShardWriter(
        url,
        dict(plan.schema.items()),
        compression,
        block_size_bytes,
        num_lanes,
        endpoints=endpoints,
        client=client,
        metadata=plan.source.metadata,
    ) as writer:
        for batch, input_bytes in _batches(plan, num_workers=_num_workers(plan.source)):
            writer.write_checked(batch)
            on_bytes(input_bytes)
        info = writer.commit()
    assert writer.index is not None
    return BuildResult(info=info, index=writer.index, input_bytes=plan.source.input_bytes, seconds_s=time.monotonic() - began_s)


def _num_workers(source: Source) -> int:
    # Each has a piece in hand and one that is ready or waits.
    return max(1, min(usable_cores(), MAX_PARALLEL_PIECES, READ_AHEAD_BYTES // (2 * source.piece_bytes)))


def _batches(plan: BuildPlan, *, num_workers: int) -> Iterator[tuple[Batch, int]]:
    """The checked rows of all pieces, in order, each with how much of the input it is."""
    with _encoder(plan, num_workers=num_workers) as encode:
        pieces = plan.source.pieces(plan.schema, exact=plan.exact)
        # Closed at an error too, so that no piece is still being read when the caller sees it.
        with closing(bounded_map(encode, pieces, max_parallel=num_workers)) as encoded:
            yield from encoded


@contextmanager
def _encoder(plan: BuildPlan, *, num_workers: int) -> Iterator[Callable[[Piece], tuple[Batch, int]]]:
    """What encodes a piece: in the calling thread, or in a process that the thread waits for."""
    if not plan.source.in_processes or num_workers == 1 or plan.source.input_bytes < MIN_PROCESS_BYTES:
        yield lambda piece: (piece.encode(plan.schema), piece.input_bytes)
        return
    # Spawned, because the writer and the client have threads by now, which a fork would not survive.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(num_workers, mp_context=context, initializer=_begin_worker, initargs=(plan.schema,)) as pool:

        def encode(piece: Piece) -> tuple[Batch, int]:
            try:
                return pool.submit(_encode_in_worker, piece).result(), piece.input_bytes
            except BrokenProcessPool as exc:
                raise SourceError("a process that reads the input was killed; is there enough memory?") from exc

        yield encode


_worker_schema: list[Schema] = []


def _begin_worker(schema: Schema) -> None:
    _worker_schema[:] = [schema]
    # Ctrl-C reaches the whole group; the parent ends its workers in order.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, name="forebay-orphan", daemon=True).start()


def _end_with_parent() -> None:
    # A worker whose parent was killed would wait for work for ever: it holds the other end of its own queue.
    parent = multiprocessing.parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        os._exit(1)


def _encode_in_worker(piece: Piece) -> Batch:
    return piece.encode(_worker_schema[0])
