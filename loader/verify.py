"""Verifying a dataset as a dataset: every block of every column decoded and checked, rows counted, the digest computed anew.

This reads what a trainer would read, from one replica of each chunk; whether all copies are there and whole is what
`forebay verify` counts. Faults are collected, not raised, so that one run finds them all.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final

import numpy as np
import xxhash

from client.errors import StoreError
from client.parallel import bounded_map
from loader.block import BlockTable, fixed_view, variable_view
from loader.columns import ColumnType
from loader.dataset_record import METADATA_KEY
from loader.errors import BlockCorrupt, LoaderError
from loader.index import dataset_digest
from loader.order import lane_lengths
from loader.reader import DatasetReader

__all__ = ["MAX_FAULTS_PER_LANE", "DatasetFault", "DatasetHealth", "verify_dataset"]

MAX_FAULTS_PER_LANE: Final = 100
"""A lane with more is given up: what follows would tell nothing new."""
OnBlocks = Callable[[int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetFault:
    """Something that is not as the format says.

    Attributes
    ----------
    lane, block : int or None
        Where; None if it is about the lane, or the dataset, as a whole.
    column : str or None
        The column's name.
    problem : str
        What was expected and what was found.
    """

    problem: str
    lane: int | None = None
    block: int | None = None
    column: str | None = None

    def __str__(self) -> str:
        column = None if self.column is None else repr(self.column)
        places = (("lane", self.lane), ("block", self.block), ("column", column))
        where = ", ".join(f"{name} {value}" for name, value in places if value is not None)
        return f"{where}: {self.problem}" if where else self.problem

    def to_json(self) -> dict[str, Any]:
        """The fault as a JSON object."""
        return {"lane": self.lane, "block": self.block, "column": self.column, "problem": self.problem}


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetHealth:
    """What `verify_dataset` found.

    Attributes
    ----------
    rows, blocks, decoded_bytes : int
        What was decoded and is as it should be.
    digest : str or None
        Computed from the decoded bytes; None where some could not be decoded.
    faults : tuple of DatasetFault
        Lane by lane.
    """

    rows: int
    blocks: int
    decoded_bytes: int
    digest: str | None
    faults: tuple[DatasetFault, ...]

    @property
    def clean(self) -> bool:
        """Whether there is no fault."""
        return not self.faults

    def to_json(self) -> dict[str, Any]:
        """The result as a JSON object."""
        return {
            "clean": self.clean,
            "rows": self.rows,
            "blocks": self.blocks,
            "decoded_bytes": self.decoded_bytes,
            "digest": self.digest,
            "faults": [fault.to_json() for fault in self.faults],
        }


@dataclass(slots=True, kw_only=True)
class _LaneHealth:
    faults: list[DatasetFault]
    rows: int = 0
    blocks: int = 0
    decoded_bytes: int = 0
    digest: str | None = None


def _ignore(_num_blocks: int) -> None:
    pass


def verify_dataset(reader: DatasetReader, *, max_parallel: int = 8, on_blocks: OnBlocks = _ignore) -> DatasetHealth:
    """Decode everything and compare it with what table, index and record say.

    Parameters
    ----------
    max_parallel : int
        Lanes that are read at once; each takes the memory of one block.
    on_blocks : callable
        Is told how many more blocks were looked at; from several threads.
    """
    index = reader.index
    lanes = list(
        bounded_map(partial(_verify_lane, reader, on_blocks=on_blocks), range(index.num_lanes), max_parallel=max_parallel)
    )
    faults = [fault for lane in lanes for fault in lane.faults]
    digests = [lane.digest for lane in lanes if lane.digest is not None]
    digest = None
    if len(digests) == index.num_lanes:
        digest = dataset_digest(index.schema, num_rows=sum(lane.rows for lane in lanes), lane_digests=digests)
        if digest != index.digest:
            faults.append(DatasetFault(problem=f"the decoded blocks have digest {digest}, the index says {index.digest}"))
    faults.extend(_record_faults(reader))
    return DatasetHealth(
        rows=sum(lane.rows for lane in lanes),
        blocks=sum(lane.blocks for lane in lanes),
        decoded_bytes=sum(lane.decoded_bytes for lane in lanes),
        digest=digest,
        faults=tuple(faults),
    )


def _verify_lane(reader: DatasetReader, lane: int, *, on_blocks: OnBlocks) -> _LaneHealth:
    health = _LaneHealth(faults=[])
    try:
        table = reader.table(lane)
    except (LoaderError, StoreError) as error:
        health.faults.append(DatasetFault(lane=lane, problem=f"block table: {error.message}"))
        on_blocks(reader.index.lanes[lane].num_blocks)
        return health
    expected = int(lane_lengths(reader.index.num_rows, reader.index.num_lanes)[lane])
    if table.num_rows != expected:
        health.faults.append(DatasetFault(lane=lane, problem=f"{table.num_rows} rows, expected {expected}"))
    checks = np.zeros_like(table.check)
    for block in range(table.num_blocks):
        faults = _verify_block(reader, table, lane, block, checks)
        health.faults.extend(faults)
        if not faults:
            health.rows += int(table.rows[block])
            health.blocks += 1
            health.decoded_bytes += int(table.raw_size[block].sum())
        on_blocks(1)
        if len(health.faults) >= MAX_FAULTS_PER_LANE:
            break
    if not health.faults:
        health.digest = replace(table, check=checks).digest()
    return health


def _verify_block(
    reader: DatasetReader, table: BlockTable, lane: int, block: int, checks: np.ndarray[Any, Any]
) -> list[DatasetFault]:
    """The faults of one block; the checksums of what was decoded go into its row of `checks`."""
    faults = []
    for column, (name, column_type) in enumerate(reader.schema.items()):
        decoded = memoryview(bytearray(int(table.raw_size[block, column])))
        try:
            reader.read_block_into(lane, block, [column], [decoded])
            _check_structure(decoded, column_type, rows=int(table.rows[block]))
            checks[block, column] = xxhash.xxh3_64_intdigest(decoded)
        except (LoaderError, StoreError) as error:
            # The reader's own words for the place are left out, since the fault has it.
            problem = error.message.rpartition(f"column {name!r}: ")[2]
            faults.append(DatasetFault(lane=lane, block=block, column=name, problem=problem))
    return faults


def _check_structure(decoded: memoryview, column_type: ColumnType, *, rows: int) -> None:
    """Raise `BlockCorrupt` unless the bytes hold `rows` values."""
    if column_type.is_fixed:
        fixed_view(decoded, column_type, rows)
        return
    offsets, _ = variable_view(decoded, rows)
    if column_type.dtype is not None and bool(np.any(np.diff(offsets) % column_type.item_bytes)):
        raise BlockCorrupt(f"a value of {column_type} is cut: its bytes are not a multiple of {column_type.item_bytes}")


def _record_faults(reader: DatasetReader) -> list[DatasetFault]:
    """Where the object's own metadata, which other tools go by, says otherwise than the index."""
    text = reader.info.metadata.get(METADATA_KEY)
    if text is None:
        return []
    expected = {"format": reader.index.format, "digest": reader.index.digest, "rows": reader.index.num_rows}
    try:
        found = json.loads(text)
    except ValueError:
        found = text
    if found == expected:
        return []
    return [DatasetFault(problem=f"the object's metadata says {METADATA_KEY} {found}, the index has {expected}")]
