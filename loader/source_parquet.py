"""Parquet files as a source.

Row groups are decoded in parallel if they are small, and else one after another in pieces, because a row group can only be read
from its start.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Final

from loader.arrow_columns import ArrowPiece, check_names, import_pyarrow, infer_types, translated
from loader.columns import ColumnType, Schema
from loader.input_file import InputFile
from loader.source_rows import PIECE_BYTES, PIECE_ROWS, SAMPLE_ROWS, FilesInTurn, Piece, SourceError

__all__ = ["PARQUET_SUFFIXES", "ParquetSource"]

PARQUET_SUFFIXES: Final = (".parquet", ".pq")
_WHAT: Final = "Parquet"
_GROUP_BYTES: Final = 32 << 20
_GROUP_ROWS: Final = 1 << 17
"""Up to this size a row group is read as a whole: some of them are held in memory at once."""


class ParquetSource(FilesInTurn):
    """Parquet files, one after another; see `loader.source_rows.Source`."""

    piece_bytes = _GROUP_BYTES

    def __init__(self, files: Sequence[InputFile]) -> None:
        import_pyarrow(files[0], what=_WHAT)
        super().__init__(files)

    def infer_columns(self) -> dict[str, ColumnType]:
        """See `Source.infer_columns`. They are those of the first file that has rows."""
        for file in self.files:
            with _opened(file) as parquet:
                for batch in parquet.iter_batches(batch_size=SAMPLE_ROWS):
                    return infer_types(batch, file=file, what=_WHAT)
        raise SourceError(f"{self.files[0]}: no rows to infer columns from; give them with --columns name=type,...")

    def pieces(self, schema: Schema, *, exact: bool) -> Iterator[Piece]:
        """See `Source.pieces`."""
        for file in self.files:
            with _opened(file) as parquet:
                check_names(parquet.schema_arrow.names, schema, file=file, exact=exact)
                num_rows, row, done = parquet.metadata.num_rows, 0, 0
                for rows, read in _runs(file, parquet, schema.names):
                    at = file.size_bytes * (row + rows) // num_rows
                    yield ArrowPiece(file=str(file), first_row=row, read=read, input_bytes=at - done)
                    row, done = row + rows, at


def _runs(file: InputFile, parquet: Any, names: Sequence[str]) -> Iterator[tuple[int, Callable[[Sequence[str]], Any]]]:
    """The rows of a file in runs: how many, and what reads them."""
    for number in range(parquet.metadata.num_row_groups):
        group = parquet.metadata.row_group(number)
        if group.total_byte_size <= _GROUP_BYTES and group.num_rows <= _GROUP_ROWS:
            yield group.num_rows, partial(_read_group, file, parquet.metadata, number)
            continue
        num_rows = max(1, min(PIECE_ROWS, PIECE_BYTES * group.num_rows // max(1, group.total_byte_size)))
        for batch in parquet.iter_batches(batch_size=num_rows, row_groups=[number], columns=list(names)):
            yield batch.num_rows, batch.select


def _read_group(file: InputFile, metadata: Any, number: int, names: Sequence[str]) -> Any:
    # Its own file object, since one doesn't serve two threads. The cores are busy with other row groups.
    with _opened(file, metadata=metadata) as parquet:
        return parquet.read_row_group(number, columns=list(names), use_threads=False)


@contextmanager
def _opened(file: InputFile, *, metadata: Any = None) -> Iterator[Any]:
    with translated(file, what=_WHAT):
        # pyarrow opens local files itself, which saves the way through Python for each read.
        where = file.path if file.is_local else file.open()
        with import_pyarrow(file, what=_WHAT).parquet.ParquetFile(where, metadata=metadata) as parquet:
            try:
                yield parquet
            finally:
                if not isinstance(where, str):
                    where.close()
