"""Changes of a layout as values, and what each would move. Pure: it reads nothing and starts nothing.

Theory of operation
-------------------
A change makes the next layout of the current one, by one version. The older ones stay, because copies lie where they say
until all nodes of the newest one have what it gives them; then the coordinator retires them. So a change is never undone,
only followed by its reverse, and a third one may come before the second is complete.

Before anything is written a plan says which share of the copies moves, what each node gains, and how much data the new
layout can hold. It refuses what could not end well; `force` overrides what is a matter of judgement (copies that share a zone,
a disk that may become full, a node that is lost), never what would leave no node to hold data.

Bytes are estimates: a node counts what lies on its disk (`ChunkStore.estimate`), and shares are counted in partitions.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

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
from client.replica_table import replica_table

__all__ = [
    "MAX_OLDER",
    "Add",
    "Change",
    "Drain",
    "NodeFacts",
    "Plan",
    "Remove",
    "SetWeight",
    "SetZone",
    "Shift",
    "per_partition",
    "plan",
    "shifts",
]

# Reads may have to try the holders of all layouts, and one record carries them.
MAX_OLDER = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Add:
    """Give data to `nodes`, which are new, or were draining and shall stay."""

    nodes: tuple[Node, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Drain:
    """Take all data from a node, which keeps serving until others have it."""

    node_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Remove:
    """Forget a node: one that was drained, or one that is lost."""

    node_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SetWeight:
    """Change a node's share of the data."""

    node_id: str
    weight: float


@dataclass(frozen=True, slots=True, kw_only=True)
class SetZone:
    """Change a node's zone."""

    node_id: str
    zone: str


Change: TypeAlias = Add | Drain | Remove | SetWeight | SetZone


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeFacts:
    """What is known of a node.

    Attributes
    ----------
    up : bool
        Whether it answers.
    held_bytes, held_chunks : int or None
        On its disk, None if it does not say.
    free_bytes : int or None
        What it could still take, above its reserve.
    drained : bool
        Whether it found that nothing on its disk is needed any more.
    follows : int
        The version of the layout that it goes through the records for.
    fetched_chunks, fetched_bytes : int
        What it has fetched so far because of that layout.
    """

    up: bool = False
    held_bytes: int | None = None
    held_chunks: int | None = None
    free_bytes: int | None = None
    drained: bool = False
    follows: int = 0
    fetched_chunks: int = 0
    fetched_bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Shift:
    """A node's part in a change: how many partitions it holds before and after, and how many it has to fetch."""

    node_id: str
    before: int
    after: int
    gained: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What a change would do.

    Attributes
    ----------
    layouts : Layouts
        As they would be. The current ones where the change changes nothing.
    replicas : int
        Copies of each chunk, for which partitions were counted.
    shifts : tuple of Shift
        Of every node of the layouts before and after.
    partition_bytes : float or None
        Of one copy of an average partition, as far as nodes say.
    usable_bytes : int or None
        Data that the new layout can hold, each byte counted once, before its first node is full.
    limited_by : str
        That node.
    copies_left : mapping of int to int
        Of a node that is removed while it counts: how many partitions keep how many copies on nodes that are up.
    """

    layouts: Layouts
    replicas: int
    shifts: tuple[Shift, ...]
    partition_bytes: float | None = None
    usable_bytes: int | None = None
    limited_by: str = ""
    copies_left: Mapping[int, int] = field(default_factory=dict)

    @property
    def moved(self) -> float:
        """The share of all copies that has to be made anew."""
        return sum(shift.gained for shift in self.shifts) / (sum(shift.after for shift in self.shifts) or 1)

    def bytes_of(self, partitions: int) -> int | None:
        """What so many copies of partitions have, None where nobody says."""
        return None if self.partition_bytes is None else round(partitions * self.partition_bytes)

    def to_json(self) -> dict[str, Any]:
        """The plan as a JSON object."""
        return {
            "layout": self.layouts.current.to_json(),
            "older": [layout.version for layout in self.layouts.older],
            "replicas": self.replicas,
            "moved_share": self.moved,
            "moved_bytes": self.bytes_of(sum(shift.gained for shift in self.shifts)),
            "usable_bytes": self.usable_bytes,
            "limited_by": self.limited_by,
            "copies_left": {str(copies): count for copies, count in sorted(self.copies_left.items())},
            "nodes": [self._shift_json(shift) for shift in self.shifts],
        }

    def _shift_json(self, shift: Shift) -> dict[str, Any]:
        before = sum(each.before for each in self.shifts) or 1
        after = sum(each.after for each in self.shifts) or 1
        return {
            "node_id": shift.node_id,
            "before_share": shift.before / before,
            "after_share": shift.after / after,
            "gained_share": shift.gained / after,
            "gained_bytes": self.bytes_of(shift.gained),
        }


def plan(layouts: Layouts, change: Change, *, replicas: int, facts: Mapping[str, NodeFacts], force: bool = False) -> Plan:
    """What `change` would do to `layouts`.

    Parameters
    ----------
    replicas : int
        The most copies that a bucket asks for.
    facts : mapping of str to NodeFacts
        Of the nodes; what is missing is taken for down.
    force : bool
        Go on where an operator may know better.

    Raises
    ------
    NodeNotFound, NodeExists, NodeInUse
        The change does not fit the nodes that there are.
    TooFewNodes, TooFewZones
        The layout could not hold all copies, or not apart from each other as they are now.
    NodeOverfilled
        A node has no room for what it would be given.
    LayoutsPending
        Too many changes are not complete.
    """
    before = layouts.current
    nodes = _nodes_after(before, change, facts=facts, force=force)
    if nodes == before.nodes:
        return Plan(layouts=layouts, replicas=replicas, shifts=shifts(before, before, replicas=replicas))
    if len(layouts.older) >= MAX_OLDER:
        raise LayoutsPending(
            f"{len(layouts.older) + 1} layouts are not complete yet, and no more than that are kept. Wait until nodes have "
            "what they were given: `forebay cluster status` shows how far they are"
        )
    after = replace(before, version=before.version + 1, nodes=nodes)
    _require_nodes(before, after, replicas=replicas, force=force)
    _require_zones(before, after, replicas=replicas, force=force)
    found = shifts(before, after, replicas=replicas)
    size_bytes = per_partition(found, {node_id: fact.held_bytes for node_id, fact in facts.items()})
    if not force:
        _require_room(found, facts, partition_bytes=size_bytes)
    usable, limited_by = _usable_bytes(found, facts, partitions=after.partitions)
    return Plan(
        layouts=Layouts(current=after, older=(before, *layouts.older)),
        replicas=replicas,
        shifts=found,
        partition_bytes=size_bytes,
        usable_bytes=usable,
        limited_by=limited_by,
        copies_left=_copies_left(layouts, change, facts=facts, replicas=replicas),
    )


def shifts(before: Layout, after: Layout, *, replicas: int) -> tuple[Shift, ...]:
    """How many partitions each node holds under both layouts, and how many it has to fetch."""
    node_ids = tuple(dict.fromkeys(node.id for node in (*before.nodes, *after.nodes)))
    old, new = _holders([before, after], node_ids, replicas=replicas)
    gained = new[~_occurs(new, old)]
    held, holds, gains = (np.bincount(nodes.ravel(), minlength=len(node_ids)).tolist() for nodes in (old, new, gained))
    return tuple(
        Shift(node_id=node_id, before=held[index], after=holds[index], gained=gains[index])
        for index, node_id in enumerate(node_ids)
    )


def per_partition(found: Collection[Shift], held: Mapping[str, int | None]) -> float | None:
    """How much of what nodes hold (bytes, chunks) one copy of an average partition has; None if no node says."""
    known = [(shift.before, held.get(shift.node_id)) for shift in found]
    told = [(partitions, amount) for partitions, amount in known if amount is not None and partitions]
    return sum(amount for _, amount in told) / sum(partitions for partitions, _ in told) if told else None


def _nodes_after(layout: Layout, change: Change, *, facts: Mapping[str, NodeFacts], force: bool) -> tuple[Node, ...]:
    by_id = {node.id: node for node in layout.nodes}
    match change:
        case Add(nodes=nodes):
            return _with_added(by_id, nodes)
        case Drain(node_id=node_id):
            by_id[node_id] = replace(_known(by_id, node_id), state="draining")
        case SetWeight(node_id=node_id, weight=weight):
            by_id[node_id] = replace(_known(by_id, node_id), weight=weight)
        case SetZone(node_id=node_id, zone=zone):
            by_id[node_id] = replace(_known(by_id, node_id), zone=zone)
        case Remove(node_id=node_id):
            _require_unused(_known(by_id, node_id), facts.get(node_id, NodeFacts()), force=force)
            del by_id[node_id]
    return tuple(by_id.values())


def _with_added(by_id: dict[str, Node], nodes: Collection[Node]) -> tuple[Node, ...]:
    for node in nodes:
        found = by_id.get(node.id)
        if found is not None and found.state == "active":
            raise NodeExists(f"node {node.id} is in the layout already, with weight {found.weight:g} in zone {found.zone}")
        by_id[node.id] = node
    return tuple(by_id.values())


def _known(by_id: Mapping[str, Node], node_id: str) -> Node:
    if node_id not in by_id:
        named = ", ".join(by_id) or "none"
        raise NodeNotFound(f"the layout has no node {node_id!r}; its nodes are {named}. `forebay node ls` shows all")
    return by_id[node_id]


def _require_unused(node: Node, facts: NodeFacts, *, force: bool) -> None:
    if force or (node.state == "draining" and facts.drained):
        return
    if node.state == "draining":
        found = "is still being drained" if facts.up else "is draining, but down, so that it can't say that it is empty"
        do = f"wait for it (`forebay node drain {node.id} --wait`)"
    else:
        found, do = "holds data", f"drain it first: `forebay node drain {node.id} --wait`"
    raise NodeInUse(f"node {node.id} {found}; {do}. If it is lost for good: `forebay node remove {node.id} --force`")


def _require_nodes(before: Layout, after: Layout, *, replicas: int, force: bool) -> None:
    num_before, num_after = len(before.active), len(after.active)
    if not num_after:
        raise TooFewNodes("this would leave no node that holds data; add another one first (`forebay node add ID`)")
    # A cluster that can't hold them now is not made worse by a change that adds nodes.
    if num_after < min(replicas, num_before) and not force:
        raise TooFewNodes(
            f"a bucket asks for {replicas} copies, and this would leave {num_after} nodes to hold them. Add a node first "
            "(`forebay node add ID`), lower the bucket's replicas, or accept fewer copies with --force"
        )


def _require_zones(before: Layout, after: Layout, *, replicas: int, force: bool) -> None:
    num_before, num_after = (len({node.zone for node in layout.active}) for layout in (before, after))
    if num_after < min(replicas, num_before) and not force:
        raise TooFewZones(
            f"copies lie in {min(replicas, num_before)} zones now, and this would leave {num_after}, so that one zone's "
            "failure takes more copies of a chunk than today. Add a node in another zone first, or accept it with --force"
        )


def _require_room(found: Collection[Shift], facts: Mapping[str, NodeFacts], *, partition_bytes: float | None) -> None:
    # What a node gives up stays on its disk until the change is complete, so only what is free now counts.
    for shift in found:
        free = facts.get(shift.node_id, NodeFacts()).free_bytes
        needed = round(shift.gained * (partition_bytes or 0))
        if free is not None and needed > free:
            raise NodeOverfilled(
                f"node {shift.node_id} would be given about {needed} bytes and has room for {free} above its reserve. Give "
                "it a smaller weight, add more nodes at once, or free space there; --force tries all the same",
                node_id=shift.node_id,
            )


def _usable_bytes(found: Collection[Shift], facts: Mapping[str, NodeFacts], *, partitions: int) -> tuple[int | None, str]:
    """Data that fits before the first node is full, and that node."""
    full: list[tuple[float, str]] = []
    for shift in found:
        fact = facts.get(shift.node_id, NodeFacts())
        if not shift.after:
            continue
        if fact.held_bytes is None or fact.free_bytes is None:
            return None, ""
        full.append(((fact.held_bytes + fact.free_bytes) / shift.after, shift.node_id))
    bytes_each, node_id = min(full)
    return round(bytes_each * partitions), node_id


def _copies_left(layouts: Layouts, change: Change, *, facts: Mapping[str, NodeFacts], replicas: int) -> dict[int, int]:
    """How many partitions keep how many copies when a node goes that was not drained."""
    if not isinstance(change, Remove):
        return {}
    (node,) = (node for node in layouts.current.nodes if node.id == change.node_id)
    if node.state == "draining" and facts.get(node.id, NodeFacts()).drained:
        return {}
    every = [layouts.current, *layouts.older]
    node_ids = tuple(dict.fromkeys(node.id for layout in every for node in layout.nodes))
    left = np.array([facts.get(node_id, NodeFacts()).up and node_id != change.node_id for node_id in node_ids])
    counts = np.zeros(layouts.current.partitions, dtype=np.int64)
    tables = _holders(every, node_ids, replicas=replicas)
    for number, table in enumerate(tables):
        fresh = left[table]
        for earlier in tables[:number]:
            fresh &= ~_occurs(table, earlier)
        counts += fresh.sum(axis=1)
    return {copies: count for copies, count in enumerate(np.bincount(counts).tolist()) if count}


def _holders(layouts: Collection[Layout], node_ids: Collection[str], *, replicas: int) -> list[npt.NDArray[np.int64]]:
    """For each layout ``[partitions, replicas]``: the holders, as indexes into `node_ids`."""
    index = {node_id: number for number, node_id in enumerate(node_ids)}
    return [
        np.array([index[node.id] for node in layout.nodes], dtype=np.int64)[replica_table(layout, count=replicas)]
        for layout in layouts
    ]


def _occurs(nodes: npt.NDArray[np.int64], among: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
    """For each holder in `nodes` whether it holds the same partition in `among`."""
    found = np.zeros(nodes.shape, dtype=np.bool_)
    for column in range(among.shape[1]):
        found |= nodes == among[:, column, None]
    return found
