"""CSV files as a source: a line of column names, then rows; quoted fields may hold line ends. .tsv files are divided by tabs.

All fields are read as text, by pyarrow, and become what their column is when the rows are checked: numbers, texts, ``true`` or
``false``, and for json columns, arrays and ragged arrays, JSON in the field. An empty field is an empty text and nothing else,
so it is an error in a column of numbers. Rows are counted from 0, below the line of names.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

from loader.arrow_columns import check_names, import_pyarrow, translated
from loader.columns import ColumnType, EncodedColumn, Schema, infer_column_type, parse_column_type
from loader.errors import ColumnError
from loader.input_file import PACKED, InputFile, streamed
from loader.source_rows import PIECE_BYTES, SAMPLE_ROWS, FilesInTurn, Piece, RowError, SourceError, check_rows, narrowed

__all__ = ["CSV_SUFFIXES", "CsvPiece", "CsvSource"]

CSV_SUFFIXES: Final = tuple(name + packed for name in (".csv", ".tsv") for packed in PACKED)
_WHAT: Final = "CSV"
_HEAD_BYTES: Final = 1 << 20
# Numbers as they are usually written: 007 is a text.
_INTEGER: Final = re.compile(r"-?(0|[1-9][0-9]*)")
_FLOAT: Final = re.compile(r"[-+]?((0|[1-9][0-9]*)(\.[0-9]*)?|\.[0-9]+)(e[-+]?[0-9]+)?|[-+]?inf|nan", re.IGNORECASE)
_ARROW_TYPES: Final = {"i": "int64", "u": "uint64", "f": "float64"}
_BOOLS: Final = {"true": True, "false": False}


@dataclass(frozen=True, slots=True, kw_only=True)
class CsvPiece:
    """Some rows of one file: a pyarrow.RecordBatch of texts."""

    file: str
    first_row: int
    texts: Any
    input_bytes: int

    @property
    def place(self) -> str:
        """See `Piece.place`."""
        return f"{self.file}, row {self.first_row}"

    def encode(self, schema: Schema) -> tuple[EncodedColumn, ...]:
        """See `Piece.encode`."""
        columns = {name: self._column(name, column_type) for name, column_type in schema.items()}
        return check_rows(schema, columns, file=self.file, place=self._place)

    def _place(self, index: int) -> tuple[str, int]:
        return f"row {self.first_row + index}", self.first_row + index

    def _column(self, name: str, column_type: ColumnType) -> Any:
        texts = self.texts.column(name)
        if column_type.dtype is None and column_type.kind != "json":
            return texts.to_pylist()
        if column_type.dtype is not None and column_type.is_fixed and not column_type.shape:
            return _numbers(texts, column_type)
        values = []
        for index, text in enumerate(texts.to_pylist()):
            try:
                values.append(json.loads(text))
            except ValueError as exc:
                words, row = self._place(index)
                error = ColumnError.mismatch(name, expected=f"{column_type}, as JSON", found=f"{text[:40]!r}")
                raise RowError.of(error, file=self.file, place=words, row=row) from exc
        return values


class CsvSource(FilesInTurn):
    """CSV files, one after another; see `loader.source_rows.Source`."""

    piece_bytes = 4 * PIECE_BYTES

    def __init__(self, files: Sequence[InputFile]) -> None:
        import_pyarrow(files[0], what=_WHAT)
        super().__init__(files)

    def infer_columns(self) -> dict[str, ColumnType]:
        """See `Source.infer_columns`. They are those of the first file that has rows."""
        for file in self.files:
            with _batches(file) as batches:
                for batch, _ in batches:
                    if batch.num_rows:
                        sample = batch.slice(0, SAMPLE_ROWS)
                        return {name: _infer(name, sample.column(name).to_pylist()) for name in sample.schema.names}
        raise SourceError(f"{self.files[0]}: no rows to infer columns from; give them with --columns name=type,...")

    def pieces(self, schema: Schema, *, exact: bool) -> Iterator[Piece]:
        """See `Source.pieces`."""
        for file in self.files:
            row, done = 0, 0
            with _batches(file) as batches:
                for batch, at in batches:
                    if not row:
                        check_names(batch.schema.names, schema, file=file, exact=exact)
                    texts = batch.select(list(schema.names))
                    yield CsvPiece(file=str(file), first_row=row, texts=texts, input_bytes=at - done)
                    row, done = row + batch.num_rows, at


@contextmanager
def _batches(file: InputFile) -> Iterator[Iterator[tuple[Any, int]]]:
    """The rows of a file in batches of texts, each with how much of the file has been read by then."""
    with streamed(file) as stream, translated(file, what=_WHAT):
        pyarrow = import_pyarrow(file, what=_WHAT)
        delimiter = "\t" if ".tsv" in stream.name else ","
        parse = pyarrow.csv.ParseOptions(delimiter=delimiter, newlines_in_values=True)
        read = pyarrow.csv.ReadOptions(block_size=PIECE_BYTES, use_threads=False)
        # A first look at the names, so that pyarrow guesses no column's type.
        text = stream.peek(_HEAD_BYTES).decode("utf-8-sig", errors="replace")
        head = next(csv.reader(io.StringIO(text), delimiter=delimiter), [])
        if len(set(head)) < len(head):
            twice = next(name for name in head if head.count(name) > 1)
            raise SourceError(f"{file}: two columns are called {twice!r}; each needs a name of its own")
        convert = pyarrow.csv.ConvertOptions(column_types=dict.fromkeys(head, pyarrow.string()), null_values=[])
        reader = pyarrow.csv.open_csv(pyarrow.PythonFile(stream, mode="r"), read, parse, convert)
        yield _counted(reader, file=file, stream=stream)


def _counted(reader: Any, *, file: InputFile, stream: Any) -> Iterator[tuple[Any, int]]:
    previous = reader.schema.empty_table().to_batches() or [reader.schema.empty_table()]
    held = previous[0]
    # One behind, because what the reader has read ahead is all of the file when the last batch is taken.
    for batch in reader:
        if held.num_rows:
            yield held, min(stream.done_bytes, file.size_bytes)
        held = batch
    yield held, file.size_bytes


def _infer(name: str, texts: list[str]) -> ColumnType:
    if all(map(_INTEGER.fullmatch, texts)):
        return infer_column_type(list(map(int, texts)), name=name)
    if all(map(_FLOAT.fullmatch, texts)):
        return parse_column_type("float64")
    return parse_column_type("bool" if all(text.lower() in _BOOLS for text in texts) else "str")


def _numbers(texts: Any, column_type: ColumnType) -> Any:
    """The numbers of a column; if a text is none, all as Python values, for the check to name the row."""
    from pyarrow import ArrowInvalid, compute

    assert column_type.dtype is not None
    kind = column_type.dtype.kind
    try:
        if kind in _ARROW_TYPES:
            return narrowed(compute.cast(texts, _ARROW_TYPES[kind]).to_numpy(zero_copy_only=False), column_type)
    except ArrowInvalid:
        pass
    convert = {"b": _bool, "i": int, "u": int, "f": float, "c": complex}[kind]
    return [_converted(convert, text) for text in texts.to_pylist()]


def _bool(text: str) -> bool:
    return _BOOLS[text.lower()]


def _converted(convert: Any, text: str) -> Any:
    try:
        return convert(text)
    except (ValueError, KeyError):
        return text
