"""Placement over any layout: distinct failure domains, stable prefixes, and no more movement than a change asks for.

What is quick for many nodes gives what sorting all of them gives.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from random import Random

import numpy as np
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from client.checksum import xxh3
from client.placement import Layout, Node, choose_groups, partition_of
from client.replica_table import replica_table, seeded_xxh3

PARTITIONS = 64
WEIGHTS = st.sampled_from([0.1, 1.0, 1.0, 1.0, 2.5, 1000.0])


@st.composite
def layouts(draw: st.DrawFn, *, min_nodes: int = 1, max_nodes: int = 10) -> Layout:
    """Nodes spread over a few zones and hosts, unevenly."""
    ids = draw(
        st.lists(st.text("abcdef0123456789", min_size=1, max_size=6), min_size=min_nodes, max_size=max_nodes, unique=True)
    )
    nodes = tuple(
        Node(
            id=node_id,
            weight=draw(WEIGHTS),
            zone=f"z{draw(st.integers(0, 3))}",
            host=f"h{draw(st.integers(0, 3))}",
        )
        for node_id in ids
    )
    return Layout(version=1, partitions=PARTITIONS, nodes=nodes)


@st.composite
def big_layouts(draw: st.DrawFn) -> Layout:
    """So many nodes that not all are scored, with zones and weights from even to hopeless."""
    random = Random(draw(st.integers(0, 2**32)))
    zones = draw(st.sampled_from([(1,), (1, 1, 1), (1, 2, 40), (1, 1, 1, 1, 300), tuple([1] * 40)]))
    weights = draw(st.sampled_from([(1.0,), (1.0, 4.0), (0.001, 1.0, 1.0, 500.0)]))
    num_hosts = draw(st.sampled_from([1, 3, 1000]))
    nodes = tuple(
        Node(
            id=f"{random.getrandbits(64):016x}",
            weight=random.choice(weights),
            zone=f"z{random.choices(range(len(zones)), zones)[0]}",
            host=f"h{random.randrange(num_hosts)}",
            state=random.choice(["active", "active", "draining"]),
        )
        for _ in range(draw(st.integers(65, 600)))
    )
    return Layout(version=1, partitions=PARTITIONS, nodes=nodes)


def by_sorting_all(layout: Layout, partition: int, *, count: int) -> tuple[str, ...]:
    """The replicas of a partition as docs/FORMAT.md has them, word for word."""

    def rank(node: Node) -> tuple[float, str]:
        key = xxh3(node.id.encode()).to_bytes(8, "little")
        u = (xxhash.xxh3_64_intdigest(key, seed=partition) // 2**12 + 0.5) / 2**52
        return node.weight / math.log(u), node.id

    ranked, chosen = sorted(layout.active, key=rank), list[Node]()
    domains: tuple[Callable[[Node], object], ...] = (lambda n: n.zone, lambda n: (n.zone, n.host), lambda n: n.id)
    for domain in domains:
        for node in ranked:
            if domain(node) not in {domain(other) for other in chosen}:
                chosen.append(node)
    return tuple(node.id for node in chosen[:count])


COUNTS = st.integers(1, 6)


@given(layout=layouts() | big_layouts(), count=COUNTS)
def test_replicas_are_those_that_sorting_all_nodes_gives(layout: Layout, count: int) -> None:
    for partition in (0, 1, PARTITIONS - 1):
        assert layout.replicas(partition, count=count) == by_sorting_all(layout, partition, count=count)


@given(layout=layouts(min_nodes=0) | big_layouts(), count=COUNTS)
def test_the_table_has_the_replicas_of_every_partition(layout: Layout, count: int) -> None:
    table = replica_table(layout, count=count)
    assert table.shape == (PARTITIONS, min(count, len(layout.active)))
    for partition, row in enumerate(table.tolist()):
        assert tuple(layout.nodes[index].id for index in row) == layout.replicas(partition, count=count)


@given(
    keys=st.lists(st.binary(min_size=8, max_size=8), min_size=1, max_size=20),
    seeds=st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=20),
)
def test_the_hash_of_the_table_is_that_of_the_library(keys: list[bytes], seeds: list[int]) -> None:
    found = seeded_xxh3(np.frombuffer(b"".join(keys), dtype="<u8"), np.array(seeds, dtype=np.uint64)[:, None])
    assert found.tolist() == [[xxhash.xxh3_64_intdigest(key, seed=seed) for key in keys] for seed in seeds]


@given(layout=layouts(), count=COUNTS)
def test_replicas_are_distinct_and_as_many_as_there_can_be(layout: Layout, count: int) -> None:
    for partition in range(PARTITIONS):
        found = layout.replicas(partition, count=count)
        assert len(set(found)) == len(found) == min(count, len(layout.nodes))
        assert set(found) <= {node.id for node in layout.nodes}


@given(layout=layouts(), count=COUNTS)
def test_zones_then_hosts_are_as_distinct_as_they_can_be(layout: Layout, count: int) -> None:
    zone = {node.id: node.zone for node in layout.nodes}
    host = {node.id: (node.zone, node.host) for node in layout.nodes}
    for partition in range(PARTITIONS):
        found = layout.replicas(partition, count=count)
        assert len({zone[node] for node in found}) == min(count, len(set(zone.values())))
        # With the zones settled, hosts are the next best thing.
        assert len({host[node] for node in found}) == min(count, len(set(host.values())))


@given(layout=layouts(), count=COUNTS)
def test_one_replica_more_leaves_the_others_where_they_are(layout: Layout, count: int) -> None:
    for partition in range(PARTITIONS):
        assert layout.replicas(partition, count=count + 1)[:count] == layout.replicas(partition, count=count)


@given(layout=layouts(), count=COUNTS, order=st.randoms(use_true_random=False))
def test_placement_does_not_depend_on_the_order_of_nodes_or_of_questions(layout: Layout, count: int, order: object) -> None:
    nodes = list(layout.nodes)
    order.shuffle(nodes)  # type: ignore[attr-defined]
    other = replace(layout, version=9, nodes=tuple(nodes))
    partitions = list(range(PARTITIONS))
    order.shuffle(partitions)  # type: ignore[attr-defined]
    assert {p: other.replicas(p, count=count) for p in partitions} == {
        p: layout.replicas(p, count=count) for p in range(PARTITIONS)
    }


@given(layout=layouts(min_nodes=2), count=COUNTS, data=st.data())
def test_a_node_that_leaves_moves_only_what_it_held(layout: Layout, count: int, data: st.DataObject) -> None:
    gone = data.draw(st.sampled_from(layout.nodes))
    rest = replace(layout, version=2, nodes=tuple(node for node in layout.nodes if node != gone))
    for partition in range(PARTITIONS):
        before = layout.replicas(partition, count=count)
        after = rest.replicas(partition, count=count)
        if gone.id not in before:
            assert after == before
        else:
            # Exactly one copy is made anew, if there is a node left for it.
            assert set(before) - {gone.id} <= set(after)
            assert len(set(after) - set(before)) == min(1, max(0, len(rest.nodes) - count + 1))


@given(layout=layouts(min_nodes=2), count=COUNTS, data=st.data())
def test_a_node_that_joins_takes_copies_and_moves_no_others(layout: Layout, count: int, data: st.DataObject) -> None:
    new = data.draw(st.sampled_from(layout.nodes))
    old = replace(layout, version=0, nodes=tuple(node for node in layout.nodes if node != new))
    for partition in range(PARTITIONS):
        assert set(layout.replicas(partition, count=count)) - set(old.replicas(partition, count=count)) <= {new.id}


@given(layout=layouts(), data=st.data())
def test_a_heavier_node_loses_nothing(layout: Layout, data: st.DataObject) -> None:
    node = data.draw(st.sampled_from(layout.nodes))
    heavier = replace(node, weight=node.weight * data.draw(st.sampled_from([1.5, 10.0])))
    grown = replace(layout, nodes=tuple(heavier if n == node else n for n in layout.nodes))
    for partition in range(PARTITIONS):
        if layout.replicas(partition, count=1) == (node.id,):
            assert grown.replicas(partition, count=1) == (node.id,)


@given(key=st.binary(max_size=64), power=st.integers(0, 20))
def test_a_finer_cut_of_the_keys_only_divides_partitions(key: bytes, power: int) -> None:
    coarse, fine = partition_of(key, partitions=1 << power), partition_of(key, partitions=1 << (power + 3))
    assert 0 <= coarse < 1 << power
    assert fine >> 3 == coarse


@given(layout=layouts(), num_groups=st.integers(0, 16), replicas=st.integers(1, 4), name=st.text(max_size=5))
def test_groups_are_distinct_repeatable_and_no_worse_than_the_first_names(
    layout: Layout, num_groups: int, replicas: int, name: str
) -> None:
    groups = choose_groups(layout, name=name, num_groups=num_groups, replicas=replicas)
    assert len(set(groups)) == num_groups
    assert groups == choose_groups(layout, name=name, num_groups=num_groups, replicas=replicas)
    plain = choose_groups(layout, name=name, num_groups=num_groups, replicas=replicas, num_candidates=1)
    assert spread(layout, groups, replicas) <= spread(layout, plain, replicas) + 2.0


def spread(layout: Layout, groups: tuple[str, ...], replicas: int) -> float:
    """Load of the fullest node, in groups a unit of weight, relative to the lightest node."""
    held = Counter[str]()
    for group in groups:
        held.update(layout.replicas(partition_of(group.encode(), partitions=layout.partitions), count=replicas))
    least = min(node.weight for node in layout.nodes)
    return max((held[node.id] * least / node.weight for node in layout.nodes), default=0.0)
