"""`forebay meta`: move a cluster's metadata to another engine, keep a copy of it, and go on from one that was restored.

The commands speak to the metadata engine itself, as nodes do, and need no node. The engine's settings (``FOREBAY_ETCD_USER``
and so on) come from the environment.
"""

from __future__ import annotations

import getpass
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from client.cli.output import AsJson, Output, plural

if TYPE_CHECKING:
    from storenode.metastore import MetaStore

__all__ = ["register"]

_ENGINE = "Metadata engine, as FOREBAY_META names it; by default that."
Engine = Annotated[str | None, typer.Option("--meta", metavar="ENGINE", help=_ENGINE)]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    group = typer.Typer(help="Move, copy and restore the metadata of a cluster.")
    group.command("export")(export)
    group.command("import")(import_)
    group.command("thaw")(thaw)
    group.command("accept-restore")(accept)
    app.add_typer(group, name="meta")


def export(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Replaced if it exists, and only by a whole export.")],
    source: Annotated[str | None, typer.Option("--from", metavar="ENGINE", help=_ENGINE)] = None,
    freeze: Annotated[bool, typer.Option(help="First have all commits refused, until `forebay meta thaw`.")] = False,
    as_json: AsJson = False,
) -> None:
    """Write a cluster's metadata to a file: as a backup, or with --freeze to move it to another engine."""
    from storenode import lineage
    from storenode.migration import export_metadata

    out = Output(as_json=as_json)
    with _engine(source) as store, out.progress("keys", unit="count") as progress:
        if freeze:
            lineage.freeze(store, who=f"`forebay meta export --freeze` of {getpass.getuser()} on {socket.gethostname()}")
        summary = export_metadata(store, file, on_items=progress.advance)
    header = summary.header
    text = f"{plural(summary.num_items, 'key')} of cluster {header.cluster_id} at revision {header.revision} in {file}"
    if freeze:
        text += (
            f". Commits stay frozen. Next: `forebay meta import {file} --to ENGINE`, then start the nodes with "
            "FOREBAY_META=ENGINE; or `forebay meta thaw` to go on as before"
        )
    out.document(
        {
            "file": str(file),
            "cluster_id": header.cluster_id,
            "revision": header.revision,
            "items": summary.num_items,
            "frozen": header.frozen,
        },
        text,
    )


def import_(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="From `forebay meta export`.")],
    to: Annotated[str, typer.Option("--to", metavar="ENGINE", help="An engine, or a prefix in it, that holds nothing.")],
    as_json: AsJson = False,
) -> None:
    """Put an export into an empty engine. If it is broken off, repeat it."""
    from storenode.migration import import_metadata

    out = Output(as_json=as_json)
    with _engine(to, create=True) as store, out.progress("keys", unit="count") as progress:
        done = import_metadata(store, file, on_items=progress.advance)
    cluster_id, items = done.lineage.cluster_id, plural(done.summary.num_items, "key")
    how = f"was imported before, with {items}" if done.repeated else f"is imported, with {items}"
    text = f"cluster {cluster_id} {how}. Next: start the nodes with FOREBAY_META={to}"
    if not done.summary.header.frozen:
        text += "; what was committed after the export is not in it"
    document = {"cluster_id": cluster_id, "items": done.summary.num_items, "incarnation": done.lineage.incarnation}
    out.document({**document, "frozen": done.summary.header.frozen}, text)


def thaw(meta: Engine = None, as_json: AsJson = False) -> None:
    """Let commits go on that `export --freeze` had refused."""
    from storenode import lineage

    with _engine(meta) as store:
        found = lineage.thaw(store)
    Output(as_json=as_json).document({"cluster_id": found.cluster_id}, f"commits go on in cluster {found.cluster_id}")


def accept(meta: Engine = None, as_json: AsJson = False) -> None:
    """Go on from metadata that was restored from a backup: what was committed after the backup is given up."""
    from storenode.incarnation import accept_restore

    with _engine(meta) as store:
        found = accept_restore(store)
    text = (
        f"cluster {found.cluster_id} goes on from the metadata as it is now, as incarnation {found.incarnation}; versions "
        f"count from {found.base}. The nodes go through all records once"
    )
    document = {"cluster_id": found.cluster_id, "incarnation": found.incarnation, "base": found.base}
    Output(as_json=as_json).document(document, text)


@contextmanager
def _engine(url: str | None, *, create: bool = False) -> Iterator[MetaStore]:
    from storenode.engine import load_engine_config, open_engine

    store = open_engine(load_engine_config(**({} if url is None else {"meta": url})), create=create)
    try:
        yield store
    finally:
        store.close()
