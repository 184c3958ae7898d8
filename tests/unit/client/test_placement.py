"""Where chunks lie: zones and hosts, weights, validation, and the balance of chosen groups."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace

import pytest

from client.checksum import xxh3
from client.errors import MetadataCorrupt, Misconfigured
from client.placement import DEFAULT_PARTITIONS, Layout, Layouts, Node, choose_groups, partition_of
from tests.golden.contract import FOLDER, placement_vectors


def layout_of(*nodes: Node, partitions: int = 1024) -> Layout:
    return Layout(version=1, partitions=partitions, nodes=nodes)


def ten_nodes() -> Layout:
    return layout_of(*(Node(id=f"n{i}", host=f"h{i}") for i in range(10)), partitions=DEFAULT_PARTITIONS)


def share_of(layout: Layout, *, count: int) -> Counter[str]:
    return Counter(node for p in range(layout.partitions) for node in layout.replicas(p, count=count))


def test_placement_is_what_it_was_when_data_was_written() -> None:
    assert placement_vectors() == json.loads((FOLDER / "placement.json").read_text())


def test_replicas_take_distinct_zones_then_distinct_hosts_then_any_node() -> None:
    layout = layout_of(
        Node(id="a1", zone="a", host="1"),
        Node(id="a1b", zone="a", host="1"),
        Node(id="a2", zone="a", host="2"),
        Node(id="b1", zone="b", host="1"),
    )
    zone = {node.id: node.zone for node in layout.nodes}
    host = {node.id: (node.zone, node.host) for node in layout.nodes}
    for partition in range(layout.partitions):
        found = layout.replicas(partition, count=4)
        assert {zone[node] for node in found[:2]} == {"a", "b"}
        assert len({host[node] for node in found[:3]}) == 3
        assert sorted(found) == ["a1", "a1b", "a2", "b1"]


def test_hosts_of_one_name_in_two_zones_are_two_hosts() -> None:
    layout = layout_of(Node(id="x", zone="a", host="h"), Node(id="y", zone="b", host="h"))
    assert all(set(layout.replicas(p, count=2)) == {"x", "y"} for p in range(64))


def test_fewer_nodes_than_replicas_give_what_there_is() -> None:
    assert layout_of(Node(id="only")).replicas(5, count=3) == ("only",)
    assert layout_of().replicas(5, count=3) == ()


def test_equal_nodes_hold_equal_shares() -> None:
    share = share_of(ten_nodes(), count=3)
    assert max(share.values()) / (DEFAULT_PARTITIONS * 3 / 10) < 1.02


def test_weights_are_shares() -> None:
    nodes = (Node(id="small", weight=1.0), Node(id="double", weight=2.0), Node(id="triple", weight=3.0))
    share = share_of(layout_of(*nodes, partitions=16_384), count=1)
    for node in nodes:
        assert share[node.id] / 16_384 == pytest.approx(node.weight / 6, rel=0.05)


def test_every_hash_has_a_score(monkeypatch: pytest.MonkeyPatch) -> None:
    # The ends of the range: a logarithm of 0, and one of 1, by which the weight would be divided.
    for extreme in (0, 2**64 - 1):
        monkeypatch.setattr("xxhash.xxh3_64_intdigest", lambda data, seed=0, extreme=extreme: extreme)
        assert layout_of(Node(id="b"), Node(id="a")).replicas(0, count=1) == ("a",)


def test_a_layout_made_from_another_does_not_inherit_its_answers() -> None:
    old = layout_of(Node(id="a"))
    assert old.replicas(7, count=1) == ("a",)
    assert replace(old, version=2, nodes=(Node(id="b"),)).replicas(7, count=1) == ("b",)


@pytest.mark.parametrize("partitions", [0, -1, 3, 1000])
def test_partitions_must_be_a_power_of_two(partitions: int) -> None:
    with pytest.raises(Misconfigured, match="power of two"):
        layout_of(Node(id="a"), partitions=partitions)


@pytest.mark.parametrize("weight", [0.0, -1.0, float("nan")])
def test_weights_must_be_positive(weight: float) -> None:
    with pytest.raises(Misconfigured, match="greater than 0"):
        layout_of(Node(id="a", weight=weight))


def test_a_node_may_occur_once() -> None:
    with pytest.raises(Misconfigured, match="twice"):
        layout_of(Node(id="a"), Node(id="a", host="other"))


def test_layouts_come_back_from_json() -> None:
    layout = ten_nodes()
    assert Layout.from_json(json.loads(json.dumps(layout.to_json()))) == layout


@pytest.mark.parametrize(
    "damage", [{"nodes": 5}, {"partitions": 3}, {"version": "x"}, {"nodes": [{}]}, {"partitions": float("inf")}]
)
def test_a_damaged_layout_is_metadata_corrupt(damage: dict[str, object]) -> None:
    with pytest.raises(MetadataCorrupt, match="layout"):
        Layout.from_json({**ten_nodes().to_json(), **damage})


def test_partition_is_the_top_bits_of_the_hash() -> None:
    for partitions in (1, 2, 64, DEFAULT_PARTITIONS):
        assert partition_of(b"key", partitions=partitions) == xxh3(b"key") * partitions >> 64


@pytest.mark.parametrize(("num_nodes", "replicas"), [(10, 3), (12, 3), (5, 2), (3, 3), (2, 1)])
def test_chosen_groups_load_nodes_as_evenly_as_whole_groups_can(num_nodes: int, replicas: int) -> None:
    layout = layout_of(*(Node(id=f"n{i}", host=f"h{i}") for i in range(num_nodes)), partitions=DEFAULT_PARTITIONS)
    held, first = loads(layout, choose_groups(layout, name="w", num_groups=64, replicas=replicas), replicas=replicas)
    assert max(held.values()) <= -(-64 * replicas // num_nodes) + 1
    assert max(first.values()) <= -(-64 // num_nodes) + 1


def test_chosen_groups_follow_weights() -> None:
    nodes = [Node(id=f"n{i}", host=f"h{i}", weight=2.0 if i < 2 else 1.0) for i in range(6)]
    layout = layout_of(*nodes, partitions=DEFAULT_PARTITIONS)
    held, _ = loads(layout, choose_groups(layout, name="w", num_groups=128, replicas=2), replicas=2)
    for node in nodes:
        assert held[node.id] == pytest.approx(128 * 2 * node.weight / 8, rel=0.15)


def test_groups_have_names_of_their_own() -> None:
    layout = ten_nodes()
    ours, theirs = (choose_groups(layout, name=name, num_groups=64, replicas=3) for name in ("ours", "theirs"))
    assert len({*ours, *theirs}) == 128
    assert ours == choose_groups(layout, name="ours", num_groups=64, replicas=3)


def test_groups_can_be_named_without_nodes() -> None:
    assert len(set(choose_groups(layout_of(), name="w", num_groups=4, replicas=3))) == 4


def loads(layout: Layout, groups: tuple[str, ...], *, replicas: int) -> tuple[Counter[str], Counter[str]]:
    held, first = Counter[str](), Counter[str]()
    for group in groups:
        nodes = layout.replicas(partition_of(group.encode(), partitions=layout.partitions), count=replicas)
        held.update(nodes)
        first.update(nodes[:1])
    return held, first


def node(name: str) -> Node:
    return Node(id=name)


def test_a_draining_node_is_given_no_partitions() -> None:
    before = layout_of(*map(node, "abc"))
    after = replace(before, version=2, nodes=(*before.nodes[:2], replace(before.nodes[2], state="draining")))
    without = replace(before, version=2, nodes=before.nodes[:2])
    for partition in range(before.partitions):
        assert after.replicas(partition, count=2) == without.replicas(partition, count=2)
    assert Layout.from_json(after.to_json()) == after


def test_copies_are_looked_for_under_all_layouts_the_current_one_first() -> None:
    nodes = layout_of(*map(node, "abcd")).nodes
    first = Layout(version=1, partitions=64, nodes=nodes[:2])
    second = Layout(version=2, partitions=64, nodes=nodes[:3])
    third = Layout(version=3, partitions=64, nodes=nodes[2:])
    layouts = Layouts(current=third, older=(second, first))
    for partition in range(64):
        holders = layouts.holders(partition, count=2)
        assert holders[:2] == third.replicas(partition, count=2)
        assert set(holders) == {node for each in (third, second, first) for node in each.replicas(partition, count=2)}
        assert Layouts(current=third).holders(partition, count=2) == third.replicas(partition, count=2)
    assert Layouts.from_json(layouts.to_json()) == layouts


def test_an_older_layout_is_written_as_what_differs_from_the_newer_one() -> None:
    first = layout_of(*map(node, "abcdef"))
    nodes = first.nodes
    second = replace(first, version=2, nodes=(*nodes[:2], replace(nodes[2], weight=2.0), *nodes[3:], node("g")))
    third = replace(second, version=3, nodes=second.nodes[1:])
    layouts = Layouts(current=third, older=(second, first))
    newest, older, oldest = written = json.loads(json.dumps(layouts.to_json()))
    assert newest == third.to_json()
    assert older["nodes"] == [first.to_json()["nodes"][0], [0, 6]]
    assert oldest["nodes"] == [[0, 2], first.to_json()["nodes"][2], [3, 6]]
    assert Layouts.from_json(written) == layouts


@pytest.mark.parametrize("run", [[0, 4], [-1, 2], [1, 1], [2, 1], [0], ["0", 1], [0, 1, 2], [0.0, 1.0]])
def test_a_range_of_nodes_that_do_not_exist_is_metadata_corrupt(run: list[object]) -> None:
    newest = layout_of(*map(node, "abc")).to_json()
    with pytest.raises(MetadataCorrupt, match="layout"):
        Layouts.from_json([{**newest, "version": 2}, {**newest, "nodes": [run]}])
    with pytest.raises(MetadataCorrupt, match="layout"):
        Layouts.from_json([{**newest, "nodes": [[0, 1]]}])


@pytest.mark.parametrize("versions", [(1, 2), (2, 2), (3, 1, 2)])
def test_layouts_are_listed_newest_first(versions: tuple[int, ...]) -> None:
    current, *older = (replace(layout_of(node("a")), version=version) for version in versions)
    with pytest.raises(Misconfigured, match="newest first"):
        Layouts(current=current, older=tuple(older))
    with pytest.raises(MetadataCorrupt):
        Layouts.from_json([each.to_json() for each in (current, *older)])
