"""Distances of nodes, and that near ones are asked first."""

from __future__ import annotations

import random
import socket

import pytest

from client.cluster import ClusterView
from client.manifest import make_ref
from client.nearness import MACHINE, NETWORK, ZONES, Nearness
from client.placement import Layout, Layouts, Node
from client.replica import ReplicaReader
from tests.support.fake_cluster import FakeCluster, quick_config
from tests.support.scripted_chunks import ScriptedChunks

NODES = (
    Node(id="here", zone="z1", host="m1"),
    Node(id="near", zone="z1", host="m2"),
    Node(id="far", zone="z2", host="m3"),
)
LAYOUTS = Layouts(current=Layout(version=2, partitions=64, nodes=NODES))


@pytest.mark.parametrize(
    ("zone", "machine", "expected"),
    [
        ("z1", "m1", [MACHINE, NETWORK, ZONES]),
        ("", "m1", [MACHINE, NETWORK, ZONES]),
        ("", "m9", [NETWORK, NETWORK, NETWORK]),
        ("z2", "m9", [ZONES, ZONES, NETWORK]),
    ],
)
def test_distance_is_machine_then_zone_then_any(zone: str, machine: str, expected: list[int]) -> None:
    found = Nearness(zone=zone, machine=machine).of(LAYOUTS)
    assert [found[node.id] for node in NODES] == expected


def test_without_a_name_the_machine_is_the_host() -> None:
    node = Node(id="a", host=socket.gethostname())
    assert Nearness(zone="", machine="").of(Layouts(current=Layout(version=1, partitions=1, nodes=(node,)))) == {"a": MACHINE}


def test_nodes_of_older_layouts_are_known_too_and_a_new_layout_is_seen() -> None:
    nearness = Nearness(zone="z1", machine="m1")
    assert "old" not in nearness.of(LAYOUTS)
    older = Layout(version=1, partitions=64, nodes=(Node(id="old", zone="z2"), *NODES))
    found = nearness.of(Layouts(current=LAYOUTS.current, older=(older,)))
    assert (found["old"], found["here"]) == (ZONES, MACHINE)


@pytest.mark.parametrize(
    ("colocated", "zone", "machine", "expected"),
    [
        ((), "z1", "m1", ["here", "near", "far"]),
        ((), "z2", "m9", ["far"]),
        (("far",), "z1", "m1", ["far", "here", "near"]),
    ],
)
def test_nodes_are_asked_by_distance(colocated: tuple[str, ...], zone: str, machine: str, expected: list[str]) -> None:
    payload = random.Random(1).randbytes(1000)
    ref = make_ref(payload, partitions=64)
    fake = FakeCluster()
    fake.layout = LAYOUTS.current
    fake.view = lambda: ClusterView(  # type: ignore[method-assign]
        cluster_id="fake", layouts=LAYOUTS, endpoints={node.id: (f"http://{node.id}:1",) for node in NODES}
    )
    chunks = ScriptedChunks(fake, {node.id: lambda buffer, deadline: None for node in NODES})
    chunks.near = colocated
    reader = ReplicaReader(fake.cluster, chunks, quick_config(zone=zone, machine=machine, hedge_waste=0))
    for node_id in expected:
        reader.read(ref, replicas=3)
        assert chunks.asked.pop() == node_id
        fake.cluster.failed(node_id)
    assert reader.totals().bytes_local == len(payload) * ((machine == "m1") + bool(colocated))
    assert reader.totals().bytes_other_zone == len(payload) * (machine == "m1" and not colocated)
