"""What the values of a column are, and how that is written as text.

A type is a numpy dtype with an optional shape (``uint16``, ``float32[3,224,224]``), a ragged array, whose first dimension
varies from row to row (``int32[*]``, ``float32[*,4]``), or one of ``bytes``, ``str``, ``json``, ``jpeg``, ``png``.
``str(parse_column_type(text))`` is the canonical text, the only one that is stored.

Numbers are little-endian, arrays in C order, text UTF-8. This module knows no values: `loader.values` checks them.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np

from loader.errors import InvalidOption

__all__ = ["DTYPES", "KNOWN_TYPES", "MAX_VALUE_BYTES", "ColumnType", "parse_column_type"]

Kind = Literal["array", "ragged", "bytes", "str", "json", "jpeg", "png"]

MAX_VALUE_BYTES: Final = 1 << 29
MAX_DIMENSIONS: Final = 16

_DTYPE_NAMES: Final = (
    "bool",
    *("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
    *("float16", "float32", "float64", "complex64", "complex128"),
)
DTYPES: Final = {name: np.dtype(name).newbyteorder("<") for name in _DTYPE_NAMES}
KNOWN_TYPES: Final = "a numpy dtype (uint16, float32[3,224,224], int32[*]), bytes, str, json, jpeg or png"
_PLAIN_KINDS: Final[tuple[Kind, ...]] = ("bytes", "str", "json", "jpeg", "png")
_PATTERN: Final = re.compile(r"([a-z]+[0-9]*)(?:\[([*0-9,]+)\])?")
_SIZE: Final = re.compile(r"[1-9][0-9]{0,11}")


@dataclass(frozen=True, slots=True, kw_only=True)
class ColumnType:
    """What each value of a column is.

    Attributes
    ----------
    kind : str
        ``array`` (a fixed shape), ``ragged`` (the first dimension varies), ``bytes``, ``str``, ``json``, ``jpeg``, ``png``.
    dtype : numpy.dtype or None
        Of the elements, little-endian; None where values are bytes.
    shape : tuple of int
        Of one value; of a ragged value without its first dimension.
    """

    kind: Kind
    dtype: np.dtype[Any] | None = None
    shape: tuple[int, ...] = ()

    @property
    def is_fixed(self) -> bool:
        """Whether every value takes `item_bytes` bytes."""
        return self.kind == "array"

    @property
    def is_image(self) -> bool:
        """Whether values are compressed images, which zstd can't make smaller."""
        return self.kind in ("jpeg", "png")

    @property
    def item_bytes(self) -> int:
        """Bytes of one value of a fixed type, of one step along the first dimension of a ragged one, else 1."""
        return 1 if self.dtype is None else self.dtype.itemsize * math.prod(self.shape)

    def __str__(self) -> str:
        if self.dtype is None:
            return self.kind
        dimensions = (["*"] if self.kind == "ragged" else []) + [str(size) for size in self.shape]
        return self.dtype.name + (f"[{','.join(dimensions)}]" if dimensions else "")


def parse_column_type(text: str) -> ColumnType:
    """The column type that `text` names; spaces are ignored.

    Raises
    ------
    InvalidOption
        If there is no such type.
    """
    written = str(text).replace(" ", "")
    for kind in _PLAIN_KINDS:
        if written == kind:
            return ColumnType(kind=kind)
    match = _PATTERN.fullmatch(written)
    if match is None or match[1] not in DTYPES:
        raise InvalidOption(f"column type {text!r}: expected {KNOWN_TYPES}")
    name, inner = match.groups()
    dimensions = inner.split(",") if inner is not None else []
    ragged = dimensions[:1] == ["*"]
    sizes = dimensions[1:] if ragged else dimensions
    if len(dimensions) > MAX_DIMENSIONS or not all(_SIZE.fullmatch(size) for size in sizes):
        raise InvalidOption(
            f"column type {text!r}: expected up to {MAX_DIMENSIONS} sizes of 1 or more, of which only the first may be *"
        )
    column_type = ColumnType(kind="ragged" if ragged else "array", dtype=DTYPES[name], shape=tuple(map(int, sizes)))
    if column_type.item_bytes > MAX_VALUE_BYTES:
        raise InvalidOption(
            f"column type {text!r}: a value takes {column_type.item_bytes} bytes, at most {MAX_VALUE_BYTES} are allowed"
        )
    return column_type
