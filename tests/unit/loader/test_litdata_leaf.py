"""Leaves of LitData: what its serializers wrote (bytes taken from litdata 0.2.76) is read; anything else is an error."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
import pytest

from loader.column_type import parse_column_type
from loader.litdata_leaf import leaf_values
from loader.packed_rows import PackedRows
from loader.source_rows import SourceError


def value_of(data: bytes, leaf_format: str, wanted: str | None = None) -> Any:
    bounds = np.array([0, 4 + len(data)])
    rows = PackedRows.of(memoryview(struct.pack("<I", len(data)) + data), bounds, [None], where="chunk")
    values = leaf_values(rows, 0, leaf_format, None if wanted is None else parse_column_type(wanted), name="x")
    return values[0]


RECORDS = [{"k": 1, "t": "x", "n": None, "f": 0.5, "b": True}, {"k": 2, "t": "", "n": None, "f": 1.5, "b": False}]
WRITTEN_RECORDS = (
    "060200000005000000010000006b0100000074010000006e0100000066010000006212010000000000000011010000007810"
    "13000000000000e03f140112020000000000000011000000001013000000000000f83f1400"
)


@pytest.mark.parametrize(
    ("value", "written"),
    [
        (["a", "ü"], "0102000000010000006102000000c3bc"),
        ([1, -2], "02020000000100000000000000feffffffffffffff"),
        ([0.5], "0301000000000000000000e03f"),
        ([True, False], "04020000000100"),
        ({"a": {"b": [3]}}, "050100000001000000610501000000010000006202010000000300000000000000"),
        (RECORDS, WRITTEN_RECORDS),
        ("x", "070100000078"),
        (7, "080700000000000000"),
        (2.5, "090000000000000440"),
        (True, "0a01"),
        (None, "0b"),
        ([], "0100000000"),
        ([1, "x"], "00070000005b312c2278225d"),
    ],
)
def test_nested_values(value: Any, written: str) -> None:
    assert value_of(bytes.fromhex(written), "json") == value
    for end in range(1, len(written) // 2):
        with pytest.raises(SourceError, match="chunk, row 0: column 'x': the value is no json"):
            value_of(bytes.fromhex(written)[:end], "json")


def test_json_as_text_is_read_too() -> None:
    assert value_of(b'{"a": [1]}', "json") == {"a": [1]}


@pytest.mark.parametrize("written", ["0c", "0601000000010000000100000061ff", "06ffffffff00000000", ""])
def test_what_is_no_nested_value(written: str) -> None:
    with pytest.raises(SourceError, match="the value is no json"):
        value_of(bytes.fromhex(written), "json")


def test_arrays_carry_their_dtype_and_shape() -> None:
    array = np.arange(6, dtype=np.int16).reshape(2, 3)
    numpy_bytes = struct.pack("<IIII", 1, 2, 2, 3) + array.tobytes()
    tensor_bytes = struct.pack(">IIII", 13, 2, 2, 3) + array.tobytes()
    for written, leaf_format in ((numpy_bytes, "numpy"), (tensor_bytes, "tensor")):
        assert np.array_equal(value_of(written, leaf_format), array)
        assert value_of(written, leaf_format, "float32[2,3]").dtype == np.float32
        with pytest.raises(SourceError, match="the value is no " + leaf_format):
            value_of(written[:-1], leaf_format)
    assert value_of(b"\1\0\2\0", "no_header_numpy:5").tolist() == [1, 2]
    assert value_of(b"\1\0\2\0", "no_header_tensor:13").tolist() == [1, 2]


def test_objects_and_unknown_dtypes_are_refused() -> None:
    with pytest.raises(SourceError, match="others are no numbers"):
        value_of(struct.pack("<II", 14, 0), "numpy")
    with pytest.raises(SourceError, match="bfloat16, which numpy doesn't have"):
        value_of(b"\0\0", "no_header_tensor:10")
    with pytest.raises(SourceError, match=r"data format 'graph'; that is not read.*--columns x=bytes"):
        value_of(b"LDGR", "graph")
    assert value_of(b"LDGR", "graph", "bytes") == b"LDGR"


def test_images_of_pil_are_their_pixels() -> None:
    pixels = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    written = struct.pack("<III", 2, 2, 3) + b"RGB" + pixels.tobytes()
    assert np.array_equal(value_of(written, "pil"), pixels)
    with pytest.raises(SourceError, match="no image of PIL's"):
        value_of(written[:-1], "pil")
    with pytest.raises(SourceError, match="an image of mode 'CMYK'"):
        value_of(struct.pack("<III", 1, 1, 4) + b"CMYK1234", "pil")
