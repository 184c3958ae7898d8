"""Rows for people and for programs: what `forebay dataset head` prints.

For people each value takes a line, cut short, with everything escaped that a terminal could take for a command. For programs a
row is JSON and whole.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any, Final

import numpy as np

from loader.columns import ColumnType, Schema

__all__ = ["row_json", "row_text"]

MAX_VALUE_CHARS: Final = 100
_EDGE_ITEMS: Final = 4
_SHOWN_BYTES: Final = 16


def row_text(number: int, row: Mapping[str, Any], schema: Schema) -> str:
    """A row as lines: its number, then name, type and value of each column."""
    names = max(map(len, schema.names))
    types = max(len(str(column_type)) for column_type in schema.types)
    lines = [
        f"{name:<{names}}  {column_type!s:<{types}}  {_value_text(row[name], column_type)}"
        for name, column_type in schema.items()
    ]
    return "\n  ".join([f"row {number}", *lines])


def row_json(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row as a JSON object: arrays as lists, bytes as ``{"base64": ...}``.

    Complex numbers are ``[real, imaginary]``; numbers that JSON doesn't have are texts: ``"nan"``, ``"inf"``.
    """
    return {name: _value_json(value) for name, value in row.items()}


def _value_text(value: Any, column_type: ColumnType) -> str:
    if isinstance(value, bytes):
        shown = f"{len(value)} bytes {value[:_SHOWN_BYTES].hex(' ', -4)}"
        return shown + (" ..." if len(value) > _SHOWN_BYTES else "")
    if isinstance(value, np.ndarray):
        shown = np.array2string(value, threshold=2 * _EDGE_ITEMS, edgeitems=_EDGE_ITEMS, max_line_width=10**6)
        shown = " ".join(shown.split()).replace("[ ", "[") if value.ndim else str(value[()])
        return _cut(f"{len(value)} of {shown}" if column_type.kind == "ragged" else shown)
    # Only the part that is shown is escaped: a text may be very long.
    return _cut(ascii(value[: MAX_VALUE_CHARS + 1]) if isinstance(value, str) else ascii(value))


def _cut(text: str) -> str:
    return text if len(text) <= MAX_VALUE_CHARS else text[: MAX_VALUE_CHARS - 4] + " ..."


def _value_json(value: Any) -> Any:
    if isinstance(value, bytes):
        return {"base64": base64.b64encode(value).decode()}
    if isinstance(value, np.ndarray | np.generic):
        array = np.asarray(value)
        if array.dtype.kind == "c":
            array = np.stack([array.real, array.imag], axis=-1)
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            return np.where(np.isfinite(array), array.astype(object), array.astype(str)).tolist()
        return array.tolist()
    return value
