"""Any content, cut anyhow, behind any tree of manifests, on replicas that fail anyhow as long as one is good: equal bytes."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from hypothesis import given
from hypothesis import strategies as st

from client.errors import AllReplicasFailed, StoreError
from client.in_flight import ThreadPool
from client.manifest import make_ref
from client.manifest_cache import ManifestCache
from client.reader import ContentReader, ObjectFile
from client.replica import ReplicaReader
from client.retry import Backoff
from client.upload import ChunkUploader, make_content
from tests.support.fake_cluster import FakeCluster, Fault, quick_config

BAD: list[Fault] = ["down", "silent", "busy", "missing", "corrupt", "swapped", "short"]
SEGMENT_BYTES = 64 * 1024

small_chunks = st.lists(st.binary(min_size=1, max_size=20), max_size=25)
# Around the size of a checksum's segment, where ranges are widened; of few different bytes, since content is not the point.
large_chunks = st.lists(
    st.builds(
        lambda size, seed: bytes([seed, 255 - seed]) * (size // 2) + bytes([seed]) * (size % 2),
        st.sampled_from([1, SEGMENT_BYTES - 1, SEGMENT_BYTES, SEGMENT_BYTES + 1, 2 * SEGMENT_BYTES, 3 * SEGMENT_BYTES + 5]),
        st.integers(0, 255),
    ),
    min_size=1,
    max_size=4,
)


class Stored:
    """Chunks on a cluster, behind the smallest trees that are trees."""

    def __init__(self, chunks: list[bytes], *, max_entries: int, pool: ThreadPool) -> None:
        self.data = b"".join(chunks)
        self.fake = FakeCluster()
        uploader = ChunkUploader(self.fake.cluster, self.fake.chunks, quick_config(), replicas=3, ack="all")
        refs = [uploader.store(chunk) for chunk in chunks]
        self.content = make_content(refs, uploader, max_entries=max_entries)
        self.reader = ContentReader(
            self.content,
            replicas=3,
            reader=ReplicaReader(self.fake.cluster, self.fake.chunks, quick_config(hedge_waste=0)),
            manifests=ManifestCache(),
            executor=pool,
            max_in_flight=3,
            backoff=Backoff(base_s=0.001, max_s=0.002),
            deadline_s=0.0,
        )


@contextmanager
def threads() -> Iterator[ThreadPool]:
    with ThreadPool(3, name="test") as pool:
        yield pool


@st.composite
def ranges(draw: st.DrawFn, size: int) -> tuple[int, int]:
    start = draw(st.integers(0, size))
    return start, draw(st.integers(start, size))


@given(
    chunks=small_chunks | large_chunks,
    max_entries=st.integers(2, 9),
    faults=st.lists(st.sampled_from([*BAD, None]), min_size=3, max_size=3),
    good=st.integers(0, 2),
    data=st.data(),
)
def test_any_range_is_right_while_one_replica_is(
    chunks: list[bytes], max_entries: int, faults: list[Fault | None], good: int, data: st.DataObject
) -> None:
    with threads() as pool:
        stored = Stored(chunks, max_entries=max_entries, pool=pool)
        for number, fault in enumerate(faults):
            if fault is not None and number != good:
                stored.fake.fail(f"node-{number}", fault=fault)
        for start, end in data.draw(st.lists(ranges(len(stored.data)), min_size=1, max_size=3)):
            buffer = bytearray(end - start + 2)
            stored.reader.read_into(memoryview(buffer)[1:-1], start=start)
            assert buffer == b"\0" + stored.data[start:end] + b"\0"
            assert b"".join(stored.reader.stream(start, end)) == stored.data[start:end]


@given(
    chunks=st.lists(st.binary(min_size=1, max_size=8), min_size=1, max_size=25), max_entries=st.integers(2, 9), data=st.data()
)
def test_each_chunk_may_have_its_one_good_copy_elsewhere(chunks: list[bytes], max_entries: int, data: st.DataObject) -> None:
    with threads() as pool:
        stored = Stored(chunks, max_entries=max_entries, pool=pool)
        for ref in set(stored.reader.refs()):
            good = data.draw(st.sampled_from(sorted(stored.fake.nodes)))
            for node_id, node in stored.fake.nodes.items():
                damage = data.draw(st.sampled_from(["none", "gone", "flipped", "cut"]))
                held = node.chunks[ref.partition, ref.id]
                if node_id == good or damage == "none":
                    continue
                if damage == "gone":
                    del node.chunks[ref.partition, ref.id]
                else:
                    node.chunks[ref.partition, ref.id] = held[:-1] if damage == "cut" else bytes([held[0] ^ 1]) + held[1:]
        assert b"".join(stored.reader.stream()) == stored.data


@given(
    chunks=small_chunks.filter(bool),
    max_entries=st.integers(2, 9),
    faults=st.lists(st.sampled_from(BAD), min_size=3, max_size=3),
)
def test_without_a_good_replica_there_is_an_error_and_never_a_wrong_byte(
    chunks: list[bytes], max_entries: int, faults: list[Fault]
) -> None:
    with threads() as pool:
        stored = Stored(chunks, max_entries=max_entries, pool=pool)
        for number, fault in enumerate(faults):
            stored.fake.fail(f"node-{number}", fault=fault)
        with pytest.raises(AllReplicasFailed):
            stored.reader.read_into(bytearray(len(stored.data)))
        with pytest.raises(StoreError):
            list(stored.reader.stream())


@given(chunks=small_chunks, max_entries=st.integers(2, 9), data=st.data())
def test_spans_partition_the_range(chunks: list[bytes], max_entries: int, data: st.DataObject) -> None:
    with threads() as pool:
        stored = Stored(chunks, max_entries=max_entries, pool=pool)
        start, end = data.draw(ranges(len(stored.data)))
        position = start
        for span in stored.reader.spans(start, end):
            assert span.offset == position
            assert 0 <= span.start < span.end <= span.ref.size
            position += span.end - span.start
        assert position == end


@given(chunks=small_chunks, max_entries=st.integers(2, 9))
def test_the_references_are_those_of_all_chunks_and_manifests(chunks: list[bytes], max_entries: int) -> None:
    with threads() as pool:
        stored = Stored(chunks, max_entries=max_entries, pool=pool)
        held = {key for node in stored.fake.nodes.values() for key in node.chunks}
        found = list(stored.reader.refs())
        assert {(ref.partition, ref.id) for ref in found} == held
        wanted = [make_ref(chunk, partitions=64) for chunk in chunks]
        data_refs = set(wanted)
        assert [ref for ref in found if ref in data_refs] == wanted


@given(
    chunks=small_chunks,
    max_entries=st.integers(2, 9),
    moves=st.lists(st.tuples(st.integers(0, 2), st.integers(-50, 600), st.integers(-1, 60)), max_size=8),
)
def test_a_file_of_it_behaves_like_a_file_of_the_bytes(
    chunks: list[bytes], max_entries: int, moves: list[tuple[int, int, int]]
) -> None:
    with threads() as pool:
        stored = Stored(chunks, max_entries=max_entries, pool=pool)
        ours, plain = ObjectFile(stored.reader, name="k"), io.BytesIO(stored.data)
        for whence, offset, count in moves:
            base = {io.SEEK_SET: 0, io.SEEK_CUR: plain.tell(), io.SEEK_END: len(stored.data)}[whence]
            if base + offset < 0:
                continue  # Where the two refuse it, each in its way.
            assert ours.seek(offset, whence) == plain.seek(base + offset)
            assert ours.read(count) == plain.read(count)
            assert ours.tell() == plain.tell()


@given(chunks=small_chunks, first=st.integers(2, 9), second=st.integers(2, 9))
def test_the_shape_of_the_tree_is_no_part_of_the_content(chunks: list[bytes], first: int, second: int) -> None:
    fake = FakeCluster()
    uploader = ChunkUploader(fake.cluster, fake.chunks, quick_config(), replicas=3, ack="all")
    refs = [make_ref(chunk, partitions=64) for chunk in chunks]
    one, other = (make_content(refs, uploader, max_entries=size) for size in (first, second))
    assert (one.digest, one.size) == (other.digest, other.size)
