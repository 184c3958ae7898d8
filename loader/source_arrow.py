"""Hugging Face datasets as `save_to_disk` leaves them, and Arrow IPC files, as a source. The library `datasets` is not needed.

A saved dataset is a folder with ``state.json``, which lists its Arrow files in order, and ``dataset_info.json``, which may say
what the labels are called. (The numbers of rows in there are those of where it came from, not its own.) The files are streams
of record batches, read one after another and converted by threads. A stream that was cut short between two batches would look
whole, so its end mark is looked for.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final

from loader.arrow_columns import ArrowPiece, check_names, import_pyarrow, infer_types, translated
from loader.columns import ColumnType, Schema
from loader.input_file import Found, InputFile, opened
from loader.source_files import LABELS_KEY, MAX_LABELS_BYTES
from loader.source_rows import PIECE_BYTES, PIECE_ROWS, FilesInTurn, Piece, SourceError

__all__ = ["ARROW_SUFFIXES", "HF_STATE", "ArrowSource", "open_hf"]

ARROW_SUFFIXES: Final = (".arrow", ".feather")
HF_STATE: Final = "state.json"
_HF_DICT: Final = "dataset_dict.json"
_WHAT: Final = "Arrow"
_FILE_MAGIC: Final = b"ARROW1"
_STREAM_END: Final = b"\xff\xff\xff\xff\x00\x00\x00\x00"


class ArrowSource(FilesInTurn):
    """Arrow files, one after another; see `loader.source_rows.Source`.

    Parameters
    ----------
    labels : mapping, optional
        Names of the labels of each column that has some.
    """

    piece_bytes = 4 * PIECE_BYTES

    def __init__(self, files: Sequence[InputFile], *, labels: Mapping[str, Sequence[str]] | None = None) -> None:
        import_pyarrow(files[0], what=_WHAT)
        super().__init__(files)
        names = json.dumps(next(iter(labels.values()))) if labels and len(labels) == 1 else ""
        self.metadata = {LABELS_KEY: names} if 0 < len(names) <= MAX_LABELS_BYTES else {}
        self.note = f"labels: the names of {next(iter(labels))!r} are in the object's metadata" if labels and names else None

    def infer_columns(self) -> dict[str, ColumnType]:
        """See `Source.infer_columns`. They are those of the first batch that has rows."""
        for file in self.files:
            with _batches(file) as batches:
                for batch in batches:
                    if batch.num_rows:
                        return infer_types(batch, file=file, what=_WHAT)
        raise SourceError(f"{self.files[0]}: no rows to infer columns from; give them with --columns name=type,...")

    def pieces(self, schema: Schema, *, exact: bool) -> Iterator[Piece]:
        """See `Source.pieces`."""
        for file in self.files:
            row, left, names = 0, file.size_bytes, None
            with _batches(file) as batches:
                for batch in batches:
                    if names is None:
                        names = batch.schema.names
                        check_names(names, schema, file=file, exact=exact)
                    step = max(1, min(PIECE_ROWS, batch.num_rows * PIECE_BYTES // max(1, batch.nbytes)))
                    for start in range(0, batch.num_rows, step):
                        part = batch.slice(start, step)
                        share = min(left, part.nbytes)
                        left -= share
                        yield ArrowPiece(file=str(file), first_row=row, read=part.select, input_bytes=share)
                        row += part.num_rows
                    empty = batch.slice(0, 0)
            if names is not None:
                # What the file has besides its rows.
                yield ArrowPiece(file=str(file), first_row=row, read=empty.select, input_bytes=left)


@contextmanager
def _batches(file: InputFile) -> Iterator[Iterator[Any]]:
    """The record batches of a file, of Arrow's stream format or its file format."""
    with opened(file) as stream, translated(file, what=_WHAT):
        ipc = import_pyarrow(file, what=_WHAT).ipc
        head = stream.read(len(_FILE_MAGIC))
        if head != _FILE_MAGIC:
            stream.seek(max(0, file.size_bytes - len(_STREAM_END)))
            if stream.read() != _STREAM_END:
                raise SourceError(f"{file}: doesn't end as an Arrow stream does; it was cut short, or is something else")
        stream.seek(0)
        if head == _FILE_MAGIC:
            reader = ipc.open_file(stream)
            yield (reader.get_batch(number) for number in range(reader.num_record_batches))
        else:
            yield iter(ipc.open_stream(stream))


def open_hf(folders: Sequence[Found]) -> ArrowSource:
    """The source that folders of `save_to_disk` are, one after another; raises `SourceError`."""
    files: list[InputFile] = []
    labels: dict[str, Sequence[str]] = {}
    for folder in folders:
        by_name = folder.by_name()
        if _HF_DICT in by_name:
            raise SourceError(f"{folder.root}: has several splits, each a folder in it; build a dataset from one of these")
        state = _json(by_name[HF_STATE])
        if state.get("_indices_data_files"):
            raise SourceError(
                f"{folder.root}: its rows are chosen or shuffled by an index; call flatten_indices() and save it again"
            )
        for entry in state.get("_data_files", ()):
            if entry["filename"] not in by_name:
                raise SourceError(f"{folder.root}: {HF_STATE} lists {entry['filename']}, which isn't there")
            files.append(by_name[entry["filename"]])
        info = _json(by_name["dataset_info.json"]) if "dataset_info.json" in by_name else {}
        features = info.get("features") or {}
        labels.update({name: kind["names"] for name, kind in features.items() if _is_label(kind)})
    if not files:
        raise SourceError(f"{folders[0].root}: {HF_STATE} lists no files, so there are no rows")
    return ArrowSource(files, labels=labels)


def _is_label(kind: Any) -> bool:
    return isinstance(kind, dict) and kind.get("_type") == "ClassLabel" and isinstance(kind.get("names"), list)


def _json(file: InputFile) -> dict[str, Any]:
    with opened(file) as stream:
        try:
            value = json.loads(stream.read())
        except ValueError as exc:
            raise SourceError(f"{file}: expected a JSON object: {exc}") from exc
    if not isinstance(value, dict):
        raise SourceError(f"{file}: expected a JSON object, found {type(value).__name__}")
    return value
