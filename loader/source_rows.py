"""What every source of rows has in common: pieces that are read and checked elsewhere, and errors that name the row.

A source describes its input as pieces, in the order of the rows. A piece is small until it is asked for its rows, so threads
or other processes can do that part. Invariant: a piece's rows pass the same checks as a writer's, and a row that does not pass
is named by file, place, column, what was expected and what was found.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, Protocol

import numpy as np

from loader.columns import ColumnType, EncodedColumn, Schema
from loader.errors import ColumnError, LoaderError
from loader.values import Array

if TYPE_CHECKING:
    from loader.input_file import InputFile

__all__ = [
    "PIECE_BYTES",
    "PIECE_ROWS",
    "SAMPLE_ROWS",
    "FilesInTurn",
    "Piece",
    "RowError",
    "Source",
    "SourceError",
    "check_rows",
    "narrowed",
]

PIECE_BYTES: Final = 4 << 20
"""About how many decoded bytes of rows a piece has."""
PIECE_ROWS: Final = 8192
SAMPLE_ROWS: Final = 2000
"""How many rows column types are inferred from."""


class SourceError(LoaderError):
    """An input can't be read, or is not what its name says. The message names the file."""


class RowError(ColumnError):
    """A row of an input does not fit its column.

    Attributes
    ----------
    file : str or None
        Where the row is.
    row : int or None
        Its number there, as the message says it.
    """

    def __init__(
        self,
        message: str,
        *,
        file: str | None = None,
        row: int | None = None,
        column: str | None = None,
        expected: str | None = None,
        found: str | None = None,
    ) -> None:
        super().__init__(message, column=column, expected=expected, found=found)
        self.file = file
        self.row = row

    @classmethod
    def of(cls, error: ColumnError, *, file: str, place: str = "", row: int | None = None, hint: str = "") -> RowError:
        """`error` with the file, and the place in it such as ``line 7``, in front."""
        where = f"{file}, {place}" if place else file
        message = f"{where}: {error.message}{hint}"
        return cls(message, file=file, row=row, column=error.column, expected=error.expected, found=error.found)


class Piece(Protocol):
    """Some rows that follow each other. Picklable if its source says so."""

    @property
    def input_bytes(self) -> int:
        """How much of the source's input this is, for progress."""

    @property
    def place(self) -> str:
        """Where in the input it begins; with the same files, the same rows are before it."""

    def encode(self, schema: Schema) -> tuple[EncodedColumn, ...]:
        """Read, convert and check the rows, as `Schema.check_batch` does.

        Raises
        ------
        SourceError
            If the input can't be read.
        RowError
            If a row doesn't fit the schema.
        """


class Source(Protocol):
    """Rows from somewhere. Its order is the order of its input, each row once.

    Attributes
    ----------
    in_processes : bool
        Whether encoding a piece keeps the interpreter busy, so that processes speed it up and threads don't.
    """

    in_processes: bool

    @property
    def files(self) -> Sequence[InputFile]:
        """All files that rows are read from."""

    @property
    def input_bytes(self) -> int:
        """Size of the whole input."""

    @property
    def piece_bytes(self) -> int:
        """About what the largest piece takes in memory."""

    @property
    def metadata(self) -> Mapping[str, str]:
        """What to keep with the dataset, such as the names of the labels."""

    @property
    def note(self) -> str | None:
        """What a user should know of the input besides its columns."""

    def infer_columns(self) -> dict[str, ColumnType]:
        """Column types by name, from the first rows. Raises as `Piece.encode`."""

    def pieces(self, schema: Schema, *, exact: bool) -> Iterator[Piece]:
        """All rows, in order.

        Parameters
        ----------
        exact : bool
            Whether a column that the schema doesn't have is an error (it was inferred), or left out (it was chosen).
        """


class FilesInTurn:
    """What sources have in common whose rows are those of several files, one after another."""

    in_processes = False
    metadata: Mapping[str, str] = MappingProxyType({})
    note: str | None = None

    def __init__(self, files: Sequence[InputFile]) -> None:
        self.files = tuple(files)
        self.input_bytes = sum(file.size_bytes for file in files)


def check_rows(
    schema: Schema, columns: Mapping[str, Sequence[Any]], *, file: object, place: Callable[[int], tuple[str, int]]
) -> tuple[EncodedColumn, ...]:
    """The checked batch of `columns`; a row that doesn't fit is looked up and named.

    Parameters
    ----------
    place : callable
        Where row i of the batch is in the file, in words, and its number there.
    """
    try:
        return schema.check_batch(columns)
    except ColumnError as batch_error:
        for index in range(min(map(len, columns.values()), default=0)):
            try:
                schema.check_sample({name: values[index] for name, values in columns.items()})
            except ColumnError as error:
                words, row = place(index)
                hint = "; other types can be given with --columns" if error.column in schema.names else ""
                raise RowError.of(error, file=str(file), place=words, row=row, hint=hint) from batch_error
        # Each row passes by itself: the columns don't fit together.
        words, row = place(0)
        raise RowError.of(batch_error, file=str(file), place=f"{words} and those that follow", row=row) from batch_error


def narrowed(numbers: Array, wanted: ColumnType | None) -> Array | list[Any]:
    """The numbers in the dtype that is wanted if each of them fits, else as Python values, of which the check names one.

    Files often hold int64 where uint16 would do. Integers have to stay what they are; floats are rounded, but none may become
    infinite.
    """
    if wanted is None or wanted.dtype is None or numbers.dtype == wanted.dtype:
        return numbers
    with np.errstate(invalid="ignore", over="ignore"):
        cast = numbers.astype(wanted.dtype)
        # Beside a float an integer would be compared as a float, rounded like it.
        back = cast.astype(numbers.dtype) if cast.dtype.kind == "f" else cast
    kinds = numbers.dtype.kind + wanted.dtype.kind
    if kinds in ("ff", "fc"):
        fits = bool(np.all(np.isfinite(cast) == np.isfinite(numbers)))
    else:
        fits = kinds in ("ii", "iu", "ui", "uu", "if", "uf") and bool(np.all(back == numbers))
    return cast if fits else list(numbers.tolist())
