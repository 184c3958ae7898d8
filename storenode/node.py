"""What the request side of a node works with: one frozen bundle, made at start and handed to `storenode.app.create_app`.

It is built by whoever starts a node (or a test), knows nothing of HTTP, and owns nothing: its maker closes the parts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from client.chunks import ChunkClient
from client.cluster import Cluster
from client.objects import ObjectStore
from storenode.catalog import MetaCatalog
from storenode.chunkstore import ChunkStore
from storenode.config import NodeConfig
from storenode.follower import Progress
from storenode.job import Job
from storenode.lineage_watch import LineageWatch
from storenode.metastore import MetaStore
from storenode.openchunks import OpenChunks
from storenode.reshaping import Reshaping
from storenode.threads import Pools
from storenode.tokens import Tokens

__all__ = ["JobBoard", "Node", "RepairQueue"]


class RepairQueue(Protocol):
    """Where copies go that a request found bad, and how far this node follows the records."""

    @property
    def complete_to(self) -> int | None:
        """The revision up to which this node holds everything; None while it does not know of one."""

    @property
    def num_pending(self) -> int:
        """Records and copies that wait to be completed."""

    @property
    def progress(self) -> Progress:
        """What it has done for the current layout."""

    def fetch(self, partition: int, chunk_id: bytes) -> None:
        """Fetch a copy that is not here, or is not sound, now; raises `AllReplicasFailed` if no node has one."""

    def repair(self, partition: int, chunk_id: bytes) -> None:
        """Have this node's copy checked and replaced. Returns at once."""


class JobBoard(Protocol):
    """The long work of the cluster."""

    def start(self, kind: str) -> Job:
        """Begin a job on this node, or give the one of this kind that runs."""

    def ls(self) -> Sequence[Job]:
        """All jobs, oldest first."""

    def cancel(self, job_id: str) -> Job:
        """Ask for a job's end; raises `JobNotFound`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """A storage node, as its routes see it.

    Attributes
    ----------
    node_id : str
        From its data directory.
    config : NodeConfig
        Every bound.
    store : ChunkStore
        This node's chunks.
    open_chunks : OpenChunks
        Small ones that were read lately.
    meta : MetaStore
        The metadata engine; asked only whether it answers.
    catalog : MetaCatalog
        Names to records.
    cluster : Cluster
        The layout, and who lives.
    chunks : ChunkClient
        Forwards chunks to other nodes.
    objects : ObjectStore
        Uploads and verified reads, for objects by plain HTTP; its catalog is `catalog`.
    pools : Pools
        Threads.
    follower : RepairQueue
        Takes bad copies.
    lineage : LineageWatch
        Whether the metadata is what it was.
    jobs : JobBoard
        Scrubs and their like.
    reshaping : Reshaping
        Changes the layout.
    tokens : Tokens or None
        Says what requests may do; None without a secret: everything.
    """

    node_id: str
    config: NodeConfig
    store: ChunkStore
    open_chunks: OpenChunks
    meta: MetaStore
    catalog: MetaCatalog
    cluster: Cluster
    chunks: ChunkClient
    objects: ObjectStore
    pools: Pools
    follower: RepairQueue
    lineage: LineageWatch
    jobs: JobBoard
    reshaping: Reshaping
    tokens: Tokens | None
