"""The verified read: which replicas are asked, in which order, and what is said of those that fail."""

from __future__ import annotations

import random
from functools import partial

import pytest

from client.errors import AllReplicasFailed, Forbidden, StoreError, Unauthenticated
from client.manifest import make_ref
from client.replica import ReplicaReader
from client.retry import Deadline
from tests.support.fake_cluster import Clock, FakeCluster, Fault, quick_config

PAYLOAD = random.Random(7).randbytes(100_000)
REF = make_ref(PAYLOAD, partitions=64)


@pytest.fixture
def fake() -> FakeCluster:
    made = FakeCluster(num_nodes=4)
    for node_id in made.layout.replicas(REF.partition, count=3):
        made.nodes[node_id].chunks[REF.partition, REF.id] = PAYLOAD
    return made


@pytest.fixture
def reader(fake: FakeCluster) -> ReplicaReader:
    return ReplicaReader(fake.cluster, fake.chunks, quick_config(hedge_waste=0))


@pytest.fixture
def holders(fake: FakeCluster) -> tuple[str, ...]:
    return fake.layout.replicas(REF.partition, count=3)


def asked(fake: FakeCluster) -> list[str]:
    return [node_id for node_id, node in fake.nodes.items() for request in node.requests if request.startswith("GET")]


def test_the_first_replica_is_asked_and_nobody_else(fake: FakeCluster, reader: ReplicaReader, holders: tuple[str, ...]) -> None:
    assert reader.read(REF, replicas=3) == PAYLOAD
    assert asked(fake) == [holders[0]]
    assert reader.totals().failovers == 0


def test_ranges(reader: ReplicaReader) -> None:
    assert reader.read(REF, replicas=3, start=5) == PAYLOAD[5:]
    assert reader.read(REF, replicas=3, start=5, end=70_000) == PAYLOAD[5:70_000]


@pytest.mark.parametrize("fault", ["down", "silent", "busy", "missing", "corrupt", "swapped", "short"])
def test_a_replica_that_fails_is_passed_over(
    fake: FakeCluster, reader: ReplicaReader, holders: tuple[str, ...], fault: Fault
) -> None:
    fake.fail(*holders[:2], fault=fault)
    assert reader.read(REF, replicas=3) == PAYLOAD
    assert reader.totals().failovers == 2
    assert asked(fake).count(holders[2]) == 1


def test_a_node_that_did_not_answer_is_asked_last_for_a_while(
    fake: FakeCluster, reader: ReplicaReader, holders: tuple[str, ...]
) -> None:
    fake.fail(holders[0], fault="down")
    reader.read(REF, replicas=3)
    reader.read(REF, replicas=3)
    assert asked(fake).count(holders[0]) == 1
    assert reader.totals().failovers == 1


def test_nodes_that_are_no_replicas_are_never_asked(fake: FakeCluster, reader: ReplicaReader, holders: tuple[str, ...]) -> None:
    (stranger,) = set(fake.nodes) - set(holders)
    fake.nodes[stranger].chunks[REF.partition, REF.id] = PAYLOAD
    fake.fail(*holders, fault="missing")
    with pytest.raises(AllReplicasFailed):
        reader.read(REF, replicas=3)
    assert stranger not in asked(fake)


def test_excluded_nodes_are_not_asked(fake: FakeCluster, reader: ReplicaReader, holders: tuple[str, ...]) -> None:
    reader.read(REF, replicas=3, exclude=(holders[0],))
    assert asked(fake) == [holders[1]]


def test_when_all_fail_the_error_says_what_each_one_said(
    fake: FakeCluster, reader: ReplicaReader, holders: tuple[str, ...]
) -> None:
    fake.fail(holders[0], fault="down")
    fake.fail(holders[1], fault="missing")
    fake.fail(holders[2], fault="corrupt")
    with pytest.raises(AllReplicasFailed) as caught:
        reader.read(REF, replicas=3)
    message = caught.value.message
    assert "3 replicas" in message
    assert f"{holders[0]} said The endpoint does not answer" in message
    assert f"{holders[1]} said No such chunk" in message
    assert f"{holders[2]} said This copy is corrupt" in message
    assert caught.value.key == str(REF)


@pytest.mark.parametrize("error", [Unauthenticated("no token"), Forbidden("not allowed")])
def test_what_a_token_does_not_allow_is_asked_of_one_node_and_said_as_it_is(
    fake: FakeCluster, reader: ReplicaReader, holders: tuple[str, ...], error: StoreError
) -> None:
    def refuse(request: str) -> None:
        raise error

    fake.nodes[holders[0]].before = refuse
    with pytest.raises(type(error)):
        reader.read(REF, replicas=3)
    assert asked(fake) == [holders[0]]


def test_without_any_replica_to_ask_the_error_says_so(reader: ReplicaReader, holders: tuple[str, ...]) -> None:
    with pytest.raises(AllReplicasFailed, match="no other replica"):
        reader.read(REF, replicas=3, exclude=holders)


@pytest.mark.parametrize("readable", [True, False])
def test_a_corrupt_copy_is_reported_to_its_node_after_the_others_were_asked(
    fake: FakeCluster, reader: ReplicaReader, holders: tuple[str, ...], readable: bool
) -> None:
    order: list[str] = []

    def note(node_id: str, request: str) -> None:
        order.append(f"{node_id} {request.split(' ')[0]}")

    for node in fake.nodes.values():
        node.before = partial(note, node.id)
    fake.fail(holders[0], fault="corrupt")
    if readable:
        reader.read(REF, replicas=2)
    else:
        fake.fail(holders[1], fault="missing")
        with pytest.raises(AllReplicasFailed):
            reader.read(REF, replicas=2)
    assert order == [f"{holders[0]} GET", f"{holders[1]} GET", f"{holders[0]} POST"]


def test_a_report_that_cannot_be_made_is_no_error(fake: FakeCluster, reader: ReplicaReader, holders: tuple[str, ...]) -> None:
    bad = fake.nodes[holders[0]]
    bad.faults.add("corrupt")
    bad.before = lambda request: bad.faults.add("down") if request.startswith("POST") else None
    assert reader.read(REF, replicas=3) == PAYLOAD


def test_after_the_deadline_no_further_replica_is_asked(
    fake: FakeCluster, reader: ReplicaReader, holders: tuple[str, ...]
) -> None:
    clock = Clock()
    fake.fail(*holders, fault="silent")
    fake.nodes[holders[0]].before = lambda request: clock.sleep(10.0)
    with pytest.raises(AllReplicasFailed, match=r"3 replicas.*no time left"):
        reader.read(REF, replicas=3, deadline=Deadline(10.0, clock=clock))
    assert asked(fake) == [holders[0]]
