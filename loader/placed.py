"""Which lanes go to which ranks, so that as many as possible are read where a copy of them lies.

Theory of operation
-------------------
Each batch is cut into runs along an order of the lanes, so each rank takes a stretch of *places* in that order: L / W of them
where W divides L, else the rank that has most of a place counts as its owner. Bringing lanes to places whose owners' hosts
hold them is a matching in which each host takes as many lanes as it has places. It begins greedily, and is made as large as
can be by augmenting paths: a lane that found no place pushes others along from host to host until one of them finds a free
place (Ford and Fulkerson, "Maximal flow through a network", 1956). Hosts from which no free place can be reached never can
be later, so each is given up once.

Invariants: pure and deterministic; the result is a permutation of the lanes, whatever comes in. It decides who reads what, and
never what a global batch is. This module does not know nodes, layouts or how ranks agree (`loader.agreement`).
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Sequence

__all__ = ["num_local", "owner_of_place", "place_lanes"]


def owner_of_place(place: int, *, num_lanes: int, world_size: int) -> int:
    """The rank that reads most of the rows of the lane at this place."""
    return (2 * place + 1) * world_size // (2 * num_lanes)


def place_lanes(holders: Sequence[Sequence[str]], *, hosts: Sequence[str]) -> tuple[int, ...]:
    """The lanes in an order in which as many as possible are at places of ranks whose hosts hold them.

    Parameters
    ----------
    holders : sequence of sequences of str
        For each lane, the hosts that have copies of it.
    hosts : sequence of str
        The host of each rank.

    Returns
    -------
    tuple of int
        The lane of each place. Lanes of one host, and those that no rank has at hand, are in ascending order.
    """
    places: dict[str, list[int]] = {host: [] for host in hosts}
    for place in range(len(holders)):
        places[hosts[owner_of_place(place, num_lanes=len(holders), world_size=len(hosts))]].append(place)
    room = {host: len(own) for host, own in places.items() if own}
    matched = _match([[host for host in dict.fromkeys(some) if host in room] for some in holders], room)
    order = [-1] * len(holders)
    for host, lanes in matched.items():
        for place, lane in zip(places[host], sorted(lanes), strict=False):
            order[place] = lane
    rest = iter(sorted(set(range(len(holders))).difference(order)))
    return tuple(next(rest) if lane < 0 else lane for lane in order)


def num_local(order: Sequence[int], holders: Sequence[Sequence[str]], *, hosts: Sequence[str]) -> int:
    """How many lanes are at places of ranks whose hosts hold them."""
    owners = (owner_of_place(place, num_lanes=len(order), world_size=len(hosts)) for place in range(len(order)))
    return sum(hosts[rank] in holders[lane] for lane, rank in zip(order, owners, strict=True))


def _match(options: Sequence[Sequence[str]], room: dict[str, int]) -> dict[str, set[int]]:
    """Lanes of each host, as many as possible in all: each at one of its options, no more at a host than it has room for."""
    free = Counter(room)
    lanes: dict[str, set[int]] = {host: set() for host in room}
    at: dict[int, str] = {}
    for lane, hosts in enumerate(options):
        best = max(hosts, key=free.__getitem__, default=None)
        if best is not None and free[best]:
            free[best] -= 1
            lanes[best].add(lane)
            at[lane] = best
    hopeless: set[str] = set()
    for lane in range(len(options)):
        if lane not in at:
            _augment(lane, options, free=free, lanes=lanes, at=at, hopeless=hopeless)
    return lanes


def _augment(
    lane: int,
    options: Sequence[Sequence[str]],
    *,
    free: Counter[str],
    lanes: dict[str, set[int]],
    at: dict[int, str],
    hopeless: set[str],
) -> None:
    """Find a place for `lane` by moving others, if there is any way to."""
    mover = {host: lane for host in options[lane] if host not in hopeless}  # Which lane would come to the host.
    queue = deque(mover)
    while queue:
        host = queue.popleft()
        if free[host]:
            free[host] -= 1
            while True:
                moved = mover[host]
                left = at.get(moved)
                at[moved] = host
                lanes[host].add(moved)
                if left is None:
                    return
                lanes[left].remove(moved)
                host = left
        for other in sorted(lanes[host]):
            for further in options[other]:
                if further not in mover and further not in hopeless:
                    mover[further] = other
                    queue.append(further)
    hopeless.update(mover)
