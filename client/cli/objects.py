"""`forebay cat | cp | mv | rm | ls | stat | du`: objects in the store, by name.

cp and mv stay inside the store, where a copy is a second name and moves no bytes (unless its bucket wants more replicas).
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Annotated, Any

import typer

from client.catalog import Listing
from client.cli.connection import connect
from client.cli.output import AsJson, Column, Output
from client.cli.paths import StorePath, parse_store_path, walk_objects
from client.errors import BucketNotFound, ObjectNotFound
from client.names import format_url
from client.objects import ObjectStore
from client.parallel import bounded_map
from client.record import ObjectInfo

__all__ = ["InSnapshot", "bucket_columns", "object_json", "register"]

MAX_PARALLEL = 8
InSnapshot = Annotated[str | None, typer.Option("--snapshot", metavar="NAME", help="As this snapshot of the bucket shows it.")]
Recursive = Annotated[bool, typer.Option("--recursive", "-r", help="Everything below the path.")]

bucket_columns: dict[str, Column] = {"bucket": "text", "replicas": "number", "ack": "text", "versions": "number"}
"""How buckets are shown."""


def register(app: typer.Typer) -> None:
    """Add the commands."""
    for name, command in (("cat", cat), ("cp", cp), ("mv", mv), ("rm", rm), ("ls", ls), ("stat", stat), ("du", du)):
        app.command(name)(command)


def object_json(info: ObjectInfo) -> dict[str, Any]:
    """An object as ``--json`` shows it."""
    record = info.record
    return {
        "bucket": info.bucket,
        "key": info.key,
        "url": format_url(info.bucket, info.key),
        "version": info.version,
        "etag": info.etag,
        "size_bytes": info.size,
        "digest": info.digest,
        "content_type": record.content_type,
        "created_s": record.created_s,
        "replicas": record.replicas,
        "ack": record.ack,
        "metadata": dict(record.metadata),
        "deleted": record.tombstone,
    }


def cat(
    ctx: typer.Context,
    paths: Annotated[list[str], typer.Argument(metavar="BUCKET/KEY...")],
    version: Annotated[int | None, typer.Option("--version", help="This version of the one object.")] = None,
) -> None:
    """Write objects to standard output, one after another."""
    if version is not None and len(paths) > 1:
        raise typer.BadParameter("a version belongs to one object", param_hint="--version")
    parsed = [parse_store_path(path).require_object() for path in paths]
    with connect(ctx) as store:
        for path in parsed:
            for piece in store.reader(store.stat(path.bucket, path.key, version=version)).stream():
                sys.stdout.buffer.write(piece)
        sys.stdout.buffer.flush()


def cp(
    ctx: typer.Context,
    source: Annotated[str, typer.Argument(metavar="BUCKET/KEY", help="In the store; `forebay put` sends files.")],
    target: Annotated[str, typer.Argument(metavar="BUCKET/KEY", help="In the store; a KEY that ends with / takes the name.")],
    recursive: Recursive = False,
    as_json: AsJson = False,
) -> None:
    """Copy objects inside the store."""
    with connect(ctx) as store:
        _copy_or_move(store, "cp", _copy, source, target, recursive=recursive, out=Output(as_json=as_json))


def mv(
    ctx: typer.Context,
    source: Annotated[str, typer.Argument(metavar="BUCKET/KEY", help="In the store.")],
    target: Annotated[str, typer.Argument(metavar="BUCKET/KEY", help="In the store; a KEY that ends with / takes the name.")],
    recursive: Recursive = False,
    as_json: AsJson = False,
) -> None:
    """Move objects inside the store: copy, then delete what was copied."""
    with connect(ctx) as store:
        _copy_or_move(store, "mv", _move, source, target, recursive=recursive, out=Output(as_json=as_json))


def rm(
    ctx: typer.Context,
    paths: Annotated[list[str], typer.Argument(metavar="BUCKET/KEY...")],
    recursive: Recursive = False,
    as_json: AsJson = False,
) -> None:
    """Remove objects. In a bucket that keeps versions, older ones stay and `get --version` finds them."""
    out = Output(as_json=as_json)
    parsed = [parse_store_path(path) for path in paths]
    with connect(ctx) as store:
        for path in parsed if recursive else [path.require_object() for path in parsed]:
            removed = _remove_below(store, path) if recursive else _remove(store, path)
            key = None
            for key in removed:
                out.document({"action": "rm", "bucket": path.bucket, "key": key}, f"rm {path.bucket}/{key}")
            if key is None:
                raise ObjectNotFound(f"there is nothing at or below {path}", key=str(path))


def ls(
    ctx: typer.Context,
    path: Annotated[str | None, typer.Argument(metavar="[BUCKET[/PREFIX]]", help="The beginning of the keys to show.")] = None,
    recursive: Annotated[bool, typer.Option("--recursive", "-r", help="All keys, not only up to the next slash.")] = False,
    versions: Annotated[bool, typer.Option("--versions", help="Older versions and deletions too, newest first.")] = False,
    snapshot: InSnapshot = None,
    as_json: AsJson = False,
) -> None:
    """List buckets, or the objects and folders of one whose keys begin with PREFIX."""
    out = Output(as_json=as_json)
    with connect(ctx) as store:
        if path is None:
            policies = store.buckets.list().items()
            out.table(({"bucket": name, **policy.to_json()} for name, policy in policies), bucket_columns)
            return
        columns: dict[str, Column] = {"size_bytes": "size", "created_s": "time", "key": "text"}
        if versions:
            columns = {"version": "number", "size_bytes": "size", "created_s": "time", "deleted": "text", "key": "text"}
        out.table(_rows(store, parse_store_path(path), recursive=recursive, versions=versions, snapshot=snapshot), columns)


def stat(
    ctx: typer.Context,
    path: Annotated[str, typer.Argument(metavar="BUCKET/KEY")],
    version: Annotated[int | None, typer.Option("--version", help="This version, not the current one.")] = None,
    snapshot: InSnapshot = None,
    as_json: AsJson = False,
) -> None:
    """Show what is known of an object."""
    parsed = parse_store_path(path).require_object()
    with connect(ctx) as store:
        value = object_json(store.stat(parsed.bucket, parsed.key, version=version, snapshot=snapshot))
    columns: dict[str, Column] = {name: "text" for name in value if name != "deleted"}
    Output(as_json=as_json).fields(value, {**columns, "size_bytes": "size", "created_s": "time"})


def du(
    ctx: typer.Context,
    path: Annotated[str | None, typer.Argument(metavar="[BUCKET[/KEY]]")] = None,
    recursive: Annotated[bool, typer.Option("--recursive", "-r", help="A line for every folder, not only the sum.")] = False,
    as_json: AsJson = False,
) -> None:
    """Count the objects at and below a path, their bytes, and the bytes of all their replicas. Older versions don't count."""
    columns: dict[str, Column] = {"size_bytes": "size", "stored_bytes": "size", "objects": "number", "path": "text"}
    with connect(ctx) as store:
        paths = [parse_store_path(path)] if path else [parse_store_path(bucket) for bucket in store.buckets.list()]
        rows = (row for parsed in paths for row in usage(walk_objects(store, parsed), parsed, folders=recursive))
        Output(as_json=as_json).table(rows, columns)


def usage(infos: Iterable[ObjectInfo], path: StorePath, *, folders: bool) -> Iterator[dict[str, Any]]:
    """Sums over the objects at and below `path`: of each folder once it is complete, the whole last.

    Keys come in order, so a folder's objects are neighbours, and only the folders around one object are open.
    """
    open_folders = [(path.folder, _empty_usage(path))]
    for info in infos:
        # The object that `path` itself names belongs to the whole, although it lies in no folder below.
        while len(open_folders) > 1 and not info.key.startswith(open_folders[-1][0]):
            yield _close(open_folders)
        below = info.key.removeprefix(open_folders[-1][0]).split("/")[:-1] if folders and info.key != path.key else []
        for name in below:
            folder = f"{open_folders[-1][0]}{name}/"
            open_folders.append((folder, _empty_usage(StorePath(bucket=path.bucket, key=folder))))
        sums = open_folders[-1][1]
        sums["objects"] += 1
        sums["size_bytes"] += info.size
        sums["stored_bytes"] += info.size * info.record.replicas
    while len(open_folders) > 1:
        yield _close(open_folders)
    yield open_folders[0][1]


def _empty_usage(path: StorePath) -> dict[str, Any]:
    return {"path": str(path), "objects": 0, "size_bytes": 0, "stored_bytes": 0}


def _close(open_folders: list[tuple[str, dict[str, Any]]]) -> dict[str, Any]:
    """End the innermost folder, whose sums are part of the one around it."""
    _, sums = open_folders.pop()
    for name in ("objects", "size_bytes", "stored_bytes"):
        open_folders[-1][1][name] += sums[name]
    return sums


def _rows(
    store: ObjectStore, path: StorePath, *, recursive: bool, versions: bool, snapshot: str | None
) -> Iterator[dict[str, Any]]:
    cursor = None
    while True:
        page = store.list(
            path.bucket,
            prefix=path.key,
            delimiter="" if recursive else "/",
            cursor=cursor,
            versions=versions,
            snapshot=snapshot,
        )
        yield from _merged(page, path.bucket)
        cursor = page.cursor
        if cursor is None:
            return


def _merged(page: Listing, bucket: str) -> list[dict[str, Any]]:
    """Objects and folders of a page in the order of their names; versions of a key stay newest first."""
    rows = [object_json(info) for info in page.objects]
    rows += [{"bucket": bucket, "key": prefix, "folder": True} for prefix in page.prefixes]
    return sorted(rows, key=lambda row: str(row["key"]).encode())


def _copy_or_move(
    store: ObjectStore,
    action: str,
    act: Callable[[ObjectStore, ObjectInfo, StorePath], ObjectInfo],
    source: str,
    target: str,
    *,
    recursive: bool,
    out: Output,
) -> None:
    origin, to = parse_store_path(source), parse_store_path(target)
    if not recursive:
        origin.require_object()
        to = to.receiving(origin.key.rpartition("/")[2])
        if to == origin:
            raise typer.BadParameter(f"{origin} and {to} are the same object", param_hint="BUCKET/KEY")
        made = act(store, _stat_source(store, origin, source), to)
        out.document(_moved_json(action, str(origin), made), f"{action} {origin} → {to}")
        return
    if origin.bucket == to.bucket and (origin.folder.startswith(to.folder) or to.folder.startswith(origin.folder)):
        raise typer.BadParameter(f"one of {origin} and {to} lies inside the other", param_hint="BUCKET/KEY")

    def one(info: ObjectInfo) -> tuple[str, ObjectInfo]:
        key = to.folder + info.key.removeprefix(origin.folder)
        return f"{info.bucket}/{info.key}", act(store, info, StorePath(bucket=to.bucket, key=key))

    done = 0
    for name, made in bounded_map(one, store.walk(origin.bucket, prefix=origin.folder), max_parallel=MAX_PARALLEL):
        done += 1
        out.document(_moved_json(action, name, made), f"{action} {name} → {made.bucket}/{made.key}")
    if not done:
        raise ObjectNotFound(f"there is nothing below {origin.bucket}/{origin.folder}", key=str(origin))


def _stat_source(store: ObjectStore, origin: StorePath, source: str) -> ObjectInfo:
    try:
        return store.stat(origin.bucket, origin.key)
    except BucketNotFound as error:
        raise BucketNotFound(
            f"there is no bucket {origin.bucket!r}; cp and mv stay inside the store, "
            f"`forebay put {source} BUCKET/KEY` sends a file",
            key=error.key,
        ) from error


def _copy(store: ObjectStore, info: ObjectInfo, to: StorePath) -> ObjectInfo:
    return store.copy(info.bucket, info.key, to.bucket, to.key)


def _move(store: ObjectStore, info: ObjectInfo, to: StorePath) -> ObjectInfo:
    made = _copy(store, info, to)
    # If somebody wrote the object meanwhile, this fails and both names stay.
    store.delete(info.bucket, info.key, if_match=info.etag)
    return made


def _moved_json(action: str, source: str, made: ObjectInfo) -> dict[str, Any]:
    return {"action": action, "source": source, **object_json(made)}


def _remove(store: ObjectStore, path: StorePath) -> Iterator[str]:
    store.delete(path.bucket, path.key)
    yield path.key


def _remove_below(store: ObjectStore, path: StorePath) -> Iterator[str]:
    def remove(info: ObjectInfo) -> str | None:
        try:
            store.delete(info.bucket, info.key)
        except ObjectNotFound:
            return None  # somebody else was faster
        return info.key

    removed = bounded_map(remove, walk_objects(store, path), max_parallel=MAX_PARALLEL)
    return (key for key in removed if key is not None)
