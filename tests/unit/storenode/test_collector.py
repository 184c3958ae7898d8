"""A sweep of one node's disk: what no record refers to goes, whatever changes meanwhile, and in doubt nothing goes."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from client.catalog import Commit
from client.errors import AllReplicasFailed, CursorExpired, MetadataCorrupt, MetadataUnavailable, StoreError
from client.manifest import Ref, make_ref
from client.record import BucketPolicy, Condition, Content, ObjectInfo, ObjectRecord
from client.write_id import new_write_id
from storenode.catalog import MetaCatalog
from storenode.chunkstore import ChunkStore
from storenode.collector import Collector, Swept
from storenode.metastore import Put
from tests.support.catalogs import make_catalog, open_meta
from tests.support.hooked_meta import HookedMeta
from tests.support.peers import UnsyncedFileSystem
from tests.support.surplus import NothingElsewhere

EPOCH = 5
OLD, YOUNG = EPOCH - 2, EPOCH - 1
PARTITIONS = 64


class Bench:
    def __init__(self, root: Path, meta: HookedMeta) -> None:
        self.root = root
        self.meta = meta
        self.catalog: MetaCatalog = make_catalog(meta)
        self.chunks = ChunkStore(root, reserve_bytes=0, max_chunk_bytes=1 << 20, fs=UnsyncedFileSystem())
        self.before_refs: Callable[[ObjectRecord], object] = lambda record: None
        self.may_remove: Callable[[], object] = lambda: None
        self.reached: list[int] = []
        self.forgotten: list[tuple[int, bytes]] = []
        self.surplus = NothingElsewhere()

    def put(self, number: int, *, tag: int = OLD, partition: int | None = None) -> Ref:
        """Store a chunk that no record refers to."""
        payload = b"chunk %d" % number
        ref = make_ref(payload, partitions=PARTITIONS)
        if partition is not None:
            ref = Ref(partition=partition, id=ref.id, size=ref.size, check=ref.check)
        self.chunks.put(ref.partition, ref.id, payload, epoch=tag)
        return ref

    def commit(self, key: str, *refs: Ref) -> ObjectInfo:
        content = Content(size=sum(ref.size for ref in refs), digest="d" * 64, refs=refs)
        return self.catalog.commit(
            Commit(bucket="data", key=key, record=ObjectRecord(write_id=new_write_id(), content=content))
        )

    def delete(self, key: str) -> None:
        self.catalog.delete("data", key, write_id=new_write_id(), condition=Condition())

    def sweep(self, *, epoch: int = EPOCH, max_chunks: int = 1000) -> Iterator[Swept]:
        def refs(record: ObjectRecord) -> tuple[Ref, ...]:
            self.before_refs(record)
            return record.content.refs

        collector = Collector(
            self.meta,
            garbage=self.chunks.garbage,
            refs=refs,
            reach=self.reached.append,
            require_may_remove=lambda: self.may_remove(),
            surplus=self.surplus,
            forget=lambda *chunk: self.forgotten.append(chunk),
            max_chunks=max_chunks,
        )
        return collector.sweep(epoch)

    def swept(self, **options: int) -> Swept:
        *_, last = self.sweep(**options)
        return last

    def has(self, *refs: Ref) -> list[bool]:
        return [self.chunks.contains(ref.partition, ref.id) for ref in refs]


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    with open_meta() as meta:
        yield Bench(tmp_path, meta)


@contextmanager
def meanwhile(bench: Bench, key: str) -> Iterator[list[Callable[[], object]]]:
    """Let things happen right before the records' range from `key` on is read."""
    actions: list[Callable[[], object]] = []
    ranged = bench.meta.meta.range

    def hooked(start: str, *args, **options):  # type: ignore[no-untyped-def]
        if start.startswith(key) and actions:
            actions.pop(0)()
        return ranged(start, *args, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bench.meta.meta, "range", hooked)
        yield actions


def test_what_no_record_refers_to_goes_and_all_else_stays(bench: Bench) -> None:
    live, garbage, young = bench.put(1), bench.put(2), bench.put(3, tag=YOUNG)
    bench.commit("k", live)
    swept = bench.swept()
    assert bench.has(live, garbage, young) == [True, False, True]
    assert (swept.epoch, swept.removed.num_chunks, swept.num_kept) == (EPOCH, 1, 1)
    assert swept.removed.size_bytes > garbage.size
    assert bench.reached == [EPOCH]


def test_older_versions_and_both_partitions_of_a_chunk_count_by_themselves(bench: Bench) -> None:
    bench.catalog.set_bucket("data", BucketPolicy(versions=1))
    first, second = bench.put(1), bench.put(2)
    elsewhere = bench.put(1, partition=(first.partition + 1) % PARTITIONS)
    bench.commit("k", first)
    bench.commit("k", second)
    bench.swept()
    assert bench.has(first, second, elsewhere) == [True, True, False]
    bench.commit("k", second)
    bench.swept()
    assert bench.has(first, second) == [False, True]


def test_a_disk_with_more_chunks_than_fit_is_swept_in_parts(bench: Bench) -> None:
    live = [bench.put(number) for number in range(20)]
    garbage = [bench.put(number) for number in range(100, 120)]
    bench.commit("k", *live)
    swept = bench.swept(max_chunks=3)
    assert (swept.removed.num_chunks, swept.num_kept) == (20, 20)
    assert bench.has(*live) == [True] * 20 and not any(bench.has(*garbage))
    assert len(bench.reached) > 5


def test_a_disk_without_old_copies_costs_no_look_at_the_records(bench: Bench) -> None:
    bench.put(1, tag=YOUNG)
    bench.meta.calls.clear()
    assert bench.swept().removed.num_chunks == 0
    assert not bench.meta.calls


def test_a_copy_under_another_name_that_was_passed_already_is_seen(bench: Bench) -> None:
    ref = bench.put(1)
    bench.commit("z", ref)
    with meanwhile(bench, "obj/") as actions:

        def move() -> None:
            bench.commit("a", ref)
            bench.delete("z")
            bench.commit("b", ref)
            bench.delete("a")

        actions.append(move)
        bench.swept()
    assert bench.has(ref) == [True]


def test_a_record_that_is_committed_during_the_sweep_is_seen(bench: Bench) -> None:
    refs = [bench.put(number) for number in range(3)]
    bench.commit("k", bench.put(100))
    steps = bench.sweep()
    for number, _ in enumerate(steps):
        if number == 255:  # All directories were listed.
            bench.commit("early", refs[0])
        if number == 256:  # All pages were read; the changes were not.
            break
    bench.commit("a", refs[1])
    for _ in steps:
        pass
    assert bench.has(*refs) == [True, True, False]


def test_a_copy_that_is_touched_during_the_sweep_stays(bench: Bench) -> None:
    ref, other = bench.put(1), bench.put(2)
    bench.may_remove = lambda: bench.chunks.touch(ref.partition, ref.id, epoch=YOUNG)
    bench.swept()
    assert bench.has(ref, other) == [True, False]


def test_an_unreadable_manifest_stops_the_sweep_of_everything(bench: Bench) -> None:
    live, garbage = bench.put(1), bench.put(2)
    bench.commit("k", live)

    def fail(record: ObjectRecord) -> None:
        raise AllReplicasFailed("no replica of the manifest")

    bench.before_refs = fail
    with pytest.raises(AllReplicasFailed):
        bench.swept()
    assert bench.has(live, garbage) == [True, True]


def test_an_unreadable_record_stops_the_sweep_of_everything(bench: Bench) -> None:
    garbage = bench.put(2)
    bench.meta.txn([], [Put(key="obj/data/broken", value=b"{}")])
    with pytest.raises(MetadataCorrupt, match="obj/data/broken"):
        bench.swept()
    assert bench.has(garbage) == [True]


@pytest.mark.parametrize("versions", [0, 1])
def test_a_record_that_changed_before_its_manifest_could_be_read_stops_nothing(bench: Bench, versions: int) -> None:
    bench.catalog.set_bucket("data", BucketPolicy(versions=versions))
    old, new, garbage = bench.put(1), bench.put(2), bench.put(3)
    bench.commit("k", old)

    def replace(record: ObjectRecord) -> None:
        bench.before_refs = lambda record: None
        bench.commit("k", new)
        raise AllReplicasFailed("its manifest is garbage by now, and gone")

    bench.before_refs = replace
    bench.swept()
    assert bench.has(old, new, garbage) == [versions == 1, True, False]


def test_what_became_of_a_record_is_followed_even_after_all_changes_seemed_to_be(bench: Bench) -> None:
    bench.catalog.set_bucket("data", BucketPolicy(versions=1))
    old, garbage = bench.put(1), bench.put(3)
    steps = bench.sweep()
    for number, _ in enumerate(steps):
        if number == 256:  # All pages were read; the changes were not.
            break
    bench.commit("k", old)

    def replace(record: ObjectRecord) -> None:
        bench.before_refs = lambda record: None
        bench.commit("k", bench.put(2, tag=YOUNG))
        raise AllReplicasFailed("not now")

    bench.before_refs = replace
    for _ in steps:
        pass
    assert bench.has(old, garbage) == [True, False]


@pytest.mark.parametrize("error", [MetadataUnavailable("no lease"), MetadataUnavailable("it went back")])
def test_nothing_is_removed_while_it_is_not_allowed(bench: Bench, error: StoreError) -> None:
    garbage = bench.put(1)

    def refuse() -> None:
        raise error

    bench.may_remove = refuse
    with pytest.raises(MetadataUnavailable):
        bench.swept()
    assert bench.has(garbage) == [True]


def test_changes_that_can_not_be_followed_end_the_sweep(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    garbage = bench.put(1)
    bench.commit("k", bench.put(2))

    def watch(*args: object, **options: object) -> None:
        raise CursorExpired("compacted")

    monkeypatch.setattr(bench.meta.meta, "watch", watch)
    steps = bench.sweep()
    with pytest.raises(CursorExpired):
        for number, _ in enumerate(steps):
            if number == 256:
                bench.commit("other", bench.put(3))
    assert bench.has(garbage) == [True]


def test_bad_copies_that_were_set_aside_go_with_what_they_were_copies_of(bench: Bench) -> None:
    live, garbage, young = bench.put(1), bench.put(2), bench.put(3, tag=YOUNG)
    for ref in (live, garbage, young):
        (path,) = bench.root.glob(f"chunks/*/*-{ref.hex}")
        times = path.stat()
        path.write_bytes(b"rotten")
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
        assert bench.chunks.quarantine(ref.partition, ref.id)
    bench.commit("k", live)
    bench.swept()
    left = {path.name.partition(".")[0].partition("-")[2] for path in (bench.root / "quarantine").iterdir()}
    assert left == {live.hex, young.hex}
    assert bench.forgotten == [(garbage.partition, garbage.id)]
