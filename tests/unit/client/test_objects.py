"""Objects by name: what goes in comes out, conditions and bounds, and what an error leaves behind."""

from __future__ import annotations

import array
import io
import random
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from client.catalog import Opened, Watched
from client.errors import (
    AllReplicasFailed,
    BucketNotFound,
    InvalidName,
    InvalidRange,
    InvalidRequest,
    ObjectNotFound,
    PreconditionFailed,
    StoreError,
)
from client.objects import ObjectStore
from client.record import BucketPolicy
from tests.support.fake_cluster import FakeCluster
from tests.support.fake_store import FakeStore

CHUNK_BYTES = 64 * 1024
DATA = random.Random(11).randbytes(5 * CHUNK_BYTES + 123)


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


class Unnamed(io.RawIOBase):
    """A file that gives what it has in pieces of its own choice."""

    def __init__(self, data: bytes, piece_bytes: int) -> None:
        self._pieces = [data[start : start + piece_bytes] for start in range(0, len(data), piece_bytes)]

    def read(self, size: int = -1) -> bytes:
        if not self._pieces:
            return b""
        piece = self._pieces.pop(0)
        if len(piece) > size:
            self._pieces.insert(0, piece[size:])
        return piece[:size]


# --- putting and getting


@pytest.mark.parametrize("size", [0, 1, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1, len(DATA)])
def test_what_is_put_is_got(store: ObjectStore, size: int) -> None:
    info = store.put("data", "k", DATA[:size])
    assert info.size == size
    assert store.get("data", "k") == DATA[:size]
    assert store.stat("data", "k") == info


@pytest.mark.parametrize(
    "make",
    [
        bytearray,
        memoryview,
        io.BytesIO,
        lambda data: array.array("B", data),
        lambda data: Unnamed(data, 1000),
        lambda data: Unnamed(data, 3 * CHUNK_BYTES),
    ],
)
def test_data_may_be_any_buffer_or_file(store: ObjectStore, make: Callable[[bytes], bytes]) -> None:
    store.put("data", "k", make(DATA))
    assert store.get("data", "k") == DATA


def test_data_may_be_a_path(store: ObjectStore, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(DATA)
    for given in (path, str(path)):
        store.put("data", "k", given)
        assert store.get("data", "k") == DATA
    with pytest.raises(FileNotFoundError):
        store.put("data", "k", tmp_path / "none")


def test_wide_and_empty_arrays_are_their_bytes(store: ObjectStore) -> None:
    numbers = array.array("d", range(100))
    store.put("data", "k", numbers)
    assert store.get("data", "k") == numbers.tobytes()
    store.put("data", "k", memoryview(numbers).cast("B").cast("d", (10, 10)))
    assert store.get("data", "k") == numbers.tobytes()
    store.put("data", "k", array.array("d"))
    assert store.get("data", "k") == b""
    assert store.get_into("data", "k", array.array("d")) == 0


def test_equal_bytes_have_equal_digests_and_their_own_etags(store: ObjectStore) -> None:
    first, second = store.put("data", "a", DATA), store.put("data", "b", bytearray(DATA))
    assert first.digest == second.digest
    assert first.etag != second.etag


@pytest.mark.parametrize(
    ("start", "end", "expected"),
    [(0, None, DATA), (5, 10, DATA[5:10]), (5, 5, b""), (len(DATA), None, b""), (100, 10**12, DATA[100:])],
)
def test_ranges(store: ObjectStore, start: int, end: int | None, expected: bytes) -> None:
    store.put("data", "k", DATA)
    assert store.get("data", "k", start=start, end=end) == expected


@pytest.mark.parametrize(("start", "end"), [(-1, None), (len(DATA) + 1, None), (5, 4)])
def test_bad_ranges_name_the_object_and_its_size(store: ObjectStore, start: int, end: int | None) -> None:
    store.put("data", "k", DATA)
    with pytest.raises(InvalidRange, match=f"data/k, which has {len(DATA)} bytes"):
        store.get("data", "k", start=start, end=end)


def test_getting_into_a_buffer_fills_what_there_is(store: ObjectStore) -> None:
    store.put("data", "k", DATA)
    buffer = bytearray(len(DATA) + 10)
    assert store.get_into("data", "k", buffer, start=5) == len(DATA) - 5
    assert buffer == DATA[5:] + bytes(15)
    assert store.get_into("data", "k", memoryview(buffer)[:7]) == 7
    assert buffer[:7] == DATA[:7]
    assert store.get_into("data", "k", buffer, start=len(DATA)) == 0
    with pytest.raises(InvalidRange):
        store.get_into("data", "k", buffer, start=len(DATA) + 1)


def test_an_open_object_is_a_file(store: ObjectStore) -> None:
    store.put("data", "k", DATA)
    with store.open("data", "k") as file:
        file.seek(CHUNK_BYTES - 5)
        assert file.read(10) == DATA[CHUNK_BYTES - 5 : CHUNK_BYTES + 5]
        assert file.read() == DATA[CHUNK_BYTES + 5 :]


def test_versions_can_be_read_while_they_are_kept(store: ObjectStore) -> None:
    store.buckets.set("data", versions=2)
    first = store.put("data", "k", b"one")
    store.put("data", "k", b"two")
    assert store.get("data", "k") == b"two"
    assert store.get("data", "k", version=first.version) == b"one"
    store.delete("data", "k")
    with pytest.raises(ObjectNotFound):
        store.get("data", "k")
    assert store.get("data", "k", version=first.version) == b"one"


# --- what a write says


def test_conditions(store: ObjectStore) -> None:
    info = store.put("data", "k", b"one", if_none_match="*")
    with pytest.raises(PreconditionFailed):
        store.put("data", "k", b"two", if_none_match="*")
    info = store.put("data", "k", b"two", if_match=info.etag)
    with pytest.raises(PreconditionFailed):
        store.put("data", "k", b"three", if_match="other")
    with pytest.raises(PreconditionFailed):
        store.delete("data", "k", if_match="other")
    store.delete("data", "k", if_match=info.etag)
    with pytest.raises(ObjectNotFound):
        store.delete("data", "k")


def test_the_bucket_says_how_many_replicas_and_acks_unless_the_caller_does(store: ObjectStore) -> None:
    store.buckets.set("data", replicas=2, ack="all")
    assert (store.put("data", "k", b"x").record.replicas, store.stat("data", "k").record.ack) == (2, "all")
    assert store.put("data", "k", b"x", ack="one").record.ack == "one"
    with pytest.raises(InvalidRequest, match="ack level"):
        store.put("data", "k", b"x", ack="most")  # type: ignore[arg-type]


def test_metadata_and_type_stay_with_the_object(store: ObjectStore) -> None:
    info = store.put("data", "k", b"x", metadata={"owner": "Zoë"}, content_type="text/plain")
    assert store.stat("data", "k").metadata == {"owner": "Zoë"}
    assert info.record.content_type == "text/plain"
    with pytest.raises(InvalidRequest, match="8192"):
        store.put("data", "k", b"x", metadata={"k": "v" * 9000})


def test_bad_names_and_buckets_are_refused_before_any_byte_is_sent(fake: FakeCluster, store: ObjectStore) -> None:
    for bucket, key, kind in (("data", "a/../b", InvalidName), ("NO", "k", InvalidName), ("none", "k", BucketNotFound)):
        with pytest.raises(kind):
            store.put(bucket, key, b"x")
        with pytest.raises(kind):
            store.get(bucket, key)
    assert all(not node.requests for node in fake.nodes.values())


# --- the rest


def test_a_copy_shares_its_chunks(fake: FakeCluster, store: ObjectStore) -> None:
    source = store.put("data", "k", DATA, metadata={"a": "b"}, content_type="text/plain")
    store.buckets.create("other", replicas=2)
    before = sum(len(node.chunks) for node in fake.nodes.values())
    copy = store.copy("data", "k", "other", "k2")
    assert store.get("other", "k2") == DATA
    assert (copy.digest, copy.metadata, copy.record.content_type) == (source.digest, {"a": "b"}, "text/plain")
    assert copy.record.replicas == 2
    assert copy.etag != source.etag
    assert sum(len(node.chunks) for node in fake.nodes.values()) == before
    with pytest.raises(PreconditionFailed):
        store.copy("data", "k", "other", "k2", if_none_match="*")


def test_a_copy_that_wants_more_replicas_stores_them_before_it_is_named(fake: FakeCluster, store: ObjectStore) -> None:
    store.buckets.create("thin", replicas=1)
    source = store.put("thin", "k", DATA)
    copy = store.copy("thin", "k", "data", "k")
    assert copy.digest == source.digest  # Cut as it was.
    assert all(len(fake.holders(ref)) == 3 for ref in copy.record.content.refs)


def test_the_number_of_replicas_can_be_changed_within_what_the_cluster_has(store: ObjectStore) -> None:
    info = store.put("data", "k", b"x")
    changed = store.set_replicas(info, 2)
    assert changed.record.replicas == 2
    assert (changed.digest, changed.record.created_s) == (info.digest, info.record.created_s)
    with pytest.raises(PreconditionFailed):
        store.set_replicas(info, 1)
    for replicas in (0, 4):
        with pytest.raises(InvalidRequest, match="1 to 3"):
            store.set_replicas(changed, replicas)


def test_listing_and_walking(fake: FakeCluster, store: ObjectStore) -> None:
    for key in ("a/1", "a/2", "b", "c/d/e"):
        store.put("data", key, b"")
    page = store.list("data", delimiter="/")
    assert ([info.key for info in page.objects], page.prefixes) == (["b"], ("a/", "c/"))
    fake.catalog.page_size = 1
    assert [info.key for info in store.walk("data")] == ["a/1", "a/2", "b", "c/d/e"]
    assert [info.key for info in store.walk("data", prefix="a/")] == ["a/1", "a/2"]
    for limit in (0, 1001):
        with pytest.raises(InvalidRequest, match="1 to 1000"):
            store.list("data", limit=limit)


def test_a_corrupt_copy_is_read_around(fake: FakeCluster, store: ObjectStore, hasty: ObjectStore) -> None:
    store.put("data", "k", DATA, ack="all")
    fake.fail("node-0", fault="corrupt")
    fake.fail("node-1", fault="down")
    assert store.get("data", "k", start=1000) == DATA[1000:]
    assert store.replica_reader.totals().failovers > 0
    fake.fail("node-2", fault="corrupt")
    with pytest.raises(AllReplicasFailed):
        hasty.get("data", "k")


def test_a_dead_node_does_not_have_the_view_fetched_for_each_chunk(fake: FakeCluster, store: ObjectStore) -> None:
    store.put("data", "k", DATA, ack="all")
    fake.fail("node-1", fault="down")
    before = fake.num_views
    for _ in range(20):
        assert store.get("data", "k") == DATA
    assert fake.num_views - before <= 1


def test_a_closed_store_says_so(fake: FakeCluster) -> None:
    store = fake.store(chunk_size_bytes=CHUNK_BYTES)
    store.put("data", "k", DATA)
    store.close()
    with pytest.raises((RuntimeError, StoreError), match="shutdown"):
        store.get("data", "k")


def test_watching_yields_changes_from_one_revision_to_the_next(fake: FakeCluster, store: ObjectStore) -> None:
    asked: list[int | None] = []
    info = store.put("data", "k", b"x")
    answers = [
        Watched(changes=(), revision=5),
        Watched(changes=(("k", info), ("gone", None)), revision=7),
        Watched(changes=(), revision=8),
        Watched(changes=(("k", None),), revision=9),
    ]

    def watch(bucket: str, *, prefix: str, after: int | None, timeout_s: float) -> Watched:
        asked.append(after)
        return answers.pop(0)

    fake.catalog.watch = watch  # type: ignore[method-assign]
    changes = store.watch("data")
    assert [next(changes) for _ in range(3)] == [("k", info), ("gone", None), ("k", None)]
    assert asked == [None, 5, 7, 8]


def test_bad_bytes_that_came_with_a_record_are_read_again_and_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    with closing(FakeStore()) as store:
        store.buckets.create("data")
        info = store.put("data", "k", b"some bytes")
        (ref,) = info.record.content.refs

        def begin_read(bucket: str, key: str, *, place: Any, **_: object) -> Opened:
            return Opened(info=info, buffer=place(info), corrupt=ref)

        monkeypatch.setattr(store.fake_catalog, "begin_read", begin_read)
        store.fake_chunks.verified.clear()
        assert store.get("data", "k") == b"some bytes"
        assert sorted(store.fake_chunks.verified) == [(node_id, 1) for node_id in store.node_ids]
