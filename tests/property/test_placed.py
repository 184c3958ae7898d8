"""Placing lanes, against a maximum matching found in another way, for any hosts, holders and numbers of ranks."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from loader.placed import num_local, owner_of_place, place_lanes

hosts_of_ranks = st.lists(st.sampled_from("abcdef"), min_size=1, max_size=12)
holders_of_lanes = st.lists(st.lists(st.sampled_from("abcdefgh"), max_size=3), min_size=1, max_size=24)


def most_local(holders: list[list[str]], hosts: list[str]) -> int:
    """The size of a maximum matching of lanes and places, by Kuhn's algorithm."""
    owners = [owner_of_place(place, num_lanes=len(holders), world_size=len(hosts)) for place in range(len(holders))]
    lane_at: dict[int, int] = {}

    def find(lane: int, seen: set[int]) -> bool:
        for place, rank in enumerate(owners):
            if hosts[rank] in holders[lane] and place not in seen:
                seen.add(place)
                if place not in lane_at or find(lane_at[place], seen):
                    lane_at[place] = lane
                    return True
        return False

    return sum(find(lane, set()) for lane in range(len(holders)))


@given(holders_of_lanes, hosts_of_ranks)
def test_as_many_lanes_as_possible_are_at_hand_and_none_is_lost(holders: list[list[str]], hosts: list[str]) -> None:
    order = place_lanes(holders, hosts=hosts)
    assert sorted(order) == list(range(len(holders)))
    assert num_local(order, holders, hosts=hosts) == most_local(holders, hosts)
    assert order == place_lanes(holders, hosts=hosts)


@given(st.integers(1, 100), st.integers(1, 130))
def test_the_owner_of_a_place_has_most_of_its_rows(num_lanes: int, world_size: int) -> None:
    for place in range(num_lanes):
        # In units of 1/(L·W) of a batch: rank r has [rL, (r+1)L), the place has [place·W, (place+1)·W).
        shares = [
            max(0, min((rank + 1) * num_lanes, (place + 1) * world_size) - max(rank * num_lanes, place * world_size))
            for rank in range(world_size)
        ]
        assert shares[owner_of_place(place, num_lanes=num_lanes, world_size=world_size)] == max(shares)
