"""A dataset opened for reading: its index, its block tables, and any block of any lane, decoded and verified.

It knows the store only through a `client.objects.ObjectStore`. It does not know order, ranks, batches or torch; the CLI and
the PyTorch dataset are built on it.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Any, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from client.errors import ObjectNotFound, StoreError
from client.names import format_url
from client.objects import ObjectStore
from client.record import ObjectInfo
from client.replica import ReadTotals
from loader.block import MAX_BLOCK_ROWS, BlockTable, decode_column_into, decode_value, variable_view
from loader.block_codec import OFFSET_BYTES
from loader.columns import Schema
from loader.errors import DatasetNotFound, IndexCorrupt, InvalidOption, LoaderError
from loader.index import DatasetIndex, Footer
from loader.order import locate_row
from loader.value_room import ValueRoom, has_large_values, value_sums
from loader.view_room import ViewRoom

__all__ = ["ColumnCache", "DatasetReader", "Room"]

_TAIL_BYTES = 64 * 1024  # Read at once from the end: footer and index, 280 bytes a lane. What is before it lies on other nodes.
_MERGE_GAP_BYTES = 64 * 1024  # Columns and tables this close are read in one request: checksum segments are as long.
_MAX_CACHED_BLOCKS = 64
_MAX_WAITS = 4  # Told of at once, and as many reads.

T = TypeVar("T")
Room = memoryview | ValueRoom | ViewRoom
"""Where a decoded column block goes."""


class ColumnCache(Protocol):
    """Where decoded column blocks may be found, or kept; see `loader.cache.DiskCache`."""

    def read_into(
        self,
        place: tuple[int, int, int],
        out: Room,
        *,
        table: BlockTable,
        read_whole: Callable[[], memoryview],
        wait: bool = True,
    ) -> bool: ...

    def holds(self, lane: int, block: int, columns: Iterable[int], *, table: BlockTable) -> bool: ...

    def write(self, place: tuple[int, int, int], data: memoryview, *, table: BlockTable, sums: bytes = b"") -> None: ...

    def claim(self, lane: int, block: int) -> AbstractContextManager[None]: ...

    def close(self) -> None: ...


class DatasetReader:
    """Reads the blocks and rows of one version of a dataset. Thread-safe.

    Parameters
    ----------
    store : ObjectStore
        Where the dataset is.
    bucket, key : str
        Its name.
    version : int, optional
        Of the object; the current one if not given.
    info : ObjectInfo, optional
        What is known of the version to read, from another reader: then nothing is looked up, and it may have been replaced.

    Attributes
    ----------
    cache : ColumnCache or None
        Asked first for each column block, and given those that were fetched.
    max_block_rows : int
        No block has more rows than this.

    Raises
    ------
    DatasetNotFound
        If there is no such object.
    IndexMissing, IndexCorrupt, FormatUnsupported
        If it is no dataset, or damaged, or newer than this software.
    """

    def __init__(
        self, store: ObjectStore, bucket: str, key: str, *, version: int | None = None, info: ObjectInfo | None = None
    ) -> None:
        self.url = format_url(bucket, key)
        try:
            self.info = info or store.stat(bucket, key, version=version)
        except ObjectNotFound as exc:
            raise DatasetNotFound(_not_found(self.url, bucket, version=version)) from exc
        self.cache: ColumnCache | None = None
        self._store = store
        self._content = store.reader(self.info)
        try:
            self.index = self._read_index()
        except LoaderError as exc:
            raise type(exc)(f"{self.url}: {exc}") from exc
        self.max_block_rows = _max_block_rows(self.index)
        self._tables: dict[int, BlockTable] = {}
        self._rows_lock = threading.Lock()
        self._decoded: OrderedDict[tuple[int, int, str], memoryview] = OrderedDict()
        self._scratch = threading.local()
        self._fetching: dict[int, tuple[str, float]] = {}  # By thread: the block, and since when.

    @property
    def schema(self) -> Schema:
        """The columns of the dataset."""
        return self.index.schema

    @property
    def num_blocks(self) -> int:
        """Blocks of all lanes."""
        return sum(lane.num_blocks for lane in self.index.lanes)

    @property
    def mean_block_bytes(self) -> int:
        """About what a decoded block takes; more than the block size only where single rows do."""
        stored_bytes = sum(lane.blocks_bytes for lane in self.index.lanes)
        return max(self.index.block_size_bytes, stored_bytes // max(1, self.num_blocks))

    def totals(self) -> ReadTotals:
        """What was read from the store so far."""
        return self._store.replica_reader.totals()

    def waits(self) -> list[str]:
        """The blocks and tables that are being read from the store, and the nodes that were asked, those for longest first."""
        now_s = time.monotonic()
        blocks = sorted((began_s, what) for what, began_s in list(self._fetching.values()))
        reads = [(max(read.asked_s.values()), read) for read in self._store.replica_reader.under_way() if read.asked_s]
        reads.sort(key=lambda item: -item[0])
        return [f"{self.url}, {what} for {now_s - began_s:.1f} s" for began_s, what in blocks[:_MAX_WAITS]] + [
            f"chunk {read.ref} of " + ", ".join(f"node {node} for {asked_s:.1f} s" for node, asked_s in read.asked_s.items())
            for _, read in reads[:_MAX_WAITS]
        ]

    def table(self, lane: int) -> BlockTable:
        """The block table of `lane`, read at first use and kept: 30 bytes for each column of each block."""
        table = self._tables.get(lane)
        if table is None:
            self.load_tables([lane])
            table = self._tables[lane]
        return table

    def load_tables(self, lanes: Sequence[int]) -> None:
        """Read the block tables of some lanes, all at once, and keep them."""
        index = self.index
        starts = sorted((index.table_offsets[lane], lane) for lane in lanes)
        runs = list(_adjacent((start, start + index.lanes[lane].table_bytes, lane) for start, lane in starts))
        parts = [(memoryview(bytearray(run[-1][1] - run[0][0])), run[0][0]) for run in runs]
        what = f"the table of lane {lanes[0]}" + (f" and {len(lanes) - 1} more" if len(lanes) > 1 else "")
        self._fetch(parts, what=what)
        for run, (data, begin) in zip(runs, parts, strict=True):
            for start, end, lane in run:
                table = index.decode_table(lane, data[start - begin : end - begin])
                if table.rows.max(initial=0) > self.max_block_rows:
                    # Buffers are laid out for what the block size allows.
                    raise IndexCorrupt(
                        f"{self.url}, lane {lane}: a block of {table.rows.max()} rows, expected at most {self.max_block_rows} "
                        f"with a block size of {index.block_size_bytes} bytes"
                    )
                self._tables[lane] = table

    def has_table(self, lane: int) -> bool:
        """Whether the block table of `lane` was read already."""
        return lane in self._tables

    def read_block_into(self, lane: int, block: int, columns: Sequence[int], outs: Sequence[Room]) -> int:
        """Decode columns of one block into buffers, or rooms for values, verified.

        Parameters
        ----------
        columns : sequence of int
            Numbers of columns in the schema, ascending.
        outs : sequence of memoryview, ValueRoom or ViewRoom
            For each its buffer, or room, of exactly the decoded size that the table says.

        Returns
        -------
        int
            How many of the decoded bytes came from the cache.

        Raises
        ------
        BlockCorrupt
            If the bytes are not those that were written.
        StoreError
            If they can't be had; the message says which block that was and how long it took.
        """
        wanted = list(zip(columns, outs, strict=True))
        if self.cache is None:
            self._fetch_columns(lane, block, wanted)
            return 0
        missing = self._not_cached(self.cache, lane, block, wanted)
        if missing:
            with self.cache.claim(lane, block):
                # Another process may have had the claim until now.
                missing = self._not_cached(self.cache, lane, block, missing)
                self._fetch_columns(lane, block, missing)
        return sum(map(len, outs)) - sum(len(out) for _, out in missing)

    def is_cached(self, lane: int, block: int, columns: Iterable[int]) -> bool:
        """Whether columns of a block seem to be in the cache."""
        return self.cache is not None and self.cache.holds(lane, block, columns, table=self.table(lane))

    def read_cached_into(self, lane: int, block: int, columns: Sequence[int], outs: Sequence[Room]) -> bool:
        """`read_block_into` without waiting, not even for a disk; False if not all of it can be had so."""
        wanted = list(zip(columns, outs, strict=True))
        return self.cache is not None and not self._not_cached(self.cache, lane, block, wanted, wait=False)

    def _not_cached(
        self, cache: ColumnCache, lane: int, block: int, wanted: Sequence[tuple[int, Room]], *, wait: bool = True
    ) -> list[tuple[int, Room]]:
        """Fill from the cache what is there; the rest."""
        table = self.table(lane)
        return [
            (column, out)
            for column, out in wanted
            if not cache.read_into(
                (lane, block, column),
                out,
                table=table,
                read_whole=partial(self._read_whole, lane, block, column),
                wait=wait,
            )
        ]

    def _fetch_columns(self, lane: int, block: int, wanted: Sequence[tuple[int, Room]]) -> None:
        table = self.table(lane)
        offsets, sizes = table.offsets[block].tolist(), table.stored_size[block].tolist()
        for run in _adjacent((offsets[column], offsets[column] + sizes[column], (column, out)) for column, out in wanted):
            begin = run[0][0]
            stored = self._own_buffer(run[-1][1] - begin)
            self._fetch([(stored, self.index.lanes[lane].offset + begin)], what=f"lane {lane}, block {block}")
            for start, end, (column, out) in run:
                self._decode(stored[start - begin : end - begin], table, lane, block, column, out)

    def row(self, number: int, *, names: Sequence[str] | None = None) -> dict[str, Any]:
        """Row `number` of the written order: numpy arrays or scalars, bytes, str or JSON values by column name.

        Raises
        ------
        IndexError
            Unless ``-num_rows <= number < num_rows``.
        """
        if not -self.index.num_rows <= number < self.index.num_rows:
            raise IndexError(f"row {number} of a dataset of {self.index.num_rows} rows")
        lanes, indexes = locate_row(number % self.index.num_rows, num_lanes=self.index.num_lanes)
        lane, index = int(lanes), int(indexes)
        ends = np.cumsum(self.table(lane).rows)
        block = int(np.searchsorted(ends, index, side="right"))
        place = index - int(ends[block] - self.table(lane).rows[block])
        return {name: self._value(lane, block, place, name) for name in names or self.schema.names}

    def rows(self, start: int = 0, stop: int | None = None) -> Iterator[dict[str, Any]]:
        """Rows ``[start, stop)`` in written order."""
        for number in range(start, self.index.num_rows if stop is None else min(stop, self.index.num_rows)):
            yield self.row(number)

    def select(self, names: Sequence[str] | None) -> tuple[int, ...]:
        """Numbers of the columns `names` (all by default), ascending; raises `ColumnError` for an unknown one."""
        if names is None:
            return tuple(range(len(self.schema)))
        if not names or isinstance(names, str):
            raise InvalidOption(f"columns={names!r}: give a list of at least one column's name, or leave it out for all")
        return tuple(sorted({self.schema.position(name) for name in names}))

    def _read_index(self) -> DatasetIndex:
        size = self.info.size
        tail = bytearray(min(_TAIL_BYTES, size))
        self._content.read_into(tail, start=size - len(tail))
        footer = Footer.decode(tail, object_bytes=size)
        begin = footer.index_offset - (size - len(tail))
        if begin >= 0:
            return DatasetIndex.decode(tail[begin : begin + footer.index_bytes], footer=footer)
        head = bytearray(-begin)
        self._content.read_into(head, start=footer.index_offset)
        return DatasetIndex.decode(head + tail[: footer.index_bytes - len(head)], footer=footer)

    def _fetch(self, parts: Sequence[tuple[bytearray | memoryview, int]], *, what: str) -> None:
        began_s, ident = time.monotonic(), threading.get_ident()
        self._fetching[ident] = what, began_s
        try:
            self._content.read_parts(parts)
        except StoreError as exc:
            raise type(exc)(
                f"{self.url}, {what}: not read within {time.monotonic() - began_s:.3g} s: {exc.message}",
                key=exc.key,
                node_id=exc.node_id,
                retry_after_s=exc.retry_after_s,
            ) from exc
        finally:
            del self._fetching[ident]

    def _own_buffer(self, size: int) -> memoryview:
        """A buffer of this thread's own, for stored bytes, reused by its next read."""
        buffer: npt.NDArray[np.uint8] | None = getattr(self._scratch, "stored", None)
        if buffer is None or len(buffer) < size:
            self._scratch.stored = buffer = np.empty(size, np.uint8)
        return buffer[:size].data

    def _decode(self, stored: memoryview, table: BlockTable, lane: int, block: int, column: int, out: Room) -> None:
        decoded = out if isinstance(out, memoryview) else out.buffer()
        check, rows = int(table.check[block, column]), int(table.rows[block])
        decode_column_into(
            stored,
            codec=int(table.codec[block, column]),
            raw_size=int(table.raw_size[block, column]),
            check=check,
            out=decoded,
            where=f"{self.url}, lane {lane}, block {block}, column {self.schema.names[column]!r}",
        )
        if self.cache is not None:
            is_large = has_large_values(self.schema.types[column], raw_size=len(decoded), rows=rows)
            sums = value_sums(decoded, rows=rows, check=check) if is_large else b""
            self.cache.write((lane, block, column), decoded, table=table, sums=sums)

    def _value(self, lane: int, block: int, place: int, name: str) -> Any:
        kind = self.schema[name]
        data = self._decoded_column(lane, block, name)
        if kind.is_fixed:
            return decode_value(kind, memoryview(data)[place * kind.item_bytes : (place + 1) * kind.item_bytes])
        offsets, values = variable_view(data, int(self.table(lane).rows[block]))
        return decode_value(kind, values[offsets[place] : offsets[place + 1]])

    def _decoded_column(self, lane: int, block: int, name: str) -> memoryview:
        """A decoded column block, from the few that were used last."""
        place, column = (lane, block, name), self.schema.position(name)
        with self._rows_lock:
            data = self._decoded.get(place)
            if data is not None:
                self._decoded.move_to_end(place)
                return data
        data = self._read_whole(lane, block, column)
        with self._rows_lock:
            self._decoded[place] = data
            while len(self._decoded) > max(_MAX_CACHED_BLOCKS, self.index.num_lanes) * len(self.schema):
                self._decoded.popitem(last=False)
        return data

    def _read_whole(self, lane: int, block: int, column: int) -> memoryview:
        data = memoryview(bytearray(int(self.table(lane).raw_size[block, column])))
        self.read_block_into(lane, block, [column], [data])
        return data


def _not_found(url: str, bucket: str, *, version: int | None) -> str:
    if version is None:
        return f"there is no dataset {url}; `forebay ls {bucket}` lists what there is"
    return (
        f"version {version} of the dataset {url} is gone: it was replaced, and the bucket does not keep it; "
        f"`forebay bucket set {bucket} --versions N` keeps old versions"
    )


def _max_block_rows(index: DatasetIndex) -> int:
    row_bytes = sum(kind.item_bytes if kind.is_fixed else OFFSET_BYTES for kind in index.schema.types)
    return max(1, min(MAX_BLOCK_ROWS, index.block_size_bytes // row_bytes))


def _adjacent(ranges: Iterable[tuple[int, int, T]]) -> Iterator[list[tuple[int, int, T]]]:
    """Runs of ascending ranges, each with what it is of, that lie so close together that one request for all is cheaper."""
    run: list[tuple[int, int, T]] = []
    for part in ranges:
        if run and part[0] - run[-1][1] > _MERGE_GAP_BYTES:
            yield run
            run = []
        run.append(part)
    if run:
        yield run
