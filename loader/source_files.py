"""Files as a source: each file is a row, with its bytes, its path and, where folders are classes, its label.

The columns are ``data`` (jpeg or png if all names end so, else bytes), ``path`` (below the root, with ``/``) and, if every file
lies in a folder below the root, ``label``: the number of the first such folder among all of them, sorted. The names of the
labels go into the object's metadata as far as they fit; they also begin each path.

Files are read by threads, a piece at a time.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, Final

from loader.columns import MAX_VALUE_BYTES, ColumnType, EncodedColumn, Schema, parse_column_type
from loader.errors import ColumnError
from loader.input_file import InputFile, below, opened
from loader.source_rows import PIECE_BYTES, Piece, RowError, SourceError, check_rows

__all__ = ["LABELS_KEY", "FilesPiece", "FilesSource"]

LABELS_KEY: Final = "labels"
MAX_LABELS_BYTES: Final = 6 * 1024
"""Of the 8 KiB of metadata that an object may have."""
_PIECE_FILES: Final = 512
_IMAGE_SUFFIXES: Final = {".jpg": "jpeg", ".jpeg": "jpeg", ".png": "png"}


@dataclass(frozen=True, slots=True, kw_only=True)
class FilesPiece:
    """Some files, not yet read.

    Attributes
    ----------
    root : str
        The folder that all files lie in.
    labels : tuple of int
        One for each file, or none.
    """

    root: str
    files: tuple[InputFile, ...]
    labels: tuple[int, ...]
    input_bytes: int

    @property
    def place(self) -> str:
        """See `Piece.place`."""
        return str(self.files[0])

    def encode(self, schema: Schema) -> tuple[EncodedColumn, ...]:
        """See `Piece.encode`."""
        paths = [below(self.root, file) for file in self.files]
        columns: dict[str, Sequence[Any]] = {"path": paths, "label": self.labels}
        if "data" in schema.names:
            columns["data"] = [_read(file) for file in self.files]
        chosen = {name: columns[name] for name in schema.names}
        return check_rows(schema, chosen, file=self.root or ".", place=lambda index: (paths[index], index))


class FilesSource:
    """All of `files` as rows, in this order; `root` is the folder that they lie in. See `loader.source_rows.Source`."""

    in_processes = False

    def __init__(self, files: Sequence[InputFile], *, root: str) -> None:
        self.files = tuple(files)
        self._root = root
        self._paths = [PurePosixPath(below(root, file)) for file in files]
        self.input_bytes = sum(file.size_bytes for file in files)
        self.piece_bytes = max(PIECE_BYTES, *(file.size_bytes for file in files))
        in_folders = all(len(path.parts) > 1 for path in self._paths)
        self._classes = sorted({path.parts[0] for path in self._paths}) if in_folders else []

    @property
    def metadata(self) -> Mapping[str, str]:
        """The names of the labels in the order of their numbers, as JSON, unless there are too many."""
        names = json.dumps(self._classes)
        return {LABELS_KEY: names} if self._classes and len(names) <= MAX_LABELS_BYTES else {}

    @property
    def note(self) -> str | None:
        """How many labels there are, and where their names are."""
        if not self._classes:
            return None
        where = (
            "in the object's metadata" if self.metadata else "too many for the object's metadata; each path begins with its own"
        )
        return f"labels: {len(self._classes)} folders, their names {where}"

    def infer_columns(self) -> dict[str, ColumnType]:
        """See `Source.infer_columns`."""
        kinds = {_IMAGE_SUFFIXES.get(path.suffix.lower(), "bytes") for path in self._paths}
        columns = {"data": kinds.pop() if len(kinds) == 1 else "bytes", "path": "str"}
        if self._classes:
            columns["label"] = "int64"
        return {name: parse_column_type(text) for name, text in columns.items()}

    def pieces(self, schema: Schema, *, exact: bool) -> Iterator[Piece]:
        """See `Source.pieces`."""
        known = self.infer_columns()
        for name, column_type in schema.items():
            if name not in known:
                error = ColumnError.mismatch(name, expected=str(column_type), found=f"only the columns {', '.join(known)}")
                raise RowError.of(error, file=self._root or ".")
        number = {name: label for label, name in enumerate(self._classes)}
        first, size = 0, 0
        for stop in range(1, len(self._paths) + 1):
            size += self.files[stop - 1].size_bytes
            if size >= PIECE_BYTES or stop - first == _PIECE_FILES or stop == len(self._paths):
                labels = tuple(number[path.parts[0]] for path in self._paths[first:stop]) if number else ()
                yield FilesPiece(root=self._root, files=self.files[first:stop], labels=labels, input_bytes=size)
                first, size = stop, 0


def _read(file: InputFile) -> bytes:
    with opened(file) as stream:
        # One byte more than fits tells a file that is too large, without reading it all.
        data = stream.read(MAX_VALUE_BYTES + 1)
    if len(data) > MAX_VALUE_BYTES:
        raise SourceError(f"{file}: larger than {MAX_VALUE_BYTES} bytes, which is the most that one value may have")
    return data
