"""What there is to know of a dataset without reading its rows: `forebay dataset info`.

Decoded sizes are in the block tables. They are read unless they are very large, which the index tells beforehand.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np

from client.names import format_url
from client.objects import ObjectStore
from client.parallel import bounded_map
from client.placement import partition_of
from client.record import ObjectInfo
from loader.index import DatasetIndex
from loader.reader import DatasetReader

__all__ = ["MAX_TABLES_BYTES", "ColumnSize", "DatasetSummary", "NodeShare", "summarize"]

MAX_TABLES_BYTES: Final = 64 << 20
"""Beyond this the block tables are not read just to add up their sizes."""
_MAX_PARALLEL: Final = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class ColumnSize:
    """One column.

    Attributes
    ----------
    stored_bytes, decoded_bytes : int or None
        Over all blocks; None if the tables were not read.
    """

    name: str
    type: str
    stored_bytes: int | None
    decoded_bytes: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeShare:
    """What one node of the layout holds of the lanes.

    Attributes
    ----------
    lanes : int
        Lanes that it has a copy of.
    first_lanes : int
        Of them, those that it is the first replica of, which readers prefer.
    stored_bytes : int
        Bytes of all its lanes.
    """

    node_id: str
    lanes: int
    first_lanes: int
    stored_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetSummary:
    """A dataset in numbers."""

    info: ObjectInfo
    index: DatasetIndex
    columns: tuple[ColumnSize, ...]
    nodes: tuple[NodeShare, ...]

    @property
    def num_blocks(self) -> int:
        """Blocks of all lanes."""
        return sum(lane.num_blocks for lane in self.index.lanes)

    @property
    def decoded_bytes(self) -> int | None:
        """Decoded bytes of all columns, None if the tables were not read."""
        sizes = [column.decoded_bytes for column in self.columns]
        return None if None in sizes else sum(size for size in sizes if size is not None)

    @property
    def ratio(self) -> float | None:
        """Decoded bytes per stored byte."""
        return None if not self.decoded_bytes else round(self.decoded_bytes / self.info.size, 2)

    def to_json(self) -> dict[str, Any]:
        """The summary as a JSON object."""
        return {
            "url": format_url(self.info.bucket, self.info.key),
            "version": self.info.version,
            "etag": self.info.etag,
            "digest": self.index.digest,
            "format": self.index.format,
            "created_s": self.info.record.created_s,
            "replicas": self.info.record.replicas,
            "rows": self.index.num_rows,
            "lanes": self.index.num_lanes,
            "blocks": self.num_blocks,
            "block_size_bytes": self.index.block_size_bytes,
            "compression": self.index.compression,
            "stored_bytes": self.info.size,
            "decoded_bytes": self.decoded_bytes,
            "ratio": self.ratio,
            "metadata": dict(self.info.metadata),
            "columns": [asdict(column) for column in self.columns],
            "nodes": [asdict(node) for node in self.nodes],
        }


def summarize(reader: DatasetReader, store: ObjectStore) -> DatasetSummary:
    """Read what `DatasetSummary` holds. Raises what `DatasetReader.table` does."""
    index = reader.index
    stored: Sequence[int | None] = [None] * len(index.schema)
    decoded = stored
    if sum(lane.table_bytes for lane in index.lanes) <= MAX_TABLES_BYTES:
        totals = np.zeros((2, len(index.schema)), np.int64)
        for table in bounded_map(reader.table, range(index.num_lanes), max_parallel=_MAX_PARALLEL):
            totals += (table.stored_size.sum(axis=0), table.raw_size.sum(axis=0))
        stored, decoded = totals.tolist()
    columns = tuple(
        ColumnSize(name=name, type=str(column_type), stored_bytes=stored[number], decoded_bytes=decoded[number])
        for number, (name, column_type) in enumerate(index.schema.items())
    )
    return DatasetSummary(info=reader.info, index=index, columns=columns, nodes=_shares(reader, store))


def _shares(reader: DatasetReader, store: ObjectStore) -> tuple[NodeShare, ...]:
    layout = store.cluster.layout
    shares: Mapping[str, list[int]] = {node.id: [0, 0, 0] for node in layout.nodes}
    for lane in reader.index.lanes:
        if lane.group is None:
            continue
        partition = partition_of(lane.group.encode(), partitions=layout.partitions)
        for place, node_id in enumerate(layout.replicas(partition, count=reader.info.record.replicas)):
            share = shares[node_id]
            share[0] += 1
            share[1] += place == 0
            share[2] += lane.blocks_bytes
    return tuple(
        NodeShare(node_id=node_id, lanes=lanes, first_lanes=first, stored_bytes=size)
        for node_id, (lanes, first, size) in shares.items()
    )
