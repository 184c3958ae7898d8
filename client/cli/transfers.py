"""`forebay put | get | sync`: bytes between this machine and the store.

Which side is which never depends on what exists: put takes a local path and a path in the store, get the other way round, and
sync wants the store's side written as ``forebay://bucket/prefix``.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import typer

from client.cli.connection import connect
from client.cli.objects import InSnapshot, object_json
from client.cli.output import AsJson, Output, plural
from client.cli.paths import StorePath, parse_store_path
from client.errors import ObjectNotFound
from client.names import SCHEME
from client.objects import ObjectStore
from client.sync import sync
from client.transfer import DEFAULT_PARALLEL, Transferred, get_file, get_folder, measure_folder, put_file, put_folder

__all__ = ["register"]

Recursive = Annotated[bool, typer.Option("--recursive", "-r", help="A folder, with everything below it.")]
Parallel = Annotated[int, typer.Option("--parallel", min=1, max=64, help="Files under way at once.")]
STREAM = "-"


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command("put")(put)
    app.command("get")(get)
    app.command("sync")(sync_folders)


def put(
    ctx: typer.Context,
    source: Annotated[str, typer.Argument(metavar="SRC", help="A file; with -r a folder; - is standard input.")],
    target: Annotated[str, typer.Argument(metavar="BUCKET/KEY", help="Where to; a KEY that ends with / takes SRC's name.")],
    recursive: Recursive = False,
    parallel: Parallel = DEFAULT_PARALLEL,
    as_json: AsJson = False,
) -> None:
    """Store a file, or with -r the contents of a folder under BUCKET/KEY/."""
    out, path = Output(as_json=as_json), parse_store_path(target)
    local = Path(source)
    _check_source(source, local, target, recursive=recursive)
    with connect(ctx) as store:
        if recursive:
            store.buckets.get(path.bucket)
            total = measure_folder(local, prefix=path.folder)
            with out.progress("put", total=total) as progress:
                done = put_folder(store, local, path.bucket, path.folder, max_parallel=parallel, on_bytes=progress.advance)
                _print_all(out, done)
        elif source == STREAM:
            path.require_object()
            info = store.put(path.bucket, path.key, sys.stdin.buffer)
            out.document(object_json(info), _line(out, "put", STREAM, str(path), info.size))
        else:
            to = path.receiving(local.name)
            with out.progress("put", total=local.stat().st_size) as progress:
                info = put_file(store, local, to.bucket, to.key, on_bytes=progress.advance)
            out.document(object_json(info), _line(out, "put", source, str(to), info.size))


def get(
    ctx: typer.Context,
    source: Annotated[str, typer.Argument(metavar="BUCKET/KEY", help="An object; with -r a folder.")],
    target: Annotated[str, typer.Argument(metavar="DST", help="A file, a folder to put it into, or - for standard output.")],
    recursive: Recursive = False,
    version: Annotated[int | None, typer.Option("--version", help="This version, not the current one.")] = None,
    snapshot: InSnapshot = None,
    parallel: Parallel = DEFAULT_PARALLEL,
    as_json: AsJson = False,
) -> None:
    """Fetch an object into a file, or with -r all below BUCKET/KEY/ into a folder. Every byte is verified."""
    out, path = Output(as_json=as_json), parse_store_path(source)
    if target == STREAM and (recursive or as_json):
        raise typer.BadParameter("- takes the bytes of one object, which leaves no room for -r or --json", param_hint="DST")
    if recursive and version is not None:
        raise typer.BadParameter("a version belongs to one object", param_hint="--version")
    with connect(ctx) as store:
        if recursive:
            _get_recursive(store, path, Path(target), out, snapshot=snapshot, parallel=parallel)
            return
        path.require_object()
        info = store.stat(path.bucket, path.key, version=version, snapshot=snapshot)
        if target == STREAM:
            for piece in store.reader(info).stream():
                sys.stdout.buffer.write(piece)
            sys.stdout.buffer.flush()
            return
        to = _receiving(target, path)
        with out.progress("get", total=info.size) as progress:
            get_file(store, info, to, on_bytes=progress.advance)
        out.document({**object_json(info), "path": str(to)}, _line(out, "get", str(path), str(to), info.size))


def sync_folders(
    ctx: typer.Context,
    source: Annotated[str, typer.Argument(metavar="SRC", help="A folder, or forebay://BUCKET/PREFIX.")],
    target: Annotated[str, typer.Argument(metavar="DST", help="The other one of the two.")],
    delete: Annotated[bool, typer.Option("--delete", help="Remove from DST what SRC does not have.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be done.")] = False,
    parallel: Parallel = DEFAULT_PARALLEL,
    as_json: AsJson = False,
) -> None:
    """Make DST equal to SRC, moving only files whose bytes differ."""
    out = Output(as_json=as_json)
    if source.startswith(SCHEME) == target.startswith(SCHEME):
        raise typer.BadParameter(
            f"write exactly one of SRC and DST as {SCHEME}BUCKET/PREFIX; the other one is a folder here", param_hint="SRC"
        )
    to_store = target.startswith(SCHEME)
    folder = Path(source if to_store else target)
    path = parse_store_path(target if to_store else source)
    if to_store and not folder.is_dir():
        raise typer.BadParameter(f"there is no folder {str(folder)!r}", param_hint="SRC")
    with connect(ctx) as store, out.progress("sync") as progress:
        done = sync(
            store,
            folder,
            path.bucket,
            path.folder,
            direction="put" if to_store else "get",
            delete=delete,
            dry_run=dry_run,
            max_parallel=parallel,
            on_bytes=progress.advance,
        )
        _print_all(out, done, would=dry_run)


def _check_source(source: str, local: Path, target: str, *, recursive: bool) -> None:
    if source == STREAM:
        if recursive:
            raise typer.BadParameter("-r needs a folder, not standard input", param_hint="SRC")
    elif recursive and not local.is_dir():
        raise typer.BadParameter(f"there is no folder {source!r}; leave out -r for a file", param_hint="SRC")
    elif not recursive and local.is_dir():
        raise typer.BadParameter(
            f"{source!r} is a folder; `forebay put -r {source} {target}` sends what is in it", param_hint="SRC"
        )


def _receiving(target: str, path: StorePath) -> Path:
    """The file that DST means: with a slash at its end, or where a folder is, the object's own name in it."""
    local = Path(target)
    return local / path.key.rpartition("/")[2] if target.endswith("/") or local.is_dir() else local


def _get_recursive(
    store: ObjectStore, path: StorePath, folder: Path, out: Output, *, snapshot: str | None, parallel: int
) -> None:
    with out.progress("get") as progress:
        done = get_folder(
            store,
            path.bucket,
            path.folder,
            folder,
            snapshot=snapshot,
            max_parallel=parallel,
            on_bytes=progress.advance,
        )
        if not _print_all(out, done):
            raise ObjectNotFound(f"there is nothing below {path.bucket}/{path.folder}", key=str(path))


def _print_all(out: Output, done: Iterable[Transferred], *, would: bool = False) -> int:
    """Print what was done as it happens, and on a terminal what it comes to; how much that was."""
    num_done = num_bytes = num_same = 0
    for item in done:
        if item.action == "same":
            num_same += 1
            continue
        num_done += 1
        num_bytes += item.size_bytes if item.action in ("put", "get") else 0
        if item.action == "skip" and not out.as_json:
            out.note(f"warning: skipped {item.path}: {item.detail}")
        else:
            out.document(_transferred_json(item, would=would), _transferred_line(out, item, would=would))
    if out.terminal:
        unchanged = f", {num_same} unchanged" if num_same else ""
        out.note(f"{plural(num_done, 'file')}, {out.size(num_bytes)}{unchanged}")
    return num_done


def _transferred_json(item: Transferred, *, would: bool) -> dict[str, Any]:
    value: dict[str, Any] = {
        "action": item.action,
        "path": str(item.path),
        "bucket": item.bucket,
        "key": item.key,
        "size_bytes": item.size_bytes,
    }
    if item.detail:
        value["detail"] = item.detail
    return {**value, "dry_run": True} if would else value


def _transferred_line(out: Output, item: Transferred, *, would: bool) -> str:
    stored, path = f"{item.bucket}/{item.key}", str(item.path)
    would_be = "would " if would else ""
    if item.action in ("delete-object", "delete-file"):
        action, gone = f"{would_be}delete", path if item.action == "delete-file" else stored
        return f"{action} {gone}" if out.terminal else f"{action}\t{gone}"
    source, target = (stored, path) if item.action == "get" else (path, stored)
    return _line(out, would_be + item.action, source, target, item.size_bytes)


def _line(out: Output, action: str, source: str, target: str, size_bytes: int) -> str:
    if out.terminal:
        return f"{action} {source} → {target} ({out.size(size_bytes)})"
    return f"{action}\t{source}\t{target}\t{size_bytes}"
