"""Blocks: some rows of one lane, column by column, each column compressed and checked by itself.

Rows come from `loader.columns` as checked bytes, a `BlockBuilder` collects them, and its `EncodedBlock` goes to the store and
into a `BlockTable`. A reader takes sizes and checks from the table, and `decode_column_into` fills its buffer. The codec is
`loader.block_codec`, the table `loader.block_table`; this is the public face of both.

Invariant: which rows share a block follows from the rows and the block size alone, not from how the rows were handed over.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import zstandard

from loader.block_codec import (
    CODEC_RAW,
    CODEC_ZSTD,
    MAX_BLOCK_ROWS,
    OFFSET_BYTES,
    ColumnPart,
    EncodedBlock,
    check_block_size,
    check_decoded,
    decode_column_into,
    decode_value,
    encode_column,
    fixed_view,
    new_compressor,
    parse_compression,
    variable_view,
)
from loader.block_table import BlockTable, BlockTableBuilder
from loader.columns import EncodedColumn, Schema

__all__ = [
    "CODEC_RAW",
    "CODEC_ZSTD",
    "MAX_BLOCK_ROWS",
    "BlockBuilder",
    "BlockTable",
    "BlockTableBuilder",
    "ColumnPart",
    "EncodedBlock",
    "check_block_size",
    "check_decoded",
    "decode_column_into",
    "decode_value",
    "fixed_view",
    "new_compressor",
    "parse_compression",
    "variable_view",
]


class BlockBuilder:
    """Collects the rows of one block until it is full.

    A row goes in if the block is empty, or if with it the block has at most `MAX_BLOCK_ROWS` rows and `block_size_bytes`
    decoded bytes. Rows come from `Schema.check_sample` or `Schema.check_batch`, which have checked them.

    Attributes
    ----------
    rows : int
        Rows so far.
    decoded_bytes : int
        Decoded bytes so far, offsets included.
    """

    def __init__(self, schema: Schema, *, block_size_bytes: int) -> None:
        self._types = schema.types
        self._block_size_bytes = check_block_size(block_size_bytes)
        self._buffers = [bytearray() for _ in schema.types]
        self._variable = [number for number, column_type in enumerate(schema.types) if not column_type.is_fixed]
        self._fixed_bytes = sum(column_type.item_bytes for column_type in schema.types if column_type.is_fixed)
        self._lengths: dict[int, list[int]] = {number: [] for number in self._variable}
        self.rows = 0
        self.decoded_bytes = OFFSET_BYTES * len(self._variable)

    def append(self, sample: Sequence[bytes]) -> bool:
        """Take one row; False, and nothing taken, if the block is full."""
        size = sum(map(len, sample)) + OFFSET_BYTES * len(self._variable)
        if not self._has_room(self.rows, self.decoded_bytes + size):
            return False
        for buffer, value in zip(self._buffers, sample, strict=True):
            buffer += value
        for number, lengths in self._lengths.items():
            lengths.append(len(sample[number]))
        self.rows += 1
        self.decoded_bytes += size
        return True

    def extend(self, batch: Sequence[EncodedColumn], *, start: int, step: int = 1) -> int:
        """Take rows `start`, `start + step`, ... of a checked batch until they end or the block is full.

        Returns
        -------
        int
            How many rows were taken; 0 if the block was full or there are none.
        """
        taken, decoded_bytes = self._fitting(batch, start=start, step=step)
        chosen = slice(start, start + taken * step, step)
        for number, (buffer, column) in enumerate(zip(self._buffers, batch, strict=True)):
            if isinstance(column, list):
                values = column[chosen]
                buffer += b"".join(values)
                self._lengths[number].extend(map(len, values))
            else:
                buffer += column[chosen].tobytes()
        self.rows += taken
        self.decoded_bytes = decoded_bytes
        return taken

    def _fitting(self, batch: Sequence[EncodedColumn], *, start: int, step: int) -> tuple[int, int]:
        """How many of the rows fit, and the decoded bytes of the block with them."""
        available = range(start, len(batch[0]), step)
        taken, decoded_bytes = 0, self.decoded_bytes
        if not self._variable:
            room = max((self._block_size_bytes - decoded_bytes) // self._fixed_bytes, 1 - self.rows)
            taken = max(0, min(len(available), room, MAX_BLOCK_ROWS - self.rows))
            return taken, decoded_bytes + taken * self._fixed_bytes
        columns = [batch[number] for number in self._variable]
        for row in available:
            size = self._fixed_bytes + sum(len(column[row]) + OFFSET_BYTES for column in columns)
            if not self._has_room(self.rows + taken, decoded_bytes + size):
                break
            taken += 1
            decoded_bytes += size
        return taken, decoded_bytes

    def _has_room(self, rows: int, decoded_bytes: int) -> bool:
        return rows == 0 or (rows < MAX_BLOCK_ROWS and decoded_bytes <= self._block_size_bytes)

    def encode(self, compressor: zstandard.ZstdCompressor | None) -> EncodedBlock:
        """The finished block. The builder must not be used any more: the block may share its buffers."""
        parts = []
        for number, (column_type, buffer) in enumerate(zip(self._types, self._buffers, strict=True)):
            raw: bytes | bytearray = buffer
            if not column_type.is_fixed:
                offsets = np.zeros(self.rows + 1, "<u8")
                np.cumsum(self._lengths[number], out=offsets[1:])
                raw = offsets.tobytes() + buffer
            parts.append(encode_column(raw, compressor=None if column_type.is_image else compressor))
        return EncodedBlock(rows=self.rows, parts=tuple(parts))
