"""Arrow arrays as columns: what Parquet, CSV and Hugging Face datasets have in common.

pyarrow is needed for them alone, and taken only when one of them is asked for. Columns are handed on as numpy arrays, without
a Python object per value where the type is numeric. Numbers are stored in the dtype that was asked for if each of them fits:
files often hold int64 where uint16 would do. An image or sound of Hugging Face's, a struct of ``bytes`` and ``path``, is its
bytes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Final

import numpy as np

from loader.columns import ColumnType, EncodedColumn, Schema, infer_column_type, parse_column_type
from loader.errors import ColumnError
from loader.input_file import InputFile, reading
from loader.source_rows import RowError, SourceError, check_rows, narrowed
from loader.values import Array

__all__ = ["TYPE_KEY", "ArrowPiece", "check_names", "import_pyarrow", "infer_types", "translated"]

TYPE_KEY: Final = b"forebay.type"
"""In a field's metadata: the column type, where an export has written it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ArrowPiece:
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

    @property
    def place(self) -> str:
        """See `Piece.place`."""
        return f"{self.file}, row {self.first_row}"

    def encode(self, schema: Schema) -> tuple[EncodedColumn, ...]:
        """See `Piece.encode`."""
        rows = self.read(schema.names)
        columns = {}
        for name, column_type in schema.items():
            values = _values(_combined(rows.column(name)), column_type)
            is_text = column_type.kind == "json" and _declared(rows.schema, name) is not None
            columns[name] = [json.loads(text) for text in values] if is_text else values
        return check_rows(
            schema, columns, file=self.file, place=lambda index: (f"row {self.first_row + index}", self.first_row + index)
        )


def import_pyarrow(file: object, *, what: str) -> ModuleType:
    """The module pyarrow with all that is used of it, or the error that says how to get it."""
    try:
        import pyarrow.csv
        import pyarrow.ipc
        import pyarrow.parquet
    except ImportError as exc:
        raise SourceError(f"{file}: {what} needs pyarrow; install it with: pip install 'forebay[loader]'") from exc
    module: ModuleType = pyarrow
    return module


@contextmanager
def translated(file: InputFile, *, what: str) -> Iterator[None]:
    """Errors of pyarrow, and of reading, become a `SourceError` that names the file."""
    pyarrow = import_pyarrow(file, what=what)
    try:
        with reading(file, what=f" as {what}"):
            yield
    except pyarrow.ArrowException as exc:
        raise SourceError(f"{file}: can't be read as {what}: {exc}") from exc


def check_names(names: Sequence[str], schema: Schema, *, file: InputFile, exact: bool) -> None:
    """Raise `RowError` unless a file has the columns of `schema`, and no others if it should be `exact`."""
    for name, column_type in schema.items():
        if name not in names:
            error = ColumnError.mismatch(name, expected=str(column_type), found=f"only the columns {', '.join(names)}")
            raise RowError.of(error, file=str(file))
    if exact and len(names) != len(schema):
        unknown = next(name for name in names if name not in schema.names)
        error = ColumnError.mismatch(unknown, expected=f"only the columns {', '.join(schema.names)}", found="one more")
        hint = ", which the first file doesn't have; choose the columns with --columns"
        raise RowError.of(error, file=str(file), hint=hint)


def infer_types(batch: Any, *, file: InputFile, what: str) -> dict[str, ColumnType]:
    """The column types of a RecordBatch: what an export has noted, else what its values say."""
    found = {}
    for name in batch.schema.names:
        column, declared = batch.column(name), _declared(batch.schema, name)
        try:
            found[name] = declared or infer_column_type(_values(column, None), name=name)
        except ColumnError as error:
            hint = f" ({what} type {column.type}); choose other columns with --columns"
            raise RowError.of(error, file=str(file), place=f"the first {len(column)} rows", hint=hint) from error
    return found


def _declared(schema: Any, name: str) -> ColumnType | None:
    text = (schema.field(name).metadata or {}).get(TYPE_KEY)
    return None if text is None else parse_column_type(text.decode())


def _combined(column: Any) -> Any:
    """A column of a Table, which may be in chunks, as one array."""
    return column.combine_chunks() if hasattr(column, "combine_chunks") else column


def _is_list(kind: Any) -> bool:
    from pyarrow import types

    return bool(types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind))


def _values(column: Any, wanted: ColumnType | None) -> Any:
    """The values of an Arrow array, one per row, as `Schema.check_batch` or `infer_column_type` take them."""
    from pyarrow import ExtensionArray, compute, types

    kind = column.type
    if isinstance(column, ExtensionArray):
        # Known as such only where the library that made the type is imported; its values are what they are stored as.
        return _values(column.storage, wanted)
    if types.is_dictionary(kind):
        return _values(column.dictionary_decode(), wanted)
    if types.is_struct(kind) and {field.name for field in kind} == {"bytes", "path"}:
        return compute.struct_field(column, "bytes").to_pylist()
    lengths: list[Array] = []
    elements = column
    while _is_list(elements.type) and not elements.null_count:
        lengths.append(elements.value_lengths().to_numpy(zero_copy_only=False))
        elements = elements.flatten()
    inner = [set(sizes.tolist()) for sizes in lengths[1:]]
    kind = elements.type
    if (
        (types.is_integer(kind) or types.is_floating(kind) or types.is_boolean(kind))
        and not elements.null_count
        and all(len(sizes) == 1 for sizes in inner)
    ):
        numbers = narrowed(elements.to_numpy(zero_copy_only=False), wanted)
        if isinstance(numbers, np.ndarray):
            return _arrays(lengths[0], numbers, tuple(min(sizes) for sizes in inner), wanted) if lengths else numbers
    # Python values are slow, and right for all the rest: the check names the row that does not fit.
    return column.to_pylist()


def _arrays(lengths: Array, numbers: Array, inner: tuple[int, ...], wanted: ColumnType | None) -> Array | list[Array]:
    """`numbers`, the numbers of all rows one after another, as an array [length, *inner] for each row."""
    row_items = lengths * math.prod(inner)
    is_flat = wanted is not None and wanted.is_fixed and inner in ((), wanted.shape[1:])
    if wanted is not None and is_flat and bool(np.all(row_items == math.prod(wanted.shape))):
        return numbers.reshape(len(lengths), *wanted.shape)
    arrays = np.split(numbers, np.cumsum(row_items)[:-1]) if len(lengths) else []
    if wanted is not None and wanted.kind == "ragged" and inner in ((), wanted.shape):
        step = math.prod(wanted.shape)
        return [array.reshape(-1, *wanted.shape) if len(array) % step == 0 else array for array in arrays]
    return [array.reshape(-1, *inner) for array in arrays] if inner else arrays
