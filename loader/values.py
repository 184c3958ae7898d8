"""The check that every value passes before it is stored, and the bytes that it becomes.

Invariants: a value either becomes exactly the bytes that reading gives back, or raises a `ColumnError` that names the column,
what was expected and what was found. Nothing is rounded except a Python float into a narrower float, nothing wraps, nothing
is broadcast. What carries a dtype (arrays, tensors, numpy scalars) has said what it is and must be that exactly.

This module does not know how images are decoded: ``jpeg`` and ``png`` values are bytes as given.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from loader.column_type import MAX_VALUE_BYTES, ColumnType
from loader.errors import ColumnError

__all__ = ["Array", "EncodedColumn", "check_array", "check_value", "describe_value"]

Array = npt.NDArray[Any]
EncodedColumn = Array | list[bytes]
"""A checked column of a batch: an array [rows, *shape] for a fixed type, else the bytes of each value."""


def check_value(name: str, column_type: ColumnType, value: object) -> bytes:
    """The bytes that store one value of a column.

    Parameters
    ----------
    name : str
        The column, for the error.
    column_type : ColumnType
        What the value must be. Arrays must have its dtype and shape; Python numbers and lists of them are taken where the
        dtype holds them: integers exactly, floats rounded.
    value : object
        One row's value.

    Raises
    ------
    ColumnError
        If the value is of another type, dtype or shape, or too large.
    """
    match column_type.kind:
        case "array":
            return _fit(name, column_type, value, expected=str(column_type), shape=column_type.shape).tobytes()
        case "ragged":
            encoded = _fit(name, column_type, value, expected=str(column_type), shape=(None, *column_type.shape)).tobytes()
        case "str":
            encoded = _encode_text(name, value)
        case "json":
            encoded = _encode_json(name, value)
        case _:
            if not isinstance(value, bytes | bytearray | memoryview):
                raise ColumnError.mismatch(name, expected=f"{column_type}, as bytes", found=describe_value(value))
            encoded = bytes(value)
    if len(encoded) > MAX_VALUE_BYTES:
        raise ColumnError.mismatch(name, expected=f"at most {MAX_VALUE_BYTES} bytes a value", found=f"{len(encoded)} bytes")
    return encoded


def check_array(name: str, column_type: ColumnType, values: object) -> EncodedColumn:
    """The encoded column of a batch, in one step where the type is fixed.

    Parameters
    ----------
    name, column_type
        As for `check_value`.
    values : array [rows, *shape] or sequence
        One value per row.

    Raises
    ------
    ColumnError
        As `check_value`.
    """
    if column_type.is_fixed:
        expected = f"{column_type} in each row"
        return _fit(name, column_type, values, expected=expected, shape=(None, *column_type.shape))
    if not isinstance(values, Sequence | np.ndarray) or isinstance(values, str | bytes):
        raise ColumnError.mismatch(name, expected=f"a sequence of {column_type}", found=describe_value(values))
    return [check_value(name, column_type, value) for value in values]


def _fit(name: str, column_type: ColumnType, value: object, *, expected: str, shape: tuple[int | None, ...]) -> Array:
    """`value` as an array of the column's dtype and of `shape`, in which None is any size."""
    dtype = column_type.dtype
    assert dtype is not None
    if type(value) is np.ndarray and value.dtype == dtype and _has_shape(value, shape):
        return value
    try:
        array = np.asarray(value)
    except (ValueError, TypeError, OverflowError) as exc:
        raise ColumnError.mismatch(name, expected=expected, found=describe_value(value)) from exc
    if isinstance(value, list | tuple) and array.size == 0 and array.shape == (0,) and shape[:1] == (None,):
        return np.empty((0, *column_type.shape), dtype)
    cast = _cast(array, dtype) if _has_shape(array, shape) else None
    # What carries a dtype has said what it is: it's taken as that or not at all. Python numbers are taken where they fit.
    if cast is None or (_carries_dtype(value) and array.dtype.newbyteorder("<") != dtype):
        raise ColumnError.mismatch(name, expected=expected, found=describe_value(value))
    return cast


def _has_shape(array: Array, shape: tuple[int | None, ...]) -> bool:
    return len(array.shape) == len(shape) and all(
        want is None or size == want for size, want in zip(array.shape, shape, strict=True)
    )


def _carries_dtype(value: object) -> bool:
    while isinstance(value, list | tuple) and value:
        value = value[0]
    return hasattr(value, "dtype")


def _cast(array: Array, dtype: np.dtype[Any]) -> Array | None:
    """`array` as `dtype`; None where that would change its kind, or an integer's value, or make a number infinite."""
    if array.dtype.newbyteorder("<") == dtype:
        return array.astype(dtype, copy=False)
    kinds = {"b": "", "i": "iufc", "u": "iufc", "f": "fc", "c": "c"}
    if dtype.kind not in kinds.get(array.dtype.kind, ""):
        return None
    if dtype.kind in "iu":
        limits = np.iinfo(dtype)
        fits = not array.size or (int(array.min()) >= limits.min and int(array.max()) <= limits.max)
        return array.astype(dtype) if fits else None
    with np.errstate(over="ignore"):
        cast: Array = array.astype(dtype)
    if array.dtype.kind in "iu":
        # As Python objects, since int64 beside float64 would compare after rounding.
        return cast if bool(np.all(cast.astype(object) == array.astype(object))) else None
    return cast if bool(np.all(np.isfinite(cast) == np.isfinite(array))) else None


def describe_value(value: object) -> str:
    """What `value` is, for an error: type, dtype, shape, size; never much of its content."""
    if isinstance(value, bool | int | float | complex):
        return f"{type(value).__name__} {str(value)[:40]}"
    if isinstance(value, str | bytes | bytearray):
        return f"{type(value).__name__} of length {len(value)}"
    if hasattr(value, "dtype") and hasattr(value, "shape"):
        dimensions = ",".join(str(size) for size in value.shape)
        return f"{value.dtype}[{dimensions}]" if dimensions else f"{value.dtype} scalar"
    if isinstance(value, list | tuple):
        try:
            array = np.asarray(value)
        except (ValueError, TypeError, OverflowError):
            return f"{type(value).__name__} of {len(value)} values of unequal shapes"
        if array.dtype.kind in "biufc":
            # numpy picks the dtype of a list; the range tells why it doesn't fit.
            limits = f" from {array.min()} to {array.max()}" if array.size and array.dtype.kind in "iuf" else ""
            return f"{type(value).__name__} like {describe_value(array)}{limits}"
        return f"{type(value).__name__} of {len(value)}"
    return "None" if value is None else type(value).__name__


def _encode_text(name: str, value: object) -> bytes:
    if not isinstance(value, str):
        raise ColumnError.mismatch(name, expected="str", found=describe_value(value))
    try:
        return value.encode()
    except UnicodeEncodeError as exc:
        raise ColumnError.mismatch(name, expected="text that UTF-8 can hold", found=f"str with {exc.reason}") from exc


def _encode_json(name: str, value: object) -> bytes:
    try:
        _check_json_keys(value)
        text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
        return text.encode()
    except (TypeError, ValueError, RecursionError) as exc:
        raise ColumnError.mismatch(name, expected="a value that JSON holds", found=f"{describe_value(value)} ({exc})") from exc


def _check_json_keys(value: object) -> None:
    # json.dumps would turn other keys into text without a word, and reading would give back something else.
    if isinstance(value, dict):
        for key, inner in value.items():
            if not isinstance(key, str):
                raise TypeError(f"the key {key!r} is no text")
            _check_json_keys(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            _check_json_keys(inner)
