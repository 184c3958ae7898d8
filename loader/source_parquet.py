"""Parquet files as a source. pyarrow is needed for this alone, and taken only when a Parquet file is asked for.

Row groups are decoded in parallel if they are small, and else one after another in pieces, because a row group can only be read
from its start. Columns are handed on as numpy arrays, without a Python object per value where the type is numeric. Numbers are
stored in the dtype that was asked for if each of them fits: files often hold int64 where uint16 would do.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any, Final

import numpy as np

from loader.columns import ColumnType, EncodedColumn, Schema, infer_column_type
from loader.errors import ColumnError
from loader.source_rows import PIECE_BYTES, PIECE_ROWS, SAMPLE_ROWS, Piece, RowError, SourceError, check_rows
from loader.values import Array

__all__ = ["PARQUET_SUFFIXES", "ParquetPiece", "ParquetSource"]

PARQUET_SUFFIXES: Final = (".parquet", ".pq")
_GROUP_BYTES: Final = 32 << 20
_GROUP_ROWS: Final = 1 << 17
"""Up to this size a row group is read as a whole: some of them are held in memory at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ParquetPiece:
    """Some rows of one file.

    Attributes
    ----------
    first_row : int
        Number of the first row in the file, counted from 0.
    read : callable
        The rows of the columns that it is given, as a pyarrow.RecordBatch or Table.
    """

    file: str
    first_row: int
    read: Callable[[Sequence[str]], Any]
    input_bytes: int

    def encode(self, schema: Schema) -> tuple[EncodedColumn, ...]:
        """See `Piece.encode`."""
        rows = self.read(schema.names)
        columns = {name: _values(_combined(rows.column(name)), column_type) for name, column_type in schema.items()}
        return check_rows(
            schema, columns, file=self.file, place=lambda index: (f"row {self.first_row + index}", self.first_row + index)
        )


class ParquetSource:
    """Parquet files, one after another; see `loader.source_rows.Source`."""

    in_processes = False
    piece_bytes = _GROUP_BYTES

    def __init__(self, files: Sequence[Path]) -> None:
        _pyarrow(files[0])
        self._files = tuple(files)
        self.input_bytes = sum(file.stat().st_size for file in files)
        self.metadata: Mapping[str, str] = {}
        self.note: str | None = None

    def infer_columns(self) -> dict[str, ColumnType]:
        """See `Source.infer_columns`. They are those of the first file that has rows."""
        for file in self._files:
            with _opened(file) as parquet:
                for batch in parquet.iter_batches(batch_size=SAMPLE_ROWS):
                    return {name: _infer(batch.column(name), name=name, file=file) for name in batch.schema.names}
        raise SourceError(f"{self._files[0]}: no rows to infer columns from; give them with --columns name=type,...")

    def pieces(self, schema: Schema, *, exact: bool) -> Iterator[Piece]:
        """See `Source.pieces`."""
        for file in self._files:
            with _opened(file) as parquet:
                _check_names(parquet.schema_arrow.names, schema, file=file, exact=exact)
                num_rows, row, done = parquet.metadata.num_rows, 0, 0
                for rows, read in _runs(file, parquet, schema.names):
                    at = file.stat().st_size * (row + rows) // num_rows
                    yield ParquetPiece(file=str(file), first_row=row, read=read, input_bytes=at - done)
                    row, done = row + rows, at


def _runs(file: Path, parquet: Any, names: Sequence[str]) -> Iterator[tuple[int, Callable[[Sequence[str]], Any]]]:
    """The rows of a file in runs: how many, and what reads them."""
    for number in range(parquet.metadata.num_row_groups):
        group = parquet.metadata.row_group(number)
        if group.total_byte_size <= _GROUP_BYTES and group.num_rows <= _GROUP_ROWS:
            yield group.num_rows, partial(_read_group, file, parquet.metadata, number)
            continue
        num_rows = max(1, min(PIECE_ROWS, PIECE_BYTES * group.num_rows // max(1, group.total_byte_size)))
        for batch in parquet.iter_batches(batch_size=num_rows, row_groups=[number], columns=list(names)):
            yield batch.num_rows, batch.select


def _read_group(file: Path, metadata: Any, number: int, names: Sequence[str]) -> Any:
    pyarrow = _pyarrow(file)
    # Its own file object, since one doesn't serve two threads. The cores are busy with other row groups.
    with _translated(file), pyarrow.parquet.ParquetFile(file, metadata=metadata) as parquet:
        return parquet.read_row_group(number, columns=list(names), use_threads=False)


def _combined(column: Any) -> Any:
    """A column of a Table, which may be in chunks, as one array."""
    return column.combine_chunks() if hasattr(column, "combine_chunks") else column


def _pyarrow(file: Path) -> ModuleType:
    try:
        import pyarrow.parquet
    except ImportError as exc:
        raise SourceError(f"{file}: reading Parquet needs pyarrow; install it with: pip install 'forebay[loader]'") from exc
    module: ModuleType = pyarrow
    return module


@contextmanager
def _opened(file: Path) -> Iterator[Any]:
    with _translated(file), _pyarrow(file).parquet.ParquetFile(file) as parquet:
        yield parquet


@contextmanager
def _translated(file: Path) -> Iterator[None]:
    try:
        yield
    except (_pyarrow(file).ArrowException, OSError) as exc:
        raise SourceError(f"{file}: can't be read as Parquet: {exc}") from exc


def _check_names(names: Sequence[str], schema: Schema, *, file: Path, exact: bool) -> None:
    for name, column_type in schema.items():
        if name not in names:
            error = ColumnError.mismatch(name, expected=str(column_type), found=f"only the columns {', '.join(names)}")
            raise RowError.of(error, file=str(file))
    if exact and len(names) != len(schema):
        unknown = next(name for name in names if name not in schema.names)
        error = ColumnError.mismatch(unknown, expected=f"only the columns {', '.join(schema.names)}", found="one more")
        hint = ", which the first file doesn't have; choose the columns with --columns"
        raise RowError.of(error, file=str(file), hint=hint)


def _infer(column: Any, *, name: str, file: Path) -> ColumnType:
    try:
        return infer_column_type(_values(column, None), name=name)
    except ColumnError as error:
        hint = f" (Parquet type {column.type}); choose other columns with --columns"
        raise RowError.of(error, file=str(file), place=f"the first {len(column)} rows", hint=hint) from error


def _values(column: Any, wanted: ColumnType | None) -> Any:
    """The values of an Arrow array, one per row, as `Schema.check_batch` or `infer_column_type` take them."""
    from pyarrow import types

    kind = column.type
    if types.is_dictionary(kind):
        return _values(column.dictionary_decode(), wanted)
    is_list = types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)
    elements = column.flatten() if is_list and not column.null_count else column
    kind = elements.type
    if (types.is_integer(kind) or types.is_floating(kind) or types.is_boolean(kind)) and not elements.null_count:
        numbers = _numbers(elements, wanted)
        if numbers is not None:
            return _arrays(column.value_lengths().to_numpy(), numbers, wanted) if is_list else numbers
    # Python values are slow, and right for all the rest: the check names the row that does not fit.
    return column.to_pylist()


def _arrays(lengths: Array, numbers: Array, wanted: ColumnType | None) -> Array | list[Array]:
    """`numbers`, the numbers of all rows one after another, as an array for each row."""
    if wanted is not None and wanted.is_fixed and bool(np.all(lengths == math.prod(wanted.shape))):
        return numbers.reshape(len(lengths), *wanted.shape)
    arrays = np.split(numbers, np.cumsum(lengths)[:-1])
    if wanted is not None and wanted.kind == "ragged":
        step = math.prod(wanted.shape)
        return [array.reshape(-1, *wanted.shape) if len(array) % step == 0 else array for array in arrays]
    return arrays


def _numbers(column: Any, wanted: ColumnType | None) -> Array | None:
    """The numbers in the dtype that is wanted; None if one of them does not fit."""
    numbers: Array = column.to_numpy(zero_copy_only=False)
    if wanted is None or wanted.dtype is None or numbers.dtype == wanted.dtype:
        return numbers
    with np.errstate(invalid="ignore", over="ignore"):
        cast = numbers.astype(wanted.dtype)
        # Beside a float an integer would be compared as a float, rounded like it.
        back = cast.astype(numbers.dtype) if cast.dtype.kind == "f" else cast
    kinds = numbers.dtype.kind + wanted.dtype.kind
    if kinds in ("ff", "fc"):
        # Asked for by name, so rounded; but no number may become infinite.
        return cast if bool(np.all(np.isfinite(cast) == np.isfinite(numbers))) else None
    exact = kinds in ("ii", "iu", "ui", "uu", "if", "uf") and bool(np.all(back == numbers))
    return cast if exact else None
