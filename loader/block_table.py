"""The table of one lane's blocks: how many rows each has, and where, how long and what each of its columns is.

A lane is its blocks one after another, a block its columns in the schema's order, so offsets are cumulative sums of the
stored sizes and are not stored. Encoded (numbers little-endian, b blocks, c columns)::

    8s  magic "FBYTABLE"        u64[b, c]  checks (xxh3_64 of the decoded bytes)
    u32 version                 u32[b, c]  stored sizes
    u32 c                       u32[b, c]  decoded sizes
    u64 b                       u32[b]     rows
                                u8[b, c]   codecs
                                u64        xxh3_64 of all bytes before it

Invariants: what decodes is consistent in itself and with the schema, or an `IndexCorrupt` is raised; the memory that decoding
takes is bounded by the bytes given. This module does not know where a lane lies.
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

import blake3
import numpy as np
import numpy.typing as npt
import xxhash

from loader.block_codec import CODEC_RAW, CODEC_ZSTD, MAX_BLOCK_ROWS, OFFSET_BYTES, EncodedBlock
from loader.columns import Schema
from loader.errors import FormatUnsupported, IndexCorrupt

__all__ = ["MAX_COLUMN_BYTES", "TABLE_VERSION", "BlockTable", "BlockTableBuilder", "table_bytes"]

Int64s = npt.NDArray[np.int64]

TABLE_VERSION: Final = 1
MAX_COLUMN_BYTES: Final = 1 << 30
"""Bound on the decoded bytes of one column of one block, and so on the buffer that a reader takes for it."""
_MAGIC: Final = b"FBYTABLE"
_HEADER: Final = struct.Struct("<8sIIQ")
_CHECK: Final = struct.Struct("<Q")


def table_bytes(num_blocks: int, *, num_columns: int) -> int:
    """Size of an encoded table."""
    return _HEADER.size + num_blocks * (4 + num_columns * (8 + 4 + 4 + 1)) + _CHECK.size


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class BlockTable:
    """The blocks of one lane.

    Attributes
    ----------
    rows : int64 [b]
        Rows of each block.
    stored_size, raw_size : int64 [b, c]
        Stored and decoded bytes of each column of each block.
    codec : uint8 [b, c]
        Codec of each.
    check : uint64 [b, c]
        xxh3_64 of the decoded bytes of each.
    offsets : int64 [b, c]
        Where each lies, from the start of the lane.
    """

    rows: Int64s
    stored_size: Int64s
    raw_size: Int64s
    codec: npt.NDArray[np.uint8]
    check: npt.NDArray[np.uint64]
    offsets: Int64s = field(init=False)

    def __post_init__(self) -> None:
        ends = np.cumsum(self.stored_size, dtype=np.int64).reshape(self.stored_size.shape)
        object.__setattr__(self, "offsets", ends - self.stored_size)

    @property
    def num_blocks(self) -> int:
        return len(self.rows)

    @property
    def num_rows(self) -> int:
        return int(self.rows.sum())

    @property
    def blocks_bytes(self) -> int:
        """Stored bytes of all blocks."""
        return int(self.stored_size.sum())

    def digest(self) -> str:
        """The lane's digest, in hex: BLAKE3-256 over (rows, checks of all columns), uint64 each, of one block after another.

        It says what the lane holds, and nothing of where or how that is stored.
        """
        content = np.column_stack([self.rows.astype("<u8"), self.check.astype("<u8")])
        return blake3.blake3(content.tobytes()).hexdigest()

    def encode(self) -> bytes:
        """The table's bytes; see the module's text."""
        head = _HEADER.pack(_MAGIC, TABLE_VERSION, self.check.shape[1], self.num_blocks)
        arrays = (
            self.check.astype("<u8"),
            self.stored_size.astype("<u4"),
            self.raw_size.astype("<u4"),
            self.rows.astype("<u4"),
            self.codec,
        )
        body = head + b"".join(values.tobytes() for values in arrays)
        return body + _CHECK.pack(xxhash.xxh3_64_intdigest(body))

    @classmethod
    def decode(cls, data: bytes | bytearray | memoryview, *, schema: Schema) -> BlockTable:
        """The table that `data` is.

        Raises
        ------
        IndexCorrupt
            If it is damaged, or describes blocks that the schema can't have.
        FormatUnsupported
            If a newer version wrote it.
        """
        if len(data) < _HEADER.size + _CHECK.size:
            raise IndexCorrupt(f"a block table has {_HEADER.size + _CHECK.size} bytes or more, found {len(data)}")
        magic, version, num_columns, num_blocks = _HEADER.unpack_from(data)
        if magic != _MAGIC:
            raise IndexCorrupt(f"a block table begins with {_MAGIC!r}, found {magic!r}")
        (check,) = _CHECK.unpack_from(data, len(data) - _CHECK.size)
        found = xxhash.xxh3_64_intdigest(memoryview(data)[: -_CHECK.size])
        if found != check:
            raise IndexCorrupt(f"a block table of {len(data)} bytes has checksum {found:016x}, expected {check:016x}")
        if version > TABLE_VERSION:
            raise FormatUnsupported(f"a block table has version {version}, this Forebay reads up to {TABLE_VERSION}: upgrade")
        expected = table_bytes(num_blocks, num_columns=num_columns)
        if version < 1 or num_columns != len(schema) or len(data) != expected:
            raise IndexCorrupt(
                f"a table of version {version}, {num_blocks} blocks and {num_columns} columns in {len(data)} bytes, "
                f"expected {len(schema)} columns and {expected} bytes"
            )
        table = cls._unpack(data, num_blocks=num_blocks, num_columns=num_columns)
        table._check(schema)
        return table

    @classmethod
    def _unpack(cls, data: bytes | bytearray | memoryview, *, num_blocks: int, num_columns: int) -> BlockTable:
        position = _HEADER.size

        def take(dtype: str, *shape: int) -> npt.NDArray[np.generic]:
            nonlocal position
            count = int(np.prod(shape, dtype=np.int64))
            values = np.frombuffer(data, dtype, count=count, offset=position).reshape(shape)
            position += values.nbytes
            return values

        check = take("<u8", num_blocks, num_columns).astype(np.uint64)
        stored_size = take("<u4", num_blocks, num_columns).astype(np.int64)
        raw_size = take("<u4", num_blocks, num_columns).astype(np.int64)
        rows = take("<u4", num_blocks).astype(np.int64)
        codec = take("u1", num_blocks, num_columns).astype(np.uint8)
        return cls(rows=rows, stored_size=stored_size, raw_size=raw_size, codec=codec, check=check)

    def _check(self, schema: Schema) -> None:
        """Raise `IndexCorrupt` unless each block is one that a writer could have made of `schema`."""
        fixed = np.array([column_type.is_fixed for column_type in schema.types])
        item_bytes = np.array([column_type.item_bytes for column_type in schema.types], np.int64)
        rows = self.rows[:, None]
        fits = np.where(fixed, self.raw_size == rows * item_bytes, self.raw_size >= OFFSET_BYTES * (rows + 1))
        raw = self.codec == CODEC_RAW
        sound = (
            fits
            & (rows >= 1)
            & (rows <= MAX_BLOCK_ROWS)
            & (self.raw_size <= MAX_COLUMN_BYTES)
            & (self.stored_size >= 1)
            & (raw | (self.codec == CODEC_ZSTD))
            & np.where(raw, self.stored_size == self.raw_size, self.stored_size < self.raw_size)
        )
        if not sound.all():
            block, column = map(int, np.argwhere(~sound)[0])
            raise IndexCorrupt(
                f"block {block}, column {schema.names[column]!r} ({schema.types[column]}): {self.rows[block]} rows, "
                f"{self.raw_size[block, column]} decoded and {self.stored_size[block, column]} stored bytes, "
                f"codec {self.codec[block, column]} can't be"
            )


class BlockTableBuilder:
    """Collects the table of a lane while its blocks are written; keeps 32 bytes a column of a block, not the block."""

    def __init__(self, *, num_columns: int, numbers: Iterable[int] = ()) -> None:
        self._num_columns = num_columns
        self._numbers = array("Q", numbers)

    @property
    def num_blocks(self) -> int:
        """Blocks so far."""
        return len(self._numbers) // (1 + 4 * self._num_columns)

    def numbers(self, start: int, stop: int) -> list[int]:
        """What is kept of blocks ``[start, stop)``, from which another builder can go on."""
        width = 1 + 4 * self._num_columns
        return self._numbers[start * width : stop * width].tolist()

    def append(self, block: EncodedBlock) -> None:
        """Add the lane's next block."""
        assert len(block.parts) == self._num_columns
        self._numbers.append(block.rows)
        for part in block.parts:
            self._numbers.extend((len(part.data), part.raw_size, part.codec, part.check))

    def build(self) -> BlockTable:
        """The table of the blocks so far."""
        numbers = np.array(self._numbers, np.uint64).reshape(-1, 1 + 4 * self._num_columns)
        stored_size, raw_size, codec, check = (numbers[:, 1 + place :: 4] for place in range(4))
        return BlockTable(
            rows=numbers[:, 0].astype(np.int64),
            stored_size=stored_size.astype(np.int64),
            raw_size=raw_size.astype(np.int64),
            codec=codec.astype(np.uint8),
            check=check.astype(np.uint64),
        )
