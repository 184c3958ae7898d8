"""Writing a dataset as files of another format: Parquet, or MosaicML's MDS.

Rows keep their order. The target is a new or empty folder, local or of whatever fsspec opens; a file appears in it when it is
whole, and the index of MDS last. A column whose type the format doesn't have is an error before anything is written.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, Protocol, get_args

from loader.block import parse_compression
from loader.columns import EncodedColumn
from loader.errors import InvalidOption
from loader.export_mds import MdsWriter
from loader.export_parquet import ParquetWriter
from loader.input_file import file_system
from loader.reader import DatasetReader
from loader.row_batches import row_batches

__all__ = ["FORMATS", "ExportResult", "Format", "export_dataset", "parse_format"]

Format = Literal["parquet", "mds"]
FORMATS: Final[tuple[Format, ...]] = get_args(Format)


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportResult:
    """What was written."""

    target: str
    num_rows: int
    num_files: int
    size_bytes: int


class Writer(Protocol):
    """Takes rows and hands on whole files."""

    def write(self, batch: tuple[EncodedColumn, ...]) -> None: ...

    def finish(self) -> None: ...


def parse_format(text: str) -> Format:
    """`text` if it is a format, else `InvalidOption`."""
    for known in FORMATS:
        if text == known:
            return known
    raise InvalidOption(f"format {text!r}: expected one of {', '.join(FORMATS)}")


def export_dataset(
    reader: DatasetReader,
    target: str | os.PathLike[str],
    *,
    file_format: Format,
    compression: str = "zstd:3",
    on_rows: Callable[[int], None] = lambda num_rows: None,
) -> ExportResult:
    """Write all rows of a dataset into the folder `target`.

    Parameters
    ----------
    file_format : str
        ``parquet`` or ``mds``.
    compression : str
        ``zstd:1`` to ``zstd:22``, or ``none``.
    on_rows : callable
        Told how many rows are written since the last call.

    Raises
    ------
    InvalidOption
        If the folder isn't empty, or an option is none.
    ColumnError
        If the format has no type for a column.
    """
    folder = _Folder(os.fspath(target))
    make = ParquetWriter if file_format == "parquet" else MdsWriter
    writer: Writer = make(reader.schema, level=parse_compression(compression), put=folder.put)
    folder.create()
    for batch in row_batches(reader):
        writer.write(batch)
        on_rows(len(batch[0]))
    writer.finish()
    return ExportResult(
        target=folder.path, num_rows=reader.index.num_rows, num_files=folder.num_files, size_bytes=folder.size_bytes
    )


class _Folder:
    """The folder that is written."""

    def __init__(self, path: str) -> None:
        self.path = path.rstrip("/") or "/"
        self.num_files = 0
        self.size_bytes = 0
        self._remote = file_system(self.path) if "://" in self.path else None

    def create(self) -> None:
        """Raise `InvalidOption` unless it is empty, or can be made."""
        if self._remote is not None:
            fs, path = self._remote
            holds = fs.exists(path) and bool(fs.find(path))
        else:
            Path(self.path).mkdir(parents=True, exist_ok=True)
            holds = any(Path(self.path).iterdir())
        if holds:
            raise InvalidOption(f"{self.path}: not empty; choose a new folder, so that files of two exports don't mix")

    def put(self, name: str, data: bytes | memoryview) -> None:
        """Write a file, which is there whole or not at all."""
        if self._remote is not None:
            fs, folder = self._remote
            # The end of the transaction is what makes it appear.
            with fs.transaction, fs.open(f"{folder}/{name}", "wb") as stream:
                stream.write(data)
        else:
            partial = Path(self.path) / f".{name}.partial"
            partial.write_bytes(data)
            partial.replace(Path(self.path) / name)
        self.num_files += 1
        self.size_bytes += len(data)
