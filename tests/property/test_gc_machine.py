"""Garbage collection against everything that may happen meanwhile: real disks, commits and sweeps, in steps, on two nodes.

What a node has acknowledged, to an upload or by following the records, is on its disk for as long as a committed record refers
to it. A sweep that comes to its end leaves nothing that was old garbage when it began, and after two epochs without
uploads the disks hold what records refer to and nothing else.

A model keeps the tags: the epoch in which each copy was last stored or touched, and for each node the epoch at its start.
"""

from __future__ import annotations

import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from itertools import islice, product
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, multiple, precondition, rule

from client.catalog import Commit, Source
from client.checksum import blake3_id
from client.cluster import Anchor, Cluster, ClusterView
from client.errors import AllReplicasFailed, ChunkNotFound, ObjectNotFound, StaleAnchor
from client.manifest import Entry, Manifest, Ref, make_ref
from client.placement import Layout, Node
from client.record import BucketPolicy, Condition, Content, ObjectInfo, ObjectRecord
from client.write_id import new_write_id
from storenode import collector as collector_module
from storenode import desired as desired_module
from storenode.chunkstore import ChunkStore
from storenode.collector import Collector, Swept
from storenode.desired import RECORDS_END, RECORDS_START, DesiredSet, is_record_key
from storenode.history import decode_record
from storenode.layouts import change_epoch, create_layout, read_anchor, read_layouts
from storenode.pace import Pace
from storenode.repair import Copies
from tests.support.catalogs import make_catalog, open_meta
from tests.support.filesystem import FAST_DISK, VolatileFileSystem
from tests.support.peers import read_each
from tests.support.surplus import NothingElsewhere

PARTITIONS = 16
REPLICAS = 2
NODES = ("n1", "n2")
KEYS = ("a", "m", "z")
# Sweeps look at so many of the 256 directories, and all chunks lie in them.
NUM_DIRECTORIES = 8


def _payloads(kind: str, count: int) -> Iterator[bytes]:
    numbered = (f"{kind} {number}".encode() for number in range(10_000))
    return islice((payload for payload in numbered if blake3_id(payload)[0] < NUM_DIRECTORIES), count)


def _manifests(refs: Sequence[Ref], count: int) -> Iterator[Manifest]:
    listed = (tuple(Entry(ref=ref, content_bytes=ref.size) for ref in picked) for picked in product(refs, repeat=4))
    manifests = (Manifest(level=0, entries=entries) for entries in listed)
    return islice((manifest for manifest in manifests if blake3_id(manifest.encode())[0] < NUM_DIRECTORIES), count)


# One of the ids in two partitions, as two placement groups put it.
PAYLOADS = list(_payloads("chunk", 3))
DATA = [make_ref(payload, partitions=PARTITIONS, group="first") for payload in PAYLOADS]
DATA.append(make_ref(PAYLOADS[0], partitions=PARTITIONS, group="other"))
assert DATA[0].partition != DATA[-1].partition
MANIFEST_REFS = {make_ref(manifest.encode(), partitions=PARTITIONS): manifest for manifest in _manifests(DATA, 2)}
BYTES = {blake3_id(payload): payload for payload in (*PAYLOADS, *(manifest.encode() for manifest in MANIFEST_REFS.values()))}
Held = set[tuple[str, Ref]]


chunks = st.sampled_from([*DATA, *MANIFEST_REFS])
places = st.sets(st.sampled_from(NODES), min_size=1)
ways = st.sampled_from(["put", "touched", "grouped"])
# Of a sweep: one after another, all directories, or to the end.
steps = st.sampled_from([1, 2, 3, 5, NUM_DIRECTORIES + 1, 10_000, 10_000, 10_000])


class RacingFileSystem(VolatileFileSystem):
    """Somebody touches a chunk at the very moment in which it is about to be removed, from another thread."""

    def __init__(self) -> None:
        super().__init__()
        self.touch: Callable[[Ref], object] | None = None
        self.racers: list[threading.Thread] = []

    def unlink(self, name: str, *, directory: int) -> None:
        (ref,) = (ref for ref in (*DATA, *MANIFEST_REFS) if name.endswith(f"{ref.partition:08x}-{ref.hex}"))
        if self.touch is not None:
            racer = threading.Thread(target=self.touch, args=(ref,))
            racer.start()
            racer.join(0.02)  # Where the lock is held it can't come to its end.
            self.racers.append(racer)
        super().unlink(name, directory=directory)


@dataclass(eq=False)
class Upload:
    """Chunks that are acknowledged and have no name yet."""

    anchor: Anchor
    refs: list[Ref] = field(default_factory=list)
    held: Held = field(default_factory=set)
    write_id: str = field(default_factory=new_write_id)


@dataclass(eq=False)
class Sweep:
    """A sweep under way, and what it has to remove: what was old garbage at its beginning, and still is."""

    steps: Iterator[Swept]
    doomed: set[Ref]


class NodeUnderTest:
    """One node's disk, and what follows the records on it."""

    def __init__(self, root: Path, node_id: str, machine: GcMachine) -> None:
        root.mkdir()
        self.id = node_id
        self.root = root
        self.machine = machine
        self.fs = RacingFileSystem()
        self.cluster = Cluster(machine.view, ttl_s=1e9, suspect_s=0.0)
        self.tags: dict[Ref, int] = {}
        self.sweep: Sweep | None = None
        self.desired: DesiredSet | None = None
        self.open()

    def open(self) -> None:
        self.close()
        self.sweep = None
        self.floor = read_anchor(self.machine.meta).anchor.epoch
        self.store = ChunkStore(self.root, reserve_bytes=0, max_chunk_bytes=1 << 20, floor=self.floor, fs=self.fs)
        copies = Copies(
            node_id=self.id,
            chunks=self.store,
            cluster=self.cluster,
            reader=self.machine,  # type: ignore[arg-type]
            transport=None,  # type: ignore[arg-type]
        )
        self.desired = DesiredSet(copies, num_threads=1, pace=Pace(1e9))
        self.collector = Collector(
            self.machine.meta,
            garbage=self.store.garbage,
            refs=self.desired.refs,
            reach=lambda epoch: self.cluster.refresh(),
            require_may_remove=lambda: None,
            surplus=NothingElsewhere(),
            forget=lambda partition, chunk_id: None,
            max_chunks=2,
        )

    def close(self) -> None:
        if self.desired is not None:
            self.desired.close()

    def has(self, ref: Ref) -> bool:
        return self.store.contains(ref.partition, ref.id)

    def tagged(self, ref: Ref, epoch: int) -> None:
        self.tags[ref] = max(epoch, self.tags.get(ref, 0))
        if self.sweep is not None:
            self.sweep.doomed.discard(ref)

    def put(self, ref: Ref, epoch: int, how: str) -> None:
        payload = BYTES[ref.id]
        if how == "touched" and self.store.touch(ref.partition, ref.id, epoch=epoch):
            pass
        elif how == "grouped":
            assert self.store.put_group([(ref.partition, ref.id, payload)], epoch=epoch) == [None]
        else:
            self.store.put(ref.partition, ref.id, payload, epoch=epoch)
        self.tagged(ref, epoch)

    def begin_sweep(self) -> None:
        epoch = read_anchor(self.machine.meta).anchor.epoch
        here = {ref for ref in (*DATA, *MANIFEST_REFS) if self.has(ref)}
        old = {ref for ref in here if max(self.floor, self.tags.get(ref, 0)) <= epoch - 2}
        self.sweep = Sweep(self.collector.sweep(epoch), old - self.machine.referred())

    def go_on(self, num_steps: int) -> None:
        """Do some steps of the sweep; at its end nothing that it had to remove is left."""
        if self.sweep is None:
            self.begin_sweep()
        assert self.sweep is not None
        for _ in range(num_steps):
            if next(self.sweep.steps, None) is None:
                assert not [ref for ref in self.sweep.doomed if self.has(ref)], "garbage was left"
                self.sweep = None
                return


class GcMachine(RuleBasedStateMachine):
    uploads = Bundle("uploads")
    copies = Bundle("copies")
    noticed = Bundle("noticed")

    def __init__(self) -> None:
        super().__init__()
        self.stack = ExitStack()
        patch = self.stack.enter_context(pytest.MonkeyPatch.context())
        # So that few records are many pages, and other things happen between any two of the sweep's steps.
        patch.setattr(desired_module, "_MAX_PAGE", 1)
        patch.setattr(collector_module, "_PAGES_PER_LOOK", 2)
        patch.setattr(collector_module, "_BATCH_CHUNKS", 1)
        patch.setattr(collector_module, "_NUM_DIRECTORIES", NUM_DIRECTORIES)
        self.meta = self.stack.enter_context(open_meta())
        create_layout(self.meta, Layout(version=1, partitions=PARTITIONS, nodes=tuple(Node(id=name) for name in NODES)))
        self.catalog = make_catalog(self.meta)
        # Late enough for a tag that was lost to count as old at the next epoch.
        self.advance()
        self.advance()
        self.root = Path(tempfile.mkdtemp(dir=FAST_DISK))
        self.nodes = {node_id: NodeUnderTest(self.root / node_id, node_id, self) for node_id in NODES}
        self.stack.callback(self.close)
        self.num_power_cuts = 0
        self.held: dict[str, Held] = {}  # By write id: what nodes have acknowledged for it.

    def teardown(self) -> None:
        with self.stack:
            self.settle()

    def close(self) -> None:
        for node in self.nodes.values():
            node.close()
        shutil.rmtree(self.root)

    # What the nodes see of each other

    def view(self) -> ClusterView:
        known = read_layouts(self.meta)
        assert known is not None
        epoch = read_anchor(self.meta).anchor.epoch
        return ClusterView(cluster_id="c", layouts=known.layouts, endpoints=dict.fromkeys(NODES, ("http://h:1",)), epoch=epoch)

    def read(self, ref: Ref, **_: Any) -> bytes:
        """A chunk, from any node that has it; stands for `client.replica.ReplicaReader`."""
        for node in self.nodes.values():
            with suppress(ChunkNotFound):
                node.store.verify(ref.partition, ref.id)
                return BYTES[ref.id]
        raise AllReplicasFailed(f"no node has {ref}", key=str(ref))

    def read_into(self, ref: Ref, buffer: memoryview, **_: Any) -> None:
        buffer[:] = self.read(ref)

    def read_small(self, wanted: Sequence[tuple[Ref, int]], **_: Any) -> list[memoryview | AllReplicasFailed]:
        return read_each(self.read, wanted)

    # What the records say

    def records(self) -> list[ObjectRecord]:
        found = self.meta.range(RECORDS_START, RECORDS_END, limit=1000)
        return [decode_record(item) for item in found.items if is_record_key(item.key)]

    def referred(self) -> set[Ref]:
        return {ref for record in self.records() for ref in refs_of(record.content)}

    # Writers

    @rule(target=uploads, ref=chunks, where=places, how=ways)
    def begin_upload(self, ref: Ref, where: set[str], how: str) -> Upload:
        upload = Upload(anchor=read_anchor(self.meta).anchor)
        self.store(upload, ref, where, how)
        return upload

    @rule(upload=uploads, ref=chunks, where=places, how=ways)
    def store_chunk(self, upload: Upload, ref: Ref, where: set[str], how: str) -> None:
        self.store(upload, ref, where, how)

    def store(self, upload: Upload, ref: Ref, where: set[str], how: str) -> None:
        below = (entry.ref for entry in MANIFEST_REFS[ref].entries) if ref in MANIFEST_REFS else ()
        for stored in (*below, ref):
            for node_id in sorted(where):
                self.nodes[node_id].put(stored, upload.anchor.epoch, how)
                upload.held.add((node_id, stored))
        upload.refs.append(ref)

    @rule(upload=uploads, node_id=st.sampled_from(NODES), num_steps=steps)
    def touch_what_is_being_removed(self, upload: Upload, node_id: str, num_steps: int) -> None:
        """Dedup hits for an upload fall on the very moments in which the node removes these chunks."""
        node, found = self.nodes[node_id], list[Ref]()

        def touch(ref: Ref) -> None:
            if node.store.touch(ref.partition, ref.id, epoch=upload.anchor.epoch, rehash=False):
                found.append(ref)

        node.fs.touch = touch
        node.go_on(num_steps)
        node.fs.touch = None
        while node.fs.racers:
            node.fs.racers.pop().join()
        assert all(node.has(ref) for ref in found), "acknowledged and removed"

    @rule(target=uploads, upload=consumes(uploads), key=st.sampled_from(KEYS))
    def commit(self, upload: Upload, key: str) -> Any:
        record = ObjectRecord(write_id=upload.write_id, content=content_of(upload.refs), replicas=REPLICAS)
        try:
            self.catalog.commit(Commit(bucket="data", key=key, record=record, proof=upload.anchor))
        except StaleAnchor:
            return self.anchored_again(upload)
        self.held[upload.write_id] = upload.held
        self.records_changed()
        return multiple()

    def anchored_again(self, upload: Upload) -> Any:
        """As `client.upload.ChunkUploader.anchor_again` does: what is gone makes it fail."""
        upload.anchor = read_anchor(self.meta).anchor
        for node_id, ref in sorted(upload.held, key=str):
            if self.nodes[node_id].store.touch(ref.partition, ref.id, epoch=upload.anchor.epoch, rehash=False):
                self.nodes[node_id].tagged(ref, upload.anchor.epoch)
            else:
                upload.held.discard((node_id, ref))
        whole = {ref for _, ref in upload.held} >= set(refs_of(content_of(upload.refs)))
        return upload if whole else multiple()

    @rule(upload=consumes(uploads))
    def abort(self, upload: Upload) -> None:
        pass

    @rule(target=copies, key=st.sampled_from(KEYS))
    def begin_copy(self, key: str) -> Any:
        try:
            return self.catalog.lookup("data", key)
        except ObjectNotFound:
            return multiple()

    @rule(info=consumes(copies), key=st.sampled_from(KEYS))
    def finish_copy(self, info: ObjectInfo, key: str) -> None:
        self.finish_copy_of(info, key)

    def finish_copy_of(self, info: ObjectInfo, key: str) -> None:
        source = Source(bucket="data", key=info.key, version=info.version)
        record = ObjectRecord(write_id=new_write_id(), content=info.record.content, replicas=REPLICAS)
        with suppress(ObjectNotFound):
            self.catalog.commit(Commit(bucket="data", key=key, record=record, proof=source))
            self.held[record.write_id] = set(self.held[info.record.write_id])
            self.records_changed()

    @rule(key=st.sampled_from(KEYS))
    def delete(self, key: str) -> None:
        self.delete_now(key)

    def delete_now(self, key: str) -> None:
        with suppress(ObjectNotFound):
            self.catalog.delete("data", key, write_id=new_write_id(), condition=Condition())

    @rule(key=st.sampled_from(KEYS), to_key=st.sampled_from(KEYS))
    def rename(self, key: str, to_key: str) -> None:
        with suppress(ObjectNotFound):
            self.finish_copy_of(self.catalog.lookup("data", key), to_key)
            if key != to_key:
                self.delete_now(key)

    @rule(versions=st.integers(0, 2))
    def keep_versions(self, versions: int) -> None:
        self.catalog.set_bucket("data", BucketPolicy(versions=versions))

    # Nodes

    @rule(target=noticed, node_id=st.sampled_from(NODES), place=st.integers(0, 5))
    def notice(self, node_id: str, place: int) -> Any:
        """A node reads a record, and looks for its chunks some time later."""
        found = self.records()
        return (node_id, found[place % len(found)]) if found else multiple()

    @rule(noticed=consumes(noticed))
    def complete(self, noticed: tuple[str, ObjectRecord]) -> None:
        node_id, record = noticed
        node = self.nodes[node_id]
        assert node.desired is not None
        try:
            (shortfall,) = node.desired.ensure([record])
        except AllReplicasFailed:
            return  # Of a record that is gone, with its manifest.
        node.desired.make_durable()
        epoch = node.cluster.anchor.epoch
        for ref in refs_of(record.content):
            if node.has(ref):
                node.tagged(ref, epoch)
                if not shortfall.num_missing:
                    self.held.setdefault(record.write_id, set()).add((node_id, ref))

    @rule(swept=st.sets(st.sampled_from(NODES)), num_steps=steps)
    def begin_epoch(self, swept: set[str], num_steps: int) -> None:
        self.advance()
        for node_id in sorted(swept):
            node = self.nodes[node_id]
            if node.sweep is not None:
                node.go_on(100_000)
            node.go_on(num_steps)

    def advance(self) -> None:
        now = read_anchor(self.meta)
        assert change_epoch(self.meta, now, epoch=now.anchor.epoch + 1)

    @rule(node_id=st.sampled_from(NODES), num_steps=steps)
    def sweep(self, node_id: str, num_steps: int) -> None:
        self.nodes[node_id].go_on(num_steps)

    @rule(node_id=st.sampled_from(NODES), num_pages=st.integers(1, 3))
    def sweep_into_the_records(self, node_id: str, num_pages: int) -> None:
        """Until so many records have been read, and the others have not."""
        node, num_ranges = self.nodes[node_id], self.meta.calls["range"]
        node.go_on(1)
        while node.sweep is not None and self.meta.calls["range"] < num_ranges + num_pages:
            node.go_on(1)

    # Seldom, because for two epochs after it nothing is old enough to be removed.
    @precondition(lambda self: self.num_power_cuts < 2)
    @rule(node_id=st.sampled_from(NODES))
    def cut_power(self, node_id: str) -> None:
        self.num_power_cuts += 1
        node = self.nodes[node_id]
        node.fs.power_cut()
        node.open()

    def settle(self) -> None:
        """Nobody uploads any more: two epochs later there is no garbage."""
        for _ in range(3):
            for node in self.nodes.values():
                node.sweep = None
                node.go_on(100_000)
            self.advance()
        referred = self.referred()
        for node in self.nodes.values():
            assert {(ref.partition, ref.id) for ref in referred} >= set(node.store.scan())

    # What holds

    def records_changed(self) -> None:
        referred = self.referred()
        for node in self.nodes.values():
            if node.sweep is not None:
                node.sweep.doomed -= referred

    @invariant()
    def what_records_refer_to_is_where_it_was_acknowledged(self) -> None:
        for record in self.records():
            refs = set(refs_of(record.content))
            for node_id, ref in self.held.get(record.write_id, ()):
                assert ref not in refs or self.nodes[node_id].has(ref), f"{node_id} lost {ref}"


def content_of(refs: list[Ref]) -> Content:
    """Data by its references, or, once there is a manifest among the chunks, what that lists."""
    for ref in refs:
        if ref in MANIFEST_REFS:
            return Content(size=MANIFEST_REFS[ref].content_bytes, digest="d" * 64, manifest=ref)
    return Content(size=sum(ref.size for ref in refs), digest="d" * 64, refs=tuple(refs))


def refs_of(content: Content) -> list[Ref]:
    """All chunks of a content, from what the test knows of its manifests."""
    if content.manifest is None:
        return list(content.refs)
    return [content.manifest, *(entry.ref for entry in MANIFEST_REFS[content.manifest].entries)]


TestGcMachine = GcMachine.TestCase
pytestmark = pytest.mark.timeout(600)  # Of all tests that no process is started for, this one computes for longest.
TestGcMachine.settings = settings(max_examples=max(1, settings().max_examples // 4), stateful_step_count=50)
