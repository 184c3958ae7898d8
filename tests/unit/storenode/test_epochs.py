"""When an epoch begins: after everyone's sweep, when it is time or asked for, and never while the metadata is in doubt."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from client.placement import Layout, Node
from storenode.epochs import EpochClock, SweptRecord, ask_for_epoch, gc_status, publish_swept, swept_by
from storenode.layouts import change_epoch, create_layout, read_anchor
from storenode.lineage import create_cluster, freeze, thaw
from storenode.metastore import MetaStore, Put
from storenode.ownership import Fence
from tests.support.catalogs import Clock, open_meta

NODES = ("a", "b")
OWNER = "owner/coordinator"


@pytest.fixture
def meta() -> Iterator[MetaStore]:
    with open_meta() as meta:
        create_cluster(meta)
        create_layout(meta, Layout(version=1, partitions=16, nodes=tuple(Node(id=name) for name in NODES)))
        for name in NODES:
            up(meta, name)
        meta.txn([], [Put(key=OWNER, value=b"{}")])
        yield meta


def up(meta: MetaStore, name: str) -> None:
    value = b'{"endpoints": ["http://h:1"], "zone": "z", "host": "h", "data_dir": "/d"}'
    meta.txn([], [Put(key=f"node/{name}", value=value)])


def swept(meta: MetaStore, epoch: int, *names: str) -> None:
    for name in names or NODES:
        publish_swept(meta, name, SweptRecord(epoch=epoch))


def epoch(meta: MetaStore) -> int:
    return read_anchor(meta).anchor.epoch


def begins(meta: MetaStore, epochs: EpochClock) -> bool:
    """Whether the duty, done once by the owner, begins an epoch."""
    before = epoch(meta)
    item = meta.get(OWNER)
    assert item is not None
    epochs(Fence(key=OWNER, revision=item.mod_revision))
    return epoch(meta) == before + 1


def test_an_epoch_begins_when_its_time_has_come_and_all_that_are_up_have_swept(meta: MetaStore) -> None:
    clock = Clock()
    epochs = EpochClock(meta, interval_s=60.0, clock=clock)
    swept(meta, 0)
    assert not begins(meta, epochs)
    clock.now_s += 60.0
    assert begins(meta, epochs) and epoch(meta) == 1
    clock.now_s += 60.0
    swept(meta, 1, "a")
    assert not begins(meta, epochs)
    swept(meta, 1, "b")
    assert begins(meta, epochs) and epoch(meta) == 2
    assert not begins(meta, epochs)


def test_nodes_that_are_down_are_not_waited_for(meta: MetaStore) -> None:
    ask_for_epoch(meta)
    swept(meta, 0)
    publish_swept(meta, "down", SweptRecord(epoch=-1))
    assert begins(meta, EpochClock(meta, interval_s=0.0))


def test_an_epoch_lives_for_its_interval_whoever_began_it(meta: MetaStore) -> None:
    clock = Clock()
    one, other = (EpochClock(meta, interval_s=60.0, clock=clock) for _ in range(2))
    swept(meta, 5)
    assert not begins(meta, one) and not begins(meta, other)
    clock.now_s += 60.0
    assert begins(meta, one) and not begins(meta, other)
    clock.now_s += 59.0
    assert not begins(meta, one) and not begins(meta, other)
    clock.now_s += 1.0
    assert begins(meta, other) and epoch(meta) == 2


def test_without_an_interval_epochs_begin_only_when_asked_for_and_as_many_as_it_takes(meta: MetaStore) -> None:
    clock = Clock()
    epochs = EpochClock(meta, interval_s=0.0, clock=clock)
    swept(meta, 100)
    clock.now_s += 1e9
    assert not begins(meta, epochs)
    assert ask_for_epoch(meta) == ask_for_epoch(meta) == 2
    assert [begins(meta, epochs) for _ in range(3)] == [True, True, False]
    assert epoch(meta) == 2
    assert ask_for_epoch(meta) == 4


def test_an_epoch_that_another_began_meanwhile_and_a_lost_ownership_end_the_attempt(meta: MetaStore) -> None:
    ask_for_epoch(meta)
    swept(meta, 0)
    lost = Fence(key=OWNER, revision=1)
    EpochClock(meta, interval_s=0.0)(lost)
    assert epoch(meta) == 0
    now = read_anchor(meta)
    assert begins(meta, EpochClock(meta, interval_s=0.0))
    assert change_epoch(meta, now, epoch=1) is None


def test_no_epoch_begins_while_commits_are_frozen(meta: MetaStore) -> None:
    ask_for_epoch(meta)
    swept(meta, 0)
    epochs = EpochClock(meta, interval_s=0.0)
    freeze(meta, who="a test")
    assert not begins(meta, epochs) and epoch(meta) == 0
    thaw(meta)
    assert begins(meta, epochs)


def test_the_status_names_every_node(meta: MetaStore) -> None:
    record = SweptRecord(epoch=3, num_removed=4, removed_bytes=5, num_kept=6, problem="none")
    publish_swept(meta, "gone", record)
    ask_for_epoch(meta)
    status = gc_status(meta)
    assert (status["epoch"], status["wanted"]) == (0, 2)
    assert status["nodes"]["gone"] == {**record.to_json(), "up": False}
    assert status["nodes"]["a"] == {**SweptRecord().to_json(), "up": True}
    assert swept_by(meta, "gone") == record
