"""The sides that can stand in a cell, and how to start the servers behind them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from benchmarks.store.http_stores import Filer, Nginx, Volumes
from benchmarks.store.servers import install_weed, nginx, seaweed
from benchmarks.store.stores import BUCKET, Files, Forebay, Store
from client import Client
from storenode.embedded import EmbeddedCluster

__all__ = ["Running", "Side", "running"]


class Side(StrEnum):
    """A store, and what it is called in reports."""

    FOREBAY = "Forebay"
    COLOCATED = "Forebay, co-located"
    NGINX = "nginx sendfile"
    VOLUME = "SeaweedFS volume server"
    FILER = "SeaweedFS filer"
    FILE = "plain file"
    FILES_3 = "3 plain files"

    @property
    def is_limit(self) -> bool:
        """Whether it is no store but what the machine can do at most."""
        return self in (Side.NGINX, Side.FILE, Side.FILES_3)


@dataclass(frozen=True, slots=True, kw_only=True)
class Running:
    """A side whose servers run.

    Attributes
    ----------
    pids : tuple of int
        The server processes that take part in its work; none for plain files.
    """

    store: Store
    pids: tuple[int, ...]


@contextmanager
def running(sides: Collection[Side], work: Path) -> Iterator[Mapping[Side, Running]]:
    """Start what `sides` need, with their data below `work`, and stop it at the end."""
    with ExitStack() as stack:
        started: dict[Side, Running] = {}
        for behind, start in _STARTS.items():
            if behind.intersection(sides):
                started |= stack.enter_context(start(work))
        yield started


@contextmanager
def _forebay(work: Path) -> Iterator[dict[Side, Running]]:
    with EmbeddedCluster(work / "forebay", nodes=3, port=0) as cluster:
        with Client(list(cluster.endpoints)) as client:
            client.buckets.create(BUCKET)
        pids = tuple(map(cluster.pid, cluster.node_ids))
        yield {
            side: Running(store=Forebay(endpoints=cluster.endpoints, colocated=side is Side.COLOCATED), pids=pids)
            for side in (Side.FOREBAY, Side.COLOCATED)
        }


@contextmanager
def _nginx(work: Path) -> Iterator[dict[Side, Running]]:
    root = work / "nginx-files"
    root.mkdir()
    with nginx(root, work / "nginx") as (url, pid):
        yield {Side.NGINX: Running(store=Nginx(url=url, root=root), pids=(pid,))}


@contextmanager
def _seaweedfs(work: Path) -> Iterator[dict[Side, Running]]:
    with seaweed(install_weed(), work / "seaweedfs") as servers:
        yield {
            Side.VOLUME: Running(store=Volumes(master=servers.master), pids=servers.volume_pids),
            Side.FILER: Running(store=Filer(url=servers.filer), pids=(*servers.volume_pids, servers.filer_pid)),
        }


@contextmanager
def _files(work: Path) -> Iterator[dict[Side, Running]]:
    stores = {Side.FILE: Files(root=work / "file", copies=1), Side.FILES_3: Files(root=work / "files-3", copies=3)}
    for store in stores.values():
        store.root.mkdir()
    yield {side: Running(store=store, pids=()) for side, store in stores.items()}


_STARTS: Mapping[frozenset[Side], Callable[[Path], AbstractContextManager[dict[Side, Running]]]] = {
    frozenset({Side.FOREBAY, Side.COLOCATED}): _forebay,
    frozenset({Side.NGINX}): _nginx,
    frozenset({Side.VOLUME, Side.FILER}): _seaweedfs,
    frozenset({Side.FILE, Side.FILES_3}): _files,
}
