"""What a node does when the layout changes: it fetches, re-hashes, and says that it is complete when it durably is."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from client.cluster import Cluster, ClusterView
from client.errors import DiskFull, MetadataUnavailable
from client.manifest import Ref
from client.placement import Layout, Layouts, Node
from storenode.cursor import Cursor
from storenode.held import Held, read_held
from storenode.layouts import change_layouts, create_layout, read_layouts
from tests.support.node_bench import NodeBench
from tests.support.peers import PARTITIONS


class LayoutBench(NodeBench):
    """A node called a whose cluster's layouts are those in the metadata."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.up = {"a", "b", "c", "d", "e"}
        create_layout(self.store, layout("abc"))
        self.cluster = Cluster(self._view, ttl_s=0.0, suspect_s=0.0, clock=self.clock)
        self.start(cluster=self.cluster)

    def _view(self) -> ClusterView:
        known = read_layouts(self.store)
        assert known is not None
        endpoints = {name: (f"http://{name}",) for name in sorted(self.up)}
        return ClusterView(cluster_id="c1", layouts=known.layouts, endpoints=endpoints)

    def change(self, *names: str, keep: bool = True) -> int:
        """Add layouts of these nodes, one after another; the revision of the last one."""
        revision = 0
        for each in names:
            known = read_layouts(self.store)
            assert known is not None
            current = known.layouts.current
            older = (current, *known.layouts.older) if keep else ()
            after = layout(each, version=current.version + 1)
            changed = change_layouts(self.store, known, Layouts(current=after, older=older))
            assert changed is not None
            revision = changed
        return revision

    @property
    def said(self) -> Held | None:
        return read_held(self.store).get("a")

    def damage(self, ref: Ref) -> None:
        """Flip a bit of this node's copy."""
        path = self.root / "node" / "chunks" / ref.hex[:2] / f"{ref.partition:08x}-{ref.hex}"
        data = bytearray(path.read_bytes())
        data[0] ^= 1
        path.write_bytes(data)

    def is_sound(self, ref: Ref) -> bool:
        return self.chunks.touch(ref.partition, ref.id)


def layout(names: str, *, version: int = 1) -> Layout:
    return Layout(version=version, partitions=PARTITIONS, nodes=tuple(Node(id=name, host=name) for name in names))


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[LayoutBench]:
    bench = LayoutBench(tmp_path)
    yield bench
    bench.close()


def holders(names: str, ref: Ref) -> set[str]:
    return set(layout(names).replicas(ref.partition, count=2))


def test_what_a_new_layout_gives_this_node_is_fetched_and_told(bench: LayoutBench) -> None:
    refs = [bench.object(f"object {number}", replicas=2) for number in range(24)]
    bench.steps()
    before = [bench.holds(ref) for ref in refs]
    revision = bench.change("ab")
    bench.steps(40)
    assert not all(before) and all(bench.holds(ref) for ref in refs)
    assert bench.said is not None and bench.said.layout == 2 and bench.said.revision >= revision
    assert bench.saved is not None and bench.saved.layout == 2 and bench.saved.revision >= bench.said.revision
    progress = bench.follower.progress
    assert (progress.layout, progress.fetched_chunks) == (2, before.count(False))
    assert progress.fetched_bytes == sum(ref.size for ref, here in zip(refs, before, strict=True) if not here)


def test_a_copy_whose_holders_change_is_rehashed_before_the_node_counts(bench: LayoutBench) -> None:
    refs = [bench.object(f"object {number}", replicas=2) for number in range(24)]
    bench.steps()
    stay = [ref for ref in refs if "a" in holders("abc", ref) and holders("abc", ref) == holders("abcd", ref)]
    move = [ref for ref in refs if "a" in holders("abc", ref) & holders("abcd", ref) and ref not in stay]
    assert stay and move
    for ref in stay + move:
        bench.damage(ref)
    bench.peers.reachable = False
    bench.change("abcd")
    bench.steps(40)
    # Not before the bad copies were replaced.
    assert bench.said is not None and bench.said.layout == 1
    bench.peers.reachable = True
    bench.steps(40)
    assert bench.said.layout == 2
    assert all(bench.is_sound(ref) for ref in move)
    # Others are not given up because of these; scrub finds them.
    assert not any(bench.is_sound(ref) for ref in stay)


def test_a_copy_is_fetched_from_a_former_holder(bench: LayoutBench) -> None:
    refs = [bench.object(f"object {number}", replicas=1) for number in range(24)]
    moved = [ref for ref in refs if layout("bc").replicas(ref.partition, count=1) != ("a",)]
    bench.change("bc", "a", keep=True)
    bench.steps(60)
    # Under the present layout this node is the only holder.
    assert moved and all(bench.holds(ref) for ref in refs)
    assert bench.said is not None and bench.said.layout == 3


def test_a_third_layout_before_the_second_is_complete_begins_anew(bench: LayoutBench) -> None:
    refs = [bench.object(f"object {number}", replicas=2) for number in range(24)]
    bench.steps()
    bench.peers.reachable = False
    bench.change("abd")
    bench.steps(20)
    revision = bench.change("ae")
    bench.peers.reachable = True
    bench.steps(60)
    assert bench.said is not None and (bench.said.layout, bench.said.revision >= revision) == (3, True)
    assert all(bench.holds(ref) for ref in refs)


def test_nothing_is_told_before_the_cursor_is_durable(bench: LayoutBench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.object("object")
    bench.steps()
    monkeypatch.setattr(bench.cursor_file, "save", full)
    bench.change("ab")
    for _ in range(10):
        with pytest.raises(DiskFull):
            bench.steps(1)
    assert bench.said is not None and bench.said.layout == 1
    monkeypatch.undo()
    bench.steps(20)
    assert bench.saved is not None and bench.saved.layout == read_held(bench.store)["a"].layout == 2


def full(cursor: Cursor) -> None:
    raise DiskFull("no room")


def test_a_node_that_died_between_its_cursor_and_its_word_gives_it_at_the_next_start(
    bench: LayoutBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.object("object")
    bench.steps()
    bench.change("ab")
    publish = bench.store.txn

    def lost(*args: object, **options: object) -> None:
        raise MetadataUnavailable("no answer")

    monkeypatch.setattr(bench.store, "txn", lost)
    for _ in range(3):
        with pytest.raises(MetadataUnavailable):
            bench.steps(1)
    monkeypatch.setattr(bench.store, "txn", publish)
    assert bench.saved is not None and bench.saved.layout == 2 and bench.said is not None and bench.said.layout == 1
    bench.start(cluster=bench.cluster)
    bench.steps()
    assert read_held(bench.store)["a"].layout == 2


def test_a_record_from_before_the_layout_that_still_waits_holds_the_word_back(bench: LayoutBench) -> None:
    bench.steps()
    ref = bench.object("waits")
    bench.peers.reachable = False
    bench.steps(10)
    revision = bench.change("abd")
    bench.steps(20)
    assert bench.said is None or bench.said.layout == 1 or bench.said.revision < revision
    bench.peers.reachable = True
    bench.steps(40)
    assert bench.holds(ref) and bench.said is not None and (bench.said.layout, bench.said.revision >= revision) == (2, True)


def test_a_disk_that_lost_its_cursor_takes_its_word_back(bench: LayoutBench) -> None:
    bench.object("object")
    bench.steps()
    bench.change("ab")
    bench.steps(20)
    assert bench.said is not None and bench.said.layout == 2
    (bench.root / "node" / "follower.json").unlink()
    bench.peers.reachable = False
    ref = bench.object("missing")
    bench.start(cluster=bench.cluster)
    bench.steps(10)
    assert not bench.holds(ref) and bench.said is None


def test_moved_copies_keep_to_the_rate_and_what_is_committed_meanwhile_is_not_held_up(bench: LayoutBench) -> None:
    refs = [bench.object(f"object {number:02d}", replicas=2) for number in range(24)]
    bench.steps()
    began_s = bench.clock()
    bench.change("ab")
    bench.steps(1)
    fresh = bench.object("committed meanwhile", replicas=2)
    bench.steps(4)
    assert bench.holds(fresh) and not all(bench.holds(ref) for ref in refs)
    bench.steps(60)
    # One byte a second: each waits until what was moved before it is paid for.
    moving = [ref for ref in refs if holders("abc", ref) != holders("ab", ref)]
    assert bench.clock() - began_s >= sum(ref.size for ref in moving[:-1])


def test_without_older_layouts_nothing_is_rehashed_or_slowed_down(bench: LayoutBench) -> None:
    refs = [bench.object(f"object {number}", replicas=2) for number in range(24)]
    bench.steps()
    here = [ref for ref in refs if bench.holds(ref)]
    for ref in here:
        bench.damage(ref)
    (bench.root / "node" / "follower.json").unlink()
    bench.start(cluster=bench.cluster)
    began_s = bench.clock()
    bench.steps(1)
    assert bench.clock() - began_s < 1 + 2.0 and bench.follower.progress.rehashed_bytes == 0
    assert not any(bench.is_sound(ref) for ref in here)
