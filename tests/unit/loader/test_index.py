"""Footer, index and digest, and the pinned bytes of a tiny dataset."""

from __future__ import annotations

import json
import struct
from dataclasses import replace
from typing import Any

import blake3
import numpy as np
import pytest
import xxhash

from loader.block import BlockTableBuilder
from loader.columns import Schema
from loader.errors import FormatUnsupported, IndexCorrupt, IndexMissing, InvalidOption
from loader.index import FOOTER_BYTES, DatasetIndex, Footer
from loader.lane import LaneEntry
from tests.golden.tiny import FOLDER, NUM_ROWS, SCHEMA, assemble, open_index, read_rows, table_bytes, tiny_dataset, tiny_row

CONTENT = tiny_dataset("none")


def seal(index: Any, *, data_bytes: int) -> tuple[bytes, Footer]:
    """Bytes and footer of an index of any content, with right checksums."""
    data = json.dumps(index).encode()
    footer = Footer(index_offset=data_bytes, index_bytes=len(data), index_check=xxhash.xxh3_64_intdigest(data))
    return data, footer


def content_json() -> dict[str, Any]:
    footer = Footer.decode(CONTENT, object_bytes=len(CONTENT))
    value: dict[str, Any] = json.loads(CONTENT[footer.index_offset : -FOOTER_BYTES])
    return value


def test_writing_gives_the_pinned_bytes() -> None:
    assert (FOLDER / "tiny-raw-2.forebay").read_bytes() == CONTENT


@pytest.mark.parametrize("name", ["tiny-raw-1.forebay", "tiny-zstd-1.forebay", "tiny-raw-2.forebay", "tiny-zstd-2.forebay"])
def test_reading_the_pinned_bytes_gives_every_row_back(name: str) -> None:
    content = (FOLDER / name).read_bytes()
    index = open_index(content)
    assert index.digest == "f075dfa468f08806c74c9d726d98828a62641a1e9d00f1309af5b9c035a810f5"
    assert index.schema == SCHEMA
    rows = read_rows(content)
    assert len(rows) == NUM_ROWS
    for number, row in enumerate(rows):
        for column, value in tiny_row(number).items():
            np.testing.assert_array_equal(row[column], value)


def test_digest_does_not_depend_on_compression_and_does_on_content() -> None:
    rows = [tiny_row(row) for row in range(6)]
    options: dict[str, Any] = {"schema": SCHEMA, "num_lanes": 2, "block_size_bytes": 2048, "compression": "none"}
    digest = open_index(assemble(rows, **options)).digest
    assert open_index(assemble(rows, **options | {"compression": "zstd:9"})).digest == digest
    others = [
        open_index(assemble(rows[:5], **options)).digest,
        open_index(assemble([*rows[:5], tiny_row(7)], **options)).digest,
        open_index(assemble(rows, **options | {"num_lanes": 1})).digest,
        open_index(assemble(rows, **options | {"block_size_bytes": 1024})).digest,
    ]
    assert len({digest, *others}) == 5


def test_digest_is_what_the_format_says() -> None:
    index = open_index(CONTENT)
    lanes = b""
    for number in range(index.num_lanes):
        table = index.decode_table(number, table_bytes(index, number, CONTENT))
        packed = b"".join(
            struct.pack(f"<{1 + len(SCHEMA)}Q", rows, *checks) for rows, checks in zip(table.rows, table.check, strict=True)
        )
        lanes += blake3.blake3(packed).digest()
    columns = json.dumps(SCHEMA.to_json(), separators=(",", ":"), sort_keys=True, ensure_ascii=False).encode()
    head = b"forebay dataset 1\0" + struct.pack("<Q", len(columns)) + columns + struct.pack("<QQ", 23, 4)
    assert index.digest == blake3.blake3(head + lanes).hexdigest()


@pytest.mark.parametrize("num_rows", [0, 1, 2, 5])
def test_lanes_may_be_empty(num_rows: int) -> None:
    rows = [tiny_row(row) for row in range(num_rows)]
    content = assemble(rows, schema=SCHEMA, num_lanes=4, block_size_bytes=1024, compression="none")
    assert open_index(content).num_rows == num_rows
    assert [row["label"] for row in read_rows(content)] == [row["label"] for row in rows]


def test_index_of_lanes_that_do_not_hold_what_striping_gives_is_refused() -> None:
    index = open_index(CONTENT)
    lanes = (index.lanes[0], replace(index.lanes[1], rows=5), replace(index.lanes[2], rows=7), index.lanes[3])
    with pytest.raises(IndexCorrupt, match="lane 1 has 5 rows, expected 6 of 23"):
        DatasetIndex.of(SCHEMA, block_size_bytes=1024, compression="none", lanes=lanes)
    with pytest.raises(IndexCorrupt, match="1 to 65536 lanes"):
        DatasetIndex.of(SCHEMA, block_size_bytes=1024, compression="none", lanes=())
    with pytest.raises(InvalidOption):
        DatasetIndex.of(SCHEMA, block_size_bytes=1, compression="none", lanes=index.lanes)


@pytest.mark.parametrize("tail", [b"", b"short", bytes(100), b"PK\x03\x04" * 20])
def test_object_that_is_no_dataset_says_so(tail: bytes) -> None:
    with pytest.raises(IndexMissing, match="no Forebay dataset"):
        Footer.decode(tail, object_bytes=len(tail))


def test_every_flipped_byte_of_footer_and_index_is_found() -> None:
    start = Footer.decode(CONTENT, object_bytes=len(CONTENT)).index_offset
    for place in range(start, len(CONTENT)):
        broken = bytearray(CONTENT)
        broken[place] ^= 0x20
        with pytest.raises((IndexCorrupt, IndexMissing)):
            open_index(bytes(broken))


def footer_of_version(version: int) -> bytes:
    body = CONTENT[-FOOTER_BYTES:-8]
    body = body[:8] + struct.pack("<I", version) + body[12:]
    return body + struct.pack("<Q", xxhash.xxh3_64_intdigest(body))


def test_footer_of_version_0_is_corrupt() -> None:
    assert Footer.decode(footer_of_version(1), object_bytes=len(CONTENT)).index_bytes > 0
    with pytest.raises(IndexCorrupt, match="format 0"):
        Footer.decode(footer_of_version(0), object_bytes=len(CONTENT))


def test_newer_footer_and_index_ask_for_an_upgrade() -> None:
    with pytest.raises(FormatUnsupported, match=r"format 3.*up to 2: upgrade"):
        Footer.decode(footer_of_version(3), object_bytes=len(CONTENT))
    data, footer = seal(content_json() | {"format": 3, "new": 1}, data_bytes=0)
    with pytest.raises(FormatUnsupported, match=r"format 3.*up to 2: upgrade"):
        DatasetIndex.decode(data, footer=footer)


def test_footer_announcing_more_than_there_is_is_corrupt() -> None:
    for index_bytes in (0, len(CONTENT), 2**32 - 1):
        tail = Footer(index_offset=0, index_bytes=index_bytes, index_check=0).encode()
        with pytest.raises(IndexCorrupt, match="and an index of"):
            Footer.decode(tail, object_bytes=len(CONTENT))


MALFORMED: list[object] = [None, True, -1, 0, 2**70, 10**15, 10**63, 1.5, "", "x", [], [None], {}, {"a": 1}]


@pytest.mark.parametrize("name", sorted(content_json()))
def test_index_with_any_field_malformed_is_corrupt(name: str) -> None:
    data_bytes = open_index(CONTENT).data_bytes
    for value in MALFORMED:
        if name == "format" and type(value) is int and value > 1:
            continue
        data, footer = seal(content_json() | {name: value}, data_bytes=data_bytes)
        with pytest.raises(IndexCorrupt):
            DatasetIndex.decode(data, footer=footer)


@pytest.mark.parametrize("name", sorted(content_json()["lanes"][0]))
def test_index_with_any_lane_field_malformed_is_corrupt(name: str) -> None:
    data_bytes = open_index(CONTENT).data_bytes
    for value in MALFORMED:
        if name == "group" and (value is None or isinstance(value, str)):
            continue
        if name == "offset" and value == 0 and value is not False:
            continue
        index = content_json()
        index["lanes"][0][name] = value
        data, footer = seal(index, data_bytes=data_bytes)
        with pytest.raises(IndexCorrupt):
            DatasetIndex.decode(data, footer=footer)


def test_index_that_is_no_json_or_ends_elsewhere_is_corrupt() -> None:
    for raw in (b"\xff", b"[" * 200_000, b"{}", b"null", b'{"format":1}', b"1" * 5000):
        footer = Footer(index_offset=0, index_bytes=len(raw), index_check=xxhash.xxh3_64_intdigest(raw))
        with pytest.raises(IndexCorrupt):
            DatasetIndex.decode(raw, footer=footer)
    data, footer = seal(content_json(), data_bytes=12)
    with pytest.raises(IndexCorrupt, match="the index begins at 12"):
        DatasetIndex.decode(data, footer=footer)


def test_table_is_held_against_the_index() -> None:
    index = open_index(CONTENT)
    lane = index.lanes[1]
    data = table_bytes(index, 1, CONTENT)
    with pytest.raises(IndexCorrupt, match="lane 0: the block table"):
        index.decode_table(0, data)
    other = BlockTableBuilder(num_columns=len(SCHEMA)).build()
    lanes = list(index.lanes)
    lanes[1] = replace(lanes[1], digest=other.digest())
    forged = DatasetIndex.of(SCHEMA, block_size_bytes=1024, compression="none", lanes=tuple(lanes))
    with pytest.raises(IndexCorrupt, match="lane 1: the block table describes"):
        forged.decode_table(1, data)
    junk = LaneEntry.of(other, encoded_table=bytes(len(data)), offset=lane.offset)
    with pytest.raises(IndexCorrupt, match="lane 1: a block table begins with"):
        replace(index, lanes=(index.lanes[0], junk, *index.lanes[2:])).decode_table(1, bytes(len(data)))


def test_index_refuses_a_schema_that_it_cannot_have() -> None:
    index = content_json()
    index["schema"][0] = {"name": "_pad", "type": "int64"}
    data, footer = seal(index, data_bytes=open_index(CONTENT).data_bytes)
    with pytest.raises(IndexCorrupt, match="_pad"):
        DatasetIndex.decode(data, footer=footer)
    assert Schema.from_json(content_json()["schema"]) == SCHEMA
