"""The upload path: who is asked to store, what counts as stored, and that an upload that has ended has ended."""

from __future__ import annotations

import array
import threading
from collections.abc import Iterator
from concurrent.futures import CancelledError, ThreadPoolExecutor

import pytest

from client.errors import ChecksumMismatch, DiskFull, InvalidRequest, NotEnoughReplicas, StoreError
from client.in_flight import ThreadPool
from client.manifest import Entry, Manifest, make_ref
from client.placement import Layout, Node
from client.record import INLINE_REFS, Ack
from client.upload import ChunkUploader, Upload, make_content
from tests.support.fake_cluster import FakeCluster, Fault, quick_config

WAIT_S = 10.0
PAYLOAD = b"some bytes of a chunk"
REF = make_ref(PAYLOAD, partitions=64)


@pytest.fixture
def fake() -> FakeCluster:
    return FakeCluster(num_nodes=4)


@pytest.fixture
def holders(fake: FakeCluster) -> tuple[str, ...]:
    return fake.layout.replicas(REF.partition, count=3)


@pytest.fixture
def pool() -> Iterator[ThreadPool]:
    with ThreadPool(8, name="test") as made:
        yield made


def uploader_of(fake: FakeCluster, *, replicas: int = 3, ack: Ack = "quorum", **settings: object) -> ChunkUploader:
    return ChunkUploader(fake.cluster, fake.chunks, quick_config(**settings), replicas=replicas, ack=ack)


def upload_of(fake: FakeCluster, pool: ThreadPool, *, chunk_size_bytes: int = 10, max_in_flight: int = 2) -> Upload:
    return Upload(uploader_of(fake), pool, chunk_size_bytes=chunk_size_bytes, max_in_flight=max_in_flight)


def puts(fake: FakeCluster) -> list[str]:
    return [f"{node.id} {request}" for node in fake.nodes.values() for request in node.requests]


# --- single chunks


def test_a_chunk_is_sent_once_and_teed_to_the_others(fake: FakeCluster, holders: tuple[str, ...]) -> None:
    assert uploader_of(fake).store(PAYLOAD) == REF
    assert fake.holders(REF) == set(holders)
    assert puts(fake) == [f"{holders[0]} PUT /v1/chunks/{REF}?tee={holders[1]},{holders[2]}"]


def test_a_group_decides_the_place(fake: FakeCluster) -> None:
    ref = uploader_of(fake).store(PAYLOAD, group="lane-3")
    assert ref == make_ref(PAYLOAD, partitions=64, group="lane-3")
    assert fake.holders(ref) == set(fake.layout.replicas(ref.partition, count=3))


@pytest.mark.parametrize(("ack", "num_dead", "stored"), [
    ("one", 2, True), ("one", 3, False), ("quorum", 1, True), ("quorum", 2, False), ("all", 0, True), ("all", 1, False),
])  # fmt: skip
@pytest.mark.parametrize("fault", ["down", "silent", "busy"])
def test_enough_copies_for_the_ack_level_or_an_error(
    fake: FakeCluster, holders: tuple[str, ...], ack: Ack, num_dead: int, stored: bool, fault: Fault
) -> None:
    fake.fail(*holders[:num_dead], fault=fault)
    uploader = uploader_of(fake, ack=ack, deadline_s=10.0 if stored else 0.02)
    if stored:
        uploader.store(PAYLOAD)
        assert len(fake.holders(REF)) >= 3 - num_dead
    else:
        with pytest.raises(NotEnoughReplicas, match=r"of \d copies are durable.*Nothing was committed") as caught:
            uploader.store(PAYLOAD)
        assert all(node_id in caught.value.message for node_id in holders[:num_dead])


def test_a_copy_on_a_stranger_does_not_count(fake: FakeCluster, holders: tuple[str, ...]) -> None:
    # The first round stores on one member. Then the layout changes, and that node is no member any more.
    fake.fail(*holders[1:], fault="down")
    rest = tuple(node for node in fake.layout.nodes if node.id != holders[0])

    def layout_changes(request: str) -> None:
        fake.layout = Layout(version=2, partitions=64, nodes=rest)
        fake.cluster.refresh()

    fake.nodes[holders[1]].before = layout_changes
    newer = Layout(version=2, partitions=64, nodes=rest).replicas(REF.partition, count=3)
    only_other = next(node for node in newer if node not in holders)
    with pytest.raises(NotEnoughReplicas, match="1 of 2 copies"):
        uploader_of(fake, deadline_s=0.02).store(PAYLOAD)
    assert fake.holders(REF) == {holders[0], only_other}


def test_copies_of_earlier_rounds_count(fake: FakeCluster, holders: tuple[str, ...]) -> None:
    fake.fail(*holders[1:], fault="busy")
    rounds = []

    def second_round(request: str) -> None:
        rounds.append(request)
        if len(rounds) == 2:  # By now the first node is full, but what it has it has.
            fake.nodes[holders[1]].faults.clear()
            fake.fail(holders[0], fault="full")

    fake.nodes[holders[1]].before = second_round
    uploader_of(fake, deadline_s=5.0).store(PAYLOAD)
    assert len([request for request in puts(fake) if request.startswith(holders[0])]) == 1


def test_a_node_whose_copies_are_durable_is_not_sent_the_chunk_again(fake: FakeCluster, holders: tuple[str, ...]) -> None:
    fake.fail(*holders[1:], fault="full")
    with pytest.raises(DiskFull):
        uploader_of(fake).store(PAYLOAD)
    assert len([request for request in puts(fake) if request.startswith(holders[0])]) == 1


def test_nodes_under_suspicion_are_left_out_while_there_are_enough_others(fake: FakeCluster, holders: tuple[str, ...]) -> None:
    fake.fail(holders[0], fault="silent")
    fake.cluster.failed(holders[0])
    uploader_of(fake).store(PAYLOAD)
    assert puts(fake) == [f"{holders[1]} PUT /v1/chunks/{REF}?tee={holders[2]}"]


def test_nodes_under_suspicion_are_asked_when_they_are_needed(fake: FakeCluster, holders: tuple[str, ...]) -> None:
    for node_id in holders:
        fake.cluster.failed(node_id)
    uploader_of(fake, ack="all").store(PAYLOAD)
    assert fake.holders(REF) == set(holders)


def test_a_node_under_suspicion_is_asked_when_a_trusted_one_will_not_do(fake: FakeCluster, holders: tuple[str, ...]) -> None:
    fake.cluster.failed(holders[0])
    fake.fail(holders[1], fault="busy")
    uploader_of(fake).store(PAYLOAD)
    assert fake.holders(REF) == {holders[0], holders[2]}


def test_too_few_nodes_for_the_ack_level_are_an_error_at_once() -> None:
    fake = FakeCluster(num_nodes=1)
    with pytest.raises(NotEnoughReplicas, match=r"2 durable copies.*only 1 nodes"):
        uploader_of(fake, deadline_s=1000.0).store(PAYLOAD)
    assert puts(fake) == []


def test_nodes_that_joined_since_the_view_was_fetched_count() -> None:
    fake = FakeCluster(num_nodes=3)
    grown, fake.layout = fake.layout, Layout(version=1, partitions=64, nodes=(Node(id="node-0"),))
    fake.cluster.view()
    fake.layout = grown
    uploader_of(fake).store(PAYLOAD)
    assert len(fake.holders(REF)) == 3


def test_full_disks_are_said_at_once_and_are_not_waited_for(fake: FakeCluster, holders: tuple[str, ...]) -> None:
    fake.fail(*holders[1:], fault="full")
    with pytest.raises(DiskFull, match=r"1 of 2 copies.*is full"):
        uploader_of(fake, deadline_s=1000.0).store(PAYLOAD)


def test_one_full_disk_is_worked_around(fake: FakeCluster, holders: tuple[str, ...]) -> None:
    fake.fail(holders[0], fault="full")
    uploader_of(fake).store(PAYLOAD)
    assert fake.holders(REF) == set(holders[1:])


def test_a_request_that_no_node_would_take_is_not_repeated(fake: FakeCluster, holders: tuple[str, ...]) -> None:
    def refuse(request: str) -> None:
        raise ChecksumMismatch("changed on the way")

    for node in fake.nodes.values():
        node.before = refuse
    with pytest.raises(ChecksumMismatch):
        uploader_of(fake, deadline_s=1000.0).store(PAYLOAD)
    assert len(puts(fake)) == 1


def test_a_copy_whose_reply_was_dropped_does_not_count_but_a_repeat_of_it_does(
    fake: FakeCluster, holders: tuple[str, ...]
) -> None:
    fake.fail(*holders, fault="drops replies")
    fake.nodes[holders[2]].before = lambda request: fake.heal()
    uploader_of(fake, ack="all", deadline_s=5.0).store(PAYLOAD)
    assert fake.holders(REF) == set(holders)
    assert len(puts(fake)) > 3


def test_a_stopped_store_makes_no_further_request(fake: FakeCluster, holders: tuple[str, ...]) -> None:
    stop = threading.Event()
    fake.fail(*holders, fault="down")
    fake.nodes[holders[0]].before = lambda request: stop.set()
    with pytest.raises(CancelledError):
        uploader_of(fake, deadline_s=1000.0).store(PAYLOAD, stop=stop)
    assert len(puts(fake)) == 1


def test_wide_items_are_stored_as_their_bytes(fake: FakeCluster) -> None:
    numbers = array.array("Q", range(10))
    ref = uploader_of(fake).store(numbers)
    assert ref == make_ref(numbers.tobytes(), partitions=64)


# --- whole uploads


def chunks_of(fake: FakeCluster, upload: Upload) -> list[bytes]:
    content = upload.finish()
    assert content.manifest is None
    chunks = [fake.nodes[min(fake.holders(ref))].chunks[ref.partition, ref.id] for ref in content.refs]
    assert content.size == sum(map(len, chunks))
    return chunks


def test_pieces_of_any_size_become_chunks_of_one_size(fake: FakeCluster, pool: ThreadPool) -> None:
    upload = upload_of(fake, pool)
    for piece in (b"", b"a" * 3, b"b" * 7, b"c" * 25, bytearray(b"d"), memoryview(b"e" * 4), array.array("H", b"f" * 4)):
        upload.write(piece)
    assert chunks_of(fake, upload) == [b"aaabbbbbbb", b"c" * 10, b"c" * 10, b"cccccdeeee", b"ffff"]


def test_pieces_are_copied_so_that_their_buffer_can_be_used_again(fake: FakeCluster, pool: ThreadPool) -> None:
    upload, piece = upload_of(fake, pool), bytearray(6)
    for number in range(5):
        piece[:] = bytes([number]) * 6
        upload.write(piece)
    assert b"".join(chunks_of(fake, upload)) == b"".join(bytes([number]) * 6 for number in range(5))


def test_owned_chunks_stay_as_they_are_given(fake: FakeCluster, pool: ThreadPool) -> None:
    upload = upload_of(fake, pool)
    upload.write(b"abc")
    upload.write_owned(b"a chunk of its own")
    upload.write_owned(b"")
    upload.write(b"rest")
    upload.flush()
    upload.flush()
    assert chunks_of(fake, upload) == [b"abc", b"a chunk of its own", b"rest"]


def test_nothing_written_is_empty_content(fake: FakeCluster, pool: ThreadPool) -> None:
    content = upload_of(fake, pool).finish()
    assert (content.size, content.refs, content.manifest) == (0, (), None)
    assert puts(fake) == []


def test_no_more_chunks_are_in_flight_than_allowed(fake: FakeCluster, pool: ThreadPool) -> None:
    release, lock = threading.Event(), threading.Lock()
    counts, now = [], 0

    def count(request: str) -> None:
        nonlocal now
        with lock:
            now += 1
            counts.append(now)
            if now == 2:
                release.set()
        assert release.wait(WAIT_S)
        with lock:
            now -= 1

    for node in fake.nodes.values():
        node.before = count
    upload = upload_of(fake, pool, max_in_flight=2)
    upload.write(bytes(range(200)))
    upload.finish()
    assert max(counts) == 2


def test_an_upload_that_failed_cannot_be_finished_with_a_hole(fake: FakeCluster, pool: ThreadPool) -> None:
    upload = Upload(uploader_of(fake, deadline_s=0.02), pool, chunk_size_bytes=10, max_in_flight=1)
    fake.fail(*fake.nodes, fault="down")
    with pytest.raises(NotEnoughReplicas):
        for number in range(10):
            upload.write(bytes([number]) * 10)
    fake.heal()
    for call in (lambda: upload.write(b"x" * 20), upload.finish, lambda: upload.write_owned(b"y")):
        with pytest.raises(StoreError):
            call()


def test_an_ended_upload_takes_nothing_more(fake: FakeCluster, pool: ThreadPool) -> None:
    upload = upload_of(fake, pool)
    upload.write(b"x" * 15)
    upload.abort()
    upload.abort()
    for call in (lambda: upload.write(b"y"), upload.finish, lambda: upload.write_owned(b"y")):
        with pytest.raises(InvalidRequest, match="ended"):
            call()


def test_abort_returns_only_when_nothing_reads_lent_buffers(fake: FakeCluster, pool: ThreadPool) -> None:
    entered, release, ended = threading.Event(), threading.Event(), threading.Event()

    def hold(request: str) -> None:
        entered.set()
        assert release.wait(WAIT_S)
        ended.set()

    for node in fake.nodes.values():
        node.before = hold
    upload = upload_of(fake, pool)
    upload.write_owned(b"lent")
    assert entered.wait(WAIT_S)
    with ThreadPoolExecutor(1) as other:
        aborting = other.submit(upload.abort)
        assert not aborting.done()
        release.set()
        aborting.result(WAIT_S)
        assert ended.is_set()


def test_abort_does_not_wait_for_copies(fake: FakeCluster, pool: ThreadPool) -> None:
    entered, release, ended = threading.Event(), threading.Event(), threading.Event()

    def hold(request: str) -> None:
        entered.set()
        release.wait(WAIT_S)
        ended.set()

    for node in fake.nodes.values():
        node.before = hold
    upload = upload_of(fake, pool)
    upload.write(b"copied 10b")
    assert entered.wait(WAIT_S)
    upload.abort()
    assert not ended.is_set()
    release.set()


def test_abort_ends_retries(fake: FakeCluster, pool: ThreadPool) -> None:
    asked = threading.Event()
    for node in fake.nodes.values():
        node.faults.add("down")
        node.before = lambda request: asked.set()
    uploader = uploader_of(fake, deadline_s=1000.0, retry_base_s=500.0, retry_max_s=500.0)
    upload = Upload(uploader, pool, chunk_size_bytes=10, max_in_flight=2)
    upload.write_owned(b"never stored")
    assert asked.wait(WAIT_S)
    upload.abort()  # It would take minutes.


# --- manifests


@pytest.mark.parametrize("num_refs", [0, 1, INLINE_REFS])
def test_few_references_stay_in_the_record(fake: FakeCluster, num_refs: int) -> None:
    refs = [make_ref(bytes([number]) * 5, partitions=64) for number in range(num_refs)]
    content = make_content(refs, uploader_of(fake))
    assert (content.refs, content.manifest, content.size) == (tuple(refs), None, 5 * num_refs)
    assert puts(fake) == []


def test_many_references_become_a_tree(fake: FakeCluster) -> None:
    refs = [make_ref(bytes([number]) * (number + 1), partitions=64) for number in range(20)]
    content = make_content(refs, uploader_of(fake), group="g", max_entries=3)
    assert content.refs == ()
    assert content.size == sum(ref.size for ref in refs)
    level = [content.manifest]
    for expected in (2, 1, 0):
        entries: list[Entry] = []
        for ref in level:
            assert ref is not None
            assert ref.partition == make_ref(b"", partitions=64, group="g").partition
            assert len(fake.holders(ref)) == 3
            manifest = Manifest.decode(fake.nodes[next(iter(fake.holders(ref)))].chunks[ref.partition, ref.id])
            assert manifest.level == expected
            assert len(manifest.entries) <= 3
            entries.extend(manifest.entries)
        level = [entry.ref for entry in entries]
        assert sum(entry.content_bytes for entry in entries) == content.size
    assert level == refs


def test_the_tree_does_not_change_the_digest(fake: FakeCluster) -> None:
    refs = [make_ref(bytes([number]), partitions=64) for number in range(20)]
    digests = {make_content(refs, uploader_of(fake), max_entries=size).digest for size in (2, 3, 100)}
    assert len(digests) == 1
