"""A dataset opened for reading: rows by number, blocks into buffers, and every way in which it can be damaged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from client.errors import AllReplicasFailed
from loader.cache import DiskCache
from loader.columns import Schema
from loader.errors import (
    BlockCorrupt,
    ColumnError,
    DatasetNotFound,
    FormatUnsupported,
    IndexCorrupt,
    IndexMissing,
    InvalidOption,
)
from loader.index import FOOTER_BYTES, DatasetIndex, Footer
from loader.reader import DatasetReader
from tests.golden.tiny import FOLDER, NUM_LANES, NUM_ROWS, tiny_dataset, tiny_row
from tests.support.memory_store import MemoryStore, dataset_bytes, open_reader

TINY = tiny_dataset("zstd:3")


def numbers(num_rows: int, **options: Any) -> bytes:
    columns = {"small": "int64", "large": "uint8[300]", "text": "str"}
    values = {
        "small": np.arange(num_rows),
        "large": np.random.default_rng(1).integers(0, 256, (num_rows, 300)).astype(np.uint8),
        "text": [f"{row}" for row in range(num_rows)],
    }
    return dataset_bytes(columns, values, **options)


def buffers(reader: DatasetReader, lane: int, block: int, columns: list[int]) -> list[memoryview]:
    return [memoryview(bytearray(int(reader.table(lane).raw_size[block, column]))) for column in columns]


def test_rows_of_every_type_come_back() -> None:
    reader, _ = open_reader(TINY)
    for number in (*range(NUM_ROWS), -1, -NUM_ROWS):
        row = reader.row(number)
        for name, expected in tiny_row(number % NUM_ROWS).items():
            assert np.array_equal(row[name], expected), (number, name)
    assert [row["label"] for row in reader.rows(20)] == [15, 16, 17]
    assert [row["label"] for row in reader.rows(1, 3)] == [-4, -3]
    assert reader.row(3, names=["text"]) == {"text": tiny_row(3)["text"]}


@pytest.mark.parametrize("number", [NUM_ROWS, -NUM_ROWS - 1])
def test_row_out_of_range_is_an_index_error(number: int) -> None:
    with pytest.raises(IndexError, match=f"row {number} of a dataset of 23 rows"):
        open_reader(TINY)[0].row(number)


def test_columns_are_selected_by_name_in_the_schemas_order() -> None:
    reader, _ = open_reader(TINY)
    assert reader.select(None) == tuple(range(12))
    assert reader.select(["text", "label", "text"]) == (0, 8)
    with pytest.raises(ColumnError, match="'nothing': expected one of the columns label"):
        reader.select(["nothing"])
    refused: list[Any] = [[], "label"]
    for names in refused:
        with pytest.raises(InvalidOption, match="give a list of at least one"):
            reader.select(names)


def test_block_is_fetched_in_one_request_for_columns_that_lie_together() -> None:
    reader, store = open_reader(numbers(10, num_lanes=1, block_size_bytes=8192))
    reader.table(0)
    store.reads.clear()
    assert reader.read_block_into(0, 0, [0, 1, 2], buffers(reader, 0, 0, [0, 1, 2])) == 0
    assert reader.read_block_into(0, 0, [1], buffers(reader, 0, 0, [1])) == 0
    sizes = reader.table(0).stored_size[0]
    assert [end - start for start, end in store.reads] == [sizes.sum(), sizes[1]]


def test_columns_that_lie_far_apart_are_fetched_by_themselves() -> None:
    content = numbers(400, num_lanes=1, block_size_bytes=1 << 20)
    reader, store = open_reader(content)
    reader.table(0)
    store.reads.clear()
    small, _, text = outs = buffers(reader, 0, 0, [0, 1, 2])
    reader.read_block_into(0, 0, [0, 2], [small, text])
    assert len(store.reads) == 2
    assert sum(end - start for start, end in store.reads) < 20_000
    assert np.frombuffer(outs[0], "<i8").tolist() == list(range(400))


def test_tables_are_read_once() -> None:
    reader, store = open_reader(numbers(100))
    assert not reader.has_table(2)
    first, reads = reader.table(2), len(store.reads)
    assert reader.has_table(2)
    assert reader.table(2) is first
    assert len(store.reads) == reads


def test_tables_of_many_lanes_are_read_by_one_request() -> None:
    content = numbers(1200, num_lanes=1200)
    reader, store = open_reader(content)
    reads = len(store.reads)
    reader.load_tables(range(1, 1200, 4))
    assert store.reads[reads:] == [(reader.index.table_offsets[1], reader.index.table_offsets[1198])]
    assert [reader.has_table(lane) for lane in range(4)] == [False, True, False, False]


def test_tables_between_blocks_as_format_1_has_them_are_read_where_they_are() -> None:
    tables = []
    for version in (1, 2):
        reader, _ = open_reader((FOLDER / f"tiny-raw-{version}.forebay").read_bytes())
        assert reader.index.format == version
        tables.append([reader.table(lane).digest() for lane in range(NUM_LANES)])
        assert [row["label"] for row in reader.rows()] == [row - 5 for row in range(NUM_ROWS)]
    assert tables[0] == tables[1]


def test_index_longer_than_the_tail_is_read() -> None:
    content = numbers(1200, num_lanes=1200)
    reader, store = open_reader(content)
    assert len(store.reads) == 2
    assert (reader.index.num_lanes, reader.row(599)["small"]) == (1200, 599)


def test_blocks_come_from_the_cache_the_second_time(tmp_path: Path) -> None:
    reader, store = open_reader(numbers(100))
    reader.cache = DiskCache(tmp_path, digest=reader.index.digest, limit_bytes=1 << 20)
    outs = [buffers(reader, 1, 0, [0, 2]) for _ in range(2)]
    first = reader.read_block_into(1, 0, [0, 2], outs[0])
    store.reads.clear()
    second = reader.read_block_into(1, 0, [0, 2], outs[1])
    assert (first, second, store.reads) == (0, sum(map(len, outs[0])), [])
    assert outs[0] == outs[1]


def test_missing_dataset_and_missing_version_say_what_to_do() -> None:
    with pytest.raises(DatasetNotFound, match="there is no dataset forebay://data/set; `forebay ls data`"):
        DatasetReader(MemoryStore({}), "data", "set")
    with pytest.raises(DatasetNotFound, match=r"version 3 of the dataset forebay://data/set is gone.*--versions N"):
        DatasetReader(MemoryStore({4: TINY}), "data", "set", version=3)
    assert DatasetReader(MemoryStore({3: TINY, 4: b""}), "data", "set", version=3).index.num_rows == NUM_ROWS


@pytest.mark.parametrize("content", [b"", b"x" * 10, b"x" * 1000])
def test_object_that_is_no_dataset_is_named(content: bytes) -> None:
    with pytest.raises(IndexMissing, match="forebay://data/set: no Forebay dataset"):
        open_reader(content)


def test_damaged_footer_index_and_table_are_named() -> None:
    for place in (-1, -FOOTER_BYTES - 1):
        damaged = bytearray(TINY)
        damaged[place] ^= 1
        with pytest.raises(IndexCorrupt, match=r"forebay://data/set: the (dataset's footer|index)"):
            open_reader(bytes(damaged))
    reader, _ = open_reader(TINY)
    damaged = bytearray(TINY)
    damaged[reader.index.table_offsets[1]] ^= 1
    with pytest.raises(IndexCorrupt, match="lane 1: the block table"):
        open_reader(bytes(damaged))[0].table(1)


def test_newer_format_is_refused() -> None:
    newer = Footer(index_offset=0, index_bytes=1, index_check=0).encode().replace(b"\1\0\0\0", b"\2\0\0\0", 1)
    with pytest.raises((FormatUnsupported, IndexCorrupt), match="forebay://data/set"):
        open_reader(TINY + newer)


def test_damaged_block_is_named_with_its_place() -> None:
    damaged = bytearray(TINY)
    damaged[0] ^= 1
    reader, _ = open_reader(bytes(damaged))
    with pytest.raises(BlockCorrupt, match="forebay://data/set, lane 0, block 0, column 'label'"):
        reader.row(0)


def test_block_of_more_rows_than_its_size_allows_is_refused() -> None:
    content = dataset_bytes({"n": "int64"}, {"n": np.arange(500)}, num_lanes=1, block_size_bytes=4096)
    index = open_reader(content)[0].index
    smaller = DatasetIndex.of(
        Schema.of({"n": "int64"}), block_size_bytes=1024, compression=index.compression, lanes=index.lanes
    )
    reader, _ = open_reader(content[: index.data_bytes] + smaller.encode())
    assert reader.max_block_rows == 128
    with pytest.raises(IndexCorrupt, match="lane 0: a block of 500 rows, expected at most 128"):
        reader.table(0)


def test_errors_of_the_store_say_which_block_could_not_be_had() -> None:
    reader, store = open_reader(TINY)

    def fail(start: int, end: int) -> None:
        raise AllReplicasFailed("chunk 5 can't be read", key="5", retry_after_s=2.0)

    reader.table(0)
    store.before_read = fail
    where = r"forebay://data/set, lane 0, block 0: not read within .* s: chunk 5 can't be read"
    with pytest.raises(AllReplicasFailed, match=where) as caught:
        reader.row(0)
    assert (caught.value.key, caught.value.retry_after_s) == ("5", 2.0)


def test_sizes_tell_what_blocks_take() -> None:
    reader, _ = open_reader(numbers(100))
    assert reader.num_blocks == sum(reader.table(lane).num_blocks for lane in range(4))
    assert reader.mean_block_bytes == 1024
    large = dataset_bytes({"data": "bytes"}, {"data": [bytes([row]) * 50_000 for row in range(4)]}, compression="none")
    assert open_reader(large)[0].mean_block_bytes > 50_000
    empty, _ = open_reader(numbers(0))
    assert (empty.num_blocks, empty.mean_block_bytes, list(empty.rows())) == (0, 1024, [])
