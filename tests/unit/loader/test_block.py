"""Builder, codec, views and table of blocks, and what damaged bytes do to them."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
import pytest
import xxhash
import zstandard

from loader.block import (
    CODEC_RAW,
    CODEC_ZSTD,
    MAX_BLOCK_ROWS,
    BlockBuilder,
    BlockTable,
    BlockTableBuilder,
    ColumnPart,
    EncodedBlock,
    check_block_size,
    decode_column_into,
    decode_value,
    fixed_view,
    new_compressor,
    variable_view,
)
from loader.columns import Schema, parse_column_type
from loader.errors import BlockCorrupt, FormatUnsupported, IndexCorrupt, InvalidOption

SCHEMA = Schema.of({"a": "uint16[4]", "t": "str"})


def build(values: list[dict[str, Any]], *, schema: Schema = SCHEMA, compression: str = "zstd:3") -> EncodedBlock:
    builder = BlockBuilder(schema, block_size_bytes=1 << 20)
    for value in values:
        assert builder.append(schema.check_sample(value))
    return builder.encode(new_compressor(compression))


def decode(part: ColumnPart, **changes: Any) -> bytes:
    fields = {"codec": part.codec, "raw_size": part.raw_size, "check": part.check} | changes
    out = bytearray(fields["raw_size"])
    decode_column_into(fields.pop("data", part.data), **fields, out=memoryview(out), where="lane 3, block 7, column 'a'")
    return bytes(out)


def test_block_is_column_major_with_offsets_before_variable_values() -> None:
    block = build([{"a": [1, 2, 3, 4], "t": "é"}, {"a": [5, 6, 7, 8], "t": ""}, {"a": [0, 0, 0, 0], "t": "xy"}])
    assert block.rows == 3
    assert decode(block.parts[0]) == np.array([1, 2, 3, 4, 5, 6, 7, 8, 0, 0, 0, 0], "<u2").tobytes()
    assert decode(block.parts[1]) == struct.pack("<4Q", 0, 2, 2, 4) + "éxy".encode()
    for part in block.parts:
        assert part.check == xxhash.xxh3_64_intdigest(decode(part))


def test_column_is_raw_where_zstd_does_not_pay_and_images_are_never_tried() -> None:
    noise = np.random.default_rng(1).bytes(20_000)
    schema = Schema.of({"noise": "bytes", "zeros": "bytes", "photo": "jpeg", "icon": "png"})
    block = build([{"noise": noise, "zeros": bytes(20_000), "photo": bytes(20_000), "icon": bytes(20_000)}], schema=schema)
    assert [part.codec for part in block.parts] == [CODEC_RAW, CODEC_ZSTD, CODEC_RAW, CODEC_RAW]
    assert len(block.parts[1].data) < 100


def test_codec_does_not_change_the_checks() -> None:
    rows = [{"a": [i] * 4, "t": "same text " * 9} for i in range(50)]
    packed, plain = build(rows), build(rows, compression="none")
    assert [part.codec for part in packed.parts] == [CODEC_ZSTD, CODEC_ZSTD]
    assert [part.codec for part in plain.parts] == [CODEC_RAW, CODEC_RAW]
    assert [part.check for part in packed.parts] == [part.check for part in plain.parts]


@pytest.mark.parametrize("compression", ["", "zstd", "zstd:0", "zstd:23", "zstd:03", "zstd:3 ", "gzip:3", "ZSTD:3"])
def test_unknown_compression_is_refused(compression: str) -> None:
    with pytest.raises(InvalidOption, match="compression"):
        new_compressor(compression)


@pytest.mark.parametrize("size", [0, 1023, (1 << 28) + 1])
def test_block_size_out_of_range_is_refused(size: int) -> None:
    with pytest.raises(InvalidOption, match="block_size_bytes"):
        check_block_size(size)


def test_block_holds_at_most_its_size_unless_one_row_is_larger() -> None:
    schema = Schema.of({"b": "bytes"})
    builder = BlockBuilder(schema, block_size_bytes=1024)
    assert builder.append(schema.check_sample({"b": bytes(5000)}))
    assert not builder.append(schema.check_sample({"b": b""}))
    assert (builder.rows, builder.decoded_bytes) == (1, 16 + 5000)
    builder = BlockBuilder(schema, block_size_bytes=1024)
    assert builder.append(schema.check_sample({"b": bytes(500)}))
    assert builder.append(schema.check_sample({"b": bytes(500)}))
    assert builder.decoded_bytes == 1024
    assert not builder.append(schema.check_sample({"b": b""}))
    assert sum(part.raw_size for part in builder.encode(None).parts) == builder.decoded_bytes


def test_block_holds_at_most_8192_rows() -> None:
    schema = Schema.of({"x": "uint8"})
    batch = schema.check_batch({"x": np.zeros(10_000, np.uint8)})
    builder = BlockBuilder(schema, block_size_bytes=1 << 20)
    assert builder.extend(batch, start=9_000) == 1000
    assert builder.extend(batch, start=0) == MAX_BLOCK_ROWS - 1000 == 7192
    assert builder.extend(batch, start=0) == 0
    assert not builder.append((b"\0",))


@pytest.mark.parametrize("schema", [SCHEMA, Schema.of({"a": "uint16[4]"}), Schema.of({"t": "str"})])
def test_strided_batches_make_the_same_blocks_as_single_rows(schema: Schema) -> None:
    rows = [{"a": [i, 0, i, 0], "t": "x" * (i * 37 % 90)} for i in range(700)]
    rows = [{name: row[name] for name in schema.names} for row in rows]
    batch = schema.check_batch({name: [row[name] for row in rows] for name in schema.names})
    start, step = 2, 3
    one_by_one, at_once = [], []
    builder = BlockBuilder(schema, block_size_bytes=1024)
    for row in rows[start::step]:
        if not builder.append(schema.check_sample(row)):
            one_by_one.append(builder.encode(None))
            builder = BlockBuilder(schema, block_size_bytes=1024)
            assert builder.append(schema.check_sample(row))
    one_by_one.append(builder.encode(None))
    while start < len(rows):
        builder = BlockBuilder(schema, block_size_bytes=1024)
        first = builder.extend(batch, start=start, step=step)
        assert builder.extend(batch, start=start + first * step, step=step) == 0
        start += first * step
        at_once.append(builder.encode(None))
    assert [block.rows for block in at_once] == [block.rows for block in one_by_one]
    assert [[bytes(p.data) for p in b.parts] for b in at_once] == [[bytes(p.data) for p in b.parts] for b in one_by_one]


def test_damaged_column_is_refused_and_named() -> None:
    part = build([{"a": [7] * 4, "t": ""}] * 500).parts[0]
    assert part.codec == CODEC_ZSTD
    data = bytes(part.data)
    larger = zstandard.ZstdCompressor().compress(bytes(1 << 20))
    unsized = zstandard.ZstdCompressor(write_content_size=False).compress(decode(part))
    changes: list[dict[str, Any]] = [
        {"check": part.check ^ 1},
        {"codec": 7},
        {"codec": CODEC_RAW},
        {"raw_size": part.raw_size + 1},
        {"raw_size": part.raw_size - 1},
        {"data": data[:-3]},
        {"data": data[:2]},
        {"data": b""},
        {"data": larger},
        {"data": unsized},
        {"data": b"\x50\x2a\x4d\x18" + struct.pack("<I", part.raw_size) + bytes(part.raw_size)},
        {"data": bytes([data[0] ^ 1]) + data[1:]},
        {"data": data[:-1] + bytes([data[-1] ^ 64])},
    ]
    for change in changes:
        with pytest.raises(BlockCorrupt, match=r"^lane 3, block 7, column 'a': "):
            decode(part, **change)


def test_fixed_view_shares_memory_and_checks_its_size() -> None:
    buffer = bytearray(np.arange(12, dtype="<u2").tobytes())
    view = fixed_view(buffer, parse_column_type("uint16[2,3]"), 2)
    assert view.shape == (2, 2, 3)
    buffer[0] = 9
    assert view[0, 0, 0] == 9
    with pytest.raises(BlockCorrupt):
        fixed_view(buffer, parse_column_type("uint16[2,3]"), 3)


@pytest.mark.parametrize(
    "offsets", [(1, 2, 3), (0, 3, 2), (0, 2, 4), (0, 2, 2), (0, 2**64 - 1, 3), (0, 2**63, 3), (2**64 - 1, 2, 3)]
)
def test_offsets_that_do_not_rise_to_the_end_are_refused(offsets: tuple[int, ...]) -> None:
    assert [bytes(variable_view(struct.pack("<3Q", 0, 2, 3) + b"abc", 2)[1])] == [b"abc"]
    with pytest.raises(BlockCorrupt, match="offsets"):
        variable_view(struct.pack("<3Q", *offsets) + b"abc", 2)
    with pytest.raises(BlockCorrupt, match="offsets"):
        variable_view(b"abc", 2)


@pytest.mark.parametrize(
    ("text", "data"),
    [
        ("str", b"\xff"),
        ("json", b"{"),
        ("json", b"\xff"),
        ("json", b"[" * 100_000),
        ("int32[*]", b"abc"),
        ("int32", b"12345678"),
    ],
)
def test_bytes_that_are_no_value_are_refused(text: str, data: bytes) -> None:
    with pytest.raises(BlockCorrupt):
        decode_value(parse_column_type(text), data)


def test_decoded_values_share_no_memory() -> None:
    buffer = bytearray(8)
    value = decode_value(parse_column_type("int32[*]"), memoryview(buffer))
    buffer[0] = 1
    assert isinstance(value, np.ndarray)
    assert value.tolist() == [0, 0]
    assert value.flags.writeable


def table_of(num_blocks: int) -> BlockTable:
    builder = BlockTableBuilder(num_columns=2)
    for number in range(num_blocks):
        builder.append(build([{"a": [number] * 4, "t": "text"}] * (number + 1)))
    return builder.build()


@pytest.mark.parametrize("num_blocks", [0, 1, 5])
def test_table_round_trips(num_blocks: int) -> None:
    table = table_of(num_blocks)
    copy = BlockTable.decode(table.encode(), schema=SCHEMA)
    for name in ("rows", "stored_size", "raw_size", "codec", "check", "offsets"):
        np.testing.assert_array_equal(getattr(copy, name), getattr(table, name), strict=True)
    assert copy.digest() == table.digest()
    assert table.num_rows == num_blocks * (num_blocks + 1) // 2
    assert table.blocks_bytes == table.stored_size.sum()
    assert table.offsets.ravel().tolist() == [0, *np.cumsum(table.stored_size.ravel())[:-1]][: 2 * num_blocks]


def resealed(data: bytes | bytearray) -> bytes:
    return bytes(data[:-8]) + struct.pack("<Q", xxhash.xxh3_64_intdigest(bytes(data[:-8])))


def test_every_flipped_byte_of_a_table_is_found() -> None:
    data = table_of(3).encode()
    for place in range(len(data)):
        broken = bytearray(data)
        broken[place] ^= 0x40
        with pytest.raises(IndexCorrupt):
            BlockTable.decode(broken, schema=SCHEMA)
    for size in (0, 8, 31, len(data) - 1):
        with pytest.raises(IndexCorrupt):
            BlockTable.decode(data[:size], schema=SCHEMA)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("rows", 0), ("rows", 8193), ("rows", 2), ("stored_size", 0), ("stored_size", 1 << 31), ("raw_size", (1 << 30) + 1)),
        *(("raw_size", 9), ("codec", 2), ("codec", 255), ("codec", CODEC_ZSTD)),
    ],
)
def test_table_that_contradicts_the_schema_is_refused(field: str, value: int) -> None:
    table = table_of(3)
    getattr(table, field)[0] = value
    with pytest.raises(IndexCorrupt, match="block 0, column"):
        BlockTable.decode(table.encode(), schema=SCHEMA)


def test_table_beyond_the_bounds_of_a_block_is_refused() -> None:
    too_many_rows = table_of(1)
    too_many_rows.rows[0] = 8193
    too_many_rows.raw_size[0] = too_many_rows.stored_size[0] = (8 * 8193, 9 * 8194)
    too_large = table_of(1)
    too_large.raw_size[0, 1], too_large.codec[0, 1] = (1 << 30) + 1, CODEC_ZSTD
    nothing_stored = table_of(1)
    nothing_stored.stored_size[0, 1], nothing_stored.codec[0, 1] = 0, CODEC_ZSTD
    for table in (too_many_rows, too_large, nothing_stored):
        with pytest.raises(IndexCorrupt, match="block 0, column"):
            BlockTable.decode(table.encode(), schema=SCHEMA)
    too_large.raw_size[0, 1] = 1 << 30
    assert BlockTable.decode(too_large.encode(), schema=SCHEMA).raw_size[0, 1] == 1 << 30


def test_table_with_a_hostile_header_or_another_schema_is_refused() -> None:
    data = table_of(3).encode()
    for num_columns, num_blocks in ((2, 2**64 - 1), (2**32 - 1, 3), (0, 2**60), (2, 2)):
        broken = data[:12] + struct.pack("<IQ", num_columns, num_blocks) + data[24:]
        with pytest.raises(IndexCorrupt, match="expected 2 columns"):
            BlockTable.decode(resealed(broken), schema=SCHEMA)
    with pytest.raises(IndexCorrupt, match="expected 1 columns"):
        BlockTable.decode(data, schema=SCHEMA.select(["a"]))
    with pytest.raises(IndexCorrupt, match="version 0"):
        BlockTable.decode(resealed(data[:8] + bytes(4) + data[12:]), schema=SCHEMA)
    with pytest.raises(FormatUnsupported, match=r"version 2.*up to 1"):
        BlockTable.decode(resealed(data[:8] + struct.pack("<I", 2) + data[12:]), schema=SCHEMA)
