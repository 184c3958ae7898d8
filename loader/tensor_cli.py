"""`forebay tensors ls | get | diff` and `forebay series ls | publish | withdraw | prune`.

What the commands run is imported when they run: every ``forebay`` command loads this module to know that they exist.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from client.cli.connection import connect
from client.cli.output import AsJson, Output, human_size, plural
from client.cli.paths import parse_store_path
from client.names import format_url

if TYPE_CHECKING:
    from loader.series import Member

__all__ = ["register"]

Tensors = Annotated[str, typer.Argument(metavar="BUCKET/KEY", help="An object of tensors: any safetensors file.")]
SeriesPath = Annotated[str, typer.Argument(metavar="BUCKET/KEY", help="The series, without a step.")]
Version = Annotated[int | None, typer.Option("--version", help="This version, not the current one.")]


def register(app: typer.Typer) -> None:
    """Add the commands to the ``forebay`` command line."""
    tensors = typer.Typer(help="Look into models and checkpoints.", no_args_is_help=True)
    tensors.command("ls")(list_tensors)
    tensors.command("get")(get_tensor)
    tensors.command("diff")(diff)
    app.add_typer(tensors, name="tensors")
    series = typer.Typer(help="Name and prune checkpoints that follow each other.", no_args_is_help=True)
    series.command("ls")(list_members)
    for command in (publish, withdraw, prune):
        series.command()(command)
    app.add_typer(series, name="series")


def list_tensors(ctx: typer.Context, target: Tensors, version: Version = None, as_json: AsJson = False) -> None:
    """List the tensors of an object: dtype, shape, bytes, and in how many shards each lies."""
    from loader.tensors import TensorReader

    out = Output(as_json=as_json)
    with connect(ctx) as store, TensorReader(_url(target), version=version, client=store) as reader:
        rows = (
            {
                "name": name,
                "dtype": str(reader.dtype(name)).removeprefix("torch."),
                "shape": list(reader.shape(name)),
                "num_bytes": reader.num_bytes(name),
                "shards": len(reader.contents.tensors[name].shards) if name in reader.contents.tensors else None,
                "tied_to": reader.contents.ties[name].owner if name in reader.contents.ties else None,
            }
            for name in reader
        )
        out.table(
            rows,
            {
                "name": "text",
                "dtype": "text",
                "shape": "text",
                "num_bytes": "size",
                "shards": "number",
                "tied_to": "text",
            },
        )
        if reader.metadata:
            out.note(f"metadata: {', '.join(f'{key}={value}' for key, value in sorted(reader.metadata.items()))}")


def get_tensor(
    ctx: typer.Context,
    target: Tensors,
    name: Annotated[str, typer.Argument(help="The tensor's name.")],
    to: Annotated[Path, typer.Argument(metavar="FILE.npy", help="Where to; an array that numpy loads.")],
    version: Version = None,
) -> None:
    """Fetch one tensor into a .npy file. Elements that numpy has no type for come as their bytes, uint8 in a last dimension."""
    import numpy as np
    import torch

    from loader.tensors import TensorReader

    with connect(ctx) as store, TensorReader(_url(target), version=version, client=store) as reader:
        tensor = reader[name].contiguous()
    try:
        array = tensor.numpy()
    except TypeError:
        array = tensor.reshape(-1).view(torch.uint8).numpy().reshape(*tensor.shape, tensor.dtype.itemsize)
    # Opened here, because numpy would add an ending to a path without one.
    with to.open("wb") as file:
        np.save(file, array)


def diff(
    ctx: typer.Context,
    old: Tensors,
    new: Tensors,
    old_version: Annotated[int | None, typer.Option(help="Of the first object.")] = None,
    new_version: Annotated[int | None, typer.Option(help="Of the second object.")] = None,
    as_json: AsJson = False,
) -> None:
    """Say which tensors were added, removed or changed between two objects, and what the second takes beside the first."""
    from loader.tensors import TensorReader, compare

    out = Output(as_json=as_json)
    with (
        connect(ctx) as store,
        TensorReader(_url(old), version=old_version, client=store) as before,
        TensorReader(_url(new), version=new_version, client=store) as after,
    ):
        found = compare(before, after)
    if as_json:
        parts = {part: list(getattr(found, part)) for part in ("added", "removed", "changed", "same")}
        out.document({**parts, "changed_bytes": found.changed_bytes, "new_bytes": found.new_bytes}, "")
        return
    for part in ("added", "removed", "changed"):
        out.table(({"what": part, "name": name} for name in getattr(found, part)), {"what": "text", "name": "text"})
    out.note(
        f"{plural(len(found.same), 'tensor')} the same; {human_size(found.changed_bytes)} of tensors added or changed, "
        f"{human_size(found.new_bytes)} of chunks that only the second has"
    )


def list_members(ctx: typer.Context, series: SeriesPath, as_json: AsJson = False) -> None:
    """List the steps of a series, with the names that lead to them."""
    from loader.series import Series

    out = Output(as_json=as_json)
    with connect(ctx) as store, Series(_url(series), client=store) as found:
        members = found.members()
    out.table(
        map(_member_json, members),
        {"step": "number", "names": "text", "size_bytes": "size", "created_s": "time", "version": "number"},
    )


def publish(
    ctx: typer.Context,
    series: SeriesPath,
    step: Annotated[int, typer.Argument(min=0, help="Which step.")],
    name: Annotated[str, typer.Argument(help="The name that is to lead to it.")] = "current",
    as_json: AsJson = False,
) -> None:
    """Have a name lead to a step. What has a name stays readable under it when its step is pruned."""
    from loader.series import Series

    out = Output(as_json=as_json)
    with connect(ctx) as store, Series(_url(series), client=store) as found:
        info = found.publish(step, name=name)
    url = format_url(info.bucket, info.key)
    out.document({"url": url, "step": step, "version": info.version, "etag": info.etag}, f"{url} is step {step} now")


def withdraw(
    ctx: typer.Context,
    series: SeriesPath,
    name: Annotated[str, typer.Argument(help="The name to remove.")],
) -> None:
    """Remove a name. The step that it led to stays."""
    from loader.series import Series

    with connect(ctx) as store, Series(_url(series), client=store) as found:
        found.withdraw(name)


def prune(
    ctx: typer.Context,
    series: SeriesPath,
    keep_last: Annotated[int, typer.Option(min=1, help="Keep so many of the newest steps.")],
    keep_every: Annotated[int | None, typer.Option(min=1, help="Keep also steps that are multiples of this.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be removed.")] = False,
    as_json: AsJson = False,
) -> None:
    """Remove old steps. Garbage collection then frees what nothing else refers to (`forebay gc --wait` does so now)."""
    from loader.series import Series

    out = Output(as_json=as_json)
    with connect(ctx) as store, Series(_url(series), client=store) as found:
        removed = found.prune(keep_last=keep_last, keep_every=keep_every, dry_run=dry_run)
    out.table(map(_member_json, removed), {"step": "number", "names": "text", "size_bytes": "size", "created_s": "time"})
    out.note(f"{plural(len(removed), 'step')} {'would be removed' if dry_run else 'removed'}")


def _url(text: str) -> str:
    path = parse_store_path(text).require_object()
    return format_url(path.bucket, path.key)


def _member_json(member: Member) -> dict[str, Any]:
    return {
        "step": member.step,
        "names": list(member.names),
        "size_bytes": member.info.size,
        "created_s": member.info.record.created_s,
        "version": member.info.version,
        "url": format_url(member.info.bucket, member.info.key),
    }
