"""One node in this process, without sockets: real disk, metadata and routes; its peers are dictionaries."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from starlette.types import ASGIApp
from typing_extensions import Buffer

from client.chunks import Stored
from client.cluster import Cluster, ClusterView
from client.config import ClientConfig
from client.errors import AllReplicasFailed, JobNotFound
from client.manifest import Ref
from client.objects import ObjectStore
from client.placement import Layout, Layouts
from client.placement import Node as LayoutNode
from client.retry import Deadline
from storenode.app import create_app
from storenode.catalog import MetaCatalog
from storenode.chunkstore import ChunkStore
from storenode.config import load_node_config
from storenode.filesystem import FileSystem
from storenode.follower import Progress
from storenode.job import Job
from storenode.layouts import create_layout
from storenode.lineage_watch import LineageWatch
from storenode.movement import NodeFacts
from storenode.node import Node
from storenode.openchunks import OpenChunks
from storenode.reshaping import Reshaping
from storenode.threads import Pools
from storenode.tokens import Tokens
from tests.support.catalogs import memory_directory, open_meta
from tests.support.fake_store import FakeChunks
from tests.support.hooked_meta import HookedMeta

__all__ = ["OWN", "PARTITIONS", "PEERS", "Repairs", "TestBed", "open_node"]

OWN, PEERS = "n1", ("n2", "n3")
PARTITIONS = 64
KIB = 1024


class PeerChunks(FakeChunks):
    """Peers that may also hang until `hanging` is cleared and `released` set."""

    def __init__(self, node_ids: Sequence[str]) -> None:
        super().__init__(node_ids)
        self.hanging: set[str] = set()
        self.released = threading.Event()

    def put(
        self,
        node_id: str,
        ref: Ref,
        payload: Buffer,
        *,
        epoch: int,
        tee: Sequence[str] = (),
        deadline: Deadline | None = None,
    ) -> Stored:
        if node_id in self.hanging:
            self.released.wait(timeout=30.0)
        return super().put(node_id, ref, payload, epoch=epoch, tee=tee, deadline=deadline)


@dataclass
class Repairs:
    """Stands for the follower."""

    asked: list[tuple[int, bytes]] = field(default_factory=list)
    complete_to: int | None = 7
    num_pending: int = 0
    progress: Progress = field(default_factory=Progress)

    def fetch(self, partition: int, chunk_id: bytes) -> None:
        raise AllReplicasFailed(f"no node has chunk {partition}/{chunk_id.hex()}")

    def repair(self, partition: int, chunk_id: bytes) -> None:
        self.asked.append((partition, chunk_id))


class FakeJobs:
    """Stands for the jobs."""

    def __init__(self) -> None:
        self.jobs: list[Job] = []

    def start(self, kind: str) -> Job:
        job = Job(
            id=f"job{len(self.jobs)}",
            kind=kind,
            node_id=OWN,
            state="running",
            cancelling=False,
            cursor="",
            num_chunks=0,
            total_chunks=None,
            size_bytes=0,
            detail="",
            started_s=1.0,
            updated_s=1.0,
        )
        self.jobs.append(job)
        return job

    def ls(self) -> list[Job]:
        return list(self.jobs)

    def cancel(self, job_id: str) -> Job:
        for number, job in enumerate(self.jobs):
            if job.id == job_id:
                self.jobs[number] = replace(job, cancelling=True)
                return self.jobs[number]
        raise JobNotFound(f"there is no job {job_id!r}", key=job_id)


@dataclass(frozen=True, slots=True, kw_only=True)
class TestBed:
    """A node, its application, and the parts that a test looks into."""

    __test__ = False

    root: Path
    node: Node
    app: ASGIApp
    meta: HookedMeta
    peers: PeerChunks
    repairs: Repairs
    jobs: FakeJobs


@contextmanager
def open_node(
    *, fs: FileSystem | None = None, lease: bool = True, tokens: Tokens | None = None, **settings: Any
) -> Iterator[TestBed]:
    """A node of three.

    Parameters
    ----------
    fs : FileSystem, optional
        Calls of the operating system for the chunk store.
    lease : bool
        Whether the cluster takes this node for up.
    tokens : Tokens, optional
        Says what requests may do; without it, everything.
    settings
        Of the node; small bounds otherwise.
    """
    bounds: dict[str, Any] = {
        "max_chunk_bytes": 256 * KIB,
        "max_body_bytes": 1024 * KIB,
        "max_object_bytes": 4096 * KIB,
        "reserve_bytes": 0,
        "stall_timeout_s": 10.0,
        "tee_timeout_s": 10.0,
        **settings,
    }
    with ExitStack() as stack:
        root = stack.enter_context(memory_directory())
        config = load_node_config(data_dir=root, meta="sqlite:///unused", **bounds)
        meta = stack.enter_context(open_meta())
        layout = Layout(version=1, partitions=PARTITIONS, nodes=tuple(LayoutNode(id=name) for name in (OWN, *PEERS)))
        create_layout(meta, layout)
        peers = PeerChunks((OWN, *PEERS))

        def view() -> ClusterView:
            up = [name for name in (OWN, *PEERS) if name not in peers.down and (lease or name != OWN)]
            return ClusterView(
                cluster_id="c1", layouts=Layouts(current=layout), endpoints={name: (f"http://{name}:1",) for name in up}
            )

        cluster = Cluster(view, ttl_s=0.0, suspect_s=0.0)
        client_settings: dict[str, Any] = {"deadline_s": 0.3, "retry_base_s": 0.001, "retry_max_s": 0.01}
        client_config = ClientConfig(chunk_size_bytes=64 * KIB, **client_settings)
        catalog = MetaCatalog(meta, marker_ttl_s=60.0)
        objects = ObjectStore(catalog, cluster, peers, client_config)
        stack.callback(objects.close)
        pools = Pools.of(config)
        stack.callback(pools.close)
        stack.callback(peers.released.set)
        repairs, jobs = Repairs(), FakeJobs()
        store = ChunkStore(
            root, reserve_bytes=config.reserve_bytes, max_chunk_bytes=config.max_chunk_bytes, fs=fs or FileSystem()
        )
        open_chunks = OpenChunks(store, limit=config.max_open_chunks)
        stack.callback(open_chunks.close)
        node = Node(
            node_id=OWN,
            config=config,
            store=store,
            open_chunks=open_chunks,
            meta=meta,
            catalog=catalog,
            cluster=cluster,
            chunks=peers,
            objects=objects,
            pools=pools,
            follower=repairs,
            lineage=LineageWatch(meta, cluster_id="", node_id=OWN, cursor=None, period_s=1.0),
            jobs=jobs,
            reshaping=Reshaping(meta, ask=lambda node_ids: dict.fromkeys(node_ids, NodeFacts(up=True))),
            tokens=tokens,
        )
        yield TestBed(root=root, node=node, app=create_app(node), meta=meta, peers=peers, repairs=repairs, jobs=jobs)
