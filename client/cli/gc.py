"""`forebay gc`: have the nodes remove what no object refers to any more, now instead of at the next round."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from typing import Annotated, Any

import typer

from client.cli.connection import connect
from client.cli.output import AsJson, Column, Output, plural
from client.cli.report import FAILED

__all__ = ["register", "sweeps"]

POLL_S = 0.5
_PATH = "/v1/admin/gc"
_FREED: dict[str, Column] = {"node_id": "text", "num_removed": "number", "removed_bytes": "size", "problem": "text"}
Status = Mapping[str, Any]


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("gc")(gc)


def gc(
    ctx: typer.Context,
    wait: Annotated[bool, typer.Option("--wait", help="Until every node that is up has removed it.")] = False,
    timeout_s: Annotated[float, typer.Option("--timeout", min=0, help="Seconds to wait.")] = 3600.0,
    as_json: AsJson = False,
) -> None:
    """Remove chunks that are garbage now: of deleted and overwritten objects, and of uploads that were given up.

    Uploads that are under way go on; what belongs to them stays. Exits with 1 if a node has not done it in time.
    """
    out = Output(as_json=as_json)
    with connect(ctx) as store:
        before = store.admin("GET", _PATH)
        epoch = store.admin("POST", _PATH)["epoch"]
        if not wait:
            hint = "`forebay gc --wait` waits for it, `forebay job ls` shows the sweeps"
            out.document({"epoch": epoch}, f"every node that is up will sweep at epoch {epoch}; {hint}")
            return
        status: Status = before
        told: dict[str, str] = {}
        for status in sweeps(lambda: store.admin("GET", _PATH), epoch, timeout_s=timeout_s):
            for node_id, node in status["nodes"].items():
                if node["up"] and node["problem"] and told.get(node_id) != node["problem"]:
                    told[node_id] = node["problem"]
                    out.note(f"node {node_id} removes nothing and tries again: {node['problem']}")
    rows = [_freed(node_id, node, before) for node_id, node in status["nodes"].items()]
    late = _behind(status, epoch)
    if as_json:
        out.document({"epoch": epoch, "complete": not late, "nodes": rows}, "")
    else:
        out.table(rows, _FREED)
    if late:
        out.note(f"{plural(len(late), 'node')} not done after {timeout_s:g} s: {', '.join(late)}; they go on by themselves")
        raise typer.Exit(FAILED)


def sweeps(
    read: Callable[[], Status],
    epoch: int,
    *,
    timeout_s: float,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> Iterator[Status]:
    """The state of garbage collection again and again, until all nodes that are up have swept at `epoch` or time is up."""
    end_s = clock() + timeout_s
    while True:
        status = read()
        yield status
        if not _behind(status, epoch) or clock() >= end_s:
            return
        sleep(POLL_S)


def _behind(status: Status, epoch: int) -> list[str]:
    return [node_id for node_id, node in status["nodes"].items() if node["up"] and node["epoch"] < epoch]


def _freed(node_id: str, node: Status, before: Status) -> dict[str, Any]:
    was = before["nodes"].get(node_id, {"num_removed": 0, "removed_bytes": 0})
    freed = {name: node[name] - was[name] for name in ("num_removed", "removed_bytes")}
    return {"node_id": node_id, "up": node["up"], **freed, "problem": node["problem"]}
