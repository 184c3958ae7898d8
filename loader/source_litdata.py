r"""LitData datasets as a source: ``index.json`` and ``chunk-*.bin``. litdata is not needed, and no pickle is loaded.

The format. ``index.json`` is ``{"chunks": [{"filename", "chunk_size", "chunk_bytes", ...}], "config": {...}}``; the config
says the ``data_format`` of each leaf of a sample, its tree (``data_spec``), ``compression``, ``compression_level`` and
``item_loader``. A chunk is::

    u32 number of items | u32 offset of each item, and of the end | items

and an item is as `loader.packed_rows` says, with one varying size for each leaf; for TokensLoader an item is the tokens alone.
Compressed by ``chunk`` a whole file is a zstd frame, by ``sample`` each item is one, by ``batch`` (the magic LDFZ01) runs of
items are::

    "LDFZ01\0\0" | u16 version 1 | u16 0 | u32 items n | u32 items of a frame | u32 frames f | u32 x (n+1) offsets of items in
    what the frames hold | f x (u32 first item, u32 items, u64 offset, u32 bytes, u32 bytes decompressed) | frames

Samples with nested leaves (``json``) end in an Arrow file of the chunk's rows, its length (u32) and LDARW01, which are read
instead.

The leaves are columns, called by their path in the tree: ``image``, ``meta.width``, ``0``; a sample that is one leaf is
``data``.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from loader.arrow_columns import ArrowPiece, check_names, import_pyarrow, infer_types, translated
from loader.columns import MAX_VALUE_BYTES, ColumnType, EncodedColumn, Schema, infer_column_type
from loader.errors import ColumnError
from loader.input_file import Found, InputFile, opened
from loader.litdata_leaf import leaf_values
from loader.packed_rows import PackedRows, inflated, read_bounds
from loader.source_rows import SAMPLE_ROWS, Piece, RowError, SourceError, check_rows

__all__ = ["LitDataPiece", "LitDataSource"]

_WHAT: Final = "LitData"
_U4: Final = struct.Struct("<I")
_FRAMED: Final = b"LDFZ01\0\0"
_ARROW_END: Final = b"LDARW01\0"
_PREFIX: Final = struct.Struct("<8sHHIII")
_FRAME: Final = struct.Struct("<IIQII")


@dataclass(frozen=True, slots=True, kw_only=True)
class LitDataPiece:
    """One chunk, not yet read.

    Attributes
    ----------
    num_rows, size_bytes : int
        What the index says of it.
    names, formats : tuple of str
        Path and data format of each leaf.
    level : str or None
        By what it is compressed: chunk, batch, sample, or not at all.
    has_sizes : bool
        Whether sizes are in front of each item.
    is_arrow : bool
        Whether the rows are in an Arrow file at its end.
    """

    file: InputFile
    num_rows: int
    size_bytes: int
    names: tuple[str, ...]
    formats: tuple[str, ...]
    level: str | None
    has_sizes: bool
    is_arrow: bool
    input_bytes: int

    @property
    def place(self) -> str:
        """See `Piece.place`."""
        return str(self.file)

    def encode(self, schema: Schema) -> tuple[EncodedColumn, ...]:
        """See `Piece.encode`."""
        data = self._read()
        if self.is_arrow:
            read = self._arrow_table(data).select
            return ArrowPiece(file=str(self.file), first_row=0, read=read, input_bytes=0).encode(schema)
        rows = self._rows(data)
        columns = {
            name: leaf_values(rows, self.names.index(name), self.formats[self.names.index(name)], wanted, name=name)
            for name, wanted in schema.items()
        }
        return check_rows(schema, columns, file=self.file, place=lambda index: (f"row {index}", index))

    def infer(self) -> dict[str, ColumnType]:
        """The column types of the first rows."""
        data = self._read()
        if self.is_arrow:
            table = self._arrow_table(data)
            return infer_types(table.slice(0, SAMPLE_ROWS).combine_chunks().to_batches()[0], file=self.file, what=_WHAT)
        rows, found = self._rows(data, SAMPLE_ROWS), {}
        for number, (name, leaf_format) in enumerate(zip(self.names, self.formats, strict=True)):
            try:
                found[name] = infer_column_type(leaf_values(rows, number, leaf_format, None, name=name), name=name)
            except ColumnError as error:
                raise RowError.of(error, file=str(self.file), hint=f" (LitData format {leaf_format})") from error
        return found

    def _read(self) -> bytes:
        """The chunk, of the size that the index says."""
        with opened(self.file) as stream:
            data = stream.read()
        if self.level == "chunk":
            data = inflated(data, most_bytes=self.size_bytes, where=str(self.file))
        if len(data) != self.size_bytes:
            raise SourceError(f"{self.file}: {len(data)} bytes, but index.json says {self.size_bytes}; cut short or replaced?")
        return data

    def _arrow_table(self, data: bytes) -> Any:
        """The rows as a pyarrow.Table; raises `SourceError`."""
        end = len(data) - len(_ARROW_END) - _U4.size
        if end < 0 or data[-len(_ARROW_END) :] != _ARROW_END:
            raise SourceError(f"{self.file}: doesn't end with {_ARROW_END!r}, as the first chunk does")
        (size,) = _U4.unpack_from(data, end)
        with translated(self.file, what=_WHAT):
            table = import_pyarrow(self.file, what=_WHAT).ipc.open_file(memoryview(data)[max(0, end - size) : end]).read_all()
        if table.num_rows != self.num_rows or set(table.column_names) != set(self.names):
            found = f"{table.num_rows} rows of {', '.join(table.column_names)}"
            raise SourceError(f"{self.file}: {found}, but index.json says {self.num_rows} of {', '.join(self.names)}")
        return table

    def _rows(self, data: bytes, most: int | None = None) -> PackedRows:
        """The first rows of the chunk, or all; raises `SourceError`."""
        where = str(self.file)
        if self.level == "batch":
            data, bounds = _unframed(data, num_rows=self.num_rows, where=where)
        else:
            bounds = read_bounds(memoryview(data), num_rows=self.num_rows, where=where)
        if self.level == "sample":
            ends = bounds.tolist()
            items = [inflated(data[start:end], most_bytes=MAX_VALUE_BYTES, where=where) for start, end in pairwise(ends)]
            data, bounds = b"".join(items), np.cumsum([0, *map(len, items)])
        view, bounds = memoryview(data), bounds[: most and most + 1]
        if self.has_sizes:
            return PackedRows.of(view, bounds, [None] * len(self.names), where=where)
        return PackedRows(data=view, starts=bounds[:-1, None], sizes=np.diff(bounds)[:, None], where=where)


class LitDataSource:
    """Folders of LitData, one after another; see `loader.source_rows.Source`.

    Parameters
    ----------
    folders : sequence of (Found, mapping)
        Each with what its index.json says.
    """

    in_processes = False

    def __init__(self, folders: Sequence[tuple[Found, Mapping[str, Any]]]) -> None:
        self._pieces = [piece for folder, index in folders for piece in _pieces(folder, index)]
        if not self._pieces:
            raise SourceError(f"{folders[0][0].root}: index.json lists no chunks, so there are no rows")
        self.files = tuple(piece.file for piece in self._pieces)
        self.input_bytes = sum(piece.input_bytes for piece in self._pieces)
        self.piece_bytes = max(piece.size_bytes for piece in self._pieces)
        self.metadata: Mapping[str, str] = {}
        self.note: str | None = None

    def infer_columns(self) -> dict[str, ColumnType]:
        """See `Source.infer_columns`. They are those of the first rows of the first chunk."""
        return self._pieces[0].infer()

    def pieces(self, schema: Schema, *, exact: bool) -> Iterator[Piece]:
        """See `Source.pieces`."""
        for piece in self._pieces:
            check_names(piece.names, schema, file=piece.file, exact=exact)
            yield piece


def _pieces(folder: Found, index: Mapping[str, Any]) -> Iterator[LitDataPiece]:
    where, by_name, config = f"{folder.root}/index.json", folder.by_name(), index["config"]
    try:
        if config.get("encryption"):
            raise SourceError(f"{where}: the chunks are encrypted; write them anew without encryption")
        loader, formats = config.get("item_loader") or "PyTreeLoader", tuple(map(str, config["data_format"]))
        if loader not in ("PyTreeLoader", "TokensLoader"):
            raise SourceError(f"{where}: written for {loader}, whose items are not read; PyTreeLoader and TokensLoader are")
        compression = config.get("compression")
        if compression and compression.partition(":")[0] != "zstd":
            raise SourceError(f"{where}: compressed with {compression!r}; of LitData's compressions zstd is read")
        names = (
            tuple(_paths(json.loads(config["data_spec"])[1]))
            if config.get("data_spec")
            else tuple(map(str, range(len(formats))))
        )
        if len(names) != len(formats) or len(set(names)) != len(names):
            raise SourceError(f"{where}: {len(formats)} data formats for the leaves {', '.join(names)}")
        is_arrow = not compression and bool(index["chunks"]) and _ends_in_arrow(by_name.get(index["chunks"][0]["filename"]))
        if is_arrow:
            names = tuple(dict.fromkeys(name.partition(".")[0] for name in names))
        for chunk in index["chunks"]:
            if chunk["filename"] not in by_name:
                raise SourceError(f"{where}: lists {chunk['filename']}, which isn't there")
            file = by_name[chunk["filename"]]
            yield LitDataPiece(
                file=file,
                num_rows=int(chunk["chunk_size"]),
                size_bytes=int(chunk["chunk_bytes"]),
                names=names,
                formats=formats,
                level=(config.get("compression_level") or "chunk") if compression else None,
                has_sizes=loader == "PyTreeLoader",
                is_arrow=is_arrow,
                input_bytes=file.size_bytes,
            )
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as exc:
        raise SourceError(f"{where}: malformed: {exc!r}") from exc


def _ends_in_arrow(file: InputFile | None) -> bool:
    if file is None or file.size_bytes < len(_ARROW_END):
        return False
    with opened(file) as stream:
        stream.seek(file.size_bytes - len(_ARROW_END))
        return stream.read() == _ARROW_END


def _paths(spec: Mapping[str, Any], path: str = "") -> Iterator[str]:
    """The paths of the leaves of a tree, as torch writes one in JSON."""
    if spec["type"] is None:
        yield path or "data"
        return
    context = json.loads(spec["context"]) if spec.get("context") else None
    children = spec["children_spec"]
    # A defaultdict's context is [factory, keys].
    keys = context[-1] if isinstance(context, list) and context and isinstance(context[-1], list) else context
    if not isinstance(keys, list) or len(keys) != len(children):
        keys = list(range(len(children)))
    for key, child in zip(keys, children, strict=True):
        yield from _paths(child, f"{path}.{key}" if path else str(key))


def _unframed(data: bytes, *, num_rows: int, where: str) -> tuple[bytes, npt.NDArray[np.int64]]:
    """The items of a chunk that is compressed by batches, one after another, and where each begins."""
    if len(data) < _PREFIX.size or data[: len(_FRAMED)] != _FRAMED:
        raise SourceError(f"{where}: should be compressed by batches, but doesn't begin with {_FRAMED!r}")
    _, version, flags, found, _, num_frames = _PREFIX.unpack_from(data)
    table = _PREFIX.size + 4 * (num_rows + 1)
    if (version, flags, found) != (1, 0, num_rows) or len(data) < table + num_frames * _FRAME.size:
        raise SourceError(f"{where}: version {version} with {found} items, expected version 1 with {num_rows}, or cut short")
    bounds = np.frombuffer(data, "<u4", count=num_rows + 1, offset=_PREFIX.size).astype(np.int64)
    items = []
    for number in range(num_frames):
        _, _, offset, stored_bytes, size_bytes = _FRAME.unpack_from(data, table + number * _FRAME.size)
        item = inflated(data[offset : offset + stored_bytes], most_bytes=size_bytes, where=where)
        if len(item) != size_bytes:
            raise SourceError(f"{where}: frame {number} has {len(item)} bytes, expected {size_bytes}")
        items.append(item)
    joined = b"".join(items)
    if bounds[0] != 0 or np.any(np.diff(bounds) < 0) or bounds[-1] != len(joined):
        raise SourceError(f"{where}: its offsets don't fit the {len(joined)} bytes of its items")
    return joined, bounds
