"""What a `ShardWriter` stores is what the format says, at once or not at all."""

from __future__ import annotations

import json
import threading
import time
from typing import Any

import numpy as np
import pytest

from client.errors import BucketNotFound, EndpointUnreachable, InvalidName, NotEnoughReplicas, PreconditionFailed
from client.manifest import Ref
from client.objects import ObjectStore
from client.placement import partition_of
from client.record import ObjectInfo
from loader import writer as writer_module
from loader.dataset_record import CONTENT_TYPE, METADATA_KEY
from loader.errors import ColumnError, InvalidOption, WriterClosed
from loader.index import DatasetIndex
from loader.lanes import DECIDE_BYTES
from loader.writer import ShardWriter
from tests.golden.tiny import NUM_ROWS, SCHEMA, assemble, open_index, read_rows, tiny_row
from tests.unit.loader.watched_store import watched_store

URL = "forebay://data/sets/tiny"
TINY = {name: str(column_type) for name, column_type in SCHEMA.items()}
NUMBERS = {"number": "int64"}


def content_of(store: ObjectStore, info: ObjectInfo) -> bytes:
    return store.get(info.bucket, info.key)


def write_tiny(store: ObjectStore, num_rows: int, **options: Any) -> bytes:
    with ShardWriter(URL, TINY, client=store, **options) as writer:
        for row in range(num_rows):
            writer.write(tiny_row(row))
    assert writer.info is not None
    return content_of(store, writer.info)


@pytest.mark.parametrize("compression", ["none", "zstd:1"])
@pytest.mark.parametrize(("num_rows", "num_lanes"), [(NUM_ROWS, 4), (NUM_ROWS, 5), (0, 3), (1, 1), (2, 8), (250, 8)])
def test_the_object_is_the_one_that_the_format_describes(num_rows: int, num_lanes: int, compression: str) -> None:
    options: dict[str, Any] = {"num_lanes": num_lanes, "block_size_bytes": 2048, "compression": compression}
    expected = assemble([tiny_row(row) for row in range(num_rows)], schema=SCHEMA, **options)
    with watched_store() as (store, _, _):
        content = write_tiny(store, num_rows, **options)
    index, reference = open_index(content), open_index(expected)
    assert index.digest == reference.digest
    # Groups differ, so the indexes do; all before them is equal to the byte.
    assert content[: index.data_bytes] == expected[: reference.data_bytes]
    for row, found in enumerate(read_rows(content)):
        for column, value in tiny_row(row).items():
            np.testing.assert_array_equal(found[column], value)


def test_digest_does_not_depend_on_threads_chunks_or_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(7)
    tokens = rng.integers(0, 300, (4000, 128)).astype(np.uint16)
    texts = [f"row {row} " * (row % 9) for row in range(len(tokens))]
    found = set()
    for cores, chunk_size_bytes, batch_rows in [(1, 64 << 10, 4000), (5, 8 << 20, 1), (2, 100_000, 333)]:
        monkeypatch.setattr(writer_module, "usable_cores", lambda cores=cores: cores)
        with (
            watched_store(chunk_size_bytes=chunk_size_bytes) as (store, _, _),
            ShardWriter(URL, {"tokens": "uint16[128]", "text": "str"}, "zstd:1", 16 << 10, client=store) as writer,
        ):
            for start in range(0, len(tokens), batch_rows):
                stop = start + batch_rows
                if batch_rows == 1:
                    writer.write({"tokens": tokens[start], "text": texts[start]})
                else:
                    writer.write_batch({"text": texts[start:stop], "tokens": tokens[start:stop]})
        assert writer.index is not None
        found.add((writer.index.digest, writer.index.num_lanes, writer.num_rows))
    assert len(found) == 1
    assert {lanes for _, lanes, _ in found} == {8}  # 4,000 rows of 256 bytes and some text: between 1 and 2 MiB


def chunks_of(store: ObjectStore, info: ObjectInfo) -> list[tuple[int, Ref]]:
    return [(span.offset, span.ref) for span in store.reader(info).spans(0, info.size)]


def test_each_lane_is_stored_in_its_group_in_whole_blocks() -> None:
    rows = np.random.default_rng(1).integers(0, 255, (3000, 512)).astype(np.uint8)
    with watched_store(chunk_size_bytes=120_000) as (store, _, chunks):  # no multiple of a block
        with ShardWriter(URL, {"row": "uint8[512]"}, "none", 16 << 10, num_lanes=3, client=store) as writer:
            writer.write_batch({"row": rows})
        assert writer.info is not None and writer.index is not None
        index = writer.index
        placed = chunks_of(store, writer.info)
        assert len(placed) > 12
        assert max(chunks.put_sizes) <= 120_000
        starts = {offset for offset, _ in placed}
        assert len({lane.group for lane in index.lanes}) == 3
        for number, lane in enumerate(index.lanes):
            partition = partition_of(str(lane.group).encode(), partitions=store.cluster.layout.partitions)
            end = lane.offset + lane.blocks_bytes
            inside = [ref for offset, ref in placed if lane.offset <= offset < end]
            assert {ref.partition for ref in inside} == {partition}
            assert lane.offset in starts  # no chunk holds bytes of two lanes
            start = index.table_offsets[number]
            table = index.decode_table(number, store.get("data", "sets/tiny", start=start, end=start + lane.table_bytes))
            begins = {lane.offset + int(at) for at in table.offsets[:, 0]}
            assert {offset for offset in starts if lane.offset <= offset < end} <= begins
        assert index.table_offsets[0] in starts  # nor of a lane and of tables
        assert all(len(copies) > 1 for copies in chunks.nodes.values())


def test_lanes_do_not_store_their_first_chunks_all_at_once() -> None:
    rows = np.random.default_rng(1).integers(0, 255, (3000, 1024)).astype(np.uint8)
    with watched_store(chunk_size_bytes=128 << 10) as (store, _, _):
        with ShardWriter(URL, {"row": "uint8[1024]"}, "none", 4096, num_lanes=4, client=store) as writer:
            writer.write_batch({"row": rows})
        assert writer.info is not None and writer.index is not None
        placed = dict(chunks_of(store, writer.info))
        first_sizes = [placed[lane.offset].size for lane in writer.index.lanes]
    assert first_sizes == [64 << 10, 80 << 10, 96 << 10, 112 << 10]


def test_large_and_small_batches_and_rows_keep_their_order() -> None:
    numbers, sizes = np.arange(4_000_000), [1_500_000, 1, 0, 1_200_000, 50_000, 1, 1_249_998]
    assert sum(sizes) == len(numbers)
    with watched_store() as (store, _, _):
        with ShardWriter(URL, NUMBERS, "none", num_lanes=1, client=store) as writer:
            start = 0
            for size in sizes:
                if size == 1:
                    writer.write({"number": numbers[start]})
                else:
                    writer.write_batch({"number": numbers[start : start + size]})
                start += size
            assert writer.num_rows == len(numbers)
        assert writer.info is not None and writer.index is not None
        content = content_of(store, writer.info)
    # One lane, one raw column: the blocks are the numbers one after another.
    assert np.array_equal(np.frombuffer(content[: writer.index.lanes[0].blocks_bytes], "<i8"), numbers)


def test_a_block_larger_than_a_chunk_is_cut() -> None:
    row = np.random.default_rng(1).integers(0, 255, 300_000).astype(np.uint8).tobytes()
    with watched_store(chunk_size_bytes=64 << 10) as (store, _, chunks):
        with ShardWriter(URL, {"blob": "bytes"}, client=store) as writer:
            writer.write({"blob": row})
        assert max(chunks.put_sizes) == 64 << 10
        assert writer.info is not None
        assert read_rows(content_of(store, writer.info))[0]["blob"] == row


def test_nothing_is_visible_before_the_one_commit() -> None:
    with watched_store() as (store, catalog, chunks), ShardWriter(URL, NUMBERS, "none", num_lanes=2, client=store) as writer:
        stored = threading.Event()
        chunks.before_put = lambda ref: stored.set()
        while not stored.is_set():  # chunks are stored in the background already
            writer.write_batch({"number": np.arange(1_000_000)})
        assert not catalog.history
        info = writer.commit()
        assert catalog.revision == 1
        assert info == writer.info == catalog.history["data", "sets/tiny"][0]


def test_the_record_says_what_the_object_is() -> None:
    with watched_store() as (store, _, _):
        with ShardWriter(URL, NUMBERS, client=store, metadata={"made-by": "test"}) as writer:
            writer.write({"number": 1})
        assert writer.info is not None and writer.index is not None
        record = writer.info.record
    assert record.content_type == CONTENT_TYPE
    described = json.loads(record.metadata[METADATA_KEY])
    assert described == {"format": 2, "digest": writer.index.digest, "rows": 1}
    assert record.metadata["made-by"] == "test"
    assert (record.replicas, record.ack) == (2, "all")


def test_an_exception_aborts() -> None:
    with watched_store() as (store, catalog, _):
        with pytest.raises(ZeroDivisionError), ShardWriter(URL, NUMBERS, client=store) as writer:
            writer.write({"number": 1})
            raise ZeroDivisionError
        assert not catalog.history
        with pytest.raises(WriterClosed, match="was aborted and nothing was committed"):
            writer.write({"number": 2})


def test_a_closed_writer_says_so() -> None:
    with watched_store() as (store, catalog, _):
        with ShardWriter(URL, NUMBERS, client=store) as writer:
            writer.write({"number": 1})
        for call in (lambda: writer.write({"number": 2}), lambda: writer.write_batch({"number": [2]}), writer.commit):
            with pytest.raises(WriterClosed, match="is committed"):
                call()
        writer.abort()
        assert catalog.revision == 1


def test_a_wrong_row_is_not_taken_and_the_writer_goes_on() -> None:
    with watched_store() as (store, _, _):
        with ShardWriter(URL, {"tokens": "uint16[4]", "text": "str"}, client=store) as writer:
            writer.write({"tokens": [1, 2, 3, 4], "text": "a"})
            with pytest.raises(ColumnError, match=r"'tokens': expected uint16\[4\], found float32\[4\]"):
                writer.write({"tokens": np.zeros(4, np.float32), "text": "b"})
            with pytest.raises(ColumnError, match="'text': expected 2 rows like column 'tokens', found 1 rows"):
                writer.write_batch({"tokens": np.zeros((2, 4), np.uint16), "text": ["c"]})
            with pytest.raises(ColumnError, match="'text': expected str, found no value"):
                writer.write({"tokens": [1, 2, 3, 4]})
            writer.write({"tokens": [5, 6, 7, 8], "text": "d"})
        assert writer.info is not None
        rows = read_rows(content_of(store, writer.info))
    assert [row["text"] for row in rows] == ["a", "d"]


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"url": "data/tiny"}, InvalidName, "no Forebay URL"),
        ({"columns": {}}, InvalidOption, "columns"),
        ({"columns": {"x": "int31"}}, ColumnError, "'x': expected a type"),
        ({"compression": "gzip"}, InvalidOption, "zstd:1 to zstd:22"),
        ({"compression": "zstd:23"}, InvalidOption, "zstd:1 to zstd:22"),
        ({"block_size_bytes": 10}, InvalidOption, "block_size_bytes=10"),
        ({"num_lanes": 2000}, InvalidOption, "1 to 1024"),
        ({"metadata": {METADATA_KEY: "x"}}, InvalidOption, METADATA_KEY),
        ({"metadata": {"x": "y" * 8000}}, InvalidOption, "metadata: 8001 bytes; an object has room for 7936"),
        ({"url": "forebay://other/tiny"}, BucketNotFound, "forebay bucket create other"),
    ],
)
def test_wrong_arguments_are_refused_at_once(options: dict[str, Any], error: type[Exception], words: str) -> None:
    with watched_store() as (store, _, _), pytest.raises(error, match=words):
        ShardWriter(**{"url": URL, "columns": NUMBERS, "client": store, **options})


def test_a_condition_of_the_commit_is_kept() -> None:
    with watched_store() as (store, catalog, _):
        with ShardWriter(URL, NUMBERS, client=store, if_none_match="*") as first:
            first.write({"number": 1})
        with pytest.raises(PreconditionFailed), ShardWriter(URL, NUMBERS, client=store, if_none_match="*") as second:
            second.write({"number": 2})
        assert first.info is not None
        with ShardWriter(URL, NUMBERS, client=store, if_match=first.info.etag) as third:
            third.write({"number": 3})
        with ShardWriter(URL, NUMBERS, client=store) as fourth:
            fourth.write({"number": 4})
        assert catalog.revision == 3
        assert fourth.info is not None
        assert read_rows(content_of(store, fourth.info))[0]["number"] == 4


def test_a_failed_store_surfaces_in_the_next_write_once() -> None:
    with watched_store() as (store, catalog, chunks):

        def fail(ref: Ref) -> None:
            raise NotEnoughReplicas("1 of 2 copies are durable")

        chunks.before_put = fail
        writer = ShardWriter(URL, NUMBERS, "none", num_lanes=1, client=store)
        with pytest.raises(NotEnoughReplicas, match="1 of 2 copies"):
            for _ in range(1000):
                writer.write_batch({"number": np.arange(1_000_000)})
        for call in (lambda: writer.write({"number": 2}), writer.commit):
            with pytest.raises(WriterClosed, match="failed earlier and nothing was committed"):
                call()
        assert not catalog.history


def test_a_failed_store_surfaces_at_commit_and_leaving_is_no_success() -> None:
    with watched_store() as (store, catalog, chunks):

        def fail(ref: Ref) -> None:
            raise NotEnoughReplicas("1 of 2 copies are durable")

        chunks.before_put = fail
        with pytest.raises(NotEnoughReplicas), ShardWriter(URL, NUMBERS, client=store) as writer:
            writer.write({"number": 1})
        with pytest.raises(WriterClosed, match="failed earlier"), ShardWriter(URL, NUMBERS, client=store) as writer:
            writer.write({"number": 1})
            with pytest.raises(NotEnoughReplicas):
                writer.commit()
        assert not catalog.history


def test_giving_up_does_not_wait_for_nodes_that_are_down() -> None:
    with watched_store(deadline_s=60, retry_base_s=30, retry_max_s=30) as (store, catalog, chunks):
        refused = threading.Event()

        def refuse(ref: Ref) -> None:
            refused.set()
            raise EndpointUnreachable("no answer", node_id="node-1")

        chunks.before_put = refuse
        writer = ShardWriter(URL, NUMBERS, "none", num_lanes=1, client=store)
        while not refused.is_set():
            writer.write_batch({"number": np.arange(200_000)})
        began_s = time.monotonic()
        writer.abort()
        assert time.monotonic() - began_s < 10
        assert not catalog.history


def test_bytes_in_transfer_are_bounded() -> None:
    with watched_store(chunk_size_bytes=256 << 10, max_in_flight_chunks=2, deadline_s=30) as (store, _, chunks):
        lock, under_way, most = threading.Lock(), 0, 0

        def count(ref: Ref) -> None:
            nonlocal under_way, most
            with lock:
                under_way += ref.size
                most = max(most, under_way)
            time.sleep(0.002)  # so that stores pile up where nothing holds them back
            with lock:
                under_way -= ref.size

        chunks.before_put = count
        with ShardWriter(URL, NUMBERS, "none", 64 << 10, num_lanes=4, client=store) as writer:
            for start in range(0, 2_000_000, 100_000):
                writer.write_batch({"number": np.arange(start, start + 100_000)})
        assert 256 << 10 < most <= 512 << 10


def test_after_32_mib_there_are_256_lanes() -> None:
    with watched_store() as (store, _, _), ShardWriter(URL, {"row": "uint8[65536]"}, "zstd:1", client=store) as writer:
        rows = np.zeros((100, 65536), np.uint8)
        for _ in range(5):
            writer.write_batch({"row": rows})
            assert writer.num_rows * 65536 < DECIDE_BYTES
        writer.write_batch({"row": rows})
        writer.commit()
        assert isinstance(writer.index, DatasetIndex)
        assert (writer.index.num_lanes, writer.index.num_rows) == (256, 600)
