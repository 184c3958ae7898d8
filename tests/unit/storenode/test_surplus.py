"""Copies that belong elsewhere: given up when all who hold them have re-hashed theirs just now, and not a moment sooner."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from client.cluster import Cluster, ClusterView
from client.errors import EndpointUnreachable
from client.manifest import Ref, make_ref
from client.placement import Layout, Layouts, Node
from client.record import Content, ObjectRecord
from client.transport import Response
from client.wire import decode_json, encode_json
from storenode.chunkstore import ChunkStore
from storenode.collector import Collector, Swept
from storenode.emptying import Emptying
from storenode.epochs import gc_status
from storenode.held import Holdings, read_held
from storenode.layouts import change_layouts, create_layout, read_layouts
from storenode.membership import Membership, NodeRecord
from storenode.metastore import Put
from storenode.ownership import Fence
from storenode.pace import Pace
from storenode.repair import Copies
from storenode.surplus import Surplus
from tests.support.catalogs import open_meta
from tests.support.hooked_meta import HookedMeta
from tests.support.peers import Clock, UnsyncedFileSystem

EPOCH = 5
PARTITIONS = 64
ME = "a"


def nodes(names: str, *, draining: str = "") -> tuple[Node, ...]:
    return tuple(Node(id=name, host=name, state="draining" if name in draining else "active") for name in names)


class Peers:
    """The other nodes: what re-hashing finds there, and who was asked."""

    def __init__(self) -> None:
        self.bad: dict[tuple[str, str], str] = {}
        self.down: set[str] = set()
        self.asked: list[tuple[str, int]] = []
        self.meanwhile: Callable[[], object] = lambda: None

    def request(self, method: str, url: str, path: str, *, body: bytes, node_id: str, **options: Any) -> Response:
        assert (method, path) == ("POST", "/v1/chunks:verify")
        if node_id in self.down:
            raise EndpointUnreachable("no answer", node_id=node_id)
        chunks = decode_json(body)["chunks"]
        self.asked.append((node_id, len(chunks)))
        self.meanwhile()
        answer = encode_json({"status": [self.bad.get((node_id, chunk_hex), "ok") for _, chunk_hex in chunks]})
        return Response(status=200, headers={}, body=answer, size=len(answer))


class Bench:
    """Node a, with copies of everything, in a cluster that has changed since."""

    def __init__(self, root: Path, meta: HookedMeta) -> None:
        self.meta = meta
        self.clock = Clock()
        self.chunks = ChunkStore(root, reserve_bytes=0, max_chunk_bytes=1 << 20, fs=UnsyncedFileSystem())
        self.peers = Peers()
        create_layout(meta, Layout(version=1, partitions=PARTITIONS, nodes=nodes("abc")))
        self.holdings = Holdings(meta, node_id=ME)

    def change(self, changed: tuple[Node, ...], *, retired: bool = True) -> Layout:
        known = read_layouts(self.meta)
        assert known is not None
        current = known.layouts.current
        after = replace(current, version=current.version + 1, nodes=changed)
        changed_at = change_layouts(self.meta, known, Layouts(current=after, older=() if retired else (current,)))
        assert changed_at is not None
        self.holdings.follow(layout=after.version, incarnation="")
        self.holdings.complete_to(changed_at)
        return after

    def object(self, number: int, *, replicas: int = 2, tag: int = EPOCH - 2, key: str = "") -> Ref:
        """An object whose chunk lies here."""
        payload = b"chunk %d" % number
        ref = make_ref(payload, partitions=PARTITIONS)
        self.chunks.put(ref.partition, ref.id, payload, epoch=tag)
        content = Content(size=ref.size, digest="d", refs=(ref,))
        record = ObjectRecord(write_id="w", content=content, replicas=replicas)
        self.meta.txn([], [Put(key=f"obj/data/{key or number}", value=encode_json(record.to_json()))])
        return ref

    def sweep(self, *, epoch: int = EPOCH, rate: float = 1e12) -> Swept:
        known = read_layouts(self.meta)
        assert known is not None
        endpoints = {name: (f"http://{name}",) for name in "abcdef"}
        view = ClusterView(cluster_id="c", layouts=known.layouts, endpoints=endpoints)
        copies = Copies(
            node_id=ME,
            chunks=self.chunks,
            cluster=Cluster(lambda: view, ttl_s=1e9, suspect_s=0.0),
            reader=None,  # type: ignore[arg-type]
            transport=self.peers,  # type: ignore[arg-type]
        )
        pace = Pace(rate, clock=self.clock, wait=self.clock.wait)
        collector = Collector(
            self.meta,
            garbage=self.chunks.garbage,
            refs=lambda record: record.content.refs,
            reach=lambda epoch: None,
            require_may_remove=lambda: None,
            surplus=Surplus(self.meta, copies=copies, holdings=self.holdings, pace=pace),
            forget=lambda *chunk: None,
            max_chunks=1000,
        )
        *_, last = collector.sweep(epoch)
        return last

    def here(self, refs: list[Ref]) -> list[Ref]:
        return [ref for ref in refs if self.chunks.contains(ref.partition, ref.id)]

    @property
    def surplus(self) -> int | None:
        return read_held(self.meta)[ME].surplus


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    with open_meta() as meta:
        yield Bench(tmp_path, meta)


def elsewhere(layout: Layout, refs: list[Ref], *, count: int = 2) -> list[Ref]:
    return [ref for ref in refs if ME not in layout.replicas(ref.partition, count=count)]


def test_what_belongs_elsewhere_goes_when_its_holders_have_rehashed_theirs(bench: Bench) -> None:
    refs = [bench.object(number) for number in range(40)]
    layout = bench.change(nodes("abcd"))
    gone = elsewhere(layout, refs)
    swept = bench.sweep()
    assert gone and bench.here(refs) == [ref for ref in refs if ref not in gone]
    assert (swept.given_up.num_chunks, swept.num_left, swept.removed.num_chunks) == (len(gone), 0, 0)
    # Every holder of every one was asked.
    asked = sum(count for _, count in bench.peers.asked)
    assert asked == 2 * len(gone) and {node for node, _ in bench.peers.asked} <= {"b", "c", "d"}
    assert bench.surplus == 0


@pytest.mark.parametrize("word", ["missing", "corrupt", "a word of a later release"])
def test_one_holder_without_a_sound_copy_keeps_this_one(bench: Bench, word: str) -> None:
    refs = [bench.object(number) for number in range(40)]
    layout = bench.change(nodes("abcd"))
    kept, *rest = elsewhere(layout, refs)
    for holder in layout.replicas(kept.partition, count=2)[1:]:
        bench.peers.bad[holder, kept.hex] = word
    swept = bench.sweep()
    assert bench.here([kept, *rest]) == [kept]
    assert swept.num_left == bench.surplus == 1
    bench.peers.bad.clear()
    assert bench.sweep().num_left == bench.surplus == 0 and bench.here([kept]) == []


def test_a_holder_that_does_not_answer_keeps_all_that_it_holds(bench: Bench) -> None:
    refs = [bench.object(number) for number in range(40)]
    layout = bench.change(nodes("abcd"))
    bench.peers.down.add("d")
    bench.sweep()
    gone = [ref for ref in elsewhere(layout, refs) if "d" not in layout.replicas(ref.partition, count=2)]
    assert bench.here(refs) == [ref for ref in refs if ref not in gone]


def test_as_long_as_an_older_layout_is_not_retired_nothing_goes(bench: Bench) -> None:
    refs = [bench.object(number) for number in range(40)]
    bench.change(nodes("abcd"), retired=False)
    assert bench.sweep().given_up.num_chunks == 0
    assert bench.here(refs) == refs and bench.peers.asked == [] and bench.surplus is None


def test_a_layout_that_changes_while_holders_rehash_keeps_everything(bench: Bench) -> None:
    refs = [bench.object(number) for number in range(40)]
    bench.change(nodes("abcd"))

    def change() -> None:
        bench.peers.meanwhile = lambda: None
        bench.change(nodes("abce"), retired=False)

    bench.peers.meanwhile = change
    assert bench.sweep().given_up.num_chunks == 0
    assert bench.here(refs) == refs


def test_what_was_relied_on_lately_stays_until_later_epochs(bench: Bench) -> None:
    young = [bench.object(number, tag=EPOCH - 1) for number in range(40)]
    layout = bench.change(nodes("abcd"))
    bench.sweep()
    assert bench.here(young) == young
    bench.sweep(epoch=EPOCH + 1)
    assert not bench.here(elsewhere(layout, young))


def test_who_relies_on_a_copy_while_holders_rehash_saves_it(bench: Bench) -> None:
    """This node is given the chunk anew, by a layout or a record of which the sweep can know nothing yet."""
    refs = [bench.object(number) for number in range(40)]
    layout = bench.change(nodes("abcd"))
    saved, *rest = elsewhere(layout, refs)
    bench.peers.meanwhile = lambda: bench.chunks.touch(saved.partition, saved.id, epoch=EPOCH, rehash=False)
    bench.sweep()
    assert bench.here([saved, *rest]) == [saved]


def test_of_several_records_the_one_that_asks_for_most_copies_counts(bench: Bench) -> None:
    refs = [bench.object(number, replicas=1) for number in range(40)]
    for number, ref in enumerate(refs[:20]):
        assert bench.object(number, replicas=4, key=f"again-{number}") == ref
    layout = bench.change(nodes("abcd"))
    bench.sweep()
    assert bench.here(refs[:20]) == refs[:20]  # four copies on four nodes
    assert bench.here(refs[20:]) == [ref for ref in refs[20:] if ref not in elsewhere(layout, refs, count=1)]


def test_a_draining_node_is_drained_when_nothing_is_left(bench: Bench) -> None:
    refs = [bench.object(number) for number in range(10)]
    young = bench.object(100, tag=EPOCH)
    bench.change(nodes("abcd", draining="a"))
    bench.peers.down.add("c")
    bench.sweep()
    assert bench.surplus == len(bench.here([*refs, young])) > 1
    bench.peers.down.clear()
    bench.sweep()
    assert bench.here([*refs, young]) == [young] and bench.surplus == 1
    bench.sweep(epoch=EPOCH + 2)
    assert bench.surplus == 0 and read_held(bench.meta)[ME].drained(layout=2, incarnation="")


def test_a_node_that_was_removed_and_comes_back_keeps_its_copies(bench: Bench) -> None:
    refs = [bench.object(number) for number in range(10)]
    bench.change(nodes("bcd"))
    assert bench.sweep().given_up.num_chunks == 0
    assert bench.here(refs) == refs and bench.peers.asked == []


def test_others_are_asked_at_the_rate(bench: Bench) -> None:
    for number in range(40):
        bench.object(number)
    bench.change(nodes("abcd", draining="a"))
    began_s = bench.clock()
    swept = bench.sweep(rate=100.0)
    assert bench.clock() - began_s >= 0.8 * swept.given_up.size_bytes / 100.0


# The duty that has it happen soon


def wanted(meta: HookedMeta) -> int:
    return int(gc_status(meta)["wanted"])


def test_epochs_are_asked_for_while_a_draining_node_has_something_left(bench: Bench) -> None:
    clock, fence = Clock(), Fence(key="owner/x", revision=1)
    duty = Emptying(bench.meta, retry_s=10.0, clock=clock)
    record = NodeRecord(endpoints=("http://a",), zone="z", host="h", data_dir="/a")
    membership = Membership(bench.meta, node_id=ME, record=record, ttl_s=1000.0)
    membership.register()
    duty(fence)
    bench.change(nodes("abcd", draining="a"), retired=False)
    duty(fence)
    assert wanted(bench.meta) == 0  # nothing is drained before the move is over
    bench.change(nodes("abcd", draining="a"))
    duty(fence)
    assert wanted(bench.meta) == 2
    bench.meta.txn([], [Put(key="gc/wanted", value=encode_json({"epoch": 0}))])
    for seconds, expected in ((9.0, 0), (1.0, 2)):
        clock.now_s += seconds
        duty(fence)
        assert wanted(bench.meta) == expected
    bench.meta.txn([], [Put(key="gc/wanted", value=encode_json({"epoch": 0}))])
    clock.now_s += 19.0
    duty(fence)
    assert wanted(bench.meta) == 0  # more and more seldom
    clock.now_s += 1000.0
    membership.stop()
    duty(fence)
    assert wanted(bench.meta) == 0  # a node that is down can't empty itself
    membership.register()
    bench.holdings.left_over(0, layout=3)
    duty(fence)
    assert wanted(bench.meta) == 0
