"""`forebay snapshot create | ls | rm`: buckets as they were at one moment."""

from __future__ import annotations

from typing import Annotated

import typer

from client.cli.connection import connect
from client.cli.output import AsJson, Column, Output, plural
from client.snapshots import Snapshot

__all__ = ["register"]

Bucket = Annotated[str, typer.Argument(metavar="BUCKET")]
Name = Annotated[str, typer.Argument(metavar="NAME")]
_COLUMNS: dict[str, Column] = {"snapshot": "text", "version": "number", "created_s": "time"}


def register(app: typer.Typer) -> None:
    """Add the commands."""
    group = typer.Typer(help="Keep buckets readable as they were; `get`, `stat` and `ls` read with --snapshot NAME.")
    for name, command in (("create", create), ("ls", ls), ("rm", rm)):
        group.command(name)(command)
    app.add_typer(group, name="snapshot")


def create(ctx: typer.Context, bucket: Bucket, name: Name, as_json: AsJson = False) -> None:
    """Keep a bucket readable as it is now. No byte is copied."""
    with connect(ctx) as store:
        made = store.snapshots.create(bucket, name)
    Output(as_json=as_json).document(_row(bucket, made), f"snapshot {name} of bucket {bucket}, up to version {made.version}")


def ls(ctx: typer.Context, bucket: Bucket, as_json: AsJson = False) -> None:
    """List the snapshots of a bucket, oldest first."""
    with connect(ctx) as store:
        rows = [_row(bucket, snapshot) for snapshot in store.snapshots.list(bucket)]
    Output(as_json=as_json).table(rows, _COLUMNS)


def rm(ctx: typer.Context, bucket: Bucket, name: Name, as_json: AsJson = False) -> None:
    """Give a snapshot up, and remove the versions that only it kept."""
    out = Output(as_json=as_json)
    with connect(ctx) as store, out.progress("versions", unit="count") as progress:
        num_pruned = store.snapshots.delete(bucket, name, on_pruned=progress.advance)
    text = f"rm {name} of bucket {bucket}, and {plural(num_pruned, 'version')} that nothing keeps any more"
    out.document({"action": "rm", "bucket": bucket, "snapshot": name, "pruned": num_pruned}, text)


def _row(bucket: str, snapshot: Snapshot) -> dict[str, object]:
    return {
        "bucket": bucket,
        "snapshot": snapshot.name,
        "version": snapshot.version,
        "created_s": snapshot.created_s,
    }
