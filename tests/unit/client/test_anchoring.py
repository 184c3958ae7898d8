"""Uploads that took so long that the cluster has moved on: touched again, then committed as the same write."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

from client.cluster import Anchor
from client.errors import NotEnoughReplicas, ObjectNotFound, StaleAnchor
from client.object_upload import ObjectUpload
from client.objects import ObjectStore
from client.placement import Layout, Node
from client.record import BucketPolicy
from tests.support.fake_cluster import FakeCluster

KIB = 1024
PAYLOAD = bytes(range(256)) * 256  # One chunk of 64 KiB.


@pytest.fixture
def fake() -> FakeCluster:
    fake = FakeCluster(5)
    fake.catalog.create_bucket("data", BucketPolicy(replicas=3))
    return fake


@pytest.fixture
def store(fake: FakeCluster) -> Iterator[ObjectStore]:
    store = fake.store(chunk_size_bytes=64 * KIB, deadline_s=0.5)
    yield store
    store.close()


def begun(store: ObjectStore, *, num_chunks: int = 2) -> ObjectUpload:
    upload = store.upload("data", "k")
    for number in range(num_chunks):
        upload.write_owned(PAYLOAD[number:] + PAYLOAD[:number])
    upload._upload.flush()
    upload._upload.finish()
    return upload


def move_on(fake: FakeCluster, *, epoch: int | None = None, layout: Layout | None = None) -> None:
    fake.epoch = fake.epoch if epoch is None else epoch
    if layout is not None:
        fake.older, fake.layout = (fake.layout, *fake.older), layout
    fake.catalog.anchor = Anchor(layout=fake.layout.version, epoch=fake.epoch)


def test_chunks_are_tagged_with_the_epoch_in_which_the_upload_began(fake: FakeCluster, store: ObjectStore) -> None:
    fake.epoch = 7
    store.put("data", "large", PAYLOAD * 3)
    store.put_many([("data", f"small-{number}", b"%d" % number) for number in range(3)])
    assert set(fake.tags.values()) == {7}
    assert {node for node, *_ in fake.tags} == set(fake.nodes)


def test_an_upload_is_committed_one_epoch_later_without_another_look(fake: FakeCluster, store: ObjectStore) -> None:
    upload = begun(store)
    move_on(fake, epoch=1)
    upload.commit()
    assert set(fake.tags.values()) == {0}


def test_an_upload_that_lasts_for_two_epochs_touches_its_chunks_again(fake: FakeCluster, store: ObjectStore) -> None:
    upload = begun(store)
    move_on(fake, epoch=2)
    info = upload.commit()
    assert store.get("data", "k") == PAYLOAD + PAYLOAD[1:] + PAYLOAD[:1]
    assert {fake.tags[node, ref.partition, ref.id] for ref in info.record.content.refs for node in fake.holders(ref)} == {2}


def test_so_do_the_manifests_of_a_large_one(fake: FakeCluster, store: ObjectStore) -> None:
    upload = begun(store, num_chunks=12)
    move_on(fake, epoch=5)
    info = upload.commit()
    root = info.record.content.manifest
    assert root is not None
    assert {fake.tags[node, root.partition, root.id] for node in fake.holders(root)} == {5}
    assert len([tag for tag in fake.tags.values() if tag == 5]) == 13 * 3


def test_a_chunk_that_is_gone_meanwhile_fails_the_commit(fake: FakeCluster, store: ObjectStore) -> None:
    upload = begun(store)
    move_on(fake, epoch=2)
    for node in fake.nodes.values():
        node.chunks.clear()
    with pytest.raises(NotEnoughReplicas, match="no copy"):
        upload.commit()
    with pytest.raises(ObjectNotFound):
        store.stat("data", "k")


def test_after_a_change_of_layout_the_new_holders_have_the_chunks(fake: FakeCluster, store: ObjectStore) -> None:
    upload = begun(store, num_chunks=6)
    move_on(fake, layout=replace(fake.layout, version=2, nodes=fake.layout.nodes[2:]))
    info = upload.commit()
    for ref in info.record.content.refs:
        assert set(fake.layout.replicas(ref.partition, count=3)) <= fake.holders(ref)
    touched = [request for node in fake.nodes.values() for request in node.requests if "touch" in request]
    assert touched


def test_a_dead_node_does_not_stop_it(fake: FakeCluster, store: ObjectStore) -> None:
    upload = begun(store)
    fake.fail("node-1", fault="down")
    move_on(fake, epoch=2)
    assert upload.commit().record.content.size == 2 * len(PAYLOAD)


def test_small_objects_of_a_group_are_anchored_again_each_by_itself(fake: FakeCluster, store: ObjectStore) -> None:
    store.put_many([("data", "before", b"before")])
    move_on(fake, epoch=3)  # The store's view is old, so its next group begins with an old anchor.
    infos = store.put_many([("data", f"k{number}", b"%d" % number) for number in range(20)])
    assert [store.get("data", info.key) for info in infos] == [b"%d" % number for number in range(20)]
    refs = [ref for info in infos for ref in info.record.content.refs]
    assert {fake.tags[node, ref.partition, ref.id] for ref in refs for node in fake.holders(ref)} == {3}


def test_who_can_never_keep_up_is_told(fake: FakeCluster, store: ObjectStore) -> None:
    upload = begun(store)
    move_on(fake, epoch=2)
    fake.catalog.anchor = Anchor(layout=1, epoch=1000)  # Whatever the view says.
    with pytest.raises(StaleAnchor):
        upload.commit()


def test_copies_share_the_chunks_of_a_version_that_exists(fake: FakeCluster, store: ObjectStore) -> None:
    store.put("data", "k", PAYLOAD)
    fake.epoch = 9
    move_on(fake, epoch=9)
    store.copy("data", "k", "data", "copy")
    assert store.get("data", "copy") == PAYLOAD
    assert set(fake.tags.values()) == {0}


def test_reads_find_chunks_where_older_layouts_had_them(fake: FakeCluster, store: ObjectStore) -> None:
    store.put("data", "k", PAYLOAD * 6)
    move_on(fake, layout=replace(fake.layout, version=2, nodes=(*fake.layout.nodes[3:], Node(id="empty", zone="e"))))
    fake.nodes["empty"] = type(fake.nodes["node-0"])(id="empty")
    store.cluster.refresh()
    assert store.get("data", "k") == PAYLOAD * 6


def test_reads_look_at_the_layouts_again_when_nobody_has_a_chunk(fake: FakeCluster, store: ObjectStore) -> None:
    info = store.put("data", "k", PAYLOAD)
    (ref,) = info.record.content.refs
    elsewhere = next(name for name in fake.nodes if name not in fake.holders(ref))
    fake.nodes[elsewhere].chunks.update(fake.nodes[min(fake.holders(ref))].chunks)
    for name in fake.holders(ref) - {elsewhere}:
        fake.nodes[name].chunks.clear()
    only = next(node for node in fake.layout.nodes if node.id == elsewhere)
    fake.layout = replace(fake.layout, version=2, nodes=(only,))
    assert store.get("data", "k") == PAYLOAD
