"""Numpy arrays as a source: the first dimension is the rows.

Each .npy file is a column, called by its name without the suffix; all have as many rows. Each .npz file is some rows, its
arrays the columns; several follow each other. Files are read in pieces and never as a whole, and never mapped: one that is cut
short while it is read is an error, and no crash. Arrays of Python objects are pickles and are never loaded. Texts (``<U8``)
are str columns.

Threads read pieces of .npy files; what an .npz file holds may be compressed, so it is read from front to back.
"""

from __future__ import annotations

import math
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, BinaryIO, Final, cast

import numpy as np

from loader.arrow_columns import check_names
from loader.columns import ColumnType, EncodedColumn, Schema, infer_column_type
from loader.errors import ColumnError
from loader.input_file import InputFile, opened
from loader.source_rows import PIECE_BYTES, PIECE_ROWS, FilesInTurn, Piece, RowError, SourceError, check_rows, narrowed
from loader.values import Array

__all__ = ["NPY_SUFFIXES", "NPZ_SUFFIXES", "NpyPiece", "NpySource", "NpzPiece", "NpzSource"]

NPY_SUFFIXES: Final = (".npy",)
NPZ_SUFFIXES: Final = (".npz",)


@dataclass(frozen=True, slots=True, kw_only=True)
class NpyColumn:
    """The array of a .npy file: where its data begin, and what they are.

    Attributes
    ----------
    shape : tuple of int
        Of one row.
    """

    file: str
    dtype: np.dtype[Any]
    num_rows: int
    shape: tuple[int, ...]
    offset: int

    @property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        return self.dtype.itemsize * math.prod(self.shape)

    def read(self, stream: BinaryIO, num_rows: int) -> Array:
        """The next rows of `stream`; raises `SourceError`."""
        size = num_rows * self.row_bytes
        data = stream.read(size)
        if len(data) != size:
            raise SourceError(
                f"{self.file}: ends {size - len(data)} bytes too early for {self.num_rows} rows; it was cut short"
            )
        return np.frombuffer(data, self.dtype).reshape(num_rows, *self.shape)


@dataclass(frozen=True, slots=True, kw_only=True)
class NpyPiece:
    """Some rows of .npy files, not yet read."""

    columns: Mapping[str, tuple[InputFile, NpyColumn]]
    first_row: int
    num_rows: int
    input_bytes: int

    @property
    def place(self) -> str:
        """See `Piece.place`."""
        return f"row {self.first_row}"

    def encode(self, schema: Schema) -> tuple[EncodedColumn, ...]:
        """See `Piece.encode`."""
        values = {}
        for name, column_type in schema.items():
            file, column = self.columns[name]
            with opened(file) as stream:
                stream.seek(column.offset + self.first_row * column.row_bytes)
                values[name] = _values(column.read(stream, self.num_rows), column_type)
        first = next(iter(self.columns.values()))[0]
        where = str(first) if len(self.columns) == 1 else f"{first} and the files beside it"
        return check_rows(
            schema, values, file=where, place=lambda index: (f"row {self.first_row + index}", self.first_row + index)
        )


class NpySource:
    """The columns of .npy files; see `loader.source_rows.Source`."""

    in_processes = False

    def __init__(self, files: Mapping[str, InputFile]) -> None:
        self.files = tuple(files.values())
        self._columns = {}
        for name, file in files.items():
            with opened(file) as stream:
                self._columns[name] = (file, _header(stream, where=str(file)))
        self._num_rows = next(iter(self._columns.values()))[1].num_rows
        for file, column in self._columns.values():
            if column.num_rows != self._num_rows:
                raise SourceError(
                    f"{file}: {column.num_rows} rows, but {self.files[0]} has {self._num_rows}; columns are as long"
                )
        self.input_bytes = sum(file.size_bytes for file in self.files)
        self._row_bytes = sum(column.row_bytes for _, column in self._columns.values())
        self.piece_bytes = max(PIECE_BYTES, self._row_bytes)
        self.metadata: Mapping[str, str] = {}
        self.note: str | None = None

    def infer_columns(self) -> dict[str, ColumnType]:
        """See `Source.infer_columns`. The files say their types."""
        return {name: _declared(column, name=name) for name, (_, column) in self._columns.items()}

    def pieces(self, schema: Schema, *, exact: bool) -> Iterator[Piece]:
        """See `Source.pieces`."""
        check_names(list(self._columns), schema, file=self.files[0], exact=exact)
        done, step = 0, max(1, min(PIECE_ROWS, PIECE_BYTES // self._row_bytes))
        columns = {name: self._columns[name] for name in schema.names}
        for first in range(0, self._num_rows, step):
            num_rows = min(step, self._num_rows - first)
            at = self.input_bytes * (first + num_rows) // self._num_rows
            yield NpyPiece(columns=columns, first_row=first, num_rows=num_rows, input_bytes=at - done)
            done = at


@dataclass(frozen=True, slots=True, kw_only=True)
class NpzPiece:
    """Some rows of one .npz file."""

    file: str
    first_row: int
    arrays: Mapping[str, Array]
    input_bytes: int

    @property
    def place(self) -> str:
        """See `Piece.place`."""
        return f"{self.file}, row {self.first_row}"

    def encode(self, schema: Schema) -> tuple[EncodedColumn, ...]:
        """See `Piece.encode`."""
        values = {name: _values(self.arrays[name], column_type) for name, column_type in schema.items()}
        return check_rows(
            schema, values, file=self.file, place=lambda index: (f"row {self.first_row + index}", self.first_row + index)
        )


class NpzSource(FilesInTurn):
    """The rows of .npz files, one after another; see `loader.source_rows.Source`."""

    piece_bytes = 2 * PIECE_BYTES

    def infer_columns(self) -> dict[str, ColumnType]:
        """See `Source.infer_columns`. The first file says the types."""
        with _archive(self.files[0]) as members:
            return {name: _declared(column, name=name) for name, (_, column) in members.items()}

    def pieces(self, schema: Schema, *, exact: bool) -> Iterator[Piece]:
        """See `Source.pieces`."""
        for file in self.files:
            with _archive(file) as members:
                check_names(list(members), schema, file=file, exact=exact)
                num_rows = next(iter(members.values()))[1].num_rows
                row_bytes = sum(column.row_bytes for _, column in members.values())
                done, step = 0, max(1, min(PIECE_ROWS, PIECE_BYTES // row_bytes))
                for first in range(0, num_rows, step):
                    rows = min(step, num_rows - first)
                    arrays = {name: members[name][1].read(members[name][0], rows) for name in schema.names}
                    at = file.size_bytes * (first + rows) // num_rows
                    yield NpzPiece(file=str(file), first_row=first, arrays=arrays, input_bytes=at - done)
                    done = at


@contextmanager
def _archive(file: InputFile) -> Iterator[dict[str, tuple[BinaryIO, NpyColumn]]]:
    """The arrays of an .npz file, each open at its first row."""
    with ExitStack() as stack:
        raw = stack.enter_context(opened(file))
        try:
            archive = stack.enter_context(zipfile.ZipFile(raw))
            members = {}
            for entry in archive.namelist():
                stream = cast(BinaryIO, stack.enter_context(archive.open(entry)))
                members[entry.removesuffix(".npy")] = (stream, _header(stream, where=f"{file}, {entry}"))
            lengths = {name: column.num_rows for name, (_, column) in members.items()}
            if len(set(lengths.values())) != 1:
                raise SourceError(f"{file}: arrays of {lengths} rows; those of one file are as long, and there is one")
            yield members
        except zipfile.BadZipFile as exc:
            raise SourceError(f"{file}: can't be read as .npz: {exc}") from exc


def _header(stream: BinaryIO, *, where: str) -> NpyColumn:
    """What a .npy file says of its array."""
    try:
        version = np.lib.format.read_magic(stream)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran_order, dtype = read(stream)
    except ValueError as exc:
        raise SourceError(f"{where}: no .npy file that can be read: {exc}") from exc
    if dtype.hasobject:
        raise SourceError(f"{where}: holds Python objects as a pickle; to load one is to run a program, so it is not done")
    if not shape:
        raise SourceError(f"{where}: an array without dimensions; the first one is the rows")
    if fortran_order and len(shape) > 1:
        raise SourceError(
            f"{where}: in Fortran order, so that its rows are not together; save numpy.ascontiguousarray(...) of it"
        )
    offset = stream.tell()
    return NpyColumn(file=where, dtype=dtype, num_rows=shape[0], shape=tuple(shape[1:]), offset=offset)


def _declared(column: NpyColumn, *, name: str) -> ColumnType:
    if not column.num_rows:
        raise SourceError(f"{column.file}: no rows")
    try:
        sample = _values(np.zeros((1, *column.shape), column.dtype), None)
        return infer_column_type(list(sample), name=name)
    except ColumnError as error:
        raise RowError.of(error, file=column.file) from error


def _values(rows: Array, wanted: ColumnType | None) -> Any:
    """The rows as `Schema.check_batch` takes them."""
    return rows.tolist() if rows.dtype.kind in "US" and rows.ndim == 1 else narrowed(rows, wanted)
