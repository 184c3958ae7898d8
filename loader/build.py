"""Building a dataset from files: read and check by all cores, write in order.

The source's pieces are encoded ahead, a few at a time, by threads, or by processes where the work is Python's own (JSON) and
the input is large enough to pay for starting them; the writer takes the batches in the order of the input. Processes are
spawned, so a script that calls `build_dataset` needs the usual ``if __name__ == "__main__"``.

A build that may be resumed leaves its parts in the store (`loader.build_journal`). Which rows a part holds does not follow the
pieces: neighbours lie in different lanes, whose chunks are stored at different times. So the build that goes on begins at the
first row that is not durable, and passes over those behind it that are.

Memory is that of `loader.writer.ShardWriter` and `READ_AHEAD_BYTES`. This does not know what is shown of the progress.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import dataclass
from multiprocessing import connection
from typing import Any, Final

from client.names import parse_url
from client.objects import ObjectStore
from client.parallel import bounded_map, usable_cores
from client.record import ObjectInfo
from loader.build_journal import BuildJournal, Left, Start, fingerprint, remove_expired
from loader.build_ray import RayWriter, num_ray_cpus, on_ray_cluster
from loader.columns import ColumnType, EncodedColumn, Schema
from loader.errors import BuildUnresumable, InvalidOption
from loader.index import DatasetIndex
from loader.lanes import DEFAULT_MAX_LANES
from loader.source_rows import Piece, Source, SourceError
from loader.sources import Inputs, open_source
from loader.store_user import opened_store
from loader.writer import ShardWriter

__all__ = [
    "MAX_PARALLEL_PIECES",
    "MIN_PROCESS_BYTES",
    "PART_BYTES",
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
PART_BYTES: Final = 1 << 30
"""Stored bytes after which a build that may be resumed names what it has stored."""
READ_AHEAD_BYTES: Final = 512 << 20
"""Input that is read and checked before the writer takes it; two pieces may always be."""

Batch = tuple[EncodedColumn, ...]
OnBytes = Callable[[int], None]
# On Ray the rows stay there (`loader.build_ray.Shares`), and the writer is the one that takes them.
Encode = Callable[[Piece], tuple[Piece, Any]]
Means = AbstractContextManager[tuple[ShardWriter | RayWriter, Encode]]


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
    resumed_rows : int
        Rows at the beginning that were not read again, because an earlier build had stored them.
    seconds_s : float
        From the first row to the commit.
    """

    info: ObjectInfo
    index: DatasetIndex
    input_bytes: int
    resumed_rows: int
    seconds_s: float


def plan_build(inputs: Inputs, *, columns: Mapping[str, str | ColumnType] | None = None) -> BuildPlan:
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
    inputs: Inputs | BuildPlan,
    url: str,
    *,
    columns: Mapping[str, str | ColumnType] | None = None,
    compression: str = "zstd:3",
    block_size_bytes: int | None = None,
    num_lanes: int | None = None,
    num_workers: int | None = None,
    on_ray: bool = False,
    resume: bool = False,
    endpoints: str | list[str] | None = None,
    client: ObjectStore | None = None,
    on_bytes: OnBytes = _ignore,
) -> BuildResult:
    """Build the dataset `url` from files. Row order is input order; nothing is visible before all of it is.

    Parameters
    ----------
    inputs : sequence of path or URL, mapping, or BuildPlan
        What to build from, as `loader.sources.open_source` takes it, or what `plan_build` made of it.
    columns
        As for `plan_build`; left out with a plan.
    compression, block_size_bytes, num_lanes, endpoints, client
        As for `ShardWriter`.
    num_workers : int, optional
        Threads or processes that read and check the input; by default one for each core. The dataset does not depend on it.
    on_ray : bool
        Read the input, and write the lanes, on the machines of a Ray cluster (`loader.build_ray`). There are 256 lanes then
        unless another number is asked for, also for small data.
    resume : bool
        Go on where the same build was killed, if it was, and leave in the store what it takes to go on from this one: objects
        under ``.builds/`` in the bucket, for at most `loader.build_journal.KEPT_S` after the last of them.
    on_bytes : callable
        Told how many bytes of input are done since the last call.

    Raises
    ------
    RowError
        Names file, row and column of a row that doesn't fit.
    SourceError
        If an input can't be read.
    BuildUnresumable
        If what an earlier build has left can't be used, or the same build is under way elsewhere.
    StoreError
        As `ShardWriter` raises it.
    """
    if num_workers is not None and num_workers < 1:
        raise InvalidOption(f"num_workers={num_workers}: expected 1 or more, or None for one on each core")
    plan = _planned(inputs, columns)
    began_s = time.monotonic()
    options: dict[str, Any] = {
        "columns": dict(plan.schema.items()),
        "compression": compression,
        "block_size_bytes": block_size_bytes,
    }
    with opened_store(client, endpoints) as store:
        writer = ShardWriter(url, **options, num_lanes=num_lanes, client=store, metadata=plan.source.metadata)
        workers = num_workers or _num_workers(plan.source, num_ray_cpus() if on_ray else usable_cores())
        with writer, _journal(store, url, plan, key=[compression, block_size_bytes, num_lanes], resume=resume) as journal:
            left = None if journal is None else journal.load()
            means: Means = _here(plan, writer, num_workers=workers)
            if on_ray:
                lanes = num_lanes or (DEFAULT_MAX_LANES if left is None else len(left.lanes))
                means = on_ray_cluster(writer, url, store, num_lanes=lanes, options=options)
            info, resumed_rows = _run(plan, means, journal, left, num_workers=workers, on_bytes=on_bytes)
    assert writer.index is not None
    return BuildResult(
        info=info,
        index=writer.index,
        input_bytes=plan.source.input_bytes,
        resumed_rows=resumed_rows,
        seconds_s=time.monotonic() - began_s,
    )


def _planned(inputs: Inputs | BuildPlan, columns: Mapping[str, str | ColumnType] | None) -> BuildPlan:
    if not isinstance(inputs, BuildPlan):
        return plan_build(inputs, columns=columns)
    if columns is not None:
        raise InvalidOption("columns: a plan has its columns already; give them to plan_build")
    return inputs


@contextmanager
def _journal(store: ObjectStore, url: str, plan: BuildPlan, *, key: list[Any], resume: bool) -> Iterator[BuildJournal | None]:
    """The notes of a build that may be gone on with, which go with its success; None without `resume`."""
    bucket, name = parse_url(url)
    remove_expired(store, bucket, now_s=time.time())
    journal = BuildJournal(store, bucket, name, fingerprint=_fingerprint(plan, options=key)) if resume else None
    yield journal
    if journal is not None:
        journal.discard()


def _fingerprint(plan: BuildPlan, *, options: list[Any]) -> str:
    return fingerprint(
        {
            "kind": type(plan.source).__name__,
            "files": [[file.path, file.size_bytes, file.stamp] for file in plan.source.files],
            "schema": plan.schema.to_json(),
            "exact": plan.exact,
            "options": options,
        }
    )


@contextmanager
def _here(plan: BuildPlan, writer: ShardWriter, *, num_workers: int) -> Iterator[tuple[ShardWriter | RayWriter, Encode]]:
    """What writes, and what encodes, in this process and those that it starts."""
    with _encoder(plan, num_workers=num_workers) as encode:
        yield writer, encode


def _run(
    plan: BuildPlan, means: Means, journal: BuildJournal | None, left: Left | None, *, num_workers: int, on_bytes: OnBytes
) -> tuple[ObjectInfo, int]:
    """Go on from what is left, write and commit; what was committed, and how many rows were passed over at the beginning."""
    with means as (writer, encode):
        if left is not None:
            writer.go_on(left.lanes, first_row=left.start.row)
        resumed_rows = writer.num_rows
        start = None if left is None else left.start
        _write(plan, writer, journal, encode, start=start, num_workers=num_workers, on_bytes=on_bytes)
        return writer.commit(), resumed_rows


def _write(
    plan: BuildPlan,
    writer: ShardWriter | RayWriter,
    journal: BuildJournal | None,
    encode: Encode,
    *,
    start: Start | None,
    num_workers: int,
    on_bytes: OnBytes,
) -> None:
    """Write all rows that are not durable yet, and note in the journal what becomes so."""
    starts: list[Start] = []
    noted_bytes, first = 0, 0 if start is None else start.piece
    pieces = plan.source.pieces(plan.schema, exact=plan.exact)
    if start is not None:
        pieces = _from(pieces, start, on_bytes=on_bytes)
    # Closed at an error too, so that no piece is still being read when the caller sees it.
    with closing(bounded_map(encode, pieces, max_parallel=num_workers)) as encoded:
        for number, (piece, batch) in enumerate(encoded, start=first):
            starts.append(Start(piece=number, place=piece.place, row=writer.num_rows))
            writer.write_checked(batch)
            on_bytes(piece.input_bytes)
            if journal is not None and writer.stored_bytes - noted_bytes >= PART_BYTES:
                noted_bytes = writer.stored_bytes
                begin = journal.add(writer, starts)
                starts = [each for each in starts if begin is None or each.row >= begin.row]


def _num_workers(source: Source, num_cores: int) -> int:
    # Each has a piece in hand and one that is ready or waits.
    return max(1, min(num_cores, MAX_PARALLEL_PIECES, READ_AHEAD_BYTES // (2 * source.piece_bytes)))


def _from(pieces: Iterator[Piece], start: Start, *, on_bytes: OnBytes) -> Iterator[Piece]:
    """The pieces from `start` on."""
    for number, piece in enumerate(pieces):
        if number < start.piece:
            on_bytes(piece.input_bytes)
        elif number == start.piece and piece.place != start.place:
            raise BuildUnresumable(
                f"piece {number} of the input begins at {piece.place}, but at {start.place} for the interrupted build; "
                "was that another version? Build without resuming"
            )
        else:
            yield piece


@contextmanager
def _encoder(plan: BuildPlan, *, num_workers: int) -> Iterator[Encode]:
    """What encodes a piece: in the calling thread, or in a process that the thread waits for."""
    if not plan.source.in_processes or num_workers == 1 or plan.source.input_bytes < MIN_PROCESS_BYTES:
        yield lambda piece: (piece, piece.encode(plan.schema))
        return
    # Spawned, because the writer and the client have threads by now, which a fork would not survive.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(num_workers, mp_context=context, initializer=_begin_worker, initargs=(plan.schema,)) as pool:

        def encode(piece: Piece) -> tuple[Piece, Batch]:
            try:
                return piece, pool.submit(_encode_in_worker, piece).result()
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
