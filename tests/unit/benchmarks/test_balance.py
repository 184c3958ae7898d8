"""The optimum that measured loads are compared with: known cases, and that nothing could be moved to better it."""

from __future__ import annotations

from collections import defaultdict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.balance import optimal_loads, peak
from client.placement import Node


def nodes_of(*zone_sizes: int, weight: float = 1.0) -> list[Node]:
    return [
        Node(id=f"{zone}.{number}", zone=f"z{zone}", host=f"h{number}", weight=weight)
        for zone, size in enumerate(zone_sizes)
        for number in range(size)
    ]


@pytest.mark.parametrize(
    ("zone_sizes", "replicas", "expected"),
    [
        ((4, 4, 4), 3, 1.0),
        ((10,), 3, 1.0),
        ((3, 6, 12), 3, 21 / 9),  # each zone has one copy of all
        ((3, 6, 12), 2, 21 / 18),  # the largest zone is full; the other copy is on nine nodes
        ((3, 6, 12), 1, 1.0),
        ((1, 5), 3, 2.0),  # the lonely node has a copy of all, the others share two
        ((2, 1), 5, 1.0),  # more copies wanted than nodes
    ],
)
def test_the_least_peak_of_known_cases(zone_sizes: tuple[int, ...], replicas: int, expected: float) -> None:
    nodes = nodes_of(*zone_sizes)
    assert peak(optimal_loads(nodes, replicas=replicas), nodes) == pytest.approx(expected)


def test_loads_follow_weights_as_long_as_nothing_is_full() -> None:
    nodes = [*nodes_of(2, 2, 2), *nodes_of(2, 2, 2, weight=2.0)]
    loads = optimal_loads(nodes, replicas=2)
    assert loads == pytest.approx([node.weight * 2 / 18 for node in nodes])


@st.composite
def some_nodes(draw: st.DrawFn) -> list[Node]:
    places = draw(
        st.lists(st.tuples(st.integers(0, 3), st.integers(0, 2), st.sampled_from([0.5, 1.0, 3.0])), min_size=1, max_size=9)
    )
    return [
        Node(id=str(number), zone=f"z{zone}", host=f"h{host}", weight=weight)
        for number, (zone, host, weight) in enumerate(places)
    ]


@given(nodes=some_nodes(), replicas=st.integers(1, 5))
def test_nothing_can_be_moved_off_the_fullest_node(nodes: list[Node], replicas: int) -> None:
    loads = optimal_loads(nodes, replicas=replicas)
    replicas = min(replicas, len(nodes))
    assert sum(loads) == pytest.approx(replicas)
    levels: list[tuple[object, ...]] = [(node.zone, (node.zone, node.host), node.id) for node in nodes]
    held: dict[object, float] = defaultdict(float)
    for domains, load in zip(levels, loads, strict=True):
        for domain in domains:
            held[domain] += load
    sizes = [len(set(level)) for level in zip(*levels, strict=True)]
    for domains in levels:
        for domain, size in zip(domains, sizes, strict=True):
            assert replicas < size or held[domain] > 1 - 1e-6
            assert replicas > size or held[domain] < 1 + 1e-6
    fullest = max(range(len(nodes)), key=lambda index: loads[index] / nodes[index].weight)
    for index, node in enumerate(nodes):
        if loads[index] / node.weight < loads[fullest] / nodes[fullest].weight - 1e-6:
            apart = [
                (mine, theirs, size)
                for mine, theirs, size in zip(levels[fullest], levels[index], sizes, strict=True)
                if mine != theirs
            ]
            stuck = any(
                (replicas >= size and held[mine] < 1 + 1e-6) or (replicas <= size and held[theirs] > 1 - 1e-6)
                for mine, theirs, size in apart
            )
            assert stuck, f"{nodes[fullest].id} could give to {node.id}"
