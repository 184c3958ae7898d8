"""Changes of a layout: they move what they must, draining is as good as gone, and no sequence of them loses a version."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from client.errors import NodeExists, NodeNotFound, StoreError, TooFewNodes
from client.placement import Layout, Layouts, Node
from storenode.movement import (
    MAX_OLDER,
    Add,
    Change,
    Drain,
    NodeFacts,
    Remove,
    SetWeight,
    SetZone,
    per_partition,
    plan,
    shifts,
)

PARTITIONS = 256
NAMES = [f"{number:016x}" for number in range(12)]
REPLICAS = st.integers(1, 4)


@st.composite
def layouts(draw: st.DrawFn, *, min_nodes: int = 2, zones: int = 3) -> Layout:
    names = draw(st.lists(st.sampled_from(NAMES), min_size=min_nodes, max_size=8, unique=True))
    nodes = (Node(id=name, zone=f"z{draw(st.integers(1, zones))}", host=name) for name in names)
    return Layout(version=draw(st.integers(1, 9)), partitions=PARTITIONS, nodes=tuple(nodes))


def changes() -> st.SearchStrategy[Change]:
    names = st.sampled_from(NAMES)
    return st.one_of(
        st.builds(Add, nodes=st.lists(st.builds(Node, id=names), min_size=1, max_size=3, unique_by=lambda n: n.id).map(tuple)),
        st.builds(Drain, node_id=names),
        st.builds(Remove, node_id=names),
        st.builds(SetWeight, node_id=names, weight=st.sampled_from([0.5, 1.0, 2.0])),
        st.builds(SetZone, node_id=names, zone=st.sampled_from(["z1", "z2", "z9"])),
    )


@given(layout=layouts(zones=1), replicas=REPLICAS)
def test_a_new_node_gets_its_share_and_nothing_else_moves(layout: Layout, replicas: int) -> None:
    newcomer = Node(id="f" * 16, zone="z1", host="new")
    made = plan(Layouts(current=layout), Add(nodes=(newcomer,)), replicas=replicas, facts={})
    (joined,) = [shift for shift in made.shifts if shift.node_id == newcomer.id]
    # Where there are more nodes than replicas, nobody but the new one fetches anything: that is the least that can move.
    assert all(shift.gained == 0 for shift in made.shifts if shift is not joined)
    assert joined.before == 0 and joined.gained == joined.after
    copies = min(replicas, len(layout.nodes) + 1) * PARTITIONS
    assert sum(shift.after for shift in made.shifts) == copies
    # The ideal is an even share; that of 256 partitions lies within a few standard deviations of it.
    ideal = copies / (len(layout.nodes) + 1)
    assert joined.gained <= ideal + 5 * ideal**0.5


@given(layout=layouts(), replicas=REPLICAS, index=st.integers(0, 7))
def test_draining_moves_what_the_node_holds_and_is_removal_for_placement(layout: Layout, replicas: int, index: int) -> None:
    victim = layout.nodes[index % len(layout.nodes)]
    drained = plan(Layouts(current=layout), Drain(node_id=victim.id), replicas=replicas, facts={}, force=True)
    removed = plan(Layouts(current=layout), Remove(node_id=victim.id), replicas=replicas, facts={}, force=True)
    for partition in range(0, PARTITIONS, 37):
        holders = drained.layouts.current.replicas(partition, count=replicas)
        assert victim.id not in holders
        assert holders == removed.layouts.current.replicas(partition, count=replicas)
    # Going from drained to gone moves nothing at all.
    gone = plan(drained.layouts, Remove(node_id=victim.id), replicas=replicas, facts={victim.id: NodeFacts(drained=True)})
    assert gone.moved == 0 and gone.copies_left == {}


@given(layout=layouts(), replicas=REPLICAS, made=changes())
def test_a_change_moves_no_partition_whose_best_nodes_it_does_not_touch(layout: Layout, replicas: int, made: Change) -> None:
    """The least that can move: a copy is fetched only where the holders of its partition differ, one for each new holder."""
    with suppress(NodeNotFound, NodeExists, TooFewNodes):
        after = plan(Layouts(current=layout), made, replicas=replicas, facts={}, force=True).layouts.current
        counted = {shift.node_id: shift.gained for shift in shifts(layout, after, replicas=replicas)}
        looked = dict.fromkeys(counted, 0)
        for partition in range(PARTITIONS):
            old, new = layout.replicas(partition, count=replicas), after.replicas(partition, count=replicas)
            for node_id in set(new) - set(old):
                looked[node_id] += 1
        assert counted == looked


@given(layout=layouts(), steps=st.lists(changes(), max_size=14), replicas=REPLICAS)
def test_any_sequence_of_changes_keeps_every_version_in_order(layout: Layout, steps: list[Change], replicas: int) -> None:
    known, seen = Layouts(current=layout), [layout]
    for step in steps:
        try:
            made = plan(known, step, replicas=replicas, facts={}, force=True)
        except (NodeNotFound, NodeExists, TooFewNodes):
            continue
        if made.layouts == known:
            assert made.moved == 0
            continue
        assert made.layouts.older == (known.current, *known.older)
        assert made.layouts.current.version == known.current.version + 1
        assert made.layouts.current.active
        known = made.layouts
        seen.append(known.current)
        if len(known.older) == MAX_OLDER:
            # The nodes have caught up: the coordinator retires them.
            known = Layouts(current=known.current)
    assert [one.version for one in seen] == list(range(layout.version, layout.version + len(seen)))


@given(layout=layouts(), made=changes(), replicas=REPLICAS)
def test_what_is_not_forced_never_has_fewer_copies_or_zones_than_before(layout: Layout, made: Change, replicas: int) -> None:
    try:
        after = plan(Layouts(current=layout), made, replicas=replicas, facts={}).layouts.current
    except StoreError as error:
        assert error.status in (404, 409)
        return
    for count in (len, lambda nodes: len({node.zone for node in nodes})):
        assert count(after.active) >= min(replicas, count(layout.active))


@given(layout=layouts(), held=st.integers(0, 10**12))
def test_bytes_are_concluded_from_the_nodes_that_say_what_they_hold(layout: Layout, held: int) -> None:
    found = shifts(layout, replace(layout, version=layout.version + 1), replicas=2)
    assert per_partition(found, {}) is None
    first = found[0]
    if first.before:
        assert per_partition(found, {first.node_id: held, "stranger": 5}) == held / first.before
