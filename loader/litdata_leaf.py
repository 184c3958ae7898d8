"""One leaf of LitData's samples: from its bytes and its data format to a value. Pure; parses and never executes.

``json`` leaves are JSON, or a binary form of it: a tag, then what `_Nested` reads.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from typing import Any, Final

import numpy as np

from loader.columns import ColumnType
from loader.packed_rows import PackedRows, pil_array
from loader.source_rows import SourceError, narrowed
from loader.values import Array

__all__ = ["leaf_values"]

_NUMPY_DTYPES: Final = (
    "int8 int16 int32 int64 uint8 uint16 uint32 uint64 float16 float32 float64 complex64 complex128 bool"
).split()
_TORCH_DTYPES: Final = {
    0: "float32", 1: "float32", 2: "float64", 3: "float64", 4: "complex64", 5: "complex64", 6: "complex128", 7: "complex128",
    8: "float16", 9: "float16", 11: "uint8", 12: "int8", 13: "int16", 14: "int16", 15: "int32", 16: "int32", 17: "int64",
    18: "int64", 19: "bool", 20: "uint16",
}  # fmt: skip
_SCALARS: Final = {"int": "<i8", "float": "<f8", "bool": "?"}
# Stored as the file that they came from, or would be saved as.
_FILES: Final = ("bytes", "jpeg", "image", "file", "tifffile", "tiff")


def leaf_values(rows: PackedRows, number: int, leaf_format: str, wanted: ColumnType | None, *, name: str) -> Any:
    """The values of leaf `number`, one per row, as `Schema.check_batch` or `infer_column_type` take them.

    Raises
    ------
    SourceError
        If the format is none that is read, or a value is not of it.
    """
    kind, _, detail = leaf_format.partition(":")
    if kind in _FILES or (wanted is not None and (wanted.kind == "bytes" or wanted.is_image)):
        return rows.bytes_of(number)
    if kind in _SCALARS:
        return narrowed(rows.numbers(number, _SCALARS[kind]), wanted)
    if kind == "pil":
        return [pil_array(data, where=f"{rows.where}, row {row}") for row, data in enumerate(rows.bytes_of(number))]
    parse = _parser(kind, detail)
    if parse is None:
        unsafe = "to load a pickle is to run a program, so it is not done" if kind == "pickle" else "that is not read"
        raise SourceError(
            f"{rows.where}: column {name!r} has the data format {leaf_format!r}; {unsafe}. Take it as it lies with --columns "
            f"{name}=bytes,... or choose the columns without it"
        )
    values = []
    for row, data in enumerate(rows.bytes_of(number)):
        try:
            values.append(parse(data))
        except (ValueError, KeyError, IndexError, struct.error, RecursionError) as exc:
            raise SourceError(f"{rows.where}, row {row}: column {name!r}: the value is no {leaf_format}: {exc}") from exc
    return [narrowed(value, wanted) for value in values] if "numpy" in kind or "tensor" in kind else values


def _parser(kind: str, detail: str) -> Callable[[bytes], Any] | None:
    match kind:
        case "str" | "text":
            return bytes.decode
        case "json":
            return _nested
        case "numpy":
            return lambda data: _array(data, "<", _numpy_dtype)
        case "tensor":
            return lambda data: _array(data, ">", _torch_dtype)
        case "no_header_numpy":
            return lambda data: np.frombuffer(data, _numpy_dtype(int(detail)))
        case "no_header_tensor":
            return lambda data: np.frombuffer(data, _torch_dtype(int(detail)))
    return None


def _numpy_dtype(number: int) -> str:
    if not 0 <= number < len(_NUMPY_DTYPES):
        raise ValueError(f"numpy dtype number {number}; known are 0 to {len(_NUMPY_DTYPES) - 1}, others are no numbers")
    return _NUMPY_DTYPES[number]


def _torch_dtype(number: int) -> str:
    if number not in _TORCH_DTYPES:
        raise ValueError(f"torch dtype number {number}" + (", bfloat16, which numpy doesn't have" if number == 10 else ""))
    return _TORCH_DTYPES[number]


def _array(data: bytes, order: str, dtype_of: Callable[[int], str]) -> Array:
    """An array behind its dtype's number, the number of its dimensions, and these, u32 each in the byte order `order`."""
    dtype, num_dimensions = struct.unpack_from(f"{order}II", data)
    shape = struct.unpack_from(f"{order}{num_dimensions}I", data, 8)
    return np.frombuffer(data, dtype_of(dtype), offset=8 + 4 * num_dimensions).reshape(shape)


def _nested(data: bytes) -> Any:
    # Tags are small; JSON begins with a bracket or brace.
    if not data or data[0] > 0x20:
        return json.loads(data)
    return _Nested(data).value()


class _Nested:
    """Reads a value of LitData's binary JSON: a tag, then u32 lengths and counts, i64 and f64, texts as UTF-8."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def value(self) -> Any:
        match self._number("<B"):
            case 0:
                return json.loads(self._bytes(self._number("<I")))
            case 1:
                return [self._text() for _ in range(self._number("<I"))]
            case 2:
                return self._array("<i8")
            case 3:
                return self._array("<f8")
            case 4:
                return [byte != 0 for byte in self._bytes(self._number("<I"))]
            case 5:
                return {self._text(): self.value() for _ in range(self._number("<I"))}
            case 6:
                return self._records()
            case 7:
                return self._text()
            case 8:
                return self._number("<q")
            case 9:
                return self._number("<d")
            case 10:
                return self._number("<B") != 0
            case 11:
                return None
            case tag:
                raise ValueError(f"unknown tag {tag}")

    def _records(self) -> list[dict[str, Any]]:
        num_rows, num_keys = self._number("<I"), self._number("<I")
        keys = [self._text() for _ in range(num_keys)]
        if not keys:
            raise ValueError("records without keys")  # They would take no bytes, however many there are said to be.
        return [{key: self._field() for key in keys} for _ in range(num_rows)]

    def _field(self) -> Any:
        match self._number("<B"):
            case 0x10:
                return None
            case 0x11:
                return self._text()
            case 0x12:
                return self._number("<q")
            case 0x13:
                return self._number("<d")
            case 0x14:
                return self._number("<B") != 0
            case tag:
                raise ValueError(f"unknown tag {tag} in a record")

    def _number(self, layout: str) -> Any:
        (value,) = struct.unpack_from(layout, self._data, self._at)
        self._at += struct.calcsize(layout)
        return value

    def _bytes(self, size: int) -> bytes:
        data = self._data[self._at : self._at + size]
        if len(data) != size:
            raise ValueError("it ends too early")
        self._at += size
        return data

    def _text(self) -> str:
        return self._bytes(self._number("<I")).decode()

    def _array(self, dtype: str) -> list[Any]:
        items: list[Any] = np.frombuffer(self._bytes(8 * self._number("<I")), dtype).tolist()
        return items
