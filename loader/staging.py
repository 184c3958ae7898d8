"""Blocks in, durable chunks out: the lanes of a dataset that has no name yet.

Theory of operation
-------------------
A block is encoded by a pool of threads, one per core (zstd and the hashes run without the GIL), and added to what its lane has
pending. Once a lane has its chunk's worth, that is stored in the background, in the lane's placement group. `finish` encodes
each lane's block table after its blocks and stores what is left.

Two queues, of encodings and of stores, are emptied from their heads, by the caller's thread alone: so a lane's blocks and its
chunks keep their order, and whoever hands in blocks faster than they are stored, waits. All lanes fill at the same pace, so
their first chunks are of half a chunk to a whole one: later ones are then due at different times, and stores go on beside the
encoding.

Bounds: L x (block + chunk) for the lanes, `ENCODE_BYTES` decoded bytes in encoding, `in_flight_bytes` in stores.

Invariants: a chunk has at most `chunk_size_bytes`; a block spans two chunks only if it is larger than that; the blocks do not
depend on threads or chunks. Nothing here has a name: staging that is given up leaves nothing visible.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Final

import zstandard

from client.manifest import Ref
from loader.block import BlockBuilder, BlockTableBuilder, EncodedBlock, new_compressor
from loader.lane import LaneEntry

__all__ = ["ENCODE_BYTES", "LANE_CHUNKS_BYTES", "MIN_CHUNK_BYTES", "LaneStaging", "Staged", "chunk_target_bytes", "cut"]

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
    """What lies in the store: the chunks in the object's order, and each lane's entry for the index."""

    refs: tuple[Ref, ...]
    lanes: tuple[LaneEntry, ...]


@dataclass(slots=True, kw_only=True)
class _Lane:
    group: str
    table: BlockTableBuilder
    chunk_bytes: int
    pending: list[Data] = field(default_factory=list)
    pending_bytes: int = 0
    refs: list[Ref] = field(default_factory=list)


class LaneStaging:
    """Encodes and stores the blocks of all lanes. Used by one thread.

    Parameters
    ----------
    groups : sequence of str
        The placement group of each lane.
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
    """

    def __init__(
        self,
        groups: Sequence[str],
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
        self._target_bytes = chunk_target_bytes(len(groups), chunk_size_bytes=chunk_size_bytes)
        self._lanes = [
            _Lane(
                group=group,
                table=BlockTableBuilder(num_columns=num_columns),
                chunk_bytes=(self._target_bytes + self._target_bytes * number // len(groups)) // 2,
            )
            for number, group in enumerate(groups)
        ]
        self._in_flight_bytes = in_flight_bytes
        self._encode_pool = ThreadPoolExecutor(encode_threads, thread_name_prefix="forebay-encode")
        self._store_pool = ThreadPoolExecutor(store_threads, thread_name_prefix="forebay-store")
        self._encoding: deque[tuple[_Lane, Future[EncodedBlock], int]] = deque()
        self._storing: deque[tuple[_Lane, Future[Ref], int]] = deque()
        self._encoding_bytes = 0
        self._storing_bytes = 0
        self._compressors = threading.local()
        self._stop = threading.Event()
        self.failure: BaseException | None = None

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
        """Store everything that is left, block tables included, and wait until all of it is durable."""
        while self._encoding:
            self._settle_encoding()
        entries, offset = [], 0
        for lane in self._lanes:
            table = lane.table.build()
            encoded = table.encode()
            self._append(lane, [encoded])
            self._store_pending(lane)
            entries.append(LaneEntry.of(table, encoded_table=encoded, offset=offset, group=lane.group))
            offset = entries[-1].end
        while self._storing:
            self._settle_store()
        self.close()
        return Staged(refs=tuple(ref for lane in self._lanes for ref in lane.refs), lanes=tuple(entries))

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
        lane.table.append(block)
        self._append(lane, [part.data for part in block.parts])

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
        if size_bytes <= self._chunk_size_bytes:
            self._submit(lane, parts, size_bytes)
            return
        for piece in cut(b"".join(parts), size_bytes=self._chunk_size_bytes):
            self._submit(lane, [piece], len(piece))

    def _submit(self, lane: _Lane, parts: list[Data], size_bytes: int) -> None:
        while self._storing and (self._storing[0][1].done() or self._storing_bytes + size_bytes > self._in_flight_bytes):
            self._settle_store()
        future = self._store_pool.submit(self._store_parts, parts, lane.group)
        future.add_done_callback(self._note_failure)
        self._storing.append((lane, future, size_bytes))
        self._storing_bytes += size_bytes

    def _store_parts(self, parts: list[Data], group: str) -> Ref:
        return self._store(parts[0] if len(parts) == 1 else b"".join(parts), group, self._stop)

    def _settle_store(self) -> None:
        """Wait for the oldest store and note its reference."""
        lane, future, size_bytes = self._storing.popleft()
        lane.refs.append(future.result())
        self._storing_bytes -= size_bytes

    def _note_failure(self, future: Future[Ref]) -> None:
        if not future.cancelled() and self.failure is None:
            self.failure = future.exception()
