"""Content by range: what is fetched for it, that holes are noticed, and what is left behind by an error."""

from __future__ import annotations

import io
import random
import threading
from collections.abc import Iterator

import pytest

from client.errors import AllReplicasFailed, InvalidRange, MetadataCorrupt
from client.in_flight import ThreadPool
from client.manifest import Entry, Manifest, Ref
from client.manifest_cache import ManifestCache
from client.reader import ContentReader, ObjectFile
from client.record import Content
from client.replica import ReplicaReader
from client.retry import Backoff
from client.upload import ChunkUploader, make_content
from tests.support.fake_cluster import FakeCluster, quick_config

WAIT_S = 10.0
DATA = random.Random(3).randbytes(10_000)


@pytest.fixture
def fake() -> FakeCluster:
    return FakeCluster()


@pytest.fixture
def pool() -> Iterator[ThreadPool]:
    with ThreadPool(4, name="test") as made:
        yield made


@pytest.fixture
def uploader(fake: FakeCluster) -> ChunkUploader:
    return ChunkUploader(fake.cluster, fake.chunks, quick_config(), replicas=3, ack="all")


@pytest.fixture
def refs(uploader: ChunkUploader) -> list[Ref]:
    """Ten chunks of a thousand bytes that make up `DATA`."""
    return [uploader.store(DATA[start : start + 1000]) for start in range(0, len(DATA), 1000)]


def reader_of(
    fake: FakeCluster,
    pool: ThreadPool,
    content: Content,
    *,
    deadline_s: float = 0.02,
    manifests: ManifestCache | None = None,
) -> ContentReader:
    return ContentReader(
        content,
        replicas=3,
        reader=ReplicaReader(fake.cluster, fake.chunks, quick_config(hedge_waste=0)),
        manifests=manifests or ManifestCache(),
        executor=pool,
        max_in_flight=2,
        backoff=Backoff(base_s=0.001, max_s=0.002),
        deadline_s=deadline_s,
    )


@pytest.fixture
def tree(uploader: ChunkUploader, refs: list[Ref]) -> Content:
    """The content behind a tree of manifests with three levels."""
    return make_content(refs, uploader, max_entries=3)


@pytest.fixture
def flat(refs: list[Ref]) -> Content:
    """The first five chunks, inline."""
    return Content(size=5000, digest="", refs=tuple(refs[:5]))


def gets(fake: FakeCluster) -> int:
    return sum(request.startswith("GET") for node in fake.nodes.values() for request in node.requests)


RANGES = [
    (0, 10_000),
    (0, 1),
    (9_999, 10_000),
    (999, 1001),
    (1000, 2000),
    (2_500, 7_500),
    (4000, 4000),
    (0, 0),
    (10_000, 10_000),
]


@pytest.mark.parametrize(("start", "end"), RANGES)
def test_ranges_of_a_tree(fake: FakeCluster, pool: ThreadPool, tree: Content, start: int, end: int) -> None:
    reader, buffer = reader_of(fake, pool, tree), bytearray(end - start)
    assert reader.read_into(buffer, start=start) == end - start
    assert buffer == DATA[start:end]
    assert b"".join(reader.stream(start, end)) == DATA[start:end]


def test_ranges_of_inline_chunks(fake: FakeCluster, pool: ThreadPool, flat: Content) -> None:
    reader, buffer = reader_of(fake, pool, flat), bytearray(3000)
    reader.read_into(buffer, start=500)
    assert buffer == DATA[500:3500]
    assert b"".join(reader.stream()) == DATA[:5000]


@pytest.mark.parametrize(("start", "end"), [(-1, 5), (5, 4), (0, 5001), (5001, 5001)])
def test_ranges_outside_are_refused(fake: FakeCluster, pool: ThreadPool, flat: Content, start: int, end: int) -> None:
    reader = reader_of(fake, pool, flat)
    with pytest.raises(InvalidRange, match="5000 bytes"):
        list(reader.spans(start, end))
    with pytest.raises(InvalidRange):
        list(reader.stream(start, end))
    if start <= end:
        with pytest.raises(InvalidRange):
            reader.read_into(bytearray(end - start), start=start)


def test_any_writable_buffer_can_be_filled(fake: FakeCluster, pool: ThreadPool, flat: Content) -> None:
    data = bytearray(2000)
    reader_of(fake, pool, flat).read_into(memoryview(data).cast("Q", (5, 50)), start=100)
    assert data == DATA[100:2100]


def test_a_range_fetches_only_the_manifests_on_its_way_and_keeps_them(
    fake: FakeCluster, pool: ThreadPool, tree: Content
) -> None:
    reader, buffer = reader_of(fake, pool, tree), bytearray(10)
    reader.read_into(buffer, start=5000)
    assert gets(fake) == 4  # Three levels and the chunk.
    reader.read_into(buffer, start=4000)
    assert gets(fake) == 5


def test_readers_share_the_manifests_that_are_kept(fake: FakeCluster, pool: ThreadPool, tree: Content) -> None:
    manifests = ManifestCache()
    for num_gets in (4, 5):
        reader_of(fake, pool, tree, manifests=manifests).read_into(bytearray(10), start=5000)
        assert gets(fake) == num_gets


def test_as_many_manifests_are_kept_as_have_room_those_that_were_used_last() -> None:
    manifests, empty = ManifestCache(), Manifest(level=0, entries=())
    for number in range(65):
        manifests.keep(bytes([number]), empty)
        assert manifests.get(bytes([1])) == (empty if number else None)
    assert [number for number in range(65) if manifests.get(bytes([number])) is None] == [0]
    manifests.keep(b"another", empty)
    assert manifests.get(bytes([1])) is None


def test_a_range_in_one_chunk_costs_no_thread(fake: FakeCluster, pool: ThreadPool, tree: Content) -> None:
    reader_of(fake, pool, tree).read_into(bytearray(500), start=2300)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("test")]


def test_a_stream_reads_ahead_no_further_than_allowed(fake: FakeCluster, pool: ThreadPool, flat: Content) -> None:
    stream = reader_of(fake, pool, flat).stream()
    next(stream)
    stream.close()
    assert gets(fake) <= 3


def test_a_stream_without_a_reader_fetches_nothing(fake: FakeCluster, pool: ThreadPool, flat: Content) -> None:
    reader_of(fake, pool, flat).stream().close()
    assert gets(fake) == 0


def test_all_references_with_manifests_before_what_they_list(
    fake: FakeCluster, pool: ThreadPool, tree: Content, flat: Content, refs: list[Ref]
) -> None:
    found = list(reader_of(fake, pool, tree).refs())
    assert found[0] == tree.manifest
    assert [ref for ref in found if ref in refs] == refs
    assert len(found) == len(set(found)) == 10 + 4 + 2 + 1
    assert list(reader_of(fake, pool, flat).refs()) == refs[:5]


def test_replicas_are_asked_round_after_round_until_the_deadline(fake: FakeCluster, pool: ThreadPool, flat: Content) -> None:
    fake.fail(*fake.nodes, fault="busy")
    attempts = 0

    def count(request: str) -> None:
        nonlocal attempts
        attempts += 1
        if attempts == 7:  # In the third round.
            fake.heal()

    for node in fake.nodes.values():
        node.before = count
    buffer = bytearray(1000)
    reader_of(fake, pool, flat, deadline_s=10.0).read_into(buffer)
    assert buffer == DATA[:1000]


def test_without_a_deadline_there_is_one_round(fake: FakeCluster, pool: ThreadPool, flat: Content) -> None:
    fake.fail(*fake.nodes, fault="busy")
    with pytest.raises(AllReplicasFailed, match="3 replicas"):
        reader_of(fake, pool, flat, deadline_s=0.0).read_into(bytearray(10))
    assert gets(fake) == 3


def test_an_unreadable_chunk_is_an_error_of_the_whole_range(fake: FakeCluster, pool: ThreadPool, flat: Content) -> None:
    third = flat.refs[2]
    for node in fake.nodes.values():
        del node.chunks[third.partition, third.id]
    reader = reader_of(fake, pool, flat)
    with pytest.raises(AllReplicasFailed, match=str(third)):
        reader.read_into(bytearray(5000))
    received: list[bytearray] = []
    with pytest.raises(AllReplicasFailed):
        received.extend(reader.stream())
    assert b"".join(received) == DATA[:2000]


def test_after_an_error_nothing_writes_into_the_buffer_any_more(fake: FakeCluster, pool: ThreadPool, flat: Content) -> None:
    second_began, release, failing = threading.Event(), threading.Event(), flat.refs[0]
    for node in fake.nodes.values():
        del node.chunks[failing.partition, failing.id]

    def hold(request: str) -> None:
        if failing.hex in request:
            assert second_began.wait(WAIT_S)
            release.set()
        else:
            second_began.set()
            assert release.wait(WAIT_S)

    for node in fake.nodes.values():
        node.before = hold
    buffer = bytearray(5000)
    with pytest.raises(AllReplicasFailed):
        reader_of(fake, pool, flat, deadline_s=0.0).read_into(buffer)
    seen = bytes(buffer)
    buffer[:] = bytes(5000)
    pool.shutdown()
    assert buffer == bytes(5000)
    assert seen[1000:2000] == DATA[1000:2000]  # It was on its way, and was waited for.


def test_a_range_in_one_chunk_can_be_read_from_within_the_pool(fake: FakeCluster, flat: Content) -> None:
    with ThreadPool(1, name="test") as single:
        reader, buffer = reader_of(fake, single, flat), bytearray(1000)
        assert single.submit(reader.read_into, buffer).result(WAIT_S) == 1000


# --- trees that lie


def lying(uploader: ChunkUploader, refs: list[Ref], *, level: int = 1, surplus: int = 0) -> Content:
    """A root that claims another level or size than its leaf has."""
    leaf = Manifest(level=0, entries=tuple(Entry(ref=ref, content_bytes=ref.size) for ref in refs))
    claimed = leaf.content_bytes + surplus
    root = Manifest(level=level, entries=(Entry(ref=uploader.store(leaf.encode()), content_bytes=claimed),))
    return Content(size=claimed, digest="", manifest=uploader.store(root.encode()))


@pytest.mark.parametrize("surplus", [1, -1, 1000])
def test_a_manifest_that_covers_other_bytes_than_its_parent_says_is_refused(
    fake: FakeCluster, pool: ThreadPool, uploader: ChunkUploader, refs: list[Ref], surplus: int
) -> None:
    reader = reader_of(fake, pool, lying(uploader, refs, surplus=surplus))
    with pytest.raises(MetadataCorrupt, match="covers 10000 bytes"):
        reader.read_into(bytearray(reader.size))
    with pytest.raises(MetadataCorrupt):
        list(reader.refs())


def test_a_manifest_of_another_level_is_refused(
    fake: FakeCluster, pool: ThreadPool, uploader: ChunkUploader, refs: list[Ref]
) -> None:
    reader = reader_of(fake, pool, lying(uploader, refs, level=2))
    with pytest.raises(MetadataCorrupt, match="level 1"):
        reader.read_into(bytearray(10))


def test_a_record_that_disagrees_with_its_root_is_refused(fake: FakeCluster, pool: ThreadPool, tree: Content) -> None:
    longer = Content(size=tree.size + 1, digest="", manifest=tree.manifest)
    with pytest.raises(MetadataCorrupt, match="10001"):
        reader_of(fake, pool, longer).read_into(bytearray(5))


def test_inline_chunks_that_do_not_make_up_the_size_are_refused(fake: FakeCluster, pool: ThreadPool, flat: Content) -> None:
    longer = Content(size=flat.size + 1, digest="", refs=flat.refs)
    with pytest.raises(MetadataCorrupt, match="5001"):
        reader_of(fake, pool, longer).read_into(bytearray(5))


def test_data_in_the_place_of_a_manifest_is_refused(
    fake: FakeCluster, pool: ThreadPool, uploader: ChunkUploader, refs: list[Ref]
) -> None:
    with pytest.raises(MetadataCorrupt, match="begins with"):
        reader_of(fake, pool, Content(size=1000, digest="", manifest=refs[0])).read_into(bytearray(5))


# --- as a file


@pytest.fixture
def file(fake: FakeCluster, pool: ThreadPool, tree: Content) -> ObjectFile:
    return ObjectFile(reader_of(fake, pool, tree), name="data/key")


def test_a_file_reads_and_seeks(file: ObjectFile) -> None:
    assert (file.name, file.readable(), file.seekable(), file.writable()) == ("data/key", True, True, False)
    assert file.read(5) == DATA[:5]
    assert file.tell() == 5
    assert file.seek(-10, io.SEEK_END) == 9990
    assert file.read(100) == DATA[-10:]
    assert file.read(100) == b""
    assert file.seek(2, io.SEEK_CUR) == 10_002
    assert file.read() == b""
    assert file.seek(1500) == 1500
    assert file.read() == DATA[1500:]


@pytest.mark.parametrize(("offset", "whence"), [(-1, io.SEEK_SET), (-10_001, io.SEEK_END), (0, 7)])
def test_a_file_refuses_to_seek_out_of_itself(file: ObjectFile, offset: int, whence: int) -> None:
    with pytest.raises(ValueError, match="can't seek"):
        file.seek(offset, whence)
    assert file.tell() == 0


def test_a_buffered_file_reads_the_rest_in_few_requests(fake: FakeCluster, file: ObjectFile) -> None:
    with io.BufferedReader(file, buffer_size=4096) as buffered:
        assert buffered.read(10) == DATA[:10]
        assert buffered.read() == DATA[10:]
    assert gets(fake) <= 7 + 5 + 6  # Manifests, chunks of the first buffer, chunks of the rest.


def test_a_closed_file_is_closed(file: ObjectFile) -> None:
    buffered = io.BufferedReader(file)
    buffered.close()
    with pytest.raises(ValueError, match="closed"):
        buffered.read(1)
