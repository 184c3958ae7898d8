"""WebDataset shards as a source: tar archives whose files are rows, those of one basename together. webdataset is not needed.

``pics/0001.jpg`` and ``pics/0001.cls`` are the row with the key ``pics/0001``: its column ``__key__``, and one column for each
extension, which is all that follows the first dot of the name, in lower case. What a column holds follows from its extension,
as in WebDataset: ``jpg`` and ``jpeg`` are jpeg, ``png`` png, ``txt`` texts, ``cls`` (and ``id``, ``index`` and the like)
int64, ``json`` json, ``npy`` the array; everything else is bytes. Pickles (``pkl``, ``pyd``, ``pth``) are never loaded: a
column of type bytes takes one as it lies.

An archive is read in one go, front to back, packed or not; the rows are decoded by threads.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any, Final

import numpy as np

from loader.columns import ColumnType, EncodedColumn, Schema, infer_column_type, parse_column_type
from loader.errors import ColumnError
from loader.input_file import PACKED, InputFile, streamed
from loader.source_rows import PIECE_BYTES, SAMPLE_ROWS, FilesInTurn, Piece, RowError, SourceError, check_rows, narrowed
from loader.tar_stream import tar_members

__all__ = ["TAR_SUFFIXES", "TarPiece", "TarSource"]

TAR_SUFFIXES: Final = (*(".tar" + packed for packed in PACKED), ".tgz")
KEY: Final = "__key__"
_TYPES: Final = {
    **dict.fromkeys(("jpg", "jpeg"), "jpeg"),
    "png": "png",
    **dict.fromkeys(("txt", "text", "transcript"), "str"),
    **dict.fromkeys(("cls", "cls2", "class", "count", "index", "inx", "id"), "int64"),
    **dict.fromkeys(("json", "jsn"), "json"),
    KEY: "str",
}
_PICKLES: Final = ("pyd", "pickle", "pkl", "pth", "pt")
_SAMPLE_BYTES: Final = 64 << 20

Row = tuple[str, dict[str, bytes]]


@dataclass(frozen=True, slots=True, kw_only=True)
class TarPiece:
    """Some rows of one archive, not yet decoded: keys, and bytes by extension."""

    file: str
    first_row: int
    rows: tuple[Row, ...]
    input_bytes: int
    exact: bool

    @property
    def place(self) -> str:
        """See `Piece.place`."""
        return f"{self.file}, row {self.first_row}"

    def encode(self, schema: Schema) -> tuple[EncodedColumn, ...]:
        """See `Piece.encode`."""
        if self.exact:
            self._check_extensions(schema)
        columns = {name: self.column(name, column_type) for name, column_type in schema.items()}
        return check_rows(schema, columns, file=self.file, place=self._place)

    def column(self, name: str, wanted: ColumnType | None) -> list[Any]:
        """The values of one column; raises `RowError` or `SourceError`."""
        return [self._value(index, name, wanted) for index in range(len(self.rows))]

    def _place(self, index: int) -> tuple[str, int]:
        return f"row {self.first_row + index} ({self.rows[index][0]})", self.first_row + index

    def _value(self, index: int, name: str, wanted: ColumnType | None) -> Any:
        key, parts = self.rows[index]
        if name == KEY:
            return key
        words, row = self._place(index)
        if name not in parts:
            error = ColumnError.mismatch(
                name, expected=str(wanted or "a value as in other rows"), found=f"only {', '.join(parts)}"
            )
            raise RowError.of(error, file=self.file, place=words, row=row)
        if wanted is not None and (wanted.kind == "bytes" or wanted.is_image):
            return parts[name]
        try:
            return _decoded(parts[name], name, wanted)
        except (ValueError, EOFError) as exc:
            error = ColumnError.mismatch(name, expected=f"what .{name} files hold", found=f"{parts[name][:20]!r} ({exc})")
            raise RowError.of(error, file=self.file, place=words, row=row) from exc

    def _check_extensions(self, schema: Schema) -> None:
        names = frozenset(schema.names)
        for index, (_, parts) in enumerate(self.rows):
            if not parts.keys() <= names:
                unknown = next(name for name in parts if name not in names)
                error = ColumnError.mismatch(unknown, expected=f"only the columns {', '.join(schema.names)}", found="one more")
                hint = ", which the first rows don't have; choose the columns with --columns"
                words, row = self._place(index)
                raise RowError.of(error, file=self.file, place=words, row=row, hint=hint)


class TarSource(FilesInTurn):
    """WebDataset's archives, one after another; see `loader.source_rows.Source`."""

    piece_bytes = 4 * PIECE_BYTES

    def infer_columns(self) -> dict[str, ColumnType]:
        """See `Source.infer_columns`. They are those of the first rows of the first archive."""
        rows, size = [], 0
        for key, parts, _ in islice(_rows(self.files[0]), SAMPLE_ROWS):
            rows.append((key, parts))
            size += sum(map(len, parts.values()))
            if size > _SAMPLE_BYTES:
                break
        if not rows:
            raise SourceError(f"{self.files[0]}: no rows to infer columns from; give them with --columns name=type,...")
        piece = TarPiece(file=str(self.files[0]), first_row=0, rows=tuple(rows), input_bytes=0, exact=False)
        found = {}
        for name in (KEY, *dict.fromkeys(name for _, parts in rows for name in parts)):
            values = piece.column(name, None)
            extension = name.rpartition(".")[2]
            known = _TYPES.get(name) or _TYPES.get(extension)
            try:
                found[name] = parse_column_type(known) if known else infer_column_type(values, name=name)
            except ColumnError as error:
                raise RowError.of(error, file=str(self.files[0]), place=f"the first {len(rows)} rows") from error
        return found

    def pieces(self, schema: Schema, *, exact: bool) -> Iterator[Piece]:
        """See `Source.pieces`."""
        for file in self.files:
            first, done, at, size = 0, 0, 0, 0
            rows: list[Row] = []
            for key, parts, at in _rows(file):
                if size >= PIECE_BYTES:
                    yield self._piece(file, first, rows, at - done, exact=exact)
                    first, done, size, rows = first + len(rows), at, 0, []
                rows.append((key, {name: data for name, data in parts.items() if exact or name in schema.names}))
                size += sum(map(len, parts.values()))
            yield self._piece(file, first, rows, file.size_bytes - done, exact=exact)

    def _piece(self, file: InputFile, first: int, rows: list[Row], input_bytes: int, *, exact: bool) -> TarPiece:
        return TarPiece(file=str(file), first_row=first, rows=tuple(rows), input_bytes=input_bytes, exact=exact)


def _rows(file: InputFile) -> Iterator[tuple[str, dict[str, bytes], int]]:
    """Key and files of each row, and how much of the archive has been read by then."""
    key, parts = "", dict[str, bytes]()
    with streamed(file) as stream:
        for member in tar_members(stream, where=str(file)):
            folder, slash, name = member.name.rpartition("/")
            base, dot, extension = name.partition(".")
            # As WebDataset does, names that begin with a dot and such as __meta__ are passed over.
            if not base or not dot or (base.startswith("__") and base.endswith("__")):
                continue
            if folder + slash + base != key:
                if parts:
                    yield key, parts, min(stream.done_bytes, file.size_bytes)
                key, parts = folder + slash + base, {}
            extension = extension.lower()
            if extension in parts:
                raise SourceError(f"{file}: {member.name} is there twice; rows of one key can't be told apart")
            parts[extension] = member.data
        if parts:
            yield key, parts, file.size_bytes


def _decoded(data: bytes, name: str, wanted: ColumnType | None) -> Any:
    extension = name.rpartition(".")[2]
    if extension in _PICKLES:
        raise SourceError(
            f"the column {name!r} holds pickles; to load one is to run a program, so it is not done. Take it as it lies with "
            f"--columns {name}=bytes,... or choose the columns without it"
        )
    if extension == "npy":
        return narrowed(np.load(io.BytesIO(data), allow_pickle=False), wanted)
    match _TYPES.get(name) or _TYPES.get(extension):
        case "int64":
            return int(data)
        case "str":
            return data.decode()
        case "json":
            return json.loads(data)
    return data
