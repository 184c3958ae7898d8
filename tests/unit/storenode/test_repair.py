"""Mending single copies: whatever is wrong with a copy and whatever a peer sends, only the right bytes get the name."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from client.cluster import Cluster
from client.errors import AllReplicasFailed, DiskFull
from client.manifest import Ref, make_ref
from client.record import Content, ObjectRecord
from storenode.chunkstore import ChunkStore
from storenode.desired import DesiredSet
from storenode.pace import Pace
from storenode.quarantine import Quarantine
from storenode.repair import Copies, Repair
from tests.support.peers import PARTITIONS, Clock, FakeReader, FakeTransport, Peers, UnsyncedFileSystem, three_nodes

PAYLOAD = b"the right bytes" * 1000


class Bench:
    def __init__(self, root: Path) -> None:
        self.root = root
        self.clock = Clock()
        self.peers = Peers(clock=self.clock)
        self.chunks = ChunkStore(root, reserve_bytes=0, max_chunk_bytes=1 << 20, fs=UnsyncedFileSystem())
        self.quarantine = Quarantine(root)
        self.copies = Copies(
            node_id="a",
            chunks=self.chunks,
            cluster=three_nodes(clock=self.clock),
            reader=FakeReader(self.peers),  # type: ignore[arg-type]
            transport=FakeTransport(self.peers),  # type: ignore[arg-type]
        )
        self.ref = make_ref(PAYLOAD, partitions=PARTITIONS)

    def repair(self, *, limit: int = 10) -> Repair:
        return Repair(
            self.copies,
            self.quarantine,
            limit=limit,
            base_s=1.0,
            max_s=8.0,
            clock=self.clock,
            uniform=lambda low, high: high,
        )

    def file(self, ref: Ref | None = None) -> Path:
        ref = ref or self.ref
        (path,) = self.root.glob(f"chunks/*/*-{ref.hex}")
        return path

    def flip_bit(self, ref: Ref | None = None) -> None:
        path = self.file(ref)
        data = bytearray(path.read_bytes())
        data[7] ^= 1
        path.write_bytes(data)

    @property
    def num_quarantined(self) -> int:
        return len(list((self.root / "quarantine").iterdir()))


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def test_a_sound_copy_is_left_alone(bench: Bench) -> None:
    bench.chunks.put(bench.ref.partition, bench.ref.id, PAYLOAD)
    assert not bench.copies.mend(bench.ref.partition, bench.ref.id)
    assert bench.peers.read_at_s == []


@pytest.mark.parametrize("damage", ["flipped", "cut short", "emptied", "missing"])
def test_a_bad_copy_is_replaced_by_the_right_bytes(bench: Bench, damage: str) -> None:
    bench.peers.add(bench.ref, PAYLOAD)
    bench.chunks.put(bench.ref.partition, bench.ref.id, PAYLOAD)
    if damage == "flipped":
        bench.flip_bit()
    elif damage == "cut short":
        bench.file().write_bytes(bench.file().read_bytes()[:-100])
    elif damage == "emptied":
        bench.file().write_bytes(b"")
    else:
        bench.file().unlink()
    repair = bench.repair()
    repair.enqueue(bench.ref.partition, bench.ref.id)
    repair.step()
    assert bench.chunks.verify(bench.ref.partition, bench.ref.id) == len(PAYLOAD)
    assert bench.file().read_bytes()[: len(PAYLOAD)] == PAYLOAD
    assert repair.num_pending == 0 and bench.num_quarantined == 0


def test_wrong_bytes_from_a_peer_are_not_stored_and_the_bad_copy_is_kept_aside(bench: Bench) -> None:
    bench.peers.payloads[bench.ref.partition, bench.ref.id] = b"something else"
    bench.chunks.put(bench.ref.partition, bench.ref.id, PAYLOAD)
    bench.flip_bit()
    with pytest.raises(AllReplicasFailed, match="hash to"):
        bench.copies.mend(bench.ref.partition, bench.ref.id)
    assert not bench.chunks.contains(bench.ref.partition, bench.ref.id)
    assert bench.num_quarantined == 1


def test_a_full_disk_is_named_as_such_and_not_blamed_on_a_peer(bench: Bench, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    full = ChunkStore(tmp_path / "full", reserve_bytes=1 << 60, max_chunk_bytes=1 << 20, fs=UnsyncedFileSystem())
    bench.peers.add(bench.ref, PAYLOAD)
    copies = Copies(
        node_id="a",
        chunks=full,
        cluster=bench.copies.cluster,
        reader=bench.copies.reader,
        transport=bench.copies.transport,
    )
    with pytest.raises(DiskFull):
        copies.mend(bench.ref.partition, bench.ref.id)


def test_a_chunk_that_nobody_can_give_is_tried_again_later(bench: Bench) -> None:
    repair = bench.repair()
    assert repair.step() is None
    bench.peers.reachable = False
    repair.enqueue(bench.ref.partition, bench.ref.id)
    assert repair.step() == 1.0
    bench.peers.reachable = True
    bench.peers.add(bench.ref, PAYLOAD)
    assert repair.step() == 1.0 and repair.num_pending == 1
    bench.clock.wait(1.0)
    assert repair.step() is None
    assert bench.chunks.contains(bench.ref.partition, bench.ref.id)


def test_a_start_finds_what_an_earlier_life_had_set_aside(bench: Bench) -> None:
    bench.peers.add(bench.ref, PAYLOAD)
    bench.chunks.put(bench.ref.partition, bench.ref.id, PAYLOAD)
    bench.flip_bit()
    assert bench.chunks.quarantine(bench.ref.partition, bench.ref.id)
    repair = bench.repair()
    repair.step()
    assert bench.chunks.verify(bench.ref.partition, bench.ref.id) == len(PAYLOAD)
    assert bench.num_quarantined == 0


def test_a_full_queue_loses_nothing_that_lies_in_quarantine(bench: Bench) -> None:
    refs = []
    for index in range(5):
        payload = PAYLOAD + bytes([index])
        ref = bench.peers.add(make_ref(payload, partitions=PARTITIONS), payload)
        bench.chunks.put(ref.partition, ref.id, payload)
        bench.flip_bit(ref)
        assert bench.chunks.quarantine(ref.partition, ref.id)
        refs.append(ref)
    repair = bench.repair(limit=2)
    for ref in refs:
        repair.enqueue(ref.partition, ref.id)
    assert repair.num_pending == 2
    for _ in range(5):
        repair.step()
    assert all(bench.chunks.contains(ref.partition, ref.id) for ref in refs)
    assert repair.num_pending == 0 and bench.num_quarantined == 0


def test_other_files_in_quarantine_are_no_chunks(bench: Bench) -> None:
    (bench.root / "quarantine" / "notes.txt").write_text("kept by an operator")
    assert bench.quarantine.chunks() == set()


def test_what_is_found_or_fetched_for_a_record_is_tagged_with_the_epoch_of_this_node(bench: Bench) -> None:
    view = replace(bench.copies.cluster.view(), epoch=7)
    copies = replace(bench.copies, cluster=Cluster(lambda: view, ttl_s=3600.0, suspect_s=5.0, clock=bench.clock))
    bench.peers.add(bench.ref, PAYLOAD)
    copies.restore(bench.ref, replicas=3)
    assert bench.file().stat().st_mtime == 7
    bench.file().unlink()
    assert copies.mend(bench.ref.partition, bench.ref.id)
    assert bench.file().stat().st_mtime == 7
    os.utime(bench.file(), (3, 3))
    desired = DesiredSet(copies, num_threads=1, pace=Pace(1e9))
    content = Content(size=len(PAYLOAD), digest="d" * 64, refs=(bench.ref,))
    (shortfall,) = desired.ensure([ObjectRecord(write_id="w", content=content)])
    assert not shortfall.num_missing
    desired.close()
    assert bench.file().stat().st_mtime == 7
