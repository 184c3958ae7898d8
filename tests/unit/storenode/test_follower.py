"""Repair by following: what the cursor promises holds on the disk, whatever fails on the way."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from client.errors import CursorExpired, DiskFailed, MetadataUnavailable
from client.manifest import Entry, Manifest, make_ref
from client.record import Content, ObjectRecord
from client.wire import encode_json
from storenode.cursor import Cursor
from storenode.filesystem import opened, write_new
from storenode.metastore import Delete, Put, Range
from storenode.trailer import Trailer
from tests.support.filesystem import VolatileFileSystem
from tests.support.node_bench import GRACE_S, NodeBench
from tests.support.peers import PARTITIONS, three_nodes


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[NodeBench]:
    bench = NodeBench(tmp_path)
    yield bench
    bench.close()


def test_a_node_without_a_cursor_goes_through_all_records_and_then_has_one(bench: NodeBench) -> None:
    refs = [bench.object(f"object {index}") for index in range(5)]
    bench.steps()
    assert all(bench.holds(ref) for ref in refs)
    assert bench.saved == Cursor(revision=bench.store.revision(), layout=1)


def test_what_changes_after_the_cursor_is_fetched_and_nothing_before_it_is_looked_at(bench: NodeBench) -> None:
    old = bench.object("old")
    bench.steps()
    bench.chunks.delete(old.partition, old.id)
    bench.start()
    new = bench.object("new")
    bench.steps()
    assert bench.holds(new) and not bench.holds(old)
    assert bench.saved == Cursor(revision=bench.store.revision(), layout=1)


def test_a_new_record_gets_a_grace_before_its_missing_chunks_are_fetched(bench: NodeBench) -> None:
    bench.steps()
    ref = bench.object("being teed to this node")
    began_s = bench.clock()
    bench.steps()
    assert bench.holds(ref)
    assert bench.peers.read_at_s == [began_s + GRACE_S]


def test_only_what_placement_gives_this_node_is_fetched(bench: NodeBench) -> None:
    refs = [bench.object(f"single {index}", replicas=1) for index in range(12)]
    bench.steps()
    layout = three_nodes(clock=bench.clock).layout
    ours = [layout.replicas(ref.partition, count=1) == ("a",) for ref in refs]
    # A node that is an object's only holder has no peer to fetch from; the others' copies do not concern it.
    assert not any(bench.holds(ref) for ref in refs)
    assert bench.follower.num_pending == sum(ours) > 0


def test_the_cursor_stays_before_a_record_that_cannot_be_completed_while_newer_ones_go_on(bench: NodeBench) -> None:
    bench.steps()
    lost = make_ref(b"nobody has this", partitions=PARTITIONS)
    revision = bench.commit("lost", Content(size=lost.size, digest="", refs=(lost,)))
    newer = bench.object("newer")
    bench.steps(12)
    assert bench.holds(newer) and not bench.holds(lost)
    assert bench.saved == Cursor(revision=revision - 1, layout=1)

    bench.peers.add(lost, b"nobody has this")
    bench.steps(12)
    assert bench.holds(lost)
    assert bench.saved == Cursor(revision=bench.store.revision(), layout=1)


def test_a_crash_while_a_record_waits_finds_it_again_from_the_cursor(bench: NodeBench) -> None:
    bench.steps()
    bench.peers.reachable = False
    ref = bench.object("written while this node could reach nobody")
    bench.steps(12)
    assert not bench.holds(ref)
    bench.peers.reachable = True
    bench.start()
    bench.steps()
    assert bench.holds(ref)


def test_a_sweep_with_a_record_that_waits_gives_no_cursor(bench: NodeBench) -> None:
    lost = make_ref(b"lost", partitions=PARTITIONS)
    bench.commit("lost", Content(size=lost.size, digest="", refs=(lost,)))
    bench.steps(12)
    assert bench.saved is None and bench.follower.complete_to is None
    bench.peers.add(lost, b"lost")
    bench.steps(12)
    assert bench.saved == Cursor(revision=bench.store.revision(), layout=1)


def test_a_sweep_of_several_steps_gives_no_cursor_before_the_last_one(bench: NodeBench) -> None:
    content = Content(size=0, digest="")
    value = encode_json(ObjectRecord(write_id="w", content=content).to_json())
    for first in range(0, 1100, 100):
        bench.store.txn([], [Put(key=f"obj/bucket/{number:04d}", value=value) for number in range(first, first + 100)])
    bench.follower.step()
    assert bench.saved is None and bench.follower.complete_to is None
    bench.steps(3)
    assert bench.saved == Cursor(revision=bench.store.revision(), layout=1)


def test_a_record_deleted_or_replaced_while_it_waits_holds_nothing_back(bench: NodeBench) -> None:
    bench.steps()
    lost = make_ref(b"lost", partitions=PARTITIONS)
    bench.commit("gone", Content(size=lost.size, digest="", refs=(lost,)))
    bench.commit("text", Content(size=lost.size, digest="", refs=(lost,)))
    bench.steps()
    bench.store.txn([], [Delete(key="obj/bucket/gone")])
    ref = bench.object("text")
    bench.steps(12)
    assert bench.holds(ref)
    assert bench.saved == Cursor(revision=bench.store.revision(), layout=1)


def test_manifests_are_walked_and_held_too(bench: NodeBench) -> None:
    payloads = [f"part {index}".encode() for index in range(9)]
    refs = [bench.peers.add(make_ref(part, partitions=PARTITIONS), part) for part in payloads]
    manifest = Manifest(level=0, entries=tuple(Entry(ref=ref, content_bytes=ref.size) for ref in refs)).encode()
    root = bench.peers.add(make_ref(manifest, partitions=PARTITIONS), manifest)
    bench.commit("large", Content(size=sum(map(len, payloads)), digest="", manifest=root))
    bench.steps()
    assert all(bench.holds(ref) for ref in [root, *refs])


def test_a_record_whose_manifest_cannot_be_read_is_never_passed_over(bench: NodeBench) -> None:
    missing = make_ref(b"a manifest that is nowhere", partitions=PARTITIONS)
    bench.commit("unreadable", Content(size=10, digest="", manifest=missing))
    other = bench.object("other")
    bench.steps(12)
    assert bench.holds(other)
    assert bench.saved is None and bench.follower.num_pending == 1


def test_a_record_that_does_not_decode_is_never_passed_over(bench: NodeBench) -> None:
    bench.store.txn([], [Put(key="obj/bucket/garbled", value=b"{}")])
    bench.steps(12)
    assert bench.saved is None and bench.follower.num_pending == 1


def test_history_compacted_beyond_the_cursor_leads_to_a_sweep(bench: NodeBench) -> None:
    bench.steps()
    refs = [bench.object(f"first {index}") for index in range(3)]
    for index in range(200):
        bench.store.txn([], [Put(key="other", value=str(index).encode())])
    with pytest.raises(CursorExpired):
        bench.store.watch("obj/", "ver0", after_revision=1, timeout_s=0.0)
    bench.start()
    bench.steps()
    assert all(bench.holds(ref) for ref in refs)
    assert bench.saved == Cursor(revision=bench.store.revision(), layout=1)


def test_another_layout_leads_to_a_sweep(bench: NodeBench) -> None:
    ref = bench.object("moved here by the new layout")
    bench.steps()
    bench.chunks.delete(ref.partition, ref.id)
    bench.start(cluster=three_nodes(version=2, clock=bench.clock))
    bench.steps()
    assert bench.holds(ref)
    assert bench.saved == Cursor(revision=bench.store.revision(), layout=2)


def test_a_cursor_ahead_of_the_metadata_is_not_believed(bench: NodeBench) -> None:
    ref = bench.object("restored from a backup")
    bench.cursor_file.save(Cursor(revision=10_000, layout=1))
    bench.start()
    bench.steps()
    assert bench.holds(ref)
    assert bench.saved == Cursor(revision=bench.store.revision(), layout=1)


def test_a_set_that_overflows_loses_nothing(bench: NodeBench) -> None:
    bench.steps()
    bench.start(max_pending=2)
    bench.peers.reachable = False
    refs = [bench.object(f"object {index}") for index in range(7)]
    bench.steps(20)
    assert not any(bench.holds(ref) for ref in refs)
    assert bench.follower.num_pending <= 2
    bench.peers.reachable = True
    bench.steps(60)
    assert all(bench.holds(ref) for ref in refs)
    assert bench.saved == Cursor(revision=bench.store.revision(), layout=1)


def test_peers_that_are_down_are_not_asked_for_every_chunk(bench: NodeBench) -> None:
    bench.start(cluster=three_nodes(down=("b", "c"), clock=bench.clock))
    for index in range(5):
        bench.object(f"object {index}")
    bench.steps()
    assert bench.peers.read_at_s == [] and bench.follower.num_pending == 5


@pytest.mark.parametrize("failed", [False, True], ids=["under way", "failed"])
def test_a_copy_whose_name_is_not_durable_yet_is_not_promised_by_the_cursor(tmp_path: Path, failed: bool) -> None:
    disk = VolatileFileSystem()
    bench = NodeBench(tmp_path, fs=disk)
    bench.steps()
    payload = b"linked, and its directory not synced"
    ref = bench.object(payload.decode())
    if failed:
        disk.fail(OSError(errno.EIO, "Input/output error"), method="sync")
        with pytest.raises(DiskFailed):
            bench.chunks.put(ref.partition, ref.id, payload)
    else:
        trailer = Trailer.of(payload, partition=ref.partition, chunk_id=ref.id).encode()
        with opened(disk.open_directory(tmp_path / "node" / "chunks" / ref.hex[:2])) as directory:
            write_new(disk, f"{ref.partition:08x}-{ref.hex}", directory=directory, parts=[payload, trailer])
    assert bench.holds(ref)
    for _ in range(6):
        with suppress(DiskFailed):
            bench.steps(1)
    promised = bench.saved is not None and bench.saved.revision == bench.store.revision()
    assert promised != failed
    disk.power_cut()
    assert bench.holds(ref) or not promised
    bench.close()


def test_a_postponed_record_pulls_the_cursor_back_until_it_is_complete(bench: NodeBench) -> None:
    ref = bench.object("found missing by the scrub")
    bench.steps()
    revision = bench.store.revision()
    bench.chunks.delete(ref.partition, ref.id)
    bench.peers.reachable = False
    bench.follower.postpone("obj/bucket/found missing by the scrub", revision=revision)
    bench.follower.step()
    assert bench.saved == Cursor(revision=revision - 1, layout=1)
    bench.peers.reachable = True
    bench.steps(12)
    assert bench.holds(ref) and bench.saved == Cursor(revision=revision, layout=1)


def test_another_incarnation_of_the_metadata_leads_to_a_sweep_and_the_highest_revision_seen_is_kept(bench: NodeBench) -> None:
    ref = bench.object("old")
    bench.steps()
    bench.cursor_file.save(Cursor(revision=1, layout=1, seen=1000))
    bench.start()
    bench.steps()
    saved = bench.saved
    assert saved is not None and (saved.revision, saved.seen) == (bench.store.revision(), 1000)
    bench.chunks.delete(ref.partition, ref.id)
    bench.incarnation = "another"
    bench.steps()
    saved = bench.saved
    assert bench.holds(ref), "revisions of another incarnation say nothing"
    assert saved == Cursor(revision=bench.store.revision(), layout=1, incarnation="another")
    assert saved.seen == bench.store.revision()


def test_metadata_that_fails_in_the_middle_of_a_sweep_ends_nothing(bench: NodeBench, monkeypatch: pytest.MonkeyPatch) -> None:
    content = Content(size=0, digest="")
    value = encode_json(ObjectRecord(write_id="w", content=content).to_json())
    for first in range(0, 600, 100):
        bench.store.txn([], [Put(key=f"obj/bucket/{number:03d}", value=value) for number in range(first, first + 100)])
    last = bench.object("zzz, behind two pages")
    answers, answer = 0, bench.store.range

    def fail_once(*args: Any, **options: Any) -> Range:
        nonlocal answers
        answers += 1
        if answers == 2:
            raise MetadataUnavailable("no answer")
        return answer(*args, **options)

    monkeypatch.setattr(bench.store, "range", fail_once)
    with pytest.raises(MetadataUnavailable):
        bench.steps(1)
    assert bench.saved is None
    bench.steps()
    assert bench.holds(last)
    assert bench.saved == Cursor(revision=bench.store.revision(), layout=1)


def test_small_chunks_of_many_records_become_durable_together(tmp_path: Path) -> None:
    disk = VolatileFileSystem()
    bench = NodeBench(tmp_path, fs=disk)
    refs = [bench.object(f"object {index}") for index in range(50)]
    lost = make_ref(b"lost", partitions=PARTITIONS)
    bench.commit("lost", Content(size=lost.size + refs[0].size, digest="", refs=(lost, refs[0])))
    disk.calls.clear()
    bench.steps(1)
    assert disk.methods.count("sync_everything") == 2 and disk.methods.count("sync_data") == 0
    disk.power_cut()
    assert all(bench.holds(ref) for ref in refs) and not bench.holds(lost)
    assert bench.saved is None and bench.follower.num_pending == 1
    # The one that two records name was fetched once.
    assert bench.follower.progress.fetched_chunks == 50
    bench.close()
