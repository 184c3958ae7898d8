"""Acknowledgements: whatever nodes answer, a chunk counts as stored exactly if enough members of its replica set have it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from client.chunks import ChunkClient, Stored
from client.cluster import Cluster, ClusterView
from client.errors import Busy, DiskFull, EndpointUnreachable, NotEnoughReplicas, StoreError
from client.in_flight import ThreadPool
from client.manifest import Ref, make_ref
from client.placement import Layout, Layouts, Node
from client.record import ACK_LEVELS, Ack, acks_needed
from client.upload import ChunkUploader, Upload
from tests.support.fake_cluster import FakeCluster, Fault, quick_config

NODES = tuple(f"n{number}" for number in range(6))
LAYOUT = Layout(version=1, partitions=16, nodes=tuple(Node(id=name) for name in NODES))
VIEW = ClusterView(cluster_id="c", layouts=Layouts(current=LAYOUT), endpoints={name: (f"http://{name}:1",) for name in NODES})
PAYLOAD = b"payload"
REF = make_ref(PAYLOAD, partitions=16)

errors = st.sampled_from([EndpointUnreachable("dead"), Busy("full"), DiskFull("no room")])
claims = st.lists(st.sampled_from([*NODES, "stranger"]), max_size=6)
answers = errors | st.builds(
    lambda durable, failed: Stored(durable=tuple(durable), failed=dict.fromkeys(failed, "x")), claims, claims
)


class Scripted(ChunkClient):
    """Nodes that answer a PUT by a script, true or not; afterwards they refuse."""

    def __init__(self, script: Sequence[Stored | StoreError]) -> None:
        self._script = list(script)
        self.claimed: list[str] = []
        self.asked: list[tuple[str, tuple[str, ...]]] = []

    def put(self, node_id: str, ref: Ref, payload: object, *, tee: Sequence[str] = (), **_: Any) -> Stored:
        self.asked.append((node_id, tuple(tee)))
        answer = self._script.pop(0) if self._script else EndpointUnreachable("dead")
        if isinstance(answer, StoreError):
            raise answer
        self.claimed.extend(answer.durable)
        return answer


@given(script=st.lists(answers, max_size=8), replicas=st.integers(1, 5), ack=st.sampled_from(ACK_LEVELS))
def test_stored_means_enough_distinct_members_said_so(script: list[Stored | StoreError], replicas: int, ack: Ack) -> None:
    chunks = Scripted(script)
    cluster = Cluster(lambda: VIEW, ttl_s=3600.0, suspect_s=5.0)
    uploader = ChunkUploader(cluster, chunks, quick_config(deadline_s=0.005), replicas=replicas, ack=ack)
    members = LAYOUT.replicas(REF.partition, count=replicas)
    try:
        stored = uploader.store(PAYLOAD) == REF
    except (NotEnoughReplicas, DiskFull):
        stored = False
    assert stored is (len(set(chunks.claimed) & set(members)) >= acks_needed(replicas, ack=ack))
    for node_id, tee in chunks.asked:
        # Each request goes to members, to each of them once.
        assert len({node_id, *tee}) == 1 + len(tee)
        assert {node_id, *tee} <= set(members)


@given(
    faults=st.lists(st.sampled_from(["down", "silent", "busy", "full", "drops replies", None]), min_size=4, max_size=4),
    suspected=st.sets(st.integers(0, 3)),
    replicas=st.integers(1, 4),
    ack=st.sampled_from(ACK_LEVELS),
)
def test_an_acknowledged_chunk_is_on_enough_members(
    faults: list[Fault | None], suspected: set[int], replicas: int, ack: Ack
) -> None:
    fake = FakeCluster(num_nodes=4)
    for number, fault in enumerate(faults):
        if fault is not None:
            fake.fail(f"node-{number}", fault=fault)
    for number in suspected:
        fake.cluster.failed(f"node-{number}")
    ref, needed = make_ref(PAYLOAD, partitions=64), acks_needed(replicas, ack=ack)
    members = fake.layout.replicas(ref.partition, count=replicas)
    healthy = [node for node in members if faults[int(node[-1])] is None]
    config = quick_config(deadline_s=10.0 if len(healthy) >= needed else 0.02)
    try:
        ChunkUploader(fake.cluster, fake.chunks, config, replicas=replicas, ack=ack).store(PAYLOAD)
    except (NotEnoughReplicas, DiskFull):
        # Nobody may be to blame but the nodes: with enough good ones it has to succeed.
        assert len(healthy) < needed
    else:
        assert len(fake.holders(ref) & set(members)) >= needed
    assert fake.holders(ref) <= set(members)


@given(pieces=st.lists(st.binary(max_size=30), max_size=20), owned=st.lists(st.booleans(), min_size=20, max_size=20),
       chunk_size_bytes=st.integers(1, 16), max_in_flight=st.integers(1, 5))  # fmt: skip
def test_pieces_come_back_in_order_however_they_are_cut(
    pieces: list[bytes], owned: list[bool], chunk_size_bytes: int, max_in_flight: int
) -> None:
    fake = FakeCluster()
    uploader = ChunkUploader(fake.cluster, fake.chunks, quick_config(), replicas=3, ack="all")
    seen: list[Ref] = []
    with ThreadPool(4, name="test") as pool:
        upload = Upload(uploader, pool, chunk_size_bytes=chunk_size_bytes, max_in_flight=max_in_flight)
        for piece, lend in zip(pieces, owned, strict=False):
            if lend:
                upload.write_owned(piece)
            else:
                upload.write(piece)
        upload.flush()
        while upload._in_flight:
            upload._take_first()
        seen.extend(upload._refs)
        content = upload.finish()
    chunks = [fake.nodes["node-0"].chunks[ref.partition, ref.id] for ref in seen]
    assert b"".join(chunks) == b"".join(pieces)
    assert content.size == sum(map(len, pieces))
    assert all(chunks)


@given(num_good=st.integers(0, 6), lend=st.booleans())
def test_an_upload_with_a_failed_chunk_never_finishes(num_good: int, lend: bool) -> None:
    fake = FakeCluster()
    uploader = ChunkUploader(fake.cluster, fake.chunks, quick_config(deadline_s=0.005), replicas=3, ack="quorum")
    with ThreadPool(4, name="test") as pool:
        upload = Upload(uploader, pool, chunk_size_bytes=4, max_in_flight=2)
        write = upload.write_owned if lend else upload.write
        for number in range(num_good):
            write(bytes([number]) * 4)
        fake.fail("node-0", "node-1", fault="down")
        with pytest.raises(NotEnoughReplicas):
            for number in range(num_good, 10):
                write(bytes([number]) * 4)
            upload.finish()
        fake.heal()
        with pytest.raises(NotEnoughReplicas):
            upload.finish()
        upload.abort()
