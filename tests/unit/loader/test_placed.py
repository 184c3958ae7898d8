"""Lanes as a writer would group them, and ranks on the hosts of the nodes that hold them."""

from __future__ import annotations

import pytest

from client.placement import Layout, Node, choose_groups, partition_of
from loader.placed import num_local, place_lanes

PARTITIONS = 4096


@pytest.mark.parametrize(("num_hosts", "num_lanes", "ranks_per_host"), [(32, 256, 1), (32, 256, 8), (8, 64, 4)])
def test_with_two_copies_nearly_all_lanes_reach_a_rank_at_hand(num_hosts: int, num_lanes: int, ranks_per_host: int) -> None:
    nodes = tuple(Node(id=f"node-{number}", host=f"host-{number}") for number in range(num_hosts))
    layout = Layout(version=1, partitions=PARTITIONS, nodes=nodes)
    groups = choose_groups(layout, name="set", num_groups=num_lanes, replicas=2)
    partitions = [partition_of(group.encode(), partitions=PARTITIONS) for group in groups]
    holders = [[node.replace("node", "host") for node in layout.replicas(number, count=2)] for number in partitions]
    hosts = [f"host-{number}" for number in range(num_hosts) for _ in range(ranks_per_host)]
    assert num_local(place_lanes(holders, hosts=hosts), holders, hosts=hosts) >= 0.99 * num_lanes
    assert num_local(range(num_lanes), holders, hosts=hosts) < 0.5 * num_lanes


def test_lanes_that_nobody_has_at_hand_go_where_there_is_room() -> None:
    order = place_lanes([["a"], ["b"], [], ["a"], ["elsewhere"], ["b"]], hosts=["b", "a", "c"])
    assert order == (1, 5, 0, 3, 2, 4)
