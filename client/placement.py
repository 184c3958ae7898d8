"""Where a chunk lies: a pure function of its placement key and the layout.

Theory of operation
-------------------
A placement key (the chunk's id, or a group name that the writer chose) falls into one of a fixed power of two of
partitions by the top bits of its xxh3_64. The replicas of a partition are picked by weighted rendezvous hashing
(`client.rendezvous`): each node scores on each partition by itself, and the best scores win. Adding or removing a node
therefore moves only the partitions it wins or held. Replicas take distinct zones first, then distinct hosts, then whatever
nodes are left. `client.replica_table` has all partitions at once.

No table of locations exists anywhere: whoever has a reference and the layout can compute the holders.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Literal, get_args

from client.checksum import xxh3
from client.errors import MetadataCorrupt, Misconfigured
from client.rendezvous import Rendezvous

__all__ = ["DEFAULT_PARTITIONS", "Layout", "Layouts", "Node", "NodeState", "choose_groups", "partition_of"]

DEFAULT_PARTITIONS = 65_536
NodeState = Literal["active", "draining"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """One storage node of a layout.

    Attributes
    ----------
    id : str
        Minted at random in the node's data directory.
    weight : float
        Share of the data relative to other nodes, greater than 0.
    zone, host : str
        Failure domains, the wider one first.
    state : str
        active, or draining: then it is given no partitions, and what it holds under older layouts moves away.
    """

    id: str
    weight: float = 1.0
    zone: str = "zone-1"
    host: str = "localhost"
    state: NodeState = "active"


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """The nodes that hold data, and how many partitions the key space is cut into."""

    version: int
    partitions: int
    nodes: tuple[Node, ...]
    _ranked: dict[tuple[int, int], tuple[str, ...]] = field(init=False, default_factory=dict, compare=False, repr=False)
    # Of one element, once it is needed: most layouts that are read are never asked.
    _contest: list[Rendezvous] = field(init=False, default_factory=list, compare=False, repr=False)

    def __post_init__(self) -> None:
        if self.partitions < 1 or self.partitions & (self.partitions - 1):
            raise Misconfigured(f"partitions must be a power of two, found {self.partitions}")
        if any(not node.weight > 0 for node in self.nodes):
            raise Misconfigured("node weights must be greater than 0")
        if len({node.id for node in self.nodes}) != len(self.nodes):
            raise Misconfigured("a node occurs twice in the layout")
        if any(node.state not in get_args(NodeState) for node in self.nodes):
            raise Misconfigured(f"node states must be one of {', '.join(get_args(NodeState))}")

    @property
    def active(self) -> tuple[Node, ...]:
        """The nodes that are given partitions."""
        return tuple(node for node in self.nodes if node.state == "active")

    def replicas(self, partition: int, *, count: int) -> tuple[str, ...]:
        """Ids of the nodes that hold `partition`, best first.

        Parameters
        ----------
        partition : int
            In ``range(self.partitions)``.
        count : int
            Replicas wanted. Fewer come back where the layout has fewer nodes.
        """
        cached = self._ranked.get((partition, count))
        if cached is None:
            # Bounded by partitions x distinct replica counts; a layout change starts a new cache.
            contest = self.rendezvous
            best = contest.best(partition, count=count)
            cached = self._ranked[partition, count] = tuple(contest.nodes[index].id for index in best)
        return cached

    @property
    def rendezvous(self) -> Rendezvous:
        """The contest of the active nodes for partitions, made when it is first asked for."""
        if not self._contest:
            self._contest.append(Rendezvous(self.active))
        return self._contest[0]

    def to_json(self, *, newer: Layout | None = None) -> dict[str, Any]:
        """The layout as a JSON object; runs of nodes that `newer` has as well are ranges of its nodes, ``[start, end]``."""
        place = {node: number for number, node in enumerate(newer.nodes)} if newer else {}
        nodes: list[dict[str, Any] | list[int]] = []
        for node in self.nodes:
            number, last = place.get(node), nodes[-1] if nodes else None
            if number is None:
                nodes.append(_node_to_json(node))
            elif isinstance(last, list) and last[1] == number:
                last[1] += 1
            else:
                nodes.append([number, number + 1])
        return {"version": self.version, "partitions": self.partitions, "nodes": nodes}

    @classmethod
    def from_json(cls, value: Mapping[str, Any], *, newer: Layout | None = None) -> Layout:
        """The layout that `to_json` wrote; raises `MetadataCorrupt` for anything else."""
        try:
            nodes: list[Node] = []
            for item in value["nodes"]:
                nodes += _run_of(newer, *item) if isinstance(item, list) else [_node_from_json(item)]
            return cls(version=int(value["version"]), partitions=int(value["partitions"]), nodes=tuple(nodes))
        except (KeyError, TypeError, ValueError, OverflowError, Misconfigured) as exc:
            raise MetadataCorrupt(f"the layout record can't be read: {exc!r} in {str(value)[:200]}") from exc


@dataclass(frozen=True, slots=True, kw_only=True)
class Layouts:
    """All layouts under which copies may lie: the current one, and those that it has not yet replaced everywhere.

    Attributes
    ----------
    current : Layout
        Where new copies go, and where all copies belong.
    older : tuple of Layout
        Not retired yet, newest first: their nodes may hold copies that the current holders still lack.
    """

    current: Layout
    older: tuple[Layout, ...] = ()

    def __post_init__(self) -> None:
        versions = [layout.version for layout in (self.current, *self.older)]
        if versions != sorted(set(versions), reverse=True):
            raise Misconfigured(f"layouts must be listed newest first, found versions {versions}")
        if {layout.partitions for layout in self.older} - {self.current.partitions}:
            raise Misconfigured("the number of partitions is fixed when the cluster is made; these layouts differ in it")

    def holders(self, partition: int, *, count: int) -> tuple[str, ...]:
        """Ids of all nodes that may hold `partition`, those of the current layout first, then those of older ones."""
        current = self.current.replicas(partition, count=count)
        if not self.older:
            return current
        more = (node_id for layout in self.older for node_id in layout.replicas(partition, count=count))
        return tuple(dict.fromkeys((*current, *more)))

    def to_json(self) -> list[dict[str, Any]]:
        """The layouts as a JSON list, newest first.

        Each is written as what differs from the one before it, for all of them have to fit into one record of the metadata
        and into each view of the cluster.
        """
        every = (self.current, *self.older)
        return [self.current.to_json(), *(layout.to_json(newer=newer) for newer, layout in pairwise(every))]

    @classmethod
    def from_json(cls, value: Any) -> Layouts:
        """The inverse of `to_json`; raises `MetadataCorrupt`."""
        if not isinstance(value, list) or not value:
            raise MetadataCorrupt(f"the layout record can't be read: expected a list of layouts, found {str(value)[:200]}")
        layouts: list[Layout] = []
        for item in value:
            layouts.append(Layout.from_json(item, newer=layouts[-1] if layouts else None))
        try:
            return cls(current=layouts[0], older=tuple(layouts[1:]))
        except Misconfigured as exc:
            raise MetadataCorrupt(f"the layout record can't be read: {exc.message}") from exc


def partition_of(key: bytes, *, partitions: int) -> int:
    """The partition of a placement key: the top bits of its xxh3_64."""
    return xxh3(key) >> (64 - (partitions.bit_length() - 1)) if partitions > 1 else 0


def choose_groups(layout: Layout, *, name: str, num_groups: int, replicas: int, num_candidates: int = 16) -> tuple[str, ...]:
    """Names of `num_groups` placement groups that load the nodes evenly.

    At random, 64 groups on 10 nodes load the fullest 1.3 times the mean. So each group takes, of a few candidate names, the
    one whose replicas are least loaded so far (Mitzenmacher, "The power of two choices"). First replicas are counted by
    themselves and as much as all replicas together, so that readers, which prefer the first one, are spread as well.
    """
    held: dict[str, float] = dict.fromkeys((node.id for node in layout.nodes), 0.0)
    first = dict(held)
    share = {node.id: 1.0 / node.weight for node in layout.nodes}
    groups = []
    for index in range(num_groups):
        best_name, best_cost, best_nodes = "", math.inf, tuple[str, ...]()
        for candidate in range(num_candidates):
            group = f"{name}/{index}.{candidate}"
            nodes = layout.replicas(partition_of(group.encode(), partitions=layout.partitions), count=replicas)
            cost = sum(held[node] for node in nodes) + len(nodes) * sum(first[node] for node in nodes[:1])
            if cost < best_cost:
                best_name, best_cost, best_nodes = group, cost, nodes
        groups.append(best_name)
        for node in best_nodes:
            held[node] += share[node]
        for node in best_nodes[:1]:
            first[node] += share[node]
    return tuple(groups)


def _node_to_json(node: Node) -> dict[str, Any]:
    return {"id": node.id, "weight": node.weight, "zone": node.zone, "host": node.host, "state": node.state}


def _node_from_json(value: Mapping[str, Any]) -> Node:
    return Node(
        id=str(value["id"]),
        weight=float(value["weight"]),
        zone=str(value["zone"]),
        host=str(value["host"]),
        state=value["state"],
    )


def _run_of(newer: Layout | None, start: int, end: int) -> tuple[Node, ...]:
    if newer is None or not 0 <= start < end <= len(newer.nodes):
        raise ValueError(f"there are no nodes {start} to {end} in the layout before")
    return newer.nodes[start:end]
