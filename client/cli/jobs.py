"""`forebay scrub | job`: long work of the nodes, started, followed and ended from here.

A job belongs to one node; any node can tell of all jobs.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator
from functools import partial
from typing import Annotated, Any
from urllib.parse import quote

import typer

from client.cli.connection import connect
from client.cli.output import AsJson, Column, Output
from client.cli.report import FAILED, print_error
from client.client import Client
from client.errors import JobNotFound, StoreError
from client.parallel import bounded_map

__all__ = ["changes", "register"]

MAX_PARALLEL = 16
POLL_S = 0.5
ENDED = ("done", "failed", "cancelled")
Job = dict[str, Any]

_COLUMNS: dict[str, Column] = {
    "id": "text",
    "kind": "text",
    "node_id": "text",
    "state": "text",
    "num_chunks": "number",
    "total_chunks": "number",
    "size_bytes": "size",
    "started_s": "time",
    "detail": "text",
}


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command("scrub")(scrub)
    group = typer.Typer(help="List, follow and end the nodes' background jobs.")
    for name, command in (("ls", ls), ("watch", watch), ("cancel", cancel)):
        group.command(name)(command)
    app.add_typer(group, name="job")


def scrub(
    ctx: typer.Context,
    wait: Annotated[bool, typer.Option("--wait", help="Follow the jobs to their end.")] = False,
    as_json: AsJson = False,
) -> None:
    """Have every node re-hash its copies at a limited rate, set bad ones aside and fetch what is missing."""
    out = Output(as_json=as_json)
    with connect(ctx) as store:
        nodes = [node.id for node in store.cluster.refresh().layout.nodes]
        started = list(bounded_map(partial(_start, store), nodes, max_parallel=MAX_PARALLEL))
        jobs = [job for job in started if isinstance(job, dict)]
        for node_id, job in zip(nodes, started, strict=True):
            if isinstance(job, StoreError):
                print_error(f"node {node_id} was not told to scrub: {job.message}", hint=None)
        failed = len(jobs) < len(nodes)
        if wait:
            failed |= _follow(store, out, {job["id"] for job in jobs})
        else:
            _print_jobs(out, jobs)
    if failed:
        raise typer.Exit(FAILED)


def ls(ctx: typer.Context, as_json: AsJson = False) -> None:
    """List the jobs that run and those that ended lately, oldest first."""
    with connect(ctx) as store:
        _print_jobs(Output(as_json=as_json), _jobs(store))


def watch(
    ctx: typer.Context,
    ids: Annotated[list[str] | None, typer.Argument(metavar="[ID...]", help="By default all that run.")] = None,
    as_json: AsJson = False,
) -> None:
    """Follow jobs until they end. Exits with 1 if one fails."""
    with connect(ctx) as store:
        jobs = _jobs(store)
        unknown = sorted(set(ids or ()) - {job["id"] for job in jobs})
        if unknown:
            raise JobNotFound(f"there is no job {unknown[0]!r}", key=unknown[0])
        wanted = set(ids) if ids else {job["id"] for job in jobs if job["state"] not in ENDED}
        out = Output(as_json=as_json)
        if not wanted:
            out.note("no job is running")
        if _follow(store, out, wanted):
            raise typer.Exit(FAILED)


def cancel(ctx: typer.Context, job_id: Annotated[str, typer.Argument(metavar="ID")], as_json: AsJson = False) -> None:
    """Ask for the end of a job, on whichever node it runs. What it has done stays done."""
    out = Output(as_json=as_json)
    with connect(ctx) as store:
        job = store.admin("DELETE", f"/v1/admin/jobs/{quote(job_id, safe='')}")
    out.document(job, f"job {job_id}: {_state(job)}")


def changes(
    read: Callable[[], Collection[Job]], wanted: Collection[str], *, sleep: Callable[[float], None] = time.sleep
) -> Iterator[Job]:
    """Each of the wanted jobs whenever it has changed, until all have ended or are forgotten.

    Parameters
    ----------
    read : callable
        Fetches all jobs.
    """
    seen: dict[str, Job] = {}
    while True:
        jobs = [job for job in read() if job["id"] in wanted]
        for job in jobs:
            if seen.get(job["id"]) != job:
                seen[job["id"]] = job
                yield job
        if all(job["state"] in ENDED for job in jobs):
            return
        sleep(POLL_S)


def _start(store: Client, node_id: str) -> Job | StoreError:
    """The scrub of a node, or why there is none; the other nodes get theirs all the same."""
    try:
        job: Job = store.admin("POST", "/v1/admin/scrub", node_id=node_id)
    except StoreError as error:
        return error
    return job


def _jobs(store: Client) -> list[Job]:
    jobs: list[Job] = store.admin("GET", "/v1/admin/jobs")["jobs"]
    return jobs


def _follow(store: Client, out: Output, wanted: Collection[str]) -> bool:
    """Print jobs as they change, on a terminal as a bar and their ends; whether one failed."""
    failed = False
    done: dict[str, int] = {}
    total: dict[str, int] = {}
    with out.progress("chunks", unit="count") as progress:
        for job in changes(lambda: _jobs(store), wanted):
            progress.advance(job["num_chunks"] - done.get(job["id"], 0))
            done[job["id"]] = job["num_chunks"]
            total[job["id"]] = job["total_chunks"] or job["num_chunks"]
            progress.expect(sum(total.values()))
            failed |= job["state"] == "failed"
            if not out.terminal or job["state"] in ENDED:
                out.document(job, _line(out, job))
    return failed


def _print_jobs(out: Output, jobs: Collection[Job]) -> None:
    out.table(({**job, "state": _state(job)} for job in jobs) if not out.as_json else jobs, _COLUMNS)


def _state(job: Job) -> str:
    return "cancelling" if job["cancelling"] and job["state"] == "running" else str(job["state"])


def _line(out: Output, job: Job) -> str:
    of_total = f" of {job['total_chunks']}" if job["total_chunks"] is not None else ""
    said = f": {job['detail']}" if job["detail"] else ""
    read = out.size(job["size_bytes"]) if out.terminal else f"{job['size_bytes']} bytes"
    return f"{job['kind']} {job['id']} on {job['node_id']} {_state(job)}, {job['num_chunks']}{of_total} chunks, {read}{said}"
