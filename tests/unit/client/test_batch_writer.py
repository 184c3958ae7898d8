"""Many objects written at once: grouped or one by one, in order, named only once durable, and never too many under way."""

from __future__ import annotations

import array
import io
import itertools
import random
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from client.catalog import Commit
from client.errors import BucketNotFound, Conflict, InvalidName, MetadataUnavailable, NotEnoughReplicas, StoreError
from client.frames import MAX_SMALL_BYTES
from client.objects import ObjectStore
from client.payloads import Data
from client.record import BucketPolicy, ObjectInfo
from client.wire import BATCH_PUT_PATH
from tests.support.fake_cluster import FakeCluster
from tests.support.fake_store import FakeStore

WAIT_S = 10.0
BATCH_PUT = f"POST {BATCH_PUT_PATH}"
LARGE = random.Random(13).randbytes(2 * MAX_SMALL_BYTES)


@pytest.fixture
def fake() -> FakeCluster:
    made = FakeCluster(num_nodes=4)
    made.catalog.create_bucket("data", BucketPolicy(ack="all"))
    return made


@pytest.fixture
def store(fake: FakeCluster) -> Iterator[ObjectStore]:
    made = fake.store(chunk_size_bytes=MAX_SMALL_BYTES)
    yield made
    made.close()


def small(num_items: int, *, bucket: str = "data") -> list[tuple[str, str, bytes]]:
    return [(bucket, f"k{number:03d}", b"small %d" % number) for number in range(num_items)]


def named(fake: FakeCluster) -> set[str]:
    return {key for _, key in fake.catalog.history}


def check_copies(fake: FakeCluster, info: ObjectInfo) -> None:
    """Exactly the nodes that should have the chunks of an object have them, whole."""
    for ref in info.record.content.refs:
        assert fake.holders(ref) == set(fake.layout.replicas(ref.partition, count=info.record.replicas))


class Watching:
    """Stands before the catalog's `commit_many` and keeps the keys of each call."""

    def __init__(self, fake: FakeCluster) -> None:
        self._commit_many = fake.catalog.commit_many
        self.calls: list[list[str]] = []
        self.errors: dict[str, StoreError] = {}
        fake.catalog.commit_many = self.commit_many  # type: ignore[method-assign]

    def commit_many(self, writes: Sequence[Commit]) -> list[ObjectInfo | StoreError]:
        self.calls.append([write.key for write in writes])
        if "*" in self.errors:
            raise self.errors["*"]
        return [self.errors.get(write.key) or self._commit_many([write])[0] for write in writes]


# --- what is written, and how


def test_small_objects_are_one_request_to_each_node_and_one_commit(fake: FakeCluster, store: ObjectStore) -> None:
    watching = Watching(fake)
    infos = store.put_many(small(50))
    assert [(info.bucket, info.key, info.size) for info in infos] == [(name, key, len(data)) for name, key, data in small(50)]
    assert [node.requests for node in fake.nodes.values()] == [[BATCH_PUT]] * 4
    assert watching.calls == [[key for _, key, _ in small(50)]]
    for info, (bucket, key, data) in zip(infos, small(50), strict=True):
        check_copies(fake, info)
        assert store.stat(bucket, key) == info
        assert store.get(bucket, key) == data


def test_a_record_is_that_of_a_single_put(store: ObjectStore) -> None:
    (info,) = store.put_many([("data", "k", b"bytes")])
    single = store.put("data", "k", b"bytes")
    assert info.record.content == single.record.content
    assert (info.record.ack, info.record.replicas, info.record.content_type) == ("all", 3, single.record.content_type)
    assert 0 <= single.record.created_s - info.record.created_s < WAIT_S
    assert info.etag != single.etag


def test_all_kinds_of_data_keep_their_order(fake: FakeCluster, store: ObjectStore, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"from a file")
    every: list[tuple[Data, bytes]] = [
        (b"", b""),
        (b"x", b"x"),
        (str(path), b"from a file"),
        (LARGE[:MAX_SMALL_BYTES], LARGE[:MAX_SMALL_BYTES]),
        (memoryview(LARGE)[: MAX_SMALL_BYTES + 1], LARGE[: MAX_SMALL_BYTES + 1]),
        (array.array("I", range(100)), array.array("I", range(100)).tobytes()),
        (io.BytesIO(b"read"), b"read"),
        (bytearray(LARGE), LARGE),
        (path, b"from a file"),
        (memoryview(bytes(6)).cast("B", (2, 3)), bytes(6)),
    ]
    watching = Watching(fake)
    infos = store.put_many(("data", f"k{number}", data) for number, (data, _) in enumerate(every))
    assert [info.key for info in infos] == [f"k{number}" for number in range(len(every))]
    assert watching.calls == [["k1", "k3", "k5", "k9"]]
    for info, (_, content) in zip(infos, every, strict=True):
        check_copies(fake, info)
        assert store.get("data", info.key) == content


def test_nothing_is_asked_for_nothing(fake: FakeCluster, store: ObjectStore) -> None:
    assert store.put_many([]) == []
    assert [node.requests for node in fake.nodes.values()] == [[]] * 4


def test_each_bucket_has_its_policy_which_is_asked_for_once(
    fake: FakeCluster, store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake.catalog.create_bucket("once", BucketPolicy(replicas=1, ack="one"))
    fake.catalog.create_bucket("same", BucketPolicy(ack="all", versions=3))
    asked: list[str] = []
    bucket = fake.catalog.bucket

    def asking(name: str) -> BucketPolicy:
        if threading.current_thread() is threading.main_thread():  # And not the catalog, for a commit.
            asked.append(name)
        return bucket(name)

    monkeypatch.setattr(fake.catalog, "bucket", asking)
    watching = Watching(fake)
    items = [item for number in range(5) for item in small(number + 1, bucket=("data", "once", "same")[number % 3])[-1:]]
    infos = store.put_many(items)
    assert [(info.record.replicas, info.record.ack) for info in infos] == [
        (3, "all"), (1, "one"), (3, "all"), (3, "all"), (1, "one"),
    ]  # fmt: skip
    assert sorted(watching.calls) == [["k000", "k002", "k003"], ["k001", "k004"]]
    assert asked == ["data", "once", "same"]
    for info in infos:
        check_copies(fake, info)


def test_a_buffer_may_be_used_again_for_the_next_item(fake: FakeCluster, store: ObjectStore) -> None:
    buffer = bytearray(8)

    def items() -> Iterator[tuple[str, str, bytearray]]:
        for number in range(5):
            buffer[:] = b"%08d" % number
            yield "data", f"k{number}", buffer

    store.put_many(items())
    assert [store.get("data", f"k{number}") for number in range(5)] == [b"%08d" % number for number in range(5)]


def test_the_store_of_dictionaries_takes_many_too() -> None:
    store = FakeStore()
    try:
        store.buckets.create("data")
        store.put_many([*small(5), ("data", "large", LARGE)])
        assert [store.get("data", key) for _, key, _ in small(5)] == [data for _, _, data in small(5)]
        assert store.get("data", "large") == LARGE
    finally:
        store.close()


# --- one name more than once


@pytest.mark.parametrize(
    ("first", "second"), [(b"first", b"second"), (LARGE, b"second"), (b"first", LARGE), (LARGE, LARGE[1:])]
)
def test_of_two_items_with_one_name_the_later_wins(
    fake: FakeCluster, store: ObjectStore, monkeypatch: pytest.MonkeyPatch, first: bytes, second: bytes
) -> None:
    monkeypatch.setattr("client.batch_writer.MAX_ITEMS", 1)
    commit, num_begun, both = fake.catalog.commit, itertools.count(), threading.Event()

    def slow(*args: Any, **options: Any) -> ObjectInfo:
        if next(num_begun):
            both.set()
        else:
            both.wait(0.2)  # Time for the second one to overtake the first, if nothing holds it up.
        return commit(*args, **options)

    monkeypatch.setattr(fake.catalog, "commit", slow)
    old, new = store.put_many([("data", "k", first), ("data", "k", second)])
    assert store.get("data", "k") == second
    assert (old.size, new.size) == (len(first), len(second))
    assert old.version < new.version


def test_one_name_over_and_over_and_others_between(store: ObjectStore) -> None:
    data = [b"%d" % number * (1 if number % 3 else 50_000) for number in range(20)]
    infos = store.put_many(("data", "same" if number % 2 else f"k{number}", payload) for number, payload in enumerate(data))
    assert [info.size for info in infos] == [len(payload) for payload in data]
    assert [info.version for info in infos[1::2]] == sorted(info.version for info in infos[1::2])
    assert store.get("data", "same") == data[-1]


def test_a_name_is_waited_for_only_while_it_is_under_way(
    fake: FakeCluster, store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("client.batch_writer.MAX_ITEMS", 10)
    watching = Watching(fake)
    # At most 30 items are under way at a time, so that the first of these 40 names has ended when it comes again.
    store.put_many(("data", f"k{number % 40}", b"%d" % number) for number in range(200))
    assert [len(call) for call in watching.calls] == [10] * 20


# --- what fails


@pytest.mark.parametrize(("bad", "error"), [
    (("none", "k", b"x"), BucketNotFound), (("none", "k", LARGE), BucketNotFound), (("data", "a//b", b"x"), InvalidName),
    (("data", "a//b", LARGE), InvalidName), (("A", "k", b"x"), InvalidName), (("data", "k", None), TypeError),
    (("data", "k", "/no/such/file"), FileNotFoundError),
])  # fmt: skip
def test_a_bad_item_is_raised_and_those_before_it_are_written(
    fake: FakeCluster, store: ObjectStore, bad: tuple[str, str, Any], error: type[Exception]
) -> None:
    items = iter([*small(3), ("data", "large", LARGE), bad, *small(1000)[3:]])
    with pytest.raises(error):
        store.put_many(items)
    assert named(fake) >= {"k000", "k001", "k002", "large"}
    assert store.get("data", "large") == LARGE


def test_after_an_error_no_more_items_are_taken(fake: FakeCluster, store: ObjectStore) -> None:
    items = iter([*small(3), ("none", "k", b"x"), *small(10)[3:]])
    with pytest.raises(BucketNotFound):
        store.put_many(items)
    assert len(list(items)) == 7
    assert named(fake) == {"k000", "k001", "k002"}


def test_the_first_error_in_the_order_of_the_items_is_raised(fake: FakeCluster, store: ObjectStore) -> None:
    watching = Watching(fake)
    watching.errors = {"k001": Conflict("lost its races"), "k002": MetadataUnavailable("is away")}
    with pytest.raises(Conflict):
        store.put_many([*small(4), ("data", "last", "/no/such/file")])
    assert named(fake) == {"k000", "k003"}


def test_what_is_behind_an_item_that_failed_is_left_out(
    fake: FakeCluster, store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Each group waits for the one before, and so for its error.
    monkeypatch.setattr("client.batch_writer._MAX_GROUPS", 1)
    monkeypatch.setattr("client.batch_writer.MAX_ITEMS", 2)
    watching = Watching(fake)
    watching.errors["k001"] = Conflict("lost its races")
    with pytest.raises(Conflict):
        store.put_many(small(10))
    assert watching.calls == [["k000", "k001"]]


@pytest.mark.parametrize("error", [MetadataUnavailable("is away"), Conflict("lost its races")])
def test_an_error_of_a_whole_group_is_that_of_its_items(fake: FakeCluster, store: ObjectStore, error: StoreError) -> None:
    watching = Watching(fake)
    watching.errors["*"] = error
    with pytest.raises(type(error)):
        store.put_many([*small(3), ("data", "last", "/no/such/file")])
    assert named(fake) == set()


def test_with_too_few_acknowledgements_nothing_is_named_and_no_more_is_taken(
    fake: FakeCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("client.batch_writer.MAX_ITEMS", 10)
    fake.fail("node-0", "node-1", fault="down")
    hasty = fake.store(deadline_s=0.05)
    try:
        with pytest.raises(NotEnoughReplicas, match="Nothing was committed"):
            hasty.put_many(("data", f"k{number}", b"%d" % number) for number in itertools.count())
    finally:
        hasty.close()
    assert named(fake) == set()


def test_a_group_whose_policy_can_be_kept_is_written_beside_one_whose_can_not(fake: FakeCluster) -> None:
    fake.catalog.create_bucket("once", BucketPolicy(replicas=4, ack="one"))
    fake.fail("node-0", fault="down")
    hasty = fake.store(deadline_s=0.05)
    try:
        with pytest.raises(NotEnoughReplicas):
            hasty.put_many([*small(30, bucket="once"), *small(30)])
    finally:
        hasty.close()
    assert {bucket for bucket, _ in fake.catalog.history} == {"once"}


@pytest.mark.parametrize("data", [b"small", LARGE])
def test_when_the_items_themselves_fail_nothing_is_under_way_any_more(
    fake: FakeCluster, store: ObjectStore, monkeypatch: pytest.MonkeyPatch, data: bytes
) -> None:
    monkeypatch.setattr("client.batch_writer.MAX_ITEMS", 1)
    entered, release, in_commit = threading.Event(), threading.Event(), []
    commit = fake.catalog.commit

    def hold(*args: Any, **options: Any) -> ObjectInfo:
        in_commit.append(args)
        entered.set()
        release.wait(0.2)  # Longer than it takes to raise, if nothing waits for this.
        in_commit.pop()
        return commit(*args, **options)

    def items() -> Iterator[tuple[str, str, bytes]]:
        yield "data", "k", data
        yield "data", "other", b"sends the first on its way"
        assert entered.wait(WAIT_S)
        raise OSError("the source is gone")

    monkeypatch.setattr(fake.catalog, "commit", hold)
    with pytest.raises(OSError, match="the source is gone"):
        store.put_many(items())
    assert in_commit == []


# --- bounds


@pytest.mark.parametrize(("max_items", "max_bytes"), [(10, 10**9), (1000, 100)])
def test_small_items_are_taken_a_few_groups_ahead(
    fake: FakeCluster, store: ObjectStore, monkeypatch: pytest.MonkeyPatch, max_items: int, max_bytes: int
) -> None:
    monkeypatch.setattr("client.batch_writer.MAX_ITEMS", max_items)
    monkeypatch.setattr("client.batch_writer.MAX_BATCH_BYTES", max_bytes)
    most_ahead = 0

    def items() -> Iterator[tuple[str, str, bytes]]:
        nonlocal most_ahead
        for number in range(200):
            yield "data", f"k{number}", b"%010d" % number
            most_ahead = max(most_ahead, number + 1 - len(fake.catalog.history))

    watching = Watching(fake)
    assert [info.key for info in store.put_many(items())] == [f"k{number}" for number in range(200)]
    assert [len(call) for call in watching.calls] == [10] * 20
    # Two groups under way and a full one; the item behind that waits.
    assert most_ahead <= 30


def test_large_items_are_taken_a_few_ahead(fake: FakeCluster) -> None:
    most_ahead = 0

    def items() -> Iterator[tuple[str, str, bytes]]:
        nonlocal most_ahead
        for number in range(50):
            yield "data", f"k{number}", LARGE
            most_ahead = max(most_ahead, number + 1 - len(fake.catalog.history))

    narrow = fake.store(max_threads=2)
    try:
        narrow.put_many(items())
    finally:
        narrow.close()
    assert len(named(fake)) == 50
    assert most_ahead <= 4
