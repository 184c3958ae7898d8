"""What a process holds open of what it streams: connections, readers with their caches, and the memory for blocks."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from operator import itemgetter
from pathlib import Path

import numpy as np
import numpy.typing as npt

from client.objects import ObjectStore
from client.record import ObjectInfo
from client.replica import ReadTotals
from loader.arena import Arena
from loader.cache import DiskCache
from loader.column_type import ColumnType
from loader.mixture import Mixture, StreamLanes
from loader.order import LaneOrder
from loader.plan import Visit
from loader.reader import DatasetReader, Room
from loader.view_room import can_be_viewed

__all__ = ["CacheSpec", "OpenDataset", "OpenStream", "read_totals"]

Int64s = npt.NDArray[np.int64]

_LITTLE_BYTES = 64 * 1024  # To read and hash so much takes less than to hand it to a thread.
_CELL_BYTES = 8  # What a row in the arena takes beside its columns.
_MAPPED_SLOT_BYTES = 64 * 1024  # What a slot takes at most whose block is mapped: some pages here and there.
_VIEWS_PER_COPY = 16  # Staged views are not copied, and few of the blocks that they keep would be free without them.


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheSpec:
    """Where decoded blocks are kept, and how many bytes of them."""

    root: Path
    limit_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenDataset:
    """One version of a dataset, opened by one process for some of its columns.

    Attributes
    ----------
    store : ObjectStore
        Closed with this, or by whoever made it.
    reader : DatasetReader
        With its cache, if there is one.
    columns : tuple of int
        Numbers of the columns, in the order in which they are wanted.
    """

    store: ObjectStore
    reader: DatasetReader
    columns: tuple[int, ...]

    @classmethod
    def of(
        cls,
        store: ObjectStore,
        *,
        bucket: str,
        key: str,
        version: int | None = None,
        info: ObjectInfo | None = None,
        columns: Sequence[str] | None,
        cache: CacheSpec | None,
    ) -> OpenDataset:
        """Open a dataset; raises what `DatasetReader` does, and `ColumnError` for an unknown column."""
        reader = DatasetReader(store, bucket, key, version=version, info=info)
        if cache is not None:
            reader.cache = DiskCache(cache.root, digest=reader.index.digest, limit_bytes=cache.limit_bytes)
        return cls(store=store, reader=reader, columns=reader.select(columns))

    def close(self) -> None:
        """Close connections and files."""
        if self.reader.cache is not None:
            self.reader.cache.close()
        self.store.close()

    @property
    def names(self) -> list[str]:
        """Names of the columns."""
        return [self.reader.schema.names[number] for number in self.columns]

    @property
    def kinds(self) -> list[ColumnType]:
        """Their types."""
        return [self.reader.schema.types[number] for number in self.columns]

    @property
    def slot_bytes(self) -> int:
        """What room for one block takes: decoded columns, and the order of their rows."""
        fixed_bytes = sum(kind.item_bytes for kind in self.kinds if kind.is_fixed) + _CELL_BYTES
        varies = not all(kind.is_fixed for kind in self.kinds)
        return fixed_bytes * self.reader.max_block_rows + (self.reader.mean_block_bytes if varies else 0)

    @property
    def fixed_block_bytes(self) -> int:
        """About what the fixed columns of one block take."""
        rows = -(-self.reader.index.num_rows // max(1, self.reader.num_blocks))
        return rows * sum(kind.item_bytes for kind in self.kinds if kind.is_fixed)

    @property
    def row_bytes(self) -> int:
        """About what the columns of one row take, decoded."""
        fixed_bytes = sum(kind.item_bytes for kind in self.kinds if kind.is_fixed)
        if all(kind.is_fixed for kind in self.kinds):
            return fixed_bytes
        return fixed_bytes + self.reader.mean_block_bytes * self.reader.num_blocks // max(1, self.reader.index.num_rows)


def read_totals(datasets: Sequence[OpenDataset]) -> ReadTotals:
    """What was read from the stores of some datasets so far."""
    readers = {id(dataset.store): dataset.reader for dataset in datasets}
    each = [asdict(reader.totals()) for reader in readers.values()]
    return ReadTotals(**{name: sum(totals[name] for totals in each) for name in each[0]})


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenStream:
    """Datasets that are read as one, by one process, their lanes numbered through.

    Attributes
    ----------
    pid : int
        The process; what it holds must not be used after a fork.
    datasets : tuple of OpenDataset
        With the same columns.
    lanes : StreamLanes
        Of all of them.
    mixture : Mixture or None
        How they share the positions of the stream, if there are several.
    arena : Arena
        For these columns. It goes from one iteration to the next, with its memory.
    zero_copy : bool
        Whether values are handed out as views, where that is possible.
    """

    pid: int
    datasets: tuple[OpenDataset, ...]
    lanes: StreamLanes
    mixture: Mixture | None
    arena: Arena
    zero_copy: bool

    @classmethod
    def of(cls, datasets: Sequence[OpenDataset], *, mixture: Mixture | None = None, zero_copy: bool = False) -> OpenStream:
        """What was opened by this process, ready to be streamed."""
        rows = max(dataset.reader.max_block_rows for dataset in datasets)
        shapes = [(dataset.reader.index.num_rows, dataset.reader.index.num_lanes) for dataset in datasets]
        return cls(
            pid=os.getpid(),
            datasets=tuple(datasets),
            lanes=StreamLanes.of(shapes),
            mixture=mixture,
            arena=Arena(datasets[0].kinds, max_block_rows=rows, zero_copy=zero_copy),
            zero_copy=zero_copy,
        )

    @property
    def is_mine(self) -> bool:
        """Whether this process opened it."""
        return self.pid == os.getpid()

    @property
    def url(self) -> str:
        """What is read."""
        return " + ".join(dataset.reader.url for dataset in self.datasets)

    @property
    def names(self) -> list[str]:
        """Names of the columns."""
        return self.datasets[0].names

    @property
    def max_block_rows(self) -> int:
        """No block has more rows than this."""
        return max(dataset.reader.max_block_rows for dataset in self.datasets)

    @property
    def num_blocks(self) -> int:
        """Blocks of all datasets."""
        return sum(dataset.reader.num_blocks for dataset in self.datasets)

    @property
    def blocks_per_sample(self) -> float:
        """Blocks that one sample takes, if none is read twice."""
        weights = [1] if self.mixture is None else [part.weight for part in self.mixture.components]
        readers = [dataset.reader for dataset in self.datasets]
        blocks = [reader.num_blocks / max(1, reader.index.num_rows) for reader in readers]
        return sum(weight * each for weight, each in zip(weights, blocks, strict=True)) / sum(weights)

    @property
    def slot_bytes(self) -> int:
        """What room for any one block takes."""
        return max(dataset.slot_bytes for dataset in self.datasets)

    @property
    def held_slot_bytes(self) -> int:
        """What a slot takes that holds a block from one epoch to the next."""
        if not self._gives_views or any(dataset.reader.cache is None for dataset in self.datasets):
            return self.slot_bytes
        return max(_MAPPED_SLOT_BYTES, *(dataset.fixed_block_bytes for dataset in self.datasets))

    @property
    def row_bytes(self) -> int:
        """About what it takes to stage the columns of one row, at most."""
        row_bytes = max(dataset.row_bytes for dataset in self.datasets)
        return row_bytes // _VIEWS_PER_COPY if self._gives_views else row_bytes

    @property
    def _gives_views(self) -> bool:
        """Whether no value that varies in length is copied."""
        varying = [kind for kind in self.datasets[0].kinds if not kind.is_fixed]
        return self.zero_copy and bool(varying) and all(map(can_be_viewed, varying))

    def lane_order(self, *, epoch: int) -> tuple[int, ...]:
        """The usual order of the lanes by which batches are cut into runs, which is the same in each epoch; () is ascending."""
        return () if self.mixture is None else self.mixture.lane_order

    def waits(self) -> list[str]:
        """What is being fetched, and whom the stores wait for, each with since when."""
        return list(dict.fromkeys(words for dataset in self.datasets for words in dataset.reader.waits()))

    def has_table(self, lane: int) -> bool:
        """Whether the block table of a lane was read already."""
        dataset, own = self._place(lane)
        return dataset.reader.has_table(own)

    def load_tables(self, lanes: Int64s) -> None:
        """Read the block tables of some lanes, those of each dataset at once."""
        for number, dataset in enumerate(self.datasets):
            own = self.lanes.lanes[lanes[self.lanes.components[lanes] == number]]
            if len(own):
                dataset.reader.load_tables(own.tolist())

    def order(self, lane: int, *, seed: int, epoch: int, shuffle: bool) -> LaneOrder:
        """The order of a lane in an epoch of its dataset."""
        dataset, own = self._place(lane)
        digest, rows = dataset.reader.index.digest, dataset.reader.table(own).rows
        return LaneOrder(digest=digest, seed=seed, epoch=epoch, lane=own, block_rows=rows, shuffle=shuffle)

    def reuse(self, visit: Visit) -> bool:
        """Have what is in the slot of a visit serve it; False if it has to be brought in."""
        if not visit.is_held or not self.arena.holds(visit.slot):
            return False
        self.arena.arrange(visit)
        return True

    def fetch(self, visit: Visit) -> int:
        """Bring the block of a visit into its slot of the arena; how many of the bytes came from the cache."""
        dataset, own, block = self._block_of(visit)
        return dataset.reader.read_block_into(own, block, *self._rooms(dataset, visit, self._sizes(dataset, own, block)))

    def fetch_now(self, visit: Visit) -> int | None:
        """`fetch` if that takes no time: where little is to be read, and it lies in the cache and in memory; else None.

        A thread that does it costs more then, as it waits for the lock of Python again and again.
        """
        dataset, own, block = self._block_of(visit)
        sizes, rows = self._sizes(dataset, own, block), int(dataset.reader.table(own).rows[block])
        little = self.arena.taken_bytes(sizes, rows=rows) <= _LITTLE_BYTES
        if not little or not dataset.reader.is_cached(own, block, dataset.columns):
            return None
        done = dataset.reader.read_cached_into(own, block, *self._rooms(dataset, visit, sizes))
        return sum(sizes) if done else None

    def _block_of(self, visit: Visit) -> tuple[OpenDataset, int, int]:
        return (*self._place(visit.lane), int(visit.order.visits[visit.number]))

    def _sizes(self, dataset: OpenDataset, lane: int, block: int) -> list[int]:
        sizes: list[int] = dataset.reader.table(lane).raw_size[block].tolist()
        return [sizes[column] for column in dataset.columns]

    def _rooms(self, dataset: OpenDataset, visit: Visit, sizes: Sequence[int]) -> tuple[list[int], list[Room]]:
        """Columns and the rooms that they go into, in the schema's order, where those that are close are read at once."""
        rooms = self.arena.rooms(visit, sizes)
        pairs = sorted(zip(dataset.columns, rooms, strict=True), key=itemgetter(0))
        return [column for column, _ in pairs], [room for _, room in pairs]

    def _place(self, lane: int) -> tuple[OpenDataset, int]:
        """Whose lane it is, and which one."""
        return self.datasets[int(self.lanes.components[lane])], int(self.lanes.lanes[lane])
