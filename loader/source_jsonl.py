"""JSON lines as a source: one JSON object a line, plain or compressed (.gz, .zst).

Files are read in pieces that end with a line, and parsed elsewhere: parsing keeps the interpreter busy, so it pays to do it
in several processes. Blank lines are skipped. A key that is missing counts as null, which only a json column holds.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any, Final

from loader.columns import MAX_VALUE_BYTES, ColumnType, EncodedColumn, Schema, infer_column_type
from loader.errors import ColumnError
from loader.input_file import PACKED, InputFile, streamed
from loader.source_rows import PIECE_BYTES, SAMPLE_ROWS, FilesInTurn, Piece, RowError, SourceError, check_rows

__all__ = ["JSONL_SUFFIXES", "JsonLinesPiece", "JsonLinesSource"]

JSONL_SUFFIXES: Final = tuple(name + packed for name in (".jsonl", ".ndjson") for packed in PACKED)
_BOM: Final = b"\xef\xbb\xbf"
_READ_BYTES: Final = 1 << 20
_MIN_SAMPLE_PER_FILE: Final = 20
_SAMPLE_BYTES: Final = 64 << 10

Rows = list[tuple[int, dict[str, Any]]]


@dataclass(frozen=True, slots=True, kw_only=True)
class JsonLinesPiece:
    """Whole lines of one file, not yet parsed.

    Attributes
    ----------
    first_line : int
        Number of the first line, counted from 1.
    exact : bool
        Whether a key that the schema doesn't have is an error.
    """

    file: str
    first_line: int
    data: bytes
    input_bytes: int
    exact: bool

    @property
    def place(self) -> str:
        """See `Piece.place`."""
        return f"{self.file}, line {self.first_line}"

    def encode(self, schema: Schema) -> tuple[EncodedColumn, ...]:
        """See `Piece.encode`."""
        rows = _parse(self)
        if self.exact:
            _check_keys(rows, schema, file=self.file)
        columns = {name: _column(rows, name, column_type, file=self.file) for name, column_type in schema.items()}
        return check_rows(schema, columns, file=self.file, place=lambda index: (f"line {rows[index][0]}", rows[index][0]))


class JsonLinesSource(FilesInTurn):
    """Files of JSON lines, one after another; see `loader.source_rows.Source`."""

    in_processes = True
    piece_bytes = PIECE_BYTES

    def infer_columns(self) -> dict[str, ColumnType]:
        """See `Source.infer_columns`. Columns are in the order in which keys first appear."""
        rows = list(islice(self._sample(), SAMPLE_ROWS))
        if not rows:
            raise SourceError(f"{self.files[0]}: no rows to infer columns from; give them with --columns name=type,...")
        names = dict.fromkeys(name for _, row in rows for name in row)
        found = {}
        for name in names:
            try:
                found[name] = infer_column_type([row.get(name) for _, row in rows], name=name)
            except ColumnError as error:
                raise RowError.of(error, file=str(self.files[0]), place=f"the first {len(rows)} rows") from error
        return found

    def pieces(self, schema: Schema, *, exact: bool) -> Iterator[Piece]:
        """See `Source.pieces`."""
        for file in self.files:
            yield from _read_pieces(file, exact=exact, piece_bytes=PIECE_BYTES)

    def _sample(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """Some first rows of each file: files often differ more from each other than rows do."""
        per_file = max(_MIN_SAMPLE_PER_FILE, SAMPLE_ROWS // len(self.files))
        for file in self.files:
            pieces = _read_pieces(file, exact=False, piece_bytes=_SAMPLE_BYTES)
            rows = (row for piece in pieces for row in _parse(piece))
            yield from islice(rows, per_file)


def _read_pieces(file: InputFile, *, exact: bool, piece_bytes: int) -> Iterator[JsonLinesPiece]:
    line, done, parts, size = 1, 0, list[bytes](), 0
    with streamed(file) as stream:
        for block in stream.blocks(min(_READ_BYTES, piece_bytes)):
            parts.append(block)
            size += len(block)
            if size > MAX_VALUE_BYTES:
                raise SourceError(f"{file}, line {line}: longer than {MAX_VALUE_BYTES} bytes, so these are no JSON lines")
            if size < piece_bytes or b"\n" not in block:
                continue
            data, _, rest = b"".join(parts).rpartition(b"\n")
            at = stream.done_bytes
            yield JsonLinesPiece(file=str(file), first_line=line, data=data, input_bytes=at - done, exact=exact)
            line, done, parts, size = line + data.count(b"\n") + 1, at, [rest], len(rest)
        data = b"".join(parts)
        yield JsonLinesPiece(file=str(file), first_line=line, data=data, input_bytes=stream.done_bytes - done, exact=exact)


def _parse(piece: JsonLinesPiece) -> Rows:
    """Line numbers and objects of the lines that are not blank."""
    data = piece.data.removeprefix(_BOM) if piece.first_line == 1 else piece.data
    rows: Rows = []
    for number, line in enumerate(data.split(b"\n"), start=piece.first_line):
        if not line or line.isspace():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as exc:
            raise SourceError(f"{piece.file}, line {number}: expected a JSON object, found {line[:40]!r}: {exc}") from exc
        if not isinstance(row, dict):
            raise SourceError(f"{piece.file}, line {number}: expected a JSON object, found {type(row).__name__}")
        rows.append((number, row))
    return rows


def _check_keys(rows: Rows, schema: Schema, *, file: str) -> None:
    names = frozenset(schema.names)
    for number, row in rows:
        if not row.keys() <= names:
            unknown = next(name for name in row if name not in names)
            error = ColumnError.mismatch(unknown, expected=f"only the columns {', '.join(schema.names)}", found="one more")
            hint = ", which the first rows don't have; choose the columns with --columns"
            raise RowError.of(error, file=file, place=f"line {number}", row=number, hint=hint)


def _column(rows: Rows, name: str, column_type: ColumnType, *, file: str) -> list[Any]:
    if column_type.kind == "json":
        return [row.get(name) for _, row in rows]
    try:
        return [row[name] for _, row in rows]
    except KeyError as exc:
        number = next(number for number, row in rows if name not in row)
        error = ColumnError.mismatch(name, expected=str(column_type), found="no value")
        hint = "; a column of type json may lack values"
        raise RowError.of(error, file=file, place=f"line {number}", row=number, hint=hint) from exc
