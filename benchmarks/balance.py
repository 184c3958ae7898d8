"""What the best placement could do: the loads of nodes that share data as evenly as zones and hosts allow. Pure.

R copies of each chunk lie in distinct zones, then on distinct hosts, then on distinct nodes. So where there are R zones or
more, none can hold more than one copy of everything, and where there are R or fewer, each must hold one; the same goes for
hosts and nodes. Within these bounds data is poured into the nodes like water into vessels as wide as their weights: to one
level, except where a zone, a host or a node is full or must take more. That gives the least peak there can be.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from client.placement import Node

__all__ = ["optimal_loads", "peak"]

# Each halves what is unknown of a level.
_HALVINGS = 60


@dataclass(slots=True, kw_only=True)
class _Vessel:
    """A node (with a weight), or a domain of parts. It holds between `least` and `most` at any level."""

    least: float
    most: float
    weight: float = 0.0
    index: int = -1
    parts: list[_Vessel] = field(default_factory=list)

    def at(self, level: float) -> float:
        """What it holds when water stands at `level`."""
        held = sum(part.at(level) for part in self.parts) if self.parts else level * self.weight
        return min(max(held, self.least), self.most)


def optimal_loads(nodes: Sequence[Node], *, replicas: int) -> list[float]:
    """The load of each node, in copies of the whole data, when its fullest node is as empty as it can be for its weight."""
    loads = [0.0] * len(nodes)
    replicas = min(replicas, len(nodes))
    by_zone: dict[str, dict[str, list[int]]] = {}
    for index, node in enumerate(nodes):
        by_zone.setdefault(node.zone, {}).setdefault(node.host, []).append(index)
    num_hosts = sum(map(len, by_zone.values()))
    all_nodes = _vessel(replicas, 1)
    for hosts in by_zone.values():
        zone = _vessel(replicas, len(by_zone))
        all_nodes.parts.append(zone)
        for indexes in hosts.values():
            host = _vessel(replicas, num_hosts)
            zone.parts.append(host)
            for index in indexes:
                vessel = _vessel(replicas, len(nodes))
                vessel.weight, vessel.index = nodes[index].weight, index
                host.parts.append(vessel)
    _pour(all_nodes, float(replicas), loads)
    return loads


def peak(loads: Sequence[float], nodes: Sequence[Node]) -> float:
    """Load of the fullest node for its weight, relative to all of them."""
    fullest = max(load / node.weight for load, node in zip(loads, nodes, strict=True))
    return fullest * sum(node.weight for node in nodes) / sum(loads)


def _vessel(replicas: int, num_domains: int) -> _Vessel:
    return _Vessel(least=float(replicas >= num_domains), most=1.0 if replicas <= num_domains else float(replicas))


def _pour(vessel: _Vessel, amount: float, loads: list[float]) -> None:
    if not vessel.parts:
        loads[vessel.index] = amount
        return
    low, high = 0.0, 1.0
    while sum(part.at(high) for part in vessel.parts) < amount - 1e-12:
        high *= 2
    for _ in range(_HALVINGS):
        level = (low + high) / 2
        if sum(part.at(level) for part in vessel.parts) < amount:
            low = level
        else:
            high = level
    for part in vessel.parts:
        _pour(part, part.at(high), loads)
