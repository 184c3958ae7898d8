"""Many objects at once: from whichever nodes have them, checked, and one by one where a batch does not bring them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from client.batch import BatchReader
from client.errors import AllReplicasFailed, InvalidRange, ObjectNotFound, ProtocolMismatch
from client.in_flight import ThreadPool
from client.manifest import Ref
from client.objects import ObjectStore
from client.record import BucketPolicy
from client.transport import Response
from client.wire import BATCH_GET_PATH
from tests.support.fake_cluster import FakeCluster

NUM_OBJECTS = 100
DATA = {f"k{number:03d}": b"%d " % number * 20 for number in range(NUM_OBJECTS)}
ALL = [("data", key, 0, None) for key in DATA]
BATCH_GET = f"POST {BATCH_GET_PATH}"


@pytest.fixture
def fake() -> FakeCluster:
    return FakeCluster(num_nodes=5)


@pytest.fixture
def store(fake: FakeCluster) -> Iterator[ObjectStore]:
    fake.catalog.create_bucket("data", BucketPolicy())
    # Chunks of more than a segment would be no small ones; this makes two of the object called large.
    store = fake.store(chunk_size_bytes=64 * 1024, deadline_s=1.0)
    for key, data in DATA.items():
        store.put("data", key, data)
    store.put("data", "large", bytes(100_000))
    store.put("data", "empty", b"")
    for node in fake.nodes.values():
        node.requests.clear()
    yield store
    store.close()


@pytest.fixture
def reader(store: ObjectStore) -> Iterator[BatchReader]:
    with ThreadPool(4, name="test") as pool:
        yield BatchReader(store, pool)


def batches(fake: FakeCluster) -> dict[str, int]:
    return {name: node.requests.count(BATCH_GET) for name, node in fake.nodes.items()}


def singles(fake: FakeCluster) -> list[str]:
    return [request for node in fake.nodes.values() for request in node.requests if request.startswith("GET")]


def ref_of(store: ObjectStore, key: str) -> Ref:
    return store.stat("data", key).record.content.refs[0]


def test_small_objects_come_in_two_rounds_of_a_request_for_each_node(fake: FakeCluster, reader: BatchReader) -> None:
    assert reader.get_many(iter(ALL)) == list(DATA.values())
    # With 3 replicas on 5 nodes, what the first node asked does not hold is asked of one that does.
    assert batches(fake) == dict.fromkeys(fake.nodes, 2)
    assert singles(fake) == []


def test_nothing_is_asked_for_nothing(fake: FakeCluster, reader: BatchReader) -> None:
    assert reader.get_many([]) == []
    assert sum(batches(fake).values()) == 0


def test_few_objects_are_one_request(fake: FakeCluster, reader: BatchReader) -> None:
    reader.get_many(ALL[:1] * 10)
    assert sum(batches(fake).values()) <= 2  # The second where the first has no copy.


def test_more_objects_than_a_request_holds_are_several(fake: FakeCluster, reader: BatchReader) -> None:
    assert reader.get_many(ALL * 20) == list(DATA.values()) * 20
    assert max(batches(fake).values()) > 2


@pytest.mark.parametrize(("start", "end"), [(0, None), (3, 10), (0, 10**6), (5, 5), (60, None), (59, 60)])
def test_ranges_are_those_of_get(store: ObjectStore, reader: BatchReader, start: int, end: int | None) -> None:
    items = [("data", key, start, end) for key in ("k012", "k013", "large")]
    assert reader.get_many(items) == [store.get("data", key, start=start, end=end) for _, key, _, _ in items]


@pytest.mark.parametrize(("start", "end"), [(61, None), (-1, None), (3, 2)])
@pytest.mark.parametrize("key", ["k012", "large"])
def test_ranges_outside_of_the_object_are_refused(reader: BatchReader, key: str, start: int, end: int | None) -> None:
    start = start if key == "k012" or start < 60 else 100_001
    with pytest.raises(InvalidRange, match=f"data/{key}"):
        reader.get_many([("data", "k001", 0, None), ("data", key, start, end)])


def test_what_is_no_small_chunk_is_read_by_itself(fake: FakeCluster, reader: BatchReader) -> None:
    assert reader.get_many([("data", "large", 1, None), *ALL[:3], ("data", "empty", 0, None)]) == [
        bytes(99_999),
        *list(DATA.values())[:3],
        b"",
    ]
    assert {request.partition("/v1/")[2].partition("/")[0] for request in singles(fake)} == {"chunks"}


def test_an_object_that_is_not_there_is_an_error(reader: BatchReader) -> None:
    with pytest.raises(ObjectNotFound, match="data/none"):
        reader.get_many([*ALL, ("data", "none", 0, None)])


@pytest.mark.parametrize("fault", ["down", "silent", "busy", "drops replies", "no metadata", "missing"])
def test_what_one_node_does_not_bring_comes_from_others(fake: FakeCluster, reader: BatchReader, fault: str) -> None:
    fake.fail("node-1", fault=fault)  # type: ignore[arg-type]
    assert reader.get_many(ALL) == list(DATA.values())


def test_a_node_under_suspicion_is_not_asked(fake: FakeCluster, reader: BatchReader) -> None:
    fake.cluster.failed("node-1")
    reader.get_many(ALL)
    assert batches(fake)["node-1"] == 0


def test_with_all_nodes_down_the_error_is_that_of_get(fake: FakeCluster, store: ObjectStore, reader: BatchReader) -> None:
    for node_id in fake.nodes:
        fake.fail(node_id, fault="down")
    with pytest.raises(AllReplicasFailed):  # The catalog of this store is no node's.
        reader.get_many(ALL[:1])
    assert batches(fake) != dict.fromkeys(fake.nodes, 0)


def test_corrupt_bytes_are_seen_replaced_and_reported(fake: FakeCluster, store: ObjectStore, reader: BatchReader) -> None:
    fake.fail("node-1", fault="corrupt")
    assert reader.get_many(ALL) == list(DATA.values())
    requests = fake.nodes["node-1"].requests
    assert requests.count("POST /v1/chunks:verify") >= 20
    assert sum(node.requests.count("POST /v1/chunks:verify") for node in fake.nodes.values()) == requests.count(
        "POST /v1/chunks:verify"
    )


def test_bytes_that_are_corrupt_everywhere_are_an_error(fake: FakeCluster, reader: BatchReader) -> None:
    for node_id in fake.nodes:
        fake.fail(node_id, fault="corrupt")
    with pytest.raises(AllReplicasFailed):
        reader.get_many(ALL)


def test_an_answer_that_is_no_frames_is_an_error(fake: FakeCluster, reader: BatchReader) -> None:
    answer = Response(status=200, headers={}, body=b"hello", size=5)
    fake.transport.request = lambda *_, **__: answer  # type: ignore[method-assign]
    with pytest.raises(ProtocolMismatch):
        reader.get_many(ALL)
