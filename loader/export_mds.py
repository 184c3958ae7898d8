"""Rows as a dataset of MosaicML Streaming (MDS), which that library reads; `loader.source_mds` says the format.

Numbers are MDS's scalars, arrays ``ndarray`` with their dtype, and shape if it is fixed; bool is uint8, for MDS has none.
Texts, bytes, JSON and images are what they are. Complex numbers MDS doesn't have. Each file has its xxh64 in the index.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np
import xxhash
import zstandard

from loader.columns import ColumnType, EncodedColumn, Schema
from loader.errors import ColumnError

__all__ = ["SHARD_BYTES", "MdsWriter"]

SHARD_BYTES: Final = 64 << 20
"""Raw size of a shard that is full, MosaicML's own default."""
_MAX_SHARD_BYTES: Final = (1 << 32) - 1
_HASH: Final = "xxh64"


class MdsWriter:
    """Takes batches and hands on shards, and at the end the index.

    Parameters
    ----------
    level : int or None
        Of zstd; None doesn't compress.
    put : callable
        Takes the name and the bytes of a file.
    """

    def __init__(self, schema: Schema, *, level: int | None, put: Callable[[str, bytes], None]) -> None:
        self._types = schema.types
        self._compressor = None if level is None else zstandard.ZstdCompressor(level=level)
        encodings = [_encoding(name, kind) for name, kind in schema.items()]
        self._config = {
            "version": 2,
            "format": "mds",
            "compression": None if level is None else f"zstd:{level}",
            "hashes": [_HASH],
            "size_limit": SHARD_BYTES,
            "column_names": list(schema.names),
            "column_encodings": encodings,
            "column_sizes": [kind.item_bytes if kind.is_fixed else None for kind in schema.types],
        }
        self._header = json.dumps(self._config, sort_keys=True).encode()
        self._put = put
        self._shards: list[dict[str, Any]] = []
        self._rows: list[bytes] = []
        self._size_bytes = self._empty_bytes = 8 + len(self._header)

    def write(self, batch: tuple[EncodedColumn, ...]) -> None:
        """Append rows."""
        columns = [_values(column, kind) for column, kind in zip(batch, self._types, strict=True)]
        varying = [column for column, kind in zip(columns, self._types, strict=True) if not kind.is_fixed]
        sizes = np.array([[len(value) for value in column] for column in varying], "<u4").T
        heads = np.ascontiguousarray(sizes).reshape(len(batch[0]), len(varying))
        for head, *values in zip(heads, *columns, strict=True):
            row = b"".join([head.tobytes(), *values])
            if self._rows and self._size_bytes + len(row) + 4 > SHARD_BYTES:
                self._end_shard()
            self._rows.append(row)
            self._size_bytes += len(row) + 4

    def finish(self) -> None:
        """Hand on the last shard and the index."""
        if self._rows:
            self._end_shard()
        self._put("index.json", json.dumps({"version": 2, "shards": self._shards}, sort_keys=True).encode())

    def _end_shard(self) -> None:
        if self._size_bytes > _MAX_SHARD_BYTES:
            raise ColumnError(f"a row of {self._size_bytes} bytes, but a shard of MDS has at most {_MAX_SHARD_BYTES}")
        start = 4 + 4 * (len(self._rows) + 1) + len(self._header)
        bounds = np.cumsum([start, *map(len, self._rows)]).astype("<u4")
        data = b"".join([np.uint32(len(self._rows)).astype("<u4").tobytes(), bounds.tobytes(), self._header, *self._rows])
        name = f"shard.{len(self._shards):05}.mds"
        shard = {**self._config, "samples": len(self._rows), "raw_data": _info(name, data), "zip_data": None}
        if self._compressor is not None:
            name, data = f"{name}.zstd", self._compressor.compress(data)
            shard["zip_data"] = _info(name, data)
        self._put(name, data)
        self._shards.append(shard)
        self._rows, self._size_bytes = [], self._empty_bytes


def _info(name: str, data: bytes) -> dict[str, Any]:
    return {"basename": name, "bytes": len(data), "hashes": {_HASH: xxhash.xxh64_hexdigest(data)}}


def _encoding(name: str, kind: ColumnType) -> str:
    if kind.dtype is None:
        return kind.kind
    if kind.dtype.kind == "c":
        raise ColumnError.mismatch(name, expected="a type that MDS has", found=f"{kind}, and it has no complex numbers")
    dtype = "uint8" if kind.dtype.kind == "b" else kind.dtype.name
    if not kind.is_fixed:
        return f"ndarray:{dtype}"
    return f"ndarray:{dtype}:{','.join(map(str, kind.shape))}" if kind.shape else dtype


def _values(column: EncodedColumn, kind: ColumnType) -> Sequence[bytes]:
    if isinstance(column, list):
        return column if kind.dtype is None else [_with_shape(value, kind) for value in column]
    data, size = np.ascontiguousarray(column).tobytes(), kind.item_bytes
    return [data[start : start + size] for start in range(0, len(data), size)]


def _with_shape(value: bytes, kind: ColumnType) -> bytes:
    """A ragged value behind its number of dimensions and their sizes, in the narrowest type that holds them."""
    shape = (len(value) // kind.item_bytes, *kind.shape)
    code = next(code for code in range(4) if max(shape) < 1 << (8 << code))
    return bytes([len(shape) << 2 | code]) + np.array(shape, f"<u{1 << code}").tobytes() + value
