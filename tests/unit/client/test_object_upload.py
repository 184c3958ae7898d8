"""Objects written piece by piece, and several at once: what becomes visible, when, and what an error leaves behind."""

from __future__ import annotations

import io
import random
import threading
from collections.abc import Iterator

import pytest

from client.errors import InvalidRequest, NotEnoughReplicas, ObjectNotFound, PreconditionFailed
from client.objects import ObjectStore
from client.record import BucketPolicy, Condition, ObjectInfo
from tests.support.fake_cluster import FakeCluster

WAIT_S = 10.0
CHUNK_BYTES = 64 * 1024
DATA = random.Random(12).randbytes(5 * CHUNK_BYTES + 123)


@pytest.fixture
def fake() -> FakeCluster:
    made = FakeCluster()
    made.catalog.create_bucket("data", BucketPolicy())
    return made


@pytest.fixture
def store(fake: FakeCluster) -> Iterator[ObjectStore]:
    made = fake.store(chunk_size_bytes=CHUNK_BYTES)
    yield made
    made.close()


@pytest.fixture
def hasty(fake: FakeCluster) -> Iterator[ObjectStore]:
    """A store that gives up soon."""
    made = fake.store(chunk_size_bytes=CHUNK_BYTES, deadline_s=0.02)
    yield made
    made.close()


# --- writing piece by piece


def test_an_upload_is_visible_only_after_its_commit(store: ObjectStore) -> None:
    with store.upload("data", "k", metadata={"a": "b"}, write_id="my-id") as upload:
        for start in range(0, len(DATA), 1000):
            upload.write(DATA[start : start + 1000])
        with pytest.raises(ObjectNotFound):
            store.stat("data", "k")
        info = upload.commit()
    assert (info.etag, info.metadata) == ("my-id", {"a": "b"})
    assert store.get("data", "k") == DATA


def test_leaving_without_a_commit_names_nothing(store: ObjectStore) -> None:
    with store.upload("data", "k") as upload:
        upload.write(DATA)
    with pytest.raises(ObjectNotFound):
        store.stat("data", "k")
    with pytest.raises(InvalidRequest, match="ended"):
        upload.commit()


def test_a_commit_that_was_refused_can_be_made_with_another_condition(store: ObjectStore) -> None:
    store.put("data", "k", b"old")
    with store.upload("data", "k") as upload:
        upload.write(b"new")
        with pytest.raises(PreconditionFailed):
            upload.commit(condition=Condition(if_none_match="*"))
        upload.commit()
    assert store.get("data", "k") == b"new"


def test_a_failed_put_names_nothing_and_leaves_the_callers_buffer_alone(fake: FakeCluster, store: ObjectStore) -> None:
    entered, release, in_request = threading.Event(), threading.Event(), []

    def hold(request: str) -> None:
        in_request.append(request)
        entered.set()
        assert release.wait(WAIT_S)
        in_request.pop()

    class Breaking(io.BytesIO):
        """Gives one chunk, and breaks while that is being sent."""

        gave_a_chunk = False

        def read(self, size: int | None = -1) -> bytes:
            if self.gave_a_chunk:
                assert entered.wait(WAIT_S)
                release.set()
                raise OSError("the source is gone")
            piece = DATA[:size]
            self.gave_a_chunk = len(piece) == size
            return piece

    for node in fake.nodes.values():
        node.before = hold

    with pytest.raises(OSError, match="the source is gone"):
        store.put("data", "k", Breaking())
    assert in_request == []
    with pytest.raises(ObjectNotFound):
        store.stat("data", "k")


def test_too_few_acknowledgements_commit_nothing(fake: FakeCluster, hasty: ObjectStore) -> None:
    fake.fail("node-0", "node-1", fault="down")
    with pytest.raises(NotEnoughReplicas):
        hasty.put("data", "k", DATA)
    with pytest.raises(ObjectNotFound):
        hasty.stat("data", "k")


# --- several at once


def test_many_at_once_keep_their_order(store: ObjectStore) -> None:
    items = [("data", f"k{number}", bytes([number]) * (number + 1)) for number in range(50)]
    infos = store.put_many(iter(items))
    assert [info.key for info in infos] == [key for _, key, _ in items]
    found = store.get_many(("data", key, 0, None) for _, key, _ in items)
    assert found == [data for _, _, data in items]
    assert store.get_many([]) == []


def test_one_thread_is_enough_for_many_objects_of_many_chunks(fake: FakeCluster) -> None:
    store = fake.store(chunk_size_bytes=CHUNK_BYTES, max_threads=1, max_in_flight_chunks=1)
    try:
        store.put_many([("data", f"k{number}", DATA) for number in range(5)])
        assert store.get_many([("data", f"k{number}", 1, None) for number in range(5)]) == [DATA[1:]] * 5
    finally:
        store.close()


def test_many_are_taken_a_few_at_a_time(fake: FakeCluster) -> None:
    taken, most_ahead, num_done = 0, 0, 0
    lookup = fake.catalog.lookup

    def counting(*args: str, **options: object) -> ObjectInfo:
        nonlocal most_ahead, num_done
        most_ahead = max(most_ahead, taken - num_done)
        num_done += 1
        return lookup(*args, **options)  # type: ignore[arg-type]

    def items() -> Iterator[tuple[str, str, int, int | None]]:
        nonlocal taken
        for _ in range(200):
            taken += 1
            yield "data", "k", 0, None

    store = fake.store(max_threads=1)
    try:
        store.put("data", "k", b"x")
        fake.catalog.lookup = counting  # type: ignore[method-assign]
        assert store.get_many(items()) == [b"x"] * 200
    finally:
        store.close()
    assert most_ahead <= 4


def test_an_error_among_many_is_raised_when_nothing_is_under_way_any_more(fake: FakeCluster, store: ObjectStore) -> None:
    store.put("data", "good", DATA)
    under_way = 0
    lock = threading.Lock()

    lookup = fake.catalog.lookup

    def counting(*args: str, **options: object) -> ObjectInfo:
        nonlocal under_way
        with lock:
            under_way += 1
        try:
            return lookup(*args, **options)  # type: ignore[arg-type]
        finally:
            with lock:
                under_way -= 1

    fake.catalog.lookup = counting  # type: ignore[method-assign]
    with pytest.raises(ObjectNotFound):
        store.get_many([("data", key, 0, None) for key in ("good", "none", "good", "good", "good")])
    assert under_way == 0
