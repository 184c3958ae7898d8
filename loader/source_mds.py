"""MosaicML Streaming datasets (MDS) as a source: a folder with ``index.json`` and shards. mosaicml-streaming is not needed.

The format, version 2. ``index.json`` is ``{"version": 2, "shards": [...]}``; a shard says its ``samples``, its columns
(``column_names``, ``column_encodings`` and ``column_sizes``, where null means that the size varies), and its file ``raw_data``
and, if ``compression`` is not null, ``zip_data``: ``{"basename", "bytes", "hashes"}`` each. The raw file is::

    u32 number of samples | u32 offset of each sample, and of the end | JSON of the columns | samples

and a sample is as `loader.packed_rows` says. Sizes and hashes of the index are checked. What is pickled (``pkl``) is never
loaded: a column of type bytes takes it as it lies.

Shards are read and decoded by threads.
"""

from __future__ import annotations

import bz2
import gzip
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import xxhash

from loader.arrow_columns import check_names
from loader.columns import ColumnType, EncodedColumn, Schema, infer_column_type, parse_column_type
from loader.errors import ColumnError
from loader.input_file import Found, InputFile, opened, reading
from loader.packed_rows import PackedRows, inflated, pil_array, read_bounds
from loader.source_rows import SAMPLE_ROWS, Piece, RowError, SourceError, check_rows, narrowed
from loader.values import Array

__all__ = ["MdsPiece", "MdsSource"]

_SCALARS: Final = {"int": "int64"} | {
    name: name for name in "uint8 uint16 uint32 uint64 int8 int16 int32 int64 float16 float32 float64".split()
}
_PLAIN: Final = {"bytes": "bytes", "str": "str", "json": "json", "jpeg": "jpeg", "png": "png", "str_decimal": "str"}
_ARRAY_DTYPES: Final = {
    8: "uint8", 9: "int8", 16: "uint16", 17: "int16", 18: "float16", 32: "uint32", 33: "int32", 34: "float32",
    64: "uint64", 65: "int64", 66: "float64",
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class MdsPiece:
    """One shard, not yet read.

    Attributes
    ----------
    file : InputFile
        The one that is there: raw, or compressed.
    shard : mapping
        Its entry in the index.
    """

    file: InputFile
    shard: Mapping[str, Any]
    input_bytes: int

    @property
    def place(self) -> str:
        """See `Piece.place`."""
        return str(self.file)

    def encode(self, schema: Schema) -> tuple[EncodedColumn, ...]:
        """See `Piece.encode`."""
        rows = self.rows()
        names = self.shard["column_names"]
        columns = {}
        for name, wanted in schema.items():
            number = names.index(name)
            columns[name] = _values(rows, number, self.shard["column_encodings"][number], wanted, name=name)
        return check_rows(schema, columns, file=self.file, place=lambda index: (f"row {index}", index))

    def rows(self, most: int | None = None) -> PackedRows:
        """The first rows of the shard, or all; raises `SourceError`."""
        raw = self.shard["raw_data"]
        with opened(self.file) as stream:
            data = stream.read()
        packed = self.shard["zip_data"] if self.file.name != raw["basename"].rpartition("/")[2] else None
        if packed is not None:
            _check_hashes(data, packed, file=self.file)
            data = _decompressed(data, self.shard["compression"], size_bytes=raw["bytes"], file=self.file)
        if len(data) != raw["bytes"]:
            raise SourceError(
                f"{self.file}: {len(data)} bytes, but index.json says {raw['bytes']}; it was cut short or replaced"
            )
        _check_hashes(data, raw, file=self.file)
        view = memoryview(data)
        bounds = read_bounds(view, num_rows=self.shard["samples"], where=str(self.file))
        return PackedRows.of(view, bounds[: most and most + 1], self.shard["column_sizes"], where=str(self.file))


class MdsSource:
    """Folders of MDS, one after another; see `loader.source_rows.Source`.

    Parameters
    ----------
    folders : sequence of (Found, mapping)
        Each with what its index.json says.
    """

    in_processes = False

    def __init__(self, folders: Sequence[tuple[Found, Mapping[str, Any]]]) -> None:
        self._shards = [pair for folder, index in folders for pair in _shards(folder, index)]
        if not self._shards:
            raise SourceError(f"{folders[0][0].root}: index.json lists no shards, so there are no rows")
        self.files = tuple(file for file, _ in self._shards)
        self.input_bytes = sum(file.size_bytes for file in self.files)
        self.piece_bytes = max(shard["raw_data"]["bytes"] for _, shard in self._shards)
        self.metadata: Mapping[str, str] = {}
        self.note: str | None = None

    def infer_columns(self) -> dict[str, ColumnType]:
        """See `Source.infer_columns`. They are those of the first shard."""
        file, shard = next((pair for pair in self._shards if pair[1]["samples"]), self._shards[0])
        rows, found = None, {}
        for number, (name, encoding) in enumerate(zip(shard["column_names"], shard["column_encodings"], strict=True)):
            declared = _declared(encoding)
            if declared is None:
                rows = rows or MdsPiece(file=file, shard=shard, input_bytes=0).rows(SAMPLE_ROWS)
                try:
                    declared = infer_column_type(_values(rows, number, encoding, None, name=name), name=name)
                except ColumnError as error:
                    raise RowError.of(error, file=str(file), hint=f" (MDS encoding {encoding})") from error
            found[name] = declared
        return found

    def pieces(self, schema: Schema, *, exact: bool) -> Iterator[Piece]:
        """See `Source.pieces`."""
        for file, shard in self._shards:
            check_names(shard["column_names"], schema, file=file, exact=exact)
            yield MdsPiece(file=file, shard=shard, input_bytes=file.size_bytes)


def _shards(folder: Found, index: Mapping[str, Any]) -> Iterator[tuple[InputFile, Mapping[str, Any]]]:
    """The shards of a folder, each with the file that is there."""
    by_name = folder.by_name()
    for number, shard in enumerate(index["shards"]):
        where = f"{folder.root}/index.json, shard {number}"
        if not isinstance(shard, dict) or shard.get("format") != "mds" or shard.get("version") != 2:
            raise SourceError(f"{where}: expected format mds, version 2, found {str(shard)[:80]}")
        try:
            columns = list(zip(shard["column_names"], shard["column_encodings"], shard["column_sizes"], strict=True))
            names = [info["basename"] for info in (shard["raw_data"], shard["zip_data"]) if info]
            sound = type(shard["samples"]) is int and type(shard["raw_data"]["bytes"]) is int and bool(columns)
        except (KeyError, TypeError, ValueError) as exc:
            raise SourceError(f"{where}: malformed: {exc!r}") from exc
        if not sound:
            raise SourceError(f"{where}: malformed: samples and bytes are numbers, and there is a column")
        file = next((by_name[name] for name in names if name in by_name), None)
        if file is None:
            raise SourceError(f"{where}: the file {' or '.join(names)} isn't there")
        yield file, shard


def _check_hashes(data: bytes, info: Mapping[str, Any], *, file: InputFile) -> None:
    for name, expected in (info.get("hashes") or {}).items():
        make = getattr(xxhash, name, None) or getattr(hashlib, name, None)
        if make is None:
            raise SourceError(f"{file}: index.json has a hash {name!r} of it, which is not known here")
        found = make(data).hexdigest()
        if found != expected:
            raise SourceError(f"{file}: its {name} is {found}, but index.json says {expected}; it was damaged or replaced")


def _decompressed(data: bytes, compression: str, *, size_bytes: int, file: InputFile) -> bytes:
    with reading(file):
        match str(compression).partition(":")[0]:
            case "zstd":
                return inflated(data, most_bytes=size_bytes, where=str(file))
            case "gz":
                return gzip.decompress(data)
            case "bz2":
                return bz2.decompress(data)
    raise SourceError(
        f"{file}: compressed with {compression!r}; zstd, gz and bz2 are read. Decompress it beside its index.json"
    )


def _declared(encoding: str) -> ColumnType | None:
    """The column type that an encoding names; None if it depends on the values."""
    text = _SCALARS.get(encoding) or _PLAIN.get(encoding)
    kind, _, rest = encoding.partition(":")
    if kind == "ndarray" and rest.count(":") == 1:
        dtype, _, shape = rest.partition(":")
        text = f"{dtype}[{shape}]"
    return None if text is None else parse_column_type(text)


def _values(rows: PackedRows, number: int, encoding: str, wanted: ColumnType | None, *, name: str) -> Any:
    """The values of one column, one per row, as `Schema.check_batch` or `infer_column_type` take them."""
    if wanted is not None and (wanted.kind == "bytes" or wanted.is_image):
        return rows.bytes_of(number)
    kind, _, rest = encoding.partition(":")
    declared = _declared(encoding)
    if declared is not None and declared.is_fixed and declared.dtype is not None:
        return narrowed(rows.numbers(number, declared.dtype, shape=declared.shape), wanted)
    values = rows.bytes_of(number)
    try:
        if encoding in ("str", "str_decimal"):
            return [value.decode() for value in values]
        if encoding == "json":
            return [json.loads(value) for value in values]
        if encoding in ("str_int", "str_float"):
            return [int(value) if encoding == "str_int" else float(value) for value in values]
        if kind == "ndarray":
            arrays = [_array(value, rest) for value in values]
            return [narrowed(array, wanted) for array in arrays]
    except (ValueError, KeyError, IndexError, TypeError) as exc:
        raise SourceError(f"{rows.where}: column {name!r}: a value is no {encoding}: {exc}") from exc
    if kind == "pil":
        return [pil_array(value, where=f"{rows.where}, row {row}") for row, value in enumerate(values)]
    if encoding in ("bytes", "jpeg", "png"):
        return values
    unsafe = "to load a pickle is to run a program, so it is not done" if kind == "pkl" else "that is not read"
    raise SourceError(
        f"{rows.where}: column {name!r} has the encoding {encoding!r}; {unsafe}. Take it as it lies with "
        f"--columns {name}=bytes,... or choose the columns without it"
    )


def _array(data: bytes, dtype: str) -> Array:
    """An array whose dtype, unless given, and shape are in front of it."""
    at = 0
    if not dtype:
        dtype, at = _ARRAY_DTYPES[data[0]], 1
    num_dimensions, size_bytes = data[at] >> 2, 1 << (data[at] & 3)
    end = at + 1 + num_dimensions * size_bytes
    shape = np.frombuffer(data[at + 1 : end], f"<u{size_bytes}").tolist()
    if len(shape) != num_dimensions:
        raise ValueError("it ends within its shape")
    return np.frombuffer(data[end:], np.dtype(dtype).newbyteorder("<")).reshape(shape)
