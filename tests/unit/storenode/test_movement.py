"""What a plan says of a change, and what it refuses."""

from __future__ import annotations

import pytest

from client.errors import (
    LayoutsPending,
    NodeExists,
    NodeInUse,
    NodeNotFound,
    NodeOverfilled,
    TooFewNodes,
    TooFewZones,
)
from client.placement import Layout, Layouts, Node
from storenode.movement import MAX_OLDER, Add, Drain, NodeFacts, Plan, Remove, SetWeight, SetZone, plan

GIB = 1 << 30


def layout_of(*nodes: Node, version: int = 1) -> Layouts:
    return Layouts(current=Layout(version=version, partitions=1024, nodes=nodes))


def three(*zones: str) -> Layouts:
    names = zip("abc", zones or ("z", "z", "z"), strict=True)
    return layout_of(*(Node(id=name, zone=zone, host=name) for name, zone in names))


def facts(*names: str, held: int = 3 * GIB, free: int = 7 * GIB) -> dict[str, NodeFacts]:
    return {name: NodeFacts(up=True, held_bytes=held, free_bytes=free) for name in names}


def test_a_plan_says_what_moves_and_how_much_fits_afterwards() -> None:
    known = facts("a", "b", "c") | facts("d", held=0, free=10 * GIB)
    made = plan(three(), Add(nodes=(Node(id="d", zone="z", host="d"),)), replicas=2, facts=known)
    told = made.to_json()
    assert told["layout"]["version"] == 2 and told["older"] == [1]
    shares = {node["node_id"]: node for node in told["nodes"]}
    assert shares["d"]["before_share"] == 0 and 0.22 < shares["d"]["after_share"] < 0.28
    assert shares["a"]["gained_share"] == 0 and shares["a"]["gained_bytes"] == 0
    # A quarter of 9 GiB moves. Four disks of 10 GiB hold 20 GiB twice, less what the fullest has above its even share.
    assert 2.0 * GIB < told["moved_bytes"] == shares["d"]["gained_bytes"] < 2.5 * GIB
    assert 17 * GIB < told["usable_bytes"] <= 20 * GIB
    assert told["limited_by"] == max(shares, key=lambda name: float(shares[name]["after_share"]))


def test_unequal_zones_hold_what_the_smallest_of_them_can_mirror() -> None:
    nodes = [Node(id=name, zone=zone, host=name) for name, zone in (("a", "z1"), ("b", "z2"), ("c", "z2"), ("d", "z2"))]
    known = facts("a", "b", "c", "d", "e", held=0, free=10 * GIB)
    made = plan(layout_of(*nodes), Add(nodes=(Node(id="e", zone="z2", host="e"),)), replicas=2, facts=known)
    # Each chunk has a copy in z1, whose one disk is full after 10 GiB, whatever there is in z2.
    assert made.usable_bytes == 10 * GIB and made.limited_by == "a"


def test_without_facts_a_plan_says_nothing_of_bytes() -> None:
    told = plan(three(), Drain(node_id="a"), replicas=2, facts={}).to_json()
    assert told["moved_bytes"] is None and told["usable_bytes"] is None and told["moved_share"] > 0.2


def test_what_changes_nothing_makes_no_layout() -> None:
    known = three()
    draining = plan(known, Drain(node_id="a"), replicas=2, facts={}).layouts
    for layouts, change in (
        (known, SetWeight(node_id="a", weight=1.0)),
        (known, SetZone(node_id="a", zone="z")),
        (draining, Drain(node_id="a")),
    ):
        assert plan(layouts, change, replicas=2, facts={}).layouts is layouts


def test_a_draining_node_can_be_taken_back() -> None:
    known = three()
    draining = plan(known, Drain(node_id="b"), replicas=2, facts={}).layouts
    back = plan(draining, Add(nodes=(known.current.nodes[1],)), replicas=2, facts={}).layouts
    assert back.current.nodes == known.current.nodes and [one.version for one in back.older] == [2, 1]


def test_unknown_and_duplicate_nodes_are_refused() -> None:
    for change in (
        Drain(node_id="x"),
        Remove(node_id="x"),
        SetWeight(node_id="x", weight=2.0),
        SetZone(node_id="x", zone="y"),
    ):
        with pytest.raises(NodeNotFound, match=r"no node 'x'; its nodes are a, b, c.*`forebay node ls`"):
            plan(three(), change, replicas=1, facts={}, force=True)
    with pytest.raises(NodeExists, match="node b is in the layout already, with weight 1 in zone z"):
        plan(three(), Add(nodes=(Node(id="b"),)), replicas=1, facts={}, force=True)


def test_too_few_nodes_for_the_copies_that_a_bucket_asks_for_are_refused_unless_forced() -> None:
    with pytest.raises(TooFewNodes, match=r"asks for 3 copies, and this would leave 2 nodes.*`forebay node add ID`"):
        plan(three(), Drain(node_id="a"), replicas=3, facts={})
    assert len(plan(three(), Drain(node_id="a"), replicas=3, facts={}, force=True).layouts.current.active) == 2
    # A cluster that is too small already may grow.
    plan(three(), Add(nodes=(Node(id="d"),)), replicas=5, facts={})


def test_the_last_node_that_holds_data_stays_even_if_forced() -> None:
    alone = layout_of(Node(id="a"), Node(id="b", state="draining"))
    for change in (Drain(node_id="a"), Remove(node_id="a")):
        with pytest.raises(TooFewNodes, match="no node that holds data; add another one first"):
            plan(alone, change, replicas=1, facts={}, force=True)


def test_copies_that_lie_in_zones_of_their_own_stay_so_unless_forced() -> None:
    four = layout_of(*three("z1", "z2", "z3").current.nodes, Node(id="d", zone="z1"))
    for change in (Drain(node_id="c"), SetZone(node_id="c", zone="z1")):
        with pytest.raises(TooFewZones, match=r"in 3 zones now, and this would leave 2.*in another zone first"):
            plan(four, change, replicas=3, facts={})
        plan(four, change, replicas=3, facts={}, force=True)
        # Two zones are as many as two copies need.
        plan(four, change, replicas=2, facts={})


def test_a_plan_that_overfills_a_node_is_refused_unless_forced() -> None:
    known = facts("a", "b", "c") | facts("d", held=0, free=GIB)
    change = Add(nodes=(Node(id="d", zone="z", host="d"),))
    with pytest.raises(NodeOverfilled, match=r"node d would be given about \d+ bytes and has room for 1073741824 above"):
        plan(three(), change, replicas=2, facts=known)
    plan(three(), change, replicas=2, facts=known, force=True)
    lighter = Add(nodes=(Node(id="d", zone="z", host="d", weight=0.2),))
    plan(three(), lighter, replicas=2, facts=known)


def draining() -> Layouts:
    return Layouts(current=plan(three(), Drain(node_id="c"), replicas=2, facts={}).layouts.current)


def test_a_node_that_counts_is_removed_by_force_only() -> None:
    with pytest.raises(NodeInUse, match=r"node c holds data; drain it first: `forebay node drain c --wait`.*remove c --force"):
        plan(three(), Remove(node_id="c"), replicas=2, facts=facts("c"))
    with pytest.raises(NodeInUse, match=r"node c is still being drained; wait"):
        plan(draining(), Remove(node_id="c"), replicas=2, facts=facts("c"))
    with pytest.raises(NodeInUse, match=r"node c is draining, but down"):
        plan(draining(), Remove(node_id="c"), replicas=2, facts={})
    drained = {"c": NodeFacts(up=False, drained=True)}
    assert [node.id for node in plan(draining(), Remove(node_id="c"), replicas=2, facts=drained).layouts.current.nodes] == [
        "a",
        "b",
    ]


def test_removing_a_lost_node_says_how_many_copies_are_left() -> None:
    def left(made: Plan) -> dict[int, int]:
        return dict(made.copies_left)

    # That nothing is on its disk which belongs elsewhere makes it no drained one.
    known = facts("a", "b") | {"c": NodeFacts(drained=True)}
    lost = plan(three(), Remove(node_id="c"), replicas=2, facts=known, force=True)
    assert left(lost).keys() == {1, 2} and sum(left(lost).values()) == 1024
    # And if another one is down at the moment, some partitions are on no node that is up.
    assert left(plan(three(), Remove(node_id="c"), replicas=2, facts=facts("a"), force=True)).keys() == {0, 1}
    # A node counts once, whichever of the layouts have it.
    older = Layouts(current=plan(three(), SetWeight(node_id="a", weight=2.0), replicas=2, facts={}).layouts.current)
    both = Layouts(current=older.current, older=three().older or (three().current,))
    assert max(left(plan(both, Remove(node_id="c"), replicas=2, facts=facts("a", "b", "c"), force=True))) == 2


def test_no_more_layouts_are_kept_than_a_read_should_try() -> None:
    layouts = three()
    for number in range(MAX_OLDER):
        layouts = plan(layouts, SetWeight(node_id="a", weight=2.0 + number), replicas=2, facts={}).layouts
    with pytest.raises(LayoutsPending, match=r"9 layouts are not complete yet.*`forebay cluster status`"):
        plan(layouts, SetWeight(node_id="a", weight=50.0), replicas=2, facts={}, force=True)
