"""Any rows of any schema come back from a dataset's bytes as they were; any other bytes give a typed error, never another."""

from __future__ import annotations

import json
import struct
from contextlib import suppress
from typing import Any

import hypothesis.extra.numpy as hnp
import numpy as np
import xxhash
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from loader.block import BlockTable, decode_column_into, decode_value, fixed_view, variable_view
from loader.column_type import DTYPES
from loader.columns import ColumnType, Schema, check_value, infer_column_type, parse_column_type
from loader.errors import BlockCorrupt, FormatUnsupported, IndexCorrupt, IndexMissing, InvalidOption
from loader.index import DatasetIndex, Footer
from tests.golden.tiny import SCHEMA, assemble, open_index, read_rows, table_bytes, tiny_dataset

CONTENT = tiny_dataset("zstd:3")
INDEX = open_index(CONTENT)

dtypes = st.sampled_from(sorted(DTYPES))
shapes = st.lists(st.integers(1, 4), max_size=3).map(tuple)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)


def column_types() -> st.SearchStrategy[ColumnType]:
    fixed = st.builds(lambda name, shape: ColumnType(kind="array", dtype=DTYPES[name], shape=shape), dtypes, shapes)
    ragged = st.builds(lambda name, shape: ColumnType(kind="ragged", dtype=DTYPES[name], shape=shape), dtypes, shapes)
    return fixed | ragged | st.sampled_from(["bytes", "str", "json", "jpeg", "png"]).map(parse_column_type)


def values_of(column_type: ColumnType) -> st.SearchStrategy[Any]:
    dtype = column_type.dtype or np.dtype("uint8")
    match column_type.kind:
        case "array":
            return hnp.arrays(dtype, column_type.shape)
        case "ragged":
            return st.integers(0, 4).flatmap(lambda size: hnp.arrays(dtype, (size, *column_type.shape)))
        case "str":
            return st.text()
        case "json":
            return json_values
        case _:
            return st.binary()


def same(found: Any, expected: Any) -> bool:
    if isinstance(expected, np.ndarray):
        return bool(found.dtype == expected.dtype and found.shape == expected.shape and found.tobytes() == expected.tobytes())
    return bool(found == expected)


@given(column_types())
def test_type_text_round_trips(column_type: ColumnType) -> None:
    assert parse_column_type(str(column_type)) == column_type


@given(st.lists(column_types(), min_size=1, max_size=4), st.integers(0, 12), st.integers(1, 5), st.data())
def test_rows_round_trip(types: list[ColumnType], num_rows: int, num_lanes: int, data: st.DataObject) -> None:
    schema = Schema.of({f"column {number}": column_type for number, column_type in enumerate(types)})
    row = st.fixed_dictionaries({name: values_of(column_type) for name, column_type in schema.items()})
    rows = data.draw(st.lists(row, min_size=num_rows, max_size=num_rows))
    options: dict[str, Any] = {"schema": schema, "num_lanes": num_lanes, "block_size_bytes": 1024}
    contents = [assemble(rows, **options, compression=compression) for compression in ("none", "zstd:1")]
    assert open_index(contents[0]).digest == open_index(contents[1]).digest
    for content in contents:
        found = read_rows(content)
        assert len(found) == num_rows
        for row_found, row_written in zip(found, rows, strict=True):
            assert all(same(row_found[name], row_written[name]) for name in schema.names)


@given(st.lists(json_values, min_size=1, max_size=5))
def test_values_fit_the_type_inferred_from_them(values: list[Any]) -> None:
    inferred = infer_column_type(values)
    for value in values:
        try:
            encoded = check_value("x", inferred, value)
        except ValueError as exc:  # ColumnError is none: this would be an error that nobody named
            raise AssertionError(value) from exc
        if inferred.kind in ("str", "json"):
            assert decode_value(inferred, encoded) == value


def mutated(content: bytes, edits: list[tuple[int, int]]) -> bytes:
    broken = bytearray(content)
    for place, value in edits:
        if broken:
            broken[place % len(broken)] = value
    return bytes(broken)


edits = st.lists(st.tuples(st.integers(0, 1 << 30), st.integers(0, 255)), min_size=1, max_size=6)


@given(edits, st.integers(0, 200))
def test_hostile_table_gives_only_typed_errors(changes: list[tuple[int, int]], cut: int) -> None:
    body = mutated(table_bytes(INDEX, 0, CONTENT)[:-8], changes)
    body = body[: len(body) - cut] if cut > 150 else body
    sealed = body + struct.pack("<Q", xxhash.xxh3_64_intdigest(body))
    try:
        table = BlockTable.decode(sealed, schema=SCHEMA)
    except (IndexCorrupt, FormatUnsupported):
        return
    assert (table.rows >= 1).all()
    assert (table.rows <= 8192).all()
    assert table.encode() == sealed


@given(st.binary(max_size=80) | edits.map(lambda changes: mutated(CONTENT[-32:], changes)))
def test_hostile_footer_gives_only_typed_errors(tail: bytes) -> None:
    for sealed in (tail, tail[:-8] + struct.pack("<Q", xxhash.xxh3_64_intdigest(tail[:-8]))):
        try:
            footer = Footer.decode(sealed, object_bytes=len(CONTENT))
        except (IndexMissing, IndexCorrupt, FormatUnsupported):
            continue
        assert 0 <= footer.index_offset < len(CONTENT)


@given(st.binary(max_size=60) | edits.map(lambda changes: mutated(CONTENT[INDEX.data_bytes : -32], changes)) | json_values)
def test_hostile_index_gives_only_typed_errors(hostile: Any) -> None:
    data = hostile if isinstance(hostile, bytes) else json.dumps(hostile).encode()
    footer = Footer(index_offset=INDEX.data_bytes, index_bytes=len(data), index_check=xxhash.xxh3_64_intdigest(data))
    try:
        index = DatasetIndex.decode(data, footer=footer)
    except (IndexCorrupt, FormatUnsupported):
        return
    assert index.digest == INDEX.digest


@given(edits, st.integers(0, 3), st.integers(1, 3000))
def test_hostile_frame_gives_only_typed_errors(changes: list[tuple[int, int]], codec: int, raw_size: int) -> None:
    frame = zstandard.ZstdCompressor().compress(b"forebay" * 300)
    for stored in (mutated(frame, changes), bytes(change[1] for change in changes)):
        for check in (0, xxhash.xxh3_64_intdigest(b"forebay" * 300)):
            out = memoryview(bytearray(raw_size))
            try:
                decode_column_into(stored, codec=codec, raw_size=raw_size, check=check, out=out, where="here")
            except BlockCorrupt:
                continue
            assert bytes(out) == b"forebay" * 300


@given(st.binary(max_size=100), st.integers(0, 12), column_types())
def test_hostile_decoded_bytes_give_only_typed_errors(data: bytes, rows: int, column_type: ColumnType) -> None:
    with suppress(BlockCorrupt):
        offsets, content = variable_view(data, rows)
        assert len(content) == offsets[-1]
    with suppress(BlockCorrupt):
        decode_value(column_type, data)
    if column_type.is_fixed:
        with suppress(BlockCorrupt):
            assert fixed_view(data, column_type, rows).shape == (rows, *column_type.shape)


@given(st.text(max_size=40))
def test_hostile_type_text_gives_only_typed_errors(text: str) -> None:
    with suppress(InvalidOption):
        assert parse_column_type(str(parse_column_type(text))) == parse_column_type(text)
