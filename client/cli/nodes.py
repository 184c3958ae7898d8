"""`forebay node ls | add | drain | remove | weight | zone`: who holds data, and how that is changed.

Each change prints its plan: what moves, what each node fetches, how much data fits afterwards. ``--dry-run`` stops there.
"""

from __future__ import annotations

import time
from typing import Annotated, Any

import typer

from client.cli.connection import connect
from client.cli.output import AsJson, Column, Output, human_size, plural
from client.client import Client
from client.write_id import new_write_id

__all__ = ["register"]

_LAYOUT_PATH = "/v1/admin/layout"
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what it would do, and do nothing.")]
Force = Annotated[bool, typer.Option("--force", help="Go on although copies will share zones or be fewer, or disks may fill.")]
NodeId = Annotated[str, typer.Argument(metavar="ID", help="As `forebay node ls` shows it.")]

_NODES: dict[str, Column] = {
    "node_id": "text",
    "state": "text",
    "weight": "number",
    "zone": "text",
    "host": "text",
    "endpoints": "text",
}
Wait = Annotated[bool, typer.Option("--wait", help="Follow the move of data to its end.")]
POLL_S = 0.5
_SHARES: dict[str, Column] = {"node_id": "text", "before": "text", "after": "text", "fetches": "text"}


def register(app: typer.Typer) -> None:
    """Add the commands."""
    group = typer.Typer(help="List nodes, and give them data or take it from them.", no_args_is_help=True)
    commands = (("ls", ls), ("add", add), ("drain", drain), ("remove", remove), ("weight", weight), ("zone", zone))
    for name, command in commands:
        group.command(name)(command)
    app.add_typer(group, name="node")


def ls(ctx: typer.Context, as_json: AsJson = False) -> None:
    """List the nodes: those that hold data, those that are being drained, and the spare ones."""
    with connect(ctx) as store:
        found = store.admin("GET", _LAYOUT_PATH)
    Output(as_json=as_json).table(found["nodes"], _NODES)


def add(
    ctx: typer.Context,
    ids: Annotated[list[str] | None, typer.Argument(metavar="[ID...]", help="Nodes that are up.")] = None,
    every: Annotated[bool, typer.Option("--all", help="Every spare node.")] = False,
    weight: Annotated[float | None, typer.Option(help="Share of the data relative to other nodes; by default 1.")] = None,
    force: Force = False,
    dry_run: DryRun = False,
    wait: Wait = False,
    as_json: AsJson = False,
) -> None:
    """Give data to nodes that have none, or end the draining of some."""
    if bool(ids) == every:
        raise typer.BadParameter("name the nodes to add, or give --all for every spare one")
    _change(ctx, "add", ids or [], {"weight": weight}, force=force, dry_run=dry_run, wait=wait, as_json=as_json)


def drain(
    ctx: typer.Context,
    node_id: NodeId,
    force: Force = False,
    dry_run: DryRun = False,
    wait: Wait = False,
    as_json: AsJson = False,
) -> None:
    """Take all data from a node. It goes on serving until the others have it; `forebay node add` takes it back."""
    _change(ctx, "drain", [node_id], {}, force=force, dry_run=dry_run, wait=wait, as_json=as_json)


def remove(
    ctx: typer.Context,
    node_id: NodeId,
    force: Annotated[bool, typer.Option("--force", help="The node is lost, or what only it holds may be.")] = False,
    dry_run: DryRun = False,
    wait: Wait = False,
    as_json: AsJson = False,
) -> None:
    """Forget a node that was drained; with --force one that is lost, whose copies are then made from the others."""
    _change(ctx, "remove", [node_id], {}, force=force, dry_run=dry_run, wait=wait, as_json=as_json)


def weight(
    ctx: typer.Context,
    node_id: NodeId,
    value: Annotated[float, typer.Argument(metavar="W", help="Share of the data relative to other nodes.")],
    force: Force = False,
    dry_run: DryRun = False,
    wait: Wait = False,
    as_json: AsJson = False,
) -> None:
    """Change a node's share of the data."""
    _change(ctx, "weight", [node_id], {"weight": value}, force=force, dry_run=dry_run, wait=wait, as_json=as_json)


def zone(
    ctx: typer.Context,
    node_id: NodeId,
    value: Annotated[str, typer.Argument(metavar="ZONE", help="Copies of a chunk go to different zones, if there are enough.")],
    force: Force = False,
    dry_run: DryRun = False,
    wait: Wait = False,
    as_json: AsJson = False,
) -> None:
    """Say that a node is in another zone."""
    _change(ctx, "zone", [node_id], {"zone": value}, force=force, dry_run=dry_run, wait=wait, as_json=as_json)


def _change(
    ctx: typer.Context,
    kind: str,
    ids: list[str],
    given: dict[str, Any],
    *,
    force: bool,
    dry_run: bool,
    wait: bool,
    as_json: bool,
) -> None:
    out = Output(as_json=as_json)
    # A request whose answer is lost is repeated, on another node.
    wish = {"change": kind, "nodes": ids, "id": new_write_id(), "force": force, "dry_run": dry_run}
    wish |= {name: value for name, value in given.items() if value is not None}
    with connect(ctx) as store:
        made = store.admin("POST", _LAYOUT_PATH, json=wish)
        out.document(made, _summary(made, dry_run=dry_run))
        if not as_json and (made["committed"] or dry_run):
            out.table(map(_shares, made["nodes"]), _SHARES)
        if wait and not dry_run:
            _await(store, out, drained=ids[0] if kind == "drain" else None)


def _await(store: Client, out: Output, *, drained: str | None) -> None:
    """Tell of the move whenever something has changed, until it is over and `drained`, if one is named, is empty."""
    seen, done = None, 0
    with out.progress("nodes", unit="count") as progress:
        while True:
            now = store.admin("GET", _LAYOUT_PATH)
            complete = [node["complete"] for node in now["nodes"] if node["complete"] is not None]
            progress.expect(len(complete))
            progress.advance(sum(complete) - done)
            done = sum(complete)
            states = {node["node_id"]: node["state"] for node in now["nodes"]}
            over = not now["older"] and states.get(drained or "", "drained") == "drained"
            stage = _stage(now, over=over, drained=drained)
            if stage != seen:
                out.document(now, stage)
            if over:
                return
            seen = stage
            time.sleep(POLL_S)


def _stage(now: dict[str, Any], *, over: bool, drained: str | None) -> str:
    if over:
        return f"layout {now['version']} is complete" + (f", and node {drained} is empty" if drained else "")
    if now["older"]:
        return str(now["move"]) or f"layout {now['version']}: the move has not begun"
    return f"layout {now['version']} is complete; node {drained} gives up its copies, after the others have re-hashed theirs"


def _summary(made: dict[str, Any], *, dry_run: bool) -> str:
    version = made["layout"]["version"]
    if not made["committed"] and not dry_run:
        return f"nothing to change: layout {version} is so already"
    lines = [f"layout {version} would be made" if dry_run else f"layout {version} is in force"]
    share = f"{made['moved_share']:.1%} of all copies {'would move' if dry_run else 'move'}"
    moved = share if made["moved_share"] else "nothing moves"
    if made["moved_bytes"]:
        moved += f", about {human_size(made['moved_bytes'])}; that takes {_duration(made['seconds'])} or more"
    lines.append(moved)
    if made["usable_bytes"] is not None:
        fits = f"then about {human_size(made['usable_bytes'])} of data fit, with {plural(made['replicas'], 'replica')}"
        lines.append(f"{fits}, before node {made['limited_by']} is full")
    if made["copies_left"]:
        left = (f"{plural(count, 'partition')} with {copies}" for copies, count in made["copies_left"].items())
        lines.append(f"copies left on nodes that are up: {', '.join(left)}, of {made['replicas']}")
    return "\n".join(lines)


def _shares(node: dict[str, Any]) -> dict[str, str]:
    fetches = f"{node['gained_share']:.1%}"
    if node["gained_bytes"] is not None:
        fetches += f", {human_size(node['gained_bytes'])}"
    return {
        "node_id": node["node_id"],
        "before": f"{node['before_share']:.1%}",
        "after": f"{node['after_share']:.1%}",
        "fetches": fetches,
    }


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
