"""`forebay bucket create | ls | set | rm`: buckets and what holds for their objects."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from client.cli.connection import connect
from client.cli.objects import bucket_columns
from client.cli.output import AsJson, Output, plural
from client.cli.paths import parse_store_path
from client.errors import InvalidName
from client.objects import ObjectStore
from client.record import BucketPolicy, acks_needed

__all__ = ["register"]

Bucket = Annotated[str, typer.Argument(metavar="BUCKET")]


class AckLevel(StrEnum):
    """How many copies are durable before a write is acknowledged."""

    one = "one"
    quorum = "quorum"
    all = "all"


def register(app: typer.Typer) -> None:
    """Add the commands."""
    group = typer.Typer(help="Create, list, change and remove buckets.")
    for name, command in (("create", create), ("ls", ls), ("set", change), ("rm", rm)):
        group.command(name)(command)
    app.add_typer(group, name="bucket")


def create(
    ctx: typer.Context,
    bucket: Bucket,
    replicas: Annotated[int, typer.Option(help="Copies of each object, on as many nodes.")] = 3,
    ack: Annotated[AckLevel, typer.Option(help="Copies that are durable before a write is acknowledged.")] = AckLevel.quorum,
    versions: Annotated[int, typer.Option(help="Older versions kept of each object.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Create a bucket. To create it again with the same settings is no error."""
    out = Output(as_json=as_json)
    name = _bucket_name(bucket)
    with connect(ctx) as store:
        policy = store.buckets.create(name, replicas=replicas, ack=ack.value, versions=versions)
        _print(out, name, policy)
        _warn_if_too_many(out, store, name, policy)


def ls(ctx: typer.Context, as_json: AsJson = False) -> None:
    """List the buckets with their settings."""
    with connect(ctx) as store:
        rows = [{"bucket": name, **policy.to_json()} for name, policy in store.buckets.list().items()]
    Output(as_json=as_json).table(rows, bucket_columns)


def change(
    ctx: typer.Context,
    bucket: Bucket,
    replicas: Annotated[int | None, typer.Option(help="Copies of each object, on as many nodes.")] = None,
    ack: Annotated[AckLevel | None, typer.Option(help="Copies that are durable before a write is acknowledged.")] = None,
    versions: Annotated[int | None, typer.Option(help="Older versions kept of each object.")] = None,
    as_json: AsJson = False,
) -> None:
    """Change settings, for objects written from now on; `forebay replicate` changes those that exist."""
    out = Output(as_json=as_json)
    name = _bucket_name(bucket)
    if replicas is None and ack is None and versions is None:
        raise typer.BadParameter("give at least one of --replicas, --ack and --versions", param_hint="bucket set")
    with connect(ctx) as store:
        policy = store.buckets.set(name, replicas=replicas, ack=None if ack is None else ack.value, versions=versions)
        if versions is not None:
            # Otherwise what is too many now would go with the next write to each object, or never.
            store.snapshots.prune(name)
        _print(out, name, policy)
        _warn_if_too_many(out, store, name, policy)


def rm(ctx: typer.Context, bucket: Bucket, as_json: AsJson = False) -> None:
    """Remove an empty bucket."""
    name = _bucket_name(bucket)
    with connect(ctx) as store:
        store.buckets.delete(name)
    Output(as_json=as_json).document({"action": "rm", "bucket": name}, f"rm {name}")


def _bucket_name(text: str) -> str:
    path = parse_store_path(text)
    if path.key:
        raise InvalidName(f"{text!r} is a path; a bucket's name alone would be {path.bucket!r}", key=text)
    return path.bucket


def _print(out: Output, name: str, policy: BucketPolicy) -> None:
    settings = f"{plural(policy.replicas, 'replica')}, ack {policy.ack}, {plural(policy.versions, 'older version')} kept"
    out.document({"bucket": name, **policy.to_json()}, f"bucket {name}: {settings}")


def _warn_if_too_many(out: Output, store: ObjectStore, name: str, policy: BucketPolicy) -> None:
    num_nodes = len(store.cluster.layout.nodes)
    if policy.replicas <= num_nodes:
        return
    needed = acks_needed(policy.replicas, ack=policy.ack)
    lack = "writes will fail" if needed > num_nodes else "copies will be missing"
    out.note(
        f"warning: the cluster has {plural(num_nodes, 'node')}, so {lack}; "
        f"`forebay bucket set {name} --replicas {num_nodes}` fits it"
    )
