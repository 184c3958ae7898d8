"""Blocks in, durable chunks out: the lanes of a dataset that has no name yet.

Theory of operation
-------------------
A block is encoded by a pool of threads, one per core (zstd and the hashes run without the GIL), and added to what its lane has
pending. Once a lane has its chunk's worth, that is stored in the background, in the lane's placement group. `finish` stores
what is left and encodes the block tables of all lanes.

Two queues, of encodings and of stores, are emptied from their heads, by the caller's thread alone: so a lane's blocks and its
chunks keep their order, and whoever hands in blocks faster than they are stored, waits. All lanes fill at the same pace, so
their first chunks are of half a chunk to a whole one: later ones are then due at different times, and stores go on beside the
encoding.

Bounds: L x (block + chunk) for the lanes, `ENCODE_BYTES` decoded bytes in encoding, `in_flight_bytes` in stores.

What is durable can be told at any time (`LaneStaging.progress`) and another staging can go on from there: of each lane, the
chunks that are stored and the blocks that lie in them wholly.

Invariants: a chunk has at most `chunk_size_bytes`; a block spans two chunks only if it is larger than that; the blocks do not
depend on threads or chunks. Nothing here has a name: staging that is given up leaves nothing visible.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import starmap, zip_longest
from typing import Final

import zstandard

from client.manifest import Ref
from loader.block import BlockBuilder, BlockTableBuilder, EncodedBlock, new_compressor
from loader.lane import LaneEntry

__all__ = [
    "ENCODE_BYTES",
    "LANE_CHUNKS_BYTES",
    "MIN_CHUNK_BYTES",
    "LaneProgress",
    "LaneStaging",
    "Staged",
    "chunk_target_bytes",
    "cut",
]

Data = bytes | bytearray | memoryview

ENCODE_BYTES: Final = 64 << 20
"""Decoded bytes in encoding at once."""
LANE_CHUNKS_BYTES: Final = 512 << 20
"""What the pending chunks of all lanes take together, as long as each has at least `MIN_CHUNK_BYTES`."""
MIN_CHUNK_BYTES: Final = 1 << 20


def chunk_target_bytes(num_lanes: int, *, chunk_size_bytes: int) -> int:
    """Stored bytes after which a lane's pending blocks become a chunk: the usual size, less where many lanes are pending."""
    return min(chunk_size_bytes, max(MIN_CHUNK_BYTES, LANE_CHUNKS_BYTES // num_lanes))


def cut(payload: Data, *, size_bytes: int) -> list[memoryview]:
    """`payload` in pieces of at most `size_bytes`."""
    view = memoryview(payload)
    return [view[start : start + size_bytes] for start in range(0, len(view), size_bytes)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Staged:
    """What lies in the store, and what describes it.

    Attributes
    ----------
    refs : tuple of Ref
        The chunks, in the object's order.
    lanes : tuple of LaneEntry
        For the index.
    tables : bytes
        The block tables of all lanes, which are not stored yet.
    """

    refs: tuple[Ref, ...]
    lanes: tuple[LaneEntry, ...]
    tables: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class LaneProgress:
    """What of one lane is durable.

    Attributes
    ----------
    group : str
        Its placement group.
    refs : tuple of Ref
        Its chunks so far.
    numbers : tuple of int
        The blocks in them, as `BlockTableBuilder.numbers` gives them.
    num_blocks, num_rows : int
        How many these are, and their rows.
    """

    group: str
    refs: tuple[Ref, ...] = ()
    numbers: tuple[int, ...] = ()
    num_blocks: int = 0
    num_rows: int = 0


@dataclass(slots=True, kw_only=True)
class _Lane:
    group: str
    table: BlockTableBuilder
    chunk_bytes: int
    stored_blocks: int = 0
    pending: list[Data] = field(default_factory=list)
    pending_bytes: int = 0
    refs: list[Ref] = field(default_factory=list)


class LaneStaging:
    """Encodes and stores the blocks of all lanes. Used by one thread.

    Parameters
    ----------
    lanes : sequence of LaneProgress
        What each lane begins with: its placement group at least.
    num_columns : int
        Columns of a block.
    compression : str
        As `loader.block.new_compressor` takes it.
    store : callable
        Stores one chunk in a group durably and returns its reference; gives up once the event is set.
    chunk_size_bytes : int
        The largest chunk.
    in_flight_bytes : int
        Bytes in stores at once; one store may always be under way.
    encode_threads, store_threads : int
        Sizes of the two pools.

    Attributes
    ----------
    failure : BaseException or None
        What a store raised first. It is raised again when the store's turn comes; whoever asks here knows earlier.
    stored_bytes : int
        Of the chunks that this staging has stored.
    """

    def __init__(
        self,
        lanes: Sequence[LaneProgress],
        *,
        num_columns: int,
        compression: str,
        store: Callable[[Data, str, threading.Event], Ref],
        chunk_size_bytes: int,
        in_flight_bytes: int,
        encode_threads: int,
        store_threads: int,
    ) -> None:
        self._compression = compression
        self._store = store
        self._chunk_size_bytes = chunk_size_bytes
        self._target_bytes = chunk_target_bytes(len(lanes), chunk_size_bytes=chunk_size_bytes)
        self._num_columns = num_columns
        self._lanes = [
            _Lane(
                group=lane.group,
                table=BlockTableBuilder(num_columns=num_columns, numbers=lane.numbers),
                chunk_bytes=(self._target_bytes + self._target_bytes * number // len(lanes)) // 2,
                stored_blocks=lane.num_blocks,
                refs=list(lane.refs),
            )
            for number, lane in enumerate(lanes)
        ]
        self._in_flight_bytes = in_flight_bytes
        self._encode_pool = ThreadPoolExecutor(encode_threads, thread_name_prefix="forebay-encode")
        self._store_pool = ThreadPoolExecutor(store_threads, thread_name_prefix="forebay-store")
        self._encoding: deque[tuple[_Lane, Future[EncodedBlock], int]] = deque()
        self._storing: deque[tuple[_Lane, Future[Ref], int, int]] = deque()
        self._encoding_bytes = 0
        self._storing_bytes = 0
        self._compressors = threading.local()
        self._stop = threading.Event()
        self.failure: BaseException | None = None
        self.stored_bytes = 0

    def add(self, lane: int, block: BlockBuilder) -> None:
        """Take over the next block of `lane`; waits while too much is under way. Raises what an earlier store raised."""
        while self._encoding and self._encoding_bytes + block.decoded_bytes > ENCODE_BYTES:
            self._settle_encoding()
        future = self._encode_pool.submit(self._encode, block)
        self._encoding.append((self._lanes[lane], future, block.decoded_bytes))
        self._encoding_bytes += block.decoded_bytes
        # What is ready is passed on without waiting, so that stores begin while later blocks are still being filled.
        while self._encoding and self._encoding[0][1].done():
            self._settle_encoding()

    def finish(self) -> Staged:
        """Store all blocks that are left, and wait until they are durable."""
        self.flush()
        self.close()
        entries, tables, offset = [], [], 0
        for lane in self._lanes:
            table = lane.table.build()
            tables.append(table.encode())
            entries.append(LaneEntry.of(table, encoded_table=tables[-1], offset=offset, group=lane.group))
            offset += table.blocks_bytes
        return Staged(refs=tuple(self.refs()), lanes=tuple(entries), tables=b"".join(tables))

    def flush(self) -> tuple[LaneProgress, ...]:
        """Store all blocks that were added; what is durable then, which is all of them."""
        while self._encoding:
            self._settle_encoding()
        for lane in self._lanes:
            if lane.pending:
                self._store_pending(lane)
        self.drain()
        return self.progress()

    def drain(self) -> None:
        """Wait until every store that was begun is durable."""
        while self._storing:
            self._settle_store()

    def refs(self) -> Iterator[Ref]:
        """All chunks that are durable, in the object's order."""
        return (ref for lane in self._lanes for ref in lane.refs)

    def progress(self, told: Sequence[tuple[int, int]] = ()) -> tuple[LaneProgress, ...]:
        """What is durable of each lane, but for the first chunks and blocks, so many as were told before."""
        return tuple(starmap(self._progress, zip_longest(self._lanes, told, fillvalue=(0, 0))))

    def _progress(self, lane: _Lane, told: tuple[int, int]) -> LaneProgress:
        num_refs, first = told
        numbers = lane.table.numbers(first, lane.stored_blocks)
        return LaneProgress(
            group=lane.group,
            refs=tuple(lane.refs[num_refs:]),
            numbers=tuple(numbers),
            num_blocks=lane.stored_blocks - first,
            num_rows=sum(numbers[:: 1 + 4 * self._num_columns]),
        )

    def close(self) -> None:
        """Forget what has not begun, and wait for what has, which makes no further request."""
        self._stop.set()
        for pool in (self._encode_pool, self._store_pool):
            pool.shutdown(wait=True, cancel_futures=True)

    def _encode(self, block: BlockBuilder) -> EncodedBlock:
        return block.encode(self._compressor())

    def _compressor(self) -> zstandard.ZstdCompressor | None:
        # A compressor belongs to one thread at a time, and making one costs as much as compressing a small block.
        if not hasattr(self._compressors, "value"):
            self._compressors.value = new_compressor(self._compression)
        compressor: zstandard.ZstdCompressor | None = self._compressors.value
        return compressor

    def _settle_encoding(self) -> None:
        """Wait for the oldest block and add it to its lane."""
        lane, future, decoded_bytes = self._encoding.popleft()
        block = future.result()
        self._encoding_bytes -= decoded_bytes
        # In this order: what is stored to make room for the block does not hold it.
        self._append(lane, [part.data for part in block.parts])
        lane.table.append(block)

    def _append(self, lane: _Lane, parts: Sequence[Data]) -> None:
        size_bytes = sum(map(len, parts))
        if lane.pending and lane.pending_bytes + size_bytes > lane.chunk_bytes:
            self._store_pending(lane)
            lane.chunk_bytes = self._target_bytes
        lane.pending.extend(parts)
        lane.pending_bytes += size_bytes

    def _store_pending(self, lane: _Lane) -> None:
        parts, size_bytes = lane.pending, lane.pending_bytes
        lane.pending, lane.pending_bytes = [], 0
        num_blocks = lane.table.num_blocks
        if size_bytes <= self._chunk_size_bytes:
            self._submit(lane, parts, size_bytes, num_blocks=num_blocks)
            return
        pieces = cut(b"".join(parts), size_bytes=self._chunk_size_bytes)
        for number, piece in enumerate(pieces, start=1):
            # Only with the last piece the blocks are there wholly.
            self._submit(lane, [piece], len(piece), num_blocks=num_blocks if number == len(pieces) else 0)

    def _submit(self, lane: _Lane, parts: list[Data], size_bytes: int, *, num_blocks: int) -> None:
        while self._storing and (self._storing[0][1].done() or self._storing_bytes + size_bytes > self._in_flight_bytes):
            self._settle_store()
        future = self._store_pool.submit(self._store_parts, parts, lane.group)
        future.add_done_callback(self._note_failure)
        self._storing.append((lane, future, size_bytes, num_blocks))
        self._storing_bytes += size_bytes

    def _store_parts(self, parts: list[Data], group: str) -> Ref:
        return self._store(parts[0] if len(parts) == 1 else b"".join(parts), group, self._stop)

    def _settle_store(self) -> None:
        """Wait for the oldest store and note its reference."""
        lane, future, size_bytes, num_blocks = self._storing.popleft()
        lane.refs.append(future.result())
        lane.stored_blocks = max(lane.stored_blocks, num_blocks)
        self._storing_bytes -= size_bytes
        self.stored_bytes += size_bytes

    def _note_failure(self, future: Future[Ref]) -> None:
        if not future.cancelled() and self.failure is None:
            self.failure = future.exception()
