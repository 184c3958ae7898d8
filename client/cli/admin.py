"""`forebay replicate | verify | cluster`: how many copies there are, how many there should be, and on which nodes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial
from typing import Annotated, Any

import typer

from client.cli.connection import connect
from client.cli.output import AsJson, Column, Output, plural
from client.cli.paths import StorePath, parse_store_path, walk_objects
from client.cli.report import COPIES_MISSING
from client.client import Client
from client.cluster import ClusterView
from client.errors import ObjectNotFound, StoreError
from client.health import Health, ObjectHealth
from client.objects import ObjectStore
from client.parallel import bounded_map
from client.record import ObjectInfo
from client.replication import Replication, replicate
from client.verify import verify

__all__ = ["register", "summary"]

MAX_PARALLEL = 16
MAX_LINES = 20


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command("replicate")(replicate_objects)
    app.command("verify")(verify_objects)
    group = typer.Typer(help="Show the nodes, and who holds what.")
    group.command("status")(status)
    group.command("layout")(layout)
    app.add_typer(group, name="cluster")


def replicate_objects(
    ctx: typer.Context,
    path: Annotated[str, typer.Argument(metavar="BUCKET/KEY", help="An object, and everything below it.")],
    replicas: Annotated[int, typer.Option(help="Copies that each object shall have.")],
    timeout_s: Annotated[float, typer.Option("--timeout", min=0, help="Seconds to wait for the copies.")] = 600.0,
    as_json: AsJson = False,
) -> None:
    """Set how many replicas objects have, and wait until they are counted. Exits with 3 if they are not there in time."""
    out, parsed = Output(as_json=as_json), parse_store_path(path)
    with connect(ctx) as store, out.progress("objects", unit="count") as progress:
        walk = partial(walk_objects, store, parsed)
        result = replicate(store, walk, replicas=replicas, timeout_s=timeout_s, on_objects=progress.advance)
    if not result.objects:
        raise _nothing_at(parsed)
    out.document(_replication_json(result, replicas), _replication_text(result, replicas, timeout_s))
    if result.missing:
        _print_shortfalls(out, result.missing)
        out.note("hint: the nodes go on; `forebay verify` counts again, `forebay cluster status` shows which nodes are up")
        raise typer.Exit(COPIES_MISSING)


def verify_objects(
    ctx: typer.Context,
    path: Annotated[str | None, typer.Argument(metavar="[BUCKET[/KEY]]", help="By default everything.")] = None,
    as_json: AsJson = False,
) -> None:
    """Re-hash every copy of every chunk and count them. Exits with 3 unless every object has all its replicas."""
    out = Output(as_json=as_json)
    with connect(ctx) as store, out.progress("copies", unit="count") as progress:
        paths = [parse_store_path(text) for text in ([path] if path else store.buckets.list())]
        health = verify(store, _versions(store, paths), on_copies=progress.advance)
    if not health.objects and path and paths[0].key:
        raise _nothing_at(paths[0])  # Most likely a typing error, and no proof that all is well.
    out.document(health.to_json(), summary(health))
    if not health.clean:
        _print_shortfalls(out, health.shortfalls, total=health.objects - health.objects_clean)
        for node_id, why in health.silent_nodes.items():
            out.note(f"node {node_id} did not answer: {why}")
        # A node fetches what it never had, and replaces what is bad. That files were lost, it does not know before it looks.
        out.note(
            "hint: the nodes repair what they know of; `forebay scrub` has them look for copies that were lost, "
            "`forebay cluster status` shows which nodes are up"
        )
        raise typer.Exit(COPIES_MISSING)


def status(ctx: typer.Context, as_json: AsJson = False) -> None:
    """Show each node: whether it is up, draining or a spare, its disk, and how far it follows the changes; and what moves."""
    out = Output(as_json=as_json)
    with connect(ctx) as store:
        view = store.cluster.refresh()
        told = _standing(store, view)
        nodes = list(bounded_map(partial(_node_status, store), told["nodes"], max_parallel=MAX_PARALLEL))
    num_up = sum(node["state"] == "up" for node in nodes)
    if as_json:
        known = {"layout_version": told["version"], "older_layouts": told["older"], "move": told["move"]}
        out.document({"cluster_id": view.cluster_id, **known, "nodes": nodes}, "")
        return
    columns: dict[str, Column] = {
        "node_id": "text",
        "state": "text",
        "zone": "text",
        "host": "text",
        "endpoints": "text",
        "used_bytes": "size",
        "free_bytes": "size",
        "revision": "number",
        "pending": "number",
    }
    out.table([_flat(node) for node in nodes], columns)
    # Whatever the output goes to: who reads the table must not miss it.
    for warning in dict.fromkeys(warning for node in nodes if (warning := _metadata_warning(node))):
        out.note(warning)
    if told["older"]:
        older = ", ".join(map(str, told["older"]))
        out.note(f"layouts that are not retired: {told['version']}, {older}; {told['move'] or 'the move has not begun'}")
    if out.terminal:
        placed = sum(node["state"] != "spare" for node in nodes)
        out.note(f"cluster {view.cluster_id}: {num_up} of {plural(placed, 'node')} up, layout {told['version']}")


def layout(ctx: typer.Context, as_json: AsJson = False) -> None:
    """Show the layout: the nodes that hold data, their weights, zones and hosts."""
    out = Output(as_json=as_json)
    with connect(ctx) as store:
        found = store.cluster.refresh().layout
    if as_json:
        out.document(found.to_json(), "")
        return
    out.note(f"layout {found.version}: {plural(found.partitions, 'partition')}")
    out.table(found.to_json()["nodes"], {"id": "text", "weight": "number", "zone": "text", "host": "text"})


def summary(health: Health) -> str:
    """A count in one line."""
    if not health.objects:
        return "0 objects: nothing to count"
    what = f"{plural(health.objects, 'object')}, {plural(health.chunks, 'chunk')}"
    if health.clean:
        if health.least_replicas == health.most_replicas:
            return f"{what}: {health.most_replicas} of {health.most_replicas} copies each, re-hashed"
        each = f"{health.least_replicas} to {health.most_replicas} each"
        return f"{what}: all {health.copies_expected} copies, {each}, re-hashed"
    lacks = {
        "missing": health.copies_missing,
        "corrupt": health.copies_corrupt,
        "on nodes that did not answer": health.copies_unreachable,
    }
    lacking = ", ".join(f"{count} {words}" for words, count in lacks.items() if count)
    counted = f"{health.copies_ok} of {health.copies_expected} copies, re-hashed"
    short = health.objects - health.objects_clean
    return f"{what}: {counted}; {lacking or 'some chunks could not be listed'}; {plural(short, 'object')} short"


def _versions(store: ObjectStore, paths: Iterable[StorePath]) -> Iterator[ObjectInfo]:
    """Every version of the objects at and below `paths`; kept versions must be whole, too."""
    for path in paths:
        yield from walk_objects(store, path, versions=True)


def _nothing_at(path: StorePath) -> ObjectNotFound:
    return ObjectNotFound(f"there is nothing at or below {path}", key=str(path))


def _print_shortfalls(out: Output, shortfalls: tuple[ObjectHealth, ...], *, total: int | None = None) -> None:
    if out.as_json:
        return
    for found in shortfalls[:MAX_LINES]:
        place = f"{found.info.bucket}/{found.info.key} (version {found.info.version})"
        lack = f"{found.short_chunks} of {plural(found.chunks, 'chunk')} short, the worst has {found.least_copies}"
        parts = ([f"{lack} of {found.replicas} copies"] if found.short_chunks else []) + (
            [found.problem] if found.problem else []
        )
        out.note(f"{place}: {'; '.join(parts)}")
    rest = (len(shortfalls) if total is None else total) - MAX_LINES
    if rest > 0:
        out.note(f"... and {rest} more")


def _replication_json(result: Replication, replicas: int) -> dict[str, Any]:
    return {
        "replicas": replicas,
        "objects": result.objects,
        "changed": result.changed,
        "counted": result.counted,
        "complete": not result.missing,
        "missing": [health.to_json() for health in result.missing],
    }


def _replication_text(result: Replication, replicas: int, timeout_s: float) -> str:
    what = f"{plural(result.objects, 'object')}, {result.changed} changed"
    if result.missing:
        return f"{what}: after {timeout_s:g} s {plural(len(result.missing), 'object')} still without {replicas} copies"
    return f"{what}: {replicas} of {replicas} copies each, re-hashed"


def _standing(store: Client, view: ClusterView) -> dict[str, Any]:
    """How the nodes stand to the layout; what the view says of it while no node can tell."""
    try:
        told: dict[str, Any] = store.admin("GET", "/v1/admin/layout")
        return told
    except StoreError:
        placed = {node.id: {"node_id": node.id, "zone": node.zone, "host": node.host} for node in view.layout.nodes}
        states = {node.id: "up" if node.state == "active" else node.state for node in view.layout.nodes}
        nodes = [{**known, "state": states[node_id]} for node_id, known in placed.items()]
        nodes += [{"node_id": node_id, "state": "spare"} for node_id in sorted(view.endpoints) if node_id not in placed]
        older = [layout.version for layout in view.layouts.older]
        return {"version": view.layout.version, "older": older, "move": "", "nodes": nodes}


def _node_status(store: Client, known: dict[str, Any]) -> dict[str, Any]:
    """What a node says of itself, or that it does not answer."""
    node_id = known["node_id"]
    known = {**known, "endpoints": list(store.cluster.view().endpoints.get(node_id, ()))}
    try:
        said = store.admin("GET", "/v1/admin/status", node_id=node_id)
    except StoreError as error:
        # Of a node that is being drained, that it is, is the more important.
        state = "down" if known["state"] in ("up", "spare") else known["state"]
        return {**known, "state": state, "up": False, "detail": error.message}
    return {**known, "up": True, **{name: said.get(name) for name in ("disk", "chunks", "follower", "metadata")}}


def _metadata_warning(node: dict[str, Any]) -> str | None:
    """What the operator has to know of the metadata, as a node sees it."""
    metadata = node.get("metadata") or {}
    if metadata.get("frozen"):
        return f"no commits: {metadata['frozen']}"
    if metadata.get("went_back"):
        return f"no commits: node {node['node_id']} finds metadata that is not its cluster's; bring the right one back"
    return None


def _flat(node: dict[str, Any]) -> dict[str, Any]:
    """A node's status as one row."""
    disk, follower = node.get("disk") or {}, node.get("follower") or {}
    used = disk["total_bytes"] - disk["free_bytes"] if disk else None
    return {**node, "used_bytes": used, "free_bytes": disk.get("free_bytes"), **follower}
