"""Changing the layout on an operator's word: facts are gathered, a plan is made, and its layouts are committed.

A plan is made for the layouts that were read, and committed only if they are still those. If another change comes first, the
plan is made anew for what is there then: of two operators that race both are done, one after the other, or the second is told
why not. What a plan may do, `storenode.movement` says; nothing here moves a chunk.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, get_args

from client.cluster import Cluster
from client.errors import Conflict, InvalidRequest, MetadataCorrupt, NodeNotFound, StoreError
from client.parallel import bounded_map
from client.placement import Node
from client.transport import Transport
from client.wire import decode_json
from storenode.buckets import Buckets
from storenode.held import is_complete, read_held
from storenode.job import REBALANCE
from storenode.jobs import read_jobs
from storenode.layouts import LAYOUT_KEY, KnownLayouts, change_layouts, last_request, read_layouts
from storenode.lineage import read_lineage
from storenode.membership import NodeRecord, read_nodes
from storenode.metastore import Compare, MetaStore
from storenode.movement import Add, Change, Drain, NodeFacts, Plan, Remove, SetWeight, SetZone, plan, shifts

__all__ = ["Reshaped", "Reshaping", "Wish", "ask_facts", "most_replicas"]

MAX_NAMED = 1024
_MAX_TURNS = 8
_MAX_ASKED_AT_ONCE = 16
_ASK_TIMEOUT_S = 5.0
_Kind = Literal["add", "drain", "remove", "weight", "zone"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """What an operator asks for.

    Attributes
    ----------
    kind : str
        add, drain, remove, weight or zone.
    node_ids : tuple of str
        Which nodes; empty for add: every spare one.
    weight : float or None
        For weight, and for the nodes that are added (1 by default).
    zone : str or None
        For zone.
    id : str
        Kept through all repeats of the request; empty if it is not repeated.
    force, dry_run : bool
        Override what is a matter of judgement; only plan.
    """

    kind: _Kind
    node_ids: tuple[str, ...] = ()
    weight: float | None = None
    zone: str | None = None
    id: str = ""
    force: bool = False
    dry_run: bool = False

    @classmethod
    def from_json(cls, value: Any) -> Wish:
        """The wish in a request's body; raises `InvalidRequest`."""
        match value:
            case {"change": str(kind), "nodes": list(nodes)} if kind in get_args(_Kind) and _are_names(nodes):
                weight, zone = value.get("weight"), value.get("zone")
            case _:
                kinds = ", ".join(get_args(_Kind))
                raise InvalidRequest(f'expected {{"change": one of {kinds}, "nodes": ["ID", ...]}}, found {value!r:.200}')
        if weight is not None and not (_is_number(weight) and weight > 0):
            raise InvalidRequest(f"weight {weight!r:.40}: expected a number greater than 0")
        if zone is not None and not (isinstance(zone, str) and 0 < len(zone) <= 64):
            raise InvalidRequest(f"zone {zone!r:.80}: expected 1 to 64 characters")
        if kind != "add" and len(nodes) != 1:
            raise InvalidRequest(f"{kind} takes one node, found {len(nodes)}")
        if (kind == "weight" and weight is None) or (kind == "zone" and zone is None):
            raise InvalidRequest(f"a change of the {kind} names the new one: {{{kind!r}: ...}}")
        request_id = value.get("id", "")
        if not isinstance(request_id, str) or len(request_id) > 64:
            raise InvalidRequest(f"id {request_id!r:.80}: expected up to 64 characters")
        flags = {name: value.get(name, False) is True for name in ("force", "dry_run")}
        return cls(kind=kind, node_ids=tuple(dict.fromkeys(nodes)), weight=weight, zone=zone, id=request_id, **flags)  # type: ignore[arg-type]


@dataclass(frozen=True, slots=True, kw_only=True)
class Reshaped:
    """A plan, and the revision that committed it; None: it was only planned, or changes nothing."""

    plan: Plan
    revision: int | None


class Reshaping:
    """Plans and commits changes of the layout. Blocking; any node can do it.

    Parameters
    ----------
    store : MetaStore
        Layouts, buckets and nodes.
    ask : callable
        Gives the facts of the nodes of these ids, see `ask_facts`.
    """

    def __init__(self, store: MetaStore, *, ask: Callable[[list[str]], Mapping[str, NodeFacts]]) -> None:
        self._store = store
        self._ask = ask

    def __call__(self, wish: Wish, *, also: Sequence[Compare] = ()) -> Reshaped:
        """Do what is asked for if `also` holds, or only plan it; raises what `storenode.movement.plan` does, and `Conflict`."""
        for _ in range(_MAX_TURNS):
            known = self._layouts()
            if wish.id and last_request(self._store) == wish.id:
                return Reshaped(plan=self._made(known), revision=known.revision)
            change = self._change(wish, known)
            named = dict.fromkeys(node.id for node in known.layouts.current.nodes)
            if isinstance(change, Add):
                named |= dict.fromkeys(node.id for node in change.nodes)
            facts = self._ask(list(named))
            made = plan(known.layouts, change, replicas=most_replicas(self._store), facts=facts, force=wish.force)
            if wish.dry_run or made.layouts == known.layouts:
                return Reshaped(plan=made, revision=None)
            revision = change_layouts(self._store, known, made.layouts, also=also, request_id=wish.id)
            if revision is not None:
                return Reshaped(plan=made, revision=revision)
        raise Conflict(f"the layout changed {_MAX_TURNS} times while this change was planned; try again", key=LAYOUT_KEY)

    def progress(self) -> dict[str, Any]:
        """How the nodes stand to the layout, as a JSON object."""
        known = self._layouts()
        current = known.layouts.current
        up, held = read_nodes(self._store), read_held(self._store)
        incarnation = read_lineage(self._store).incarnation
        complete = {node.id for node in current.active if is_complete(held.get(node.id), known, incarnation=incarnation)}
        drained = {node_id for node_id, each in held.items() if each.drained(layout=current.version, incarnation=incarnation)}
        placed = [_standing(node, up.get(node.id), complete=complete, drained=drained) for node in current.nodes]
        ids = {node.id for node in current.nodes}
        spare = [_spare(node_id, record) for node_id, record in sorted(up.items()) if node_id not in ids]
        older = [layout.version for layout in known.layouts.older]
        running = (job.detail for job, _ in read_jobs(self._store) if (job.kind, job.state) == (REBALANCE, "running"))
        return {"version": current.version, "older": older, "move": next(running, ""), "nodes": placed + spare}

    def _made(self, known: KnownLayouts) -> Plan:
        """What the last change did, as far as that can still be told."""
        current, replicas = known.layouts.current, most_replicas(self._store)
        before = known.layouts.older[0] if known.layouts.older else current
        return Plan(layouts=known.layouts, replicas=replicas, shifts=shifts(before, current, replicas=replicas))

    def _layouts(self) -> KnownLayouts:
        known = read_layouts(self._store)
        if known is None:
            raise MetadataCorrupt("the metadata has lost its layout", key=LAYOUT_KEY)
        return known

    def _change(self, wish: Wish, known: KnownLayouts) -> Change:
        if wish.kind == "add":
            return self._add(wish, known)
        (node_id,) = wish.node_ids
        if wish.kind == "drain":
            return Drain(node_id=node_id)
        if wish.kind == "remove":
            return Remove(node_id=node_id)
        if wish.kind == "weight":
            assert wish.weight is not None
            return SetWeight(node_id=node_id, weight=wish.weight)
        assert wish.zone is not None
        return SetZone(node_id=node_id, zone=wish.zone)

    def _add(self, wish: Wish, known: KnownLayouts) -> Add:
        """The nodes as they registered; one that was draining keeps its weight."""
        up = read_nodes(self._store)
        placed = {node.id: node for node in known.layouts.current.nodes}
        node_ids = wish.node_ids or tuple(node_id for node_id in sorted(up) if node_id not in placed)
        if not node_ids:
            raise NodeNotFound(
                "there is no spare node: all that are up are in the layout. Start one (`forebay node`, with the cluster's "
                "FOREBAY_META and a data directory of its own), then add it"
            )
        nodes = []
        for node_id in node_ids:
            found = placed.get(node_id)
            weight = wish.weight or (found.weight if found else 1.0)
            if found is not None:
                nodes.append(Node(id=node_id, weight=weight, zone=found.zone, host=found.host))
            else:
                record = _registered(up, node_id)
                nodes.append(Node(id=node_id, weight=weight, zone=record.zone, host=record.host))
        return Add(nodes=tuple(nodes))


def most_replicas(store: MetaStore) -> int:
    """The most copies that a bucket asks for."""
    return max((policy.replicas for policy in Buckets(store).all().values()), default=1)


def _standing(node: Node, record: NodeRecord | None, *, complete: Set[str], drained: Set[str]) -> dict[str, Any]:
    draining = node.state == "draining"
    return {
        "node_id": node.id,
        "state": ("drained" if node.id in drained else "draining") if draining else "up" if record else "down",
        "up": record is not None,
        # A draining node is given nothing, so there is nothing that it could lack.
        "complete": None if draining else node.id in complete,
        "weight": node.weight,
        "zone": node.zone,
        "host": node.host,
        "endpoints": list(record.endpoints) if record else [],
    }


def _spare(node_id: str, record: NodeRecord) -> dict[str, Any]:
    said = {"zone": record.zone, "host": record.host, "endpoints": list(record.endpoints)}
    return {"node_id": node_id, "state": "spare", "up": True, "complete": None, "weight": None, **said}


def ask_facts(node_ids: list[str], *, store: MetaStore, cluster: Cluster, transport: Transport) -> dict[str, NodeFacts]:
    """What is known of these nodes: what they say of themselves, and whether they are drained."""
    known, held, incarnation = read_layouts(store), read_held(store), read_lineage(store).incarnation
    version = known.layouts.current.version if known else 0
    drained = {node_id for node_id, each in held.items() if each.drained(layout=version, incarnation=incarnation)}
    up = [node_id for node_id in node_ids if node_id in cluster.refresh().endpoints]
    ask = partial(_ask, cluster=cluster, transport=transport)
    said = dict(zip(up, bounded_map(ask, up, max_parallel=_MAX_ASKED_AT_ONCE), strict=True))
    return {node_id: replace(said.get(node_id, NodeFacts()), drained=node_id in drained) for node_id in node_ids}


def _ask(node_id: str, *, cluster: Cluster, transport: Transport) -> NodeFacts:
    """What a node says of itself; nothing if it does not answer."""
    try:
        url = cluster.endpoint(node_id)
        answer = transport.request("GET", url, "/v1/admin/status", node_id=node_id, timeout_s=_ASK_TIMEOUT_S)
        said = decode_json(answer.body)
        disk, chunks, follower = said["disk"], said["chunks"], said["follower"]
        return NodeFacts(
            up=True,
            held_bytes=int(chunks["size_bytes"]),
            held_chunks=int(chunks["num_chunks"]),
            free_bytes=max(0, int(disk["free_bytes"]) - int(disk["reserve_bytes"])),
            follows=int(follower["layout"]),
            fetched_chunks=int(follower["fetched_chunks"]),
            fetched_bytes=int(follower["fetched_bytes"]),
        )
    except (StoreError, KeyError, TypeError, ValueError):
        # A plan is made without it; it then says less.
        return NodeFacts()


def _registered(up: Mapping[str, NodeRecord], node_id: str) -> NodeRecord:
    if node_id not in up:
        named = ", ".join(sorted(up)) or "none"
        raise NodeNotFound(f"no node {node_id!r} is up; those that are: {named}. Start it, then add it")
    return up[node_id]


def _are_names(nodes: list[Any]) -> bool:
    return len(nodes) <= MAX_NAMED and all(isinstance(node, str) and node for node in nodes)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
