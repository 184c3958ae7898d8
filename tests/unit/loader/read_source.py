"""All rows of a source, for tests of sources."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from typing import Any

import numpy as np

from loader.block import BlockBuilder, decode_value, fixed_view, variable_view
from loader.columns import Schema
from loader.source_rows import Source

__all__ = ["rows_of", "types_of"]


def rows_of(source: Source, columns: Mapping[str, Any] | None = None) -> list[dict[str, Any]]:
    """All rows of a source, as reading them from a block gives them; pieces travel as to another process."""
    schema = Schema.of(source.infer_columns() if columns is None else columns)
    rows: list[dict[str, Any]] = []
    done = 0
    for piece in source.pieces(schema, exact=columns is None):
        travelled = pickle.loads(pickle.dumps(piece)) if source.in_processes else piece
        batch = travelled.encode(schema)
        done += piece.input_bytes
        for start in range(len(batch[0])):
            block = BlockBuilder(schema, block_size_bytes=1 << 20)
            assert block.extend([column[start : start + 1] for column in batch], start=0) == 1
            parts = block.encode(None).parts
            rows.append({name: _value(schema, name, part.data) for name, part in zip(schema.names, parts, strict=True)})
    assert done == source.input_bytes
    return rows


def _value(schema: Schema, name: str, data: bytes | bytearray) -> Any:
    if schema[name].is_fixed:
        return fixed_view(data, schema[name], 1)[0].tolist()
    value = decode_value(schema[name], variable_view(data, 1)[1])
    return value.tolist() if isinstance(value, np.ndarray) else value


def types_of(source: Source) -> dict[str, str]:
    return {name: str(column_type) for name, column_type in source.infer_columns().items()}
