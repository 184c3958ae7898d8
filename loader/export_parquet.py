"""Rows as Parquet files, ``part-00000.parquet`` and so on. pyarrow is needed for it.

Numbers and texts are what Parquet has for them, bytes and images are binary, json is text, arrays are lists of their elements
in C order, of one length if their shape is fixed. Each field's metadata says the column type
(`loader.arrow_columns.TYPE_KEY`), so that a dataset which is built from the files has the columns, and the rows, that this one
has. Complex numbers Parquet doesn't have.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from typing import Any, Final

import numpy as np

from loader.arrow_columns import TYPE_KEY, import_pyarrow
from loader.columns import ColumnType, EncodedColumn, Schema
from loader.errors import ColumnError
from loader.lanes import encoded_bytes

__all__ = ["FILE_BYTES", "ParquetWriter"]

FILE_BYTES: Final = 256 << 20
"""Decoded bytes after which a file is full. It is held in memory, encoded, until then."""


class ParquetWriter:
    """Takes batches, each of which becomes a row group.

    Parameters
    ----------
    level : int or None
        Of zstd; None doesn't compress.
    put : callable
        Takes the name and the bytes of a file.
    """

    def __init__(self, schema: Schema, *, level: int | None, put: Callable[[str, memoryview], None]) -> None:
        self._pyarrow = import_pyarrow("the export", what="Parquet")
        self._types = schema.types
        fields = [
            self._pyarrow.field(name, _arrow_type(self._pyarrow, name, kind), nullable=False, metadata={TYPE_KEY: str(kind)})
            for name, kind in schema.items()
        ]
        self._schema = self._pyarrow.schema(fields)
        self._options: dict[str, Any] = {"compression": "NONE"} if level is None else {"compression": "zstd"}
        if level is not None:
            self._options["compression_level"] = level
        self._put = put
        self._num_files = 0
        self._file_bytes = 0
        self._open()

    def write(self, batch: tuple[EncodedColumn, ...]) -> None:
        """Append rows."""
        arrays = [
            _arrow_array(self._pyarrow, column, kind, field.type)
            for column, kind, field in zip(batch, self._types, self._schema, strict=True)
        ]
        table = self._pyarrow.Table.from_arrays(arrays, schema=self._schema)
        self._writer.write_table(table, row_group_size=max(1, table.num_rows))
        self._file_bytes += encoded_bytes(batch)
        if self._file_bytes >= FILE_BYTES:
            self._close()
            self._open()

    def finish(self) -> None:
        """Hand on the last file; a dataset without rows is a file without rows."""
        if self._file_bytes or not self._num_files:
            self._close()
        else:
            self._writer.close()

    def _open(self) -> None:
        self._out, self._file_bytes = io.BytesIO(), 0
        self._writer = self._pyarrow.parquet.ParquetWriter(self._out, self._schema, **self._options)

    def _close(self) -> None:
        self._writer.close()
        self._put(f"part-{self._num_files:05}.parquet", self._out.getbuffer())
        self._num_files += 1


def _arrow_type(pyarrow: Any, name: str, kind: ColumnType) -> Any:
    if kind.dtype is None:
        return pyarrow.string() if kind.kind in ("str", "json") else pyarrow.binary()
    if kind.dtype.kind == "c":
        raise ColumnError.mismatch(name, expected="a type that Parquet has", found=f"{kind}, and it has no complex numbers")
    item = pyarrow.from_numpy_dtype(kind.dtype)
    if not kind.is_fixed:
        return pyarrow.list_(pyarrow.field("item", item, nullable=False))
    return pyarrow.list_(pyarrow.field("item", item, nullable=False), math.prod(kind.shape)) if kind.shape else item


def _arrow_array(pyarrow: Any, column: EncodedColumn, kind: ColumnType, arrow_type: Any) -> Any:
    if isinstance(column, list):
        if kind.dtype is None:
            return pyarrow.array(column, pyarrow.binary()).cast(arrow_type)
        offsets = np.cumsum([0, *map(len, column)]) // kind.dtype.itemsize
        items = pyarrow.array(np.frombuffer(b"".join(column), kind.dtype))
        return pyarrow.ListArray.from_arrays(pyarrow.array(offsets, pyarrow.int32()), items, type=arrow_type)
    if not kind.shape:
        return pyarrow.array(column)
    return pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(column.reshape(-1)), type=arrow_type)
