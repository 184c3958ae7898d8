"""The schema of a dataset, and how one is inferred from values. The public face of column types and of their checks.

Rows pass through `Schema.check_sample` or `Schema.check_batch` on their way into a block: the result is a tuple in the
schema's order, of bytes per value, or of one array or list of bytes per column of a batch. Invariant: either all values of
a row or batch are what the schema says, none missing and none besides, or a `ColumnError` names the first that isn't.

This module does not know how rows become blocks.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np

from loader.column_type import DTYPES, KNOWN_TYPES, MAX_VALUE_BYTES, ColumnType, parse_column_type
from loader.errors import ColumnError, InvalidOption
from loader.values import Array, EncodedColumn, check_array, check_value, describe_value

__all__ = [
    "MAX_COLUMNS",
    "MAX_VALUE_BYTES",
    "RESERVED_NAMES",
    "ColumnType",
    "EncodedColumn",
    "Schema",
    "check_array",
    "check_value",
    "infer_column_type",
    "parse_column_type",
]

MAX_COLUMNS: Final = 4096
MAX_NAME_BYTES: Final = 255
RESERVED_NAMES: Final = frozenset({"_index", "_pad"})
"""Names that the loader itself adds to a batch."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Schema:
    """The ordered columns of a dataset: names and types."""

    names: tuple[str, ...]
    types: tuple[ColumnType, ...]

    @classmethod
    def of(cls, columns: Mapping[str, str | ColumnType]) -> Schema:
        """The schema of `columns`, in their order.

        Raises
        ------
        ColumnError
            If a name or a type is not allowed, or there is no column.
        """
        if not 1 <= len(columns) <= MAX_COLUMNS:
            raise InvalidOption(f"a dataset has 1 to {MAX_COLUMNS} columns, found {len(columns)}")
        types = []
        for name, wanted in columns.items():
            _check_name(name)
            try:
                types.append(wanted if isinstance(wanted, ColumnType) else parse_column_type(wanted))
            except InvalidOption as exc:
                raise ColumnError.mismatch(name, expected=f"a type: {KNOWN_TYPES}", found=f"{wanted!r} ({exc})") from exc
        return cls(names=tuple(columns), types=tuple(types))

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, name: str) -> ColumnType:
        return self.types[self.position(name)]

    def items(self) -> Iterator[tuple[str, ColumnType]]:
        """Pairs of name and type, in order."""
        return zip(self.names, self.types, strict=True)

    def position(self, name: str) -> int:
        """The number of the column `name`; raises `ColumnError` if there is none."""
        if name not in self.names:
            raise ColumnError.mismatch(name, expected=f"one of the columns {', '.join(self.names)}", found="no such column")
        return self.names.index(name)

    def select(self, names: Iterable[str]) -> Schema:
        """The schema of only the columns `names`, in the order of this schema."""
        wanted = {self.position(name) for name in names}
        return Schema(
            names=tuple(name for number, name in enumerate(self.names) if number in wanted),
            types=tuple(column_type for number, column_type in enumerate(self.types) if number in wanted),
        )

    def to_json(self) -> list[dict[str, str]]:
        """A list, because the order counts: ``[{"name": ..., "type": ...}, ...]``."""
        return [{"name": name, "type": str(column_type)} for name, column_type in self.items()]

    @classmethod
    def from_json(cls, value: object) -> Schema:
        """Inverse of `to_json`; raises `InvalidOption` or `ColumnError`."""
        if not isinstance(value, list) or not all(isinstance(c, dict) and set(c) == {"name", "type"} for c in value):
            raise InvalidOption("a schema is a list of {name, type}")
        names = [column["name"] for column in value]
        if not all(isinstance(text, str) for column in value for text in column.values()) or len(set(names)) != len(names):
            raise InvalidOption("the names and types of a schema are texts, and the names differ")
        return cls.of({column["name"]: column["type"] for column in value})

    def check_sample(self, sample: Mapping[str, object]) -> tuple[bytes, ...]:
        """The encoded values of one row, in the schema's order. Raises `ColumnError`."""
        self._check_names(sample)
        return tuple(check_value(name, column_type, sample[name]) for name, column_type in self.items())

    def check_batch(self, columns: Mapping[str, object]) -> tuple[EncodedColumn, ...]:
        """The encoded columns of many rows, in the schema's order. Raises `ColumnError`."""
        self._check_names(columns)
        encoded = tuple(check_array(name, column_type, columns[name]) for name, column_type in self.items())
        for name, column in zip(self.names, encoded, strict=True):
            if len(column) != len(encoded[0]):
                raise ColumnError.mismatch(
                    name, expected=f"{len(encoded[0])} rows like column {self.names[0]!r}", found=f"{len(column)} rows"
                )
        return encoded

    def _check_names(self, columns: Mapping[str, object]) -> None:
        # The lengths agree and every name is found in the usual case: no sets are built per row.
        if len(columns) == len(self.names) and all(name in columns for name in self.names):
            return
        for name, column_type in self.items():
            if name not in columns:
                raise ColumnError.mismatch(name, expected=str(column_type), found="no value")
        unknown = next(name for name in columns if name not in self.names)
        raise ColumnError.mismatch(unknown, expected=f"only the columns {', '.join(self.names)}", found="one more")


def _check_name(name: object) -> None:
    found = repr(name)
    if not isinstance(name, str):
        raise ColumnError.mismatch(str(name), expected="a text as its name", found=found)
    if not name or not name.isprintable() or len(name.encode()) > MAX_NAME_BYTES:
        expected = f"a name of 1 to {MAX_NAME_BYTES} bytes of printable text"
        raise ColumnError.mismatch(name[:MAX_NAME_BYTES], expected=expected, found=found[: MAX_NAME_BYTES + 2])
    if name in RESERVED_NAMES:
        raise ColumnError.mismatch(name, expected="another name: the loader adds this one to batches", found=found)


def infer_column_type(values: Iterable[object], *, name: str = "value") -> ColumnType:
    """The narrowest column type that holds all of `values`.

    Numpy arrays and scalars keep their dtype. Python integers become int64 (uint64 where needed), floats float64. Arrays or
    lists of one shape become a fixed type, of shapes that differ in the first dimension a ragged one. Bytes that all begin
    as JPEG or PNG files do become that. What is neither number, text nor bytes, or is None in places, becomes json.

    Parameters
    ----------
    values : iterable
        One value per row, at least one. A sample is enough as long as it shows what varies.
    name : str
        The column, for the error.

    Raises
    ------
    ColumnError
        If no column type holds them all.
    """
    sample = list(values)
    if not sample:
        raise ColumnError.mismatch(name, expected="at least one value to infer a type from", found="none")
    if all(isinstance(value, bytes | bytearray | memoryview) for value in sample):
        heads = [bytes(value[:8]) for value in sample if isinstance(value, bytes | bytearray | memoryview)]
        if all(head.startswith(b"\xff\xd8\xff") for head in heads):
            return ColumnType(kind="jpeg")
        return ColumnType(kind="png" if all(head == b"\x89PNG\r\n\x1a\n" for head in heads) else "bytes")
    if all(isinstance(value, str) for value in sample):
        return ColumnType(kind="str")
    if all(isinstance(value, np.ndarray | np.generic) for value in sample):
        return _infer_arrays(sample, name=name)
    inferred = _infer_numbers(sample)
    if inferred is None:
        inferred = ColumnType(kind="json")
        for value in sample:
            check_value(name, inferred, value)
    return inferred


def _infer_arrays(sample: list[object], *, name: str) -> ColumnType:
    arrays: list[Array] = [np.asarray(value) for value in sample]
    first = arrays[0].dtype.newbyteorder("<")
    for array in arrays:
        if array.dtype.newbyteorder("<") != first or first.name not in DTYPES:
            found = f"{describe_value(arrays[0])} and {describe_value(array)}"
            raise ColumnError.mismatch(name, expected=f"one dtype of {', '.join(DTYPES)}", found=found)
    inferred = _infer_shape(arrays, dtype_name=first.name)
    if inferred is None:
        shapes = ", ".join(sorted({str(array.shape) for array in arrays})[:4])
        raise ColumnError.mismatch(name, expected="shapes that differ in the first dimension only", found=shapes)
    return inferred


def _infer_numbers(sample: list[object]) -> ColumnType | None:
    """The type of Python numbers, or of lists of them; None if they are something else."""
    try:
        arrays: list[Array] = [np.asarray(value) for value in sample if isinstance(value, int | float | complex | list | tuple)]
    except (ValueError, TypeError, OverflowError):
        return None
    kinds = {array.dtype.kind for array in arrays if array.size}
    if len(arrays) < len(sample) or not kinds:
        return None
    if kinds == {"b"}:
        dtype_name = "bool"
    elif kinds <= {"i", "u"}:
        dtype_name = "uint64" if "u" in kinds else "int64"
        if "u" in kinds and min(int(array.min()) for array in arrays if array.size) < 0:
            return None
    elif kinds <= {"i", "u", "f"}:
        dtype_name = "float64"
    elif kinds <= {"i", "u", "f", "c"}:
        dtype_name = "complex128"
    else:
        return None
    return _infer_shape(arrays, dtype_name=dtype_name)


def _infer_shape(arrays: list[Array], *, dtype_name: str) -> ColumnType | None:
    shapes = {array.shape for array in arrays}
    if len(shapes) == 1 and 0 not in arrays[0].shape:
        return ColumnType(kind="array", dtype=DTYPES[dtype_name], shape=arrays[0].shape)
    # An empty list has the shape (0,) whatever its rows would be.
    tails = {shape[1:] for shape in shapes if shape and shape != (0,)} or {()}
    if () in shapes or len(tails) != 1 or 0 in min(tails):
        return None
    return ColumnType(kind="ragged", dtype=DTYPES[dtype_name], shape=min(tails))
