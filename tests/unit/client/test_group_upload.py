"""Small chunks uploaded together: each acknowledged by enough of its own replicas, whatever becomes of the others."""

from __future__ import annotations

import array
import threading
from collections.abc import Iterator

import pytest

from client.errors import ChecksumMismatch, DiskFull, NotEnoughReplicas
from client.in_flight import ThreadPool
from client.manifest import Ref, make_ref
from client.placement import Layout
from client.record import Ack
from client.upload import ChunkUploader
from client.wire import BATCH_PUT_PATH
from tests.support.fake_cluster import FakeCluster, Fault, quick_config

WAIT_S = 10.0
PAYLOADS = [b"small %d" % number for number in range(50)]
REFS = [make_ref(payload, partitions=64) for payload in PAYLOADS]
BATCH_PUT = f"POST {BATCH_PUT_PATH}"


@pytest.fixture
def fake() -> FakeCluster:
    return FakeCluster(num_nodes=4)


@pytest.fixture
def pool() -> Iterator[ThreadPool]:
    with ThreadPool(8, name="test") as made:
        yield made


def uploader_of(fake: FakeCluster, *, ack: Ack = "quorum", **settings: object) -> ChunkUploader:
    return ChunkUploader(fake.cluster, fake.chunks, quick_config(**settings), replicas=3, ack=ack)


def replicas(fake: FakeCluster, ref: Ref) -> set[str]:
    return set(fake.layout.replicas(ref.partition, count=3))


def requests(fake: FakeCluster) -> dict[str, int]:
    return {name: node.requests.count(BATCH_PUT) for name, node in fake.nodes.items()}


def test_each_node_is_sent_its_own_chunks_in_one_request(fake: FakeCluster, pool: ThreadPool) -> None:
    assert uploader_of(fake, ack="all").store_many(PAYLOADS, executor=pool) == REFS
    assert all(fake.holders(ref) == replicas(fake, ref) for ref in REFS)
    assert [node.requests for node in fake.nodes.values()] == [[BATCH_PUT]] * 4


def test_nothing_is_sent_for_nothing(fake: FakeCluster, pool: ThreadPool) -> None:
    assert uploader_of(fake).store_many([], executor=pool) == []
    assert sum(requests(fake).values()) == 0


def test_equal_chunks_are_sent_once(fake: FakeCluster, pool: ThreadPool) -> None:
    assert (
        uploader_of(fake).store_many([b"same", b"other", b"same"], executor=pool)[::2] == [make_ref(b"same", partitions=64)] * 2
    )


def test_payloads_may_be_any_buffers(fake: FakeCluster, pool: ThreadPool) -> None:
    wide = array.array("I", range(100))
    (ref,) = uploader_of(fake).store_many([wide], executor=pool)
    assert ref == make_ref(wide.tobytes(), partitions=64)
    assert fake.holders(ref)


def test_batches_are_split_at_their_bounds(fake: FakeCluster, pool: ThreadPool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("client.group_upload.MAX_ITEMS", 10)
    assert uploader_of(fake, ack="all").store_many(PAYLOADS, executor=pool) == REFS
    assert all(fake.holders(ref) == replicas(fake, ref) for ref in REFS)
    for name, number in requests(fake).items():
        assert number == -(-sum(name in replicas(fake, ref) for ref in REFS) // 10)
    monkeypatch.setattr("client.group_upload.MAX_BATCH_BYTES", 15)
    uploader_of(fake, ack="all").store_many([b"12345678", b"87654321"], executor=pool)


@pytest.mark.parametrize(("ack", "num_dead", "stored"), [
    ("one", 2, True), ("one", 4, False), ("quorum", 1, True), ("quorum", 3, False), ("all", 0, True), ("all", 1, False),
])  # fmt: skip
@pytest.mark.parametrize("fault", ["down", "silent", "busy"])
def test_enough_copies_of_every_chunk_or_an_error(
    fake: FakeCluster, pool: ThreadPool, ack: Ack, num_dead: int, stored: bool, fault: Fault
) -> None:
    dead = list(fake.nodes)[:num_dead]
    fake.fail(*dead, fault=fault)
    uploader = uploader_of(fake, ack=ack, deadline_s=10.0 if stored else 0.05)
    if stored:
        assert uploader.store_many(PAYLOADS, executor=pool) == REFS
        assert all(len(fake.holders(ref) & replicas(fake, ref)) >= {"one": 1, "quorum": 2, "all": 3}[ack] for ref in REFS)
    else:
        with pytest.raises(NotEnoughReplicas, match=r"of \d copies are durable; .* said .*Nothing was committed"):
            uploader.store_many(PAYLOADS, executor=pool)


def test_only_what_failed_is_asked_again(fake: FakeCluster, pool: ThreadPool) -> None:
    fake.fail("node-0", "node-1", fault="busy")
    healed = threading.Event()

    def heal(_: str) -> None:
        if requests(fake)["node-0"] == 2:
            fake.heal()
            healed.set()

    fake.nodes["node-0"].before = heal
    uploader_of(fake).store_many(PAYLOADS, executor=pool)
    assert healed.is_set()
    # What both others hold was acknowledged in the first round, so that these had nothing to do in the second.
    assert (requests(fake)["node-2"], requests(fake)["node-3"]) == (1, 1)


def test_a_copy_on_a_node_that_has_left_the_replicas_does_not_count(fake: FakeCluster, pool: ThreadPool) -> None:
    leaving, *others = fake.layout.replicas(REFS[0].partition, count=3)
    fake.fail(*others, fault="busy")

    def layout_changes(_: str) -> None:
        rest = tuple(node for node in fake.layout.nodes if node.id != leaving)
        fake.layout = Layout(version=2, partitions=64, nodes=rest)
        fake.cluster.refresh()

    # In the first round, in which the leaving node has its copy. The one that comes in its place takes the chunk, too.
    fake.nodes[others[0]].before = layout_changes
    with pytest.raises(NotEnoughReplicas, match="1 of 2 copies"):
        uploader_of(fake, deadline_s=0.2).store_many(PAYLOADS[:1], executor=pool)
    assert len(fake.holders(REFS[0])) == 2


def test_an_error_that_no_repeat_mends_is_raised_at_once(fake: FakeCluster, pool: ThreadPool) -> None:
    for node in fake.nodes.values():
        node.chunks = Refusing()
    with pytest.raises(ChecksumMismatch):
        uploader_of(fake).store_many(PAYLOADS, executor=pool)
    assert max(requests(fake).values()) == 1


class Refusing(dict[tuple[int, bytes], bytes]):
    """A node that finds other bytes than were sent."""

    def __setitem__(self, key: tuple[int, bytes], payload: bytes) -> None:
        raise ChecksumMismatch("the bytes do not have this id")


def test_too_few_nodes_with_room_is_a_full_disk(fake: FakeCluster, pool: ThreadPool) -> None:
    fake.fail("node-0", "node-1", "node-2", fault="full")
    with pytest.raises(DiskFull):
        uploader_of(fake, deadline_s=0.05).store_many(PAYLOADS, executor=pool)


def test_a_node_under_suspicion_is_spared_while_there_are_enough_others(fake: FakeCluster, pool: ThreadPool) -> None:
    fake.cluster.failed("node-1")
    uploader_of(fake).store_many(PAYLOADS, executor=pool)
    assert requests(fake)["node-1"] == 0
    uploader_of(fake, ack="all").store_many(PAYLOADS, executor=pool)
    assert requests(fake)["node-1"] == 1


def test_a_slow_node_is_not_waited_for_once_there_are_enough(fake: FakeCluster, pool: ThreadPool) -> None:
    release = threading.Event()
    waited = threading.Event()
    payload = bytearray(b"a payload")
    slow = fake.layout.replicas(make_ref(payload, partitions=64).partition, count=3)[0]

    def wait(_: str) -> None:
        release.wait(WAIT_S)
        waited.set()

    fake.nodes[slow].before = wait
    try:
        (ref,) = uploader_of(fake).store_many([payload], executor=pool)
        payload[:] = b"reused..."
        assert not waited.is_set()
        assert len(fake.holders(ref) - {slow}) == 2
    finally:
        release.set()
    pool.shutdown()
    assert fake.holders(ref) == replicas(fake, ref)


def test_what_was_acknowledged_by_nobody_is_never_stored(fake: FakeCluster, pool: ThreadPool) -> None:
    for node_id in fake.nodes:
        fake.fail(node_id, fault="drops replies")
    with pytest.raises(NotEnoughReplicas, match="0 of 2 copies"):
        uploader_of(fake, deadline_s=0.05).store_many(PAYLOADS, executor=pool)


def test_a_cluster_with_too_few_nodes_fails_at_once(pool: ThreadPool) -> None:
    fake = FakeCluster(num_nodes=1)
    with pytest.raises(NotEnoughReplicas, match="only 1 nodes"):
        uploader_of(fake).store_many(PAYLOADS, executor=pool)
    assert sum(requests(fake).values()) == 0
