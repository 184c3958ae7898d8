"""All parts of a node, handed to each other: the only place that knows every one of them.

Start: the metadata is awaited, the data directory claimed, the chunk store opened; the node takes its lease, awaits a layout
(`storenode.bootstrap`), listens, and begins its background work. At the end, or when a step of the start fails, what was begun
is taken down in the opposite order: jobs and follower end, the lease is released.
"""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from client.addresses import Addresses
from client.chunks import ChunkClient
from client.cluster import Cluster
from client.colocated import Colocated
from client.config import load_config
from client.objects import ObjectStore
from client.transport import Transport
from storenode.absence import Absences
from storenode.bootstrap import await_layout, find_cluster, outlasting
from storenode.catalog import MetaCatalog
from storenode.chunkstore import ChunkStore
from storenode.colocated import ChunkDoor
from storenode.config import NodeConfig
from storenode.coordinator import Coordinator, Duty
from storenode.cursor import CursorFile
from storenode.desired import DesiredSet
from storenode.emptying import Emptying
from storenode.engine import open_engine
from storenode.epochs import EpochClock
from storenode.filesystem import FileSystem
from storenode.follower import Follower
from storenode.held import Holdings
from storenode.identity import DataDirectory, claim
from storenode.jobs import Jobs
from storenode.layouts import read_anchor
from storenode.lineage_watch import LineageWatch
from storenode.listener import begin
from storenode.membership import Membership, NodeRecord, ViewLoader, ViewWatcher
from storenode.metastore import MetaStore
from storenode.node import Node
from storenode.openchunks import OpenChunks
from storenode.ownership import Ownership
from storenode.pace import Pace
from storenode.quarantine import Quarantine
from storenode.rebalance import Rebalance
from storenode.regular_scrub import RegularScrub
from storenode.repair import Copies, Repair
from storenode.reshaping import Reshaping, ask_facts
from storenode.retirement import Retirement
from storenode.scrub import Scrub
from storenode.secret import Secret, read_secret
from storenode.surplus import Surplus
from storenode.sweeping import GC_KIND, Sweeping, make_sweep_job
from storenode.threads import Pools
from storenode.tokens import NodeTokens, Tokens

__all__ = ["running"]

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Links:
    """How this node reaches the others, and objects through them."""

    transport: Transport
    cluster: Cluster
    chunks: ChunkClient
    catalog: MetaCatalog
    objects: ObjectStore


@dataclass(frozen=True, slots=True, kw_only=True)
class _Keeping:
    """What makes this node hold what it is given."""

    copies: Copies
    desired: DesiredSet
    holdings: Holdings
    pace: Pace
    follower: Follower


@contextmanager
def running(config: NodeConfig, *, listener: socket.socket, endpoint: str) -> Iterator[Node]:
    """A node whose parts are open and whose background work runs; at the end all of it is taken down.

    Raises
    ------
    Misconfigured
        The data directory or the metadata can't be used. Nothing was changed.
    StoreError
        The disk or the metadata engine failed.
    """
    with ExitStack() as stack:
        secret = None if config.secret_file is None else read_secret(config.secret_file)
        meta = open_engine(config)
        stack.callback(meta.close)
        cluster_id = outlasting(partial(_cluster_of, config, meta), timeout_s=config.start_timeout_s)
        directory = stack.enter_context(claim(config.data_dir, cluster_id=cluster_id))
        store = ChunkStore(
            directory.root,
            reserve_bytes=config.reserve_bytes,
            max_chunk_bytes=config.max_chunk_bytes,
            floor=read_anchor(meta).anchor.epoch,
        )
        open_chunks = OpenChunks(store, limit=config.max_open_chunks)
        stack.callback(open_chunks.close)
        links = _open_links(stack, config, meta, secret=secret, directory=directory)
        pools = Pools.of(config)
        stack.callback(pools.close)
        cursor_file = CursorFile(config.data_dir, cluster_id=cluster_id, fs=FileSystem())
        # Before this node takes a revision, which could make up for one that the metadata has lost.
        lineage = _start_lineage(stack, config, meta, directory=directory, cursor_file=cursor_file)
        membership = _make_membership(config, meta, node_id=directory.node_id, endpoint=endpoint)
        _begin(stack, membership)
        _await_place(config, meta, node_id=directory.node_id)
        begin(listener)
        _begin(stack, ViewWatcher(meta, cluster=links.cluster, watch_s=config.follow_wait_s))
        keeping = _start_keeping(
            stack, config, meta, store=store, links=links, directory=directory, cursor_file=cursor_file, lineage=lineage
        )
        _begin(stack, _make_door(config, directory, store=store, follower=keeping.follower))
        jobs = _start_jobs(stack, config, meta, keeping=keeping, lineage=lineage)
        reshaping = _start_coordinator(stack, config, meta, copies=keeping.copies, lease=lambda: membership.lease)
        yield Node(
            node_id=directory.node_id,
            config=config,
            store=store,
            open_chunks=open_chunks,
            meta=meta,
            catalog=links.catalog,
            cluster=links.cluster,
            chunks=links.chunks,
            objects=links.objects,
            pools=pools,
            follower=keeping.follower,
            lineage=lineage,
            jobs=jobs,
            reshaping=reshaping,
            tokens=_tokens(config, secret, cluster_id=cluster_id),
        )


def _open_links(
    stack: ExitStack, config: NodeConfig, meta: MetaStore, *, secret: Secret | None, directory: DataDirectory
) -> _Links:
    client_config, _ = load_config()
    transport = Transport(client_config, token=_own_tokens(config, secret, directory))
    stack.callback(transport.close)
    load_view = ViewLoader(meta, cluster_id=directory.cluster_id)
    addresses = Addresses(timeout_s=client_config.connect_timeout_s)
    cluster = Cluster(load_view, ttl_s=client_config.view_ttl_s, suspect_s=client_config.suspect_s, addresses=addresses)
    colocated = Colocated(cluster, client_config)
    stack.callback(colocated.close)
    chunks = ChunkClient(cluster, transport, colocated)
    catalog = MetaCatalog(meta, marker_ttl_s=config.write_marker_ttl_s)
    # Repair is in no hurry, and must not read twice what trainers wait for.
    objects = ObjectStore(catalog, cluster, chunks, client_config.model_copy(update={"hedge_waste": 0.0}))
    stack.callback(objects.close)
    return _Links(transport=transport, cluster=cluster, chunks=chunks, catalog=catalog, objects=objects)


def _start_lineage(
    stack: ExitStack, config: NodeConfig, meta: MetaStore, *, directory: DataDirectory, cursor_file: CursorFile
) -> LineageWatch:
    lineage = LineageWatch(
        meta,
        cluster_id=directory.cluster_id,
        node_id=directory.node_id,
        cursor=cursor_file.load(),
        period_s=config.lease_ttl_s / 3,
    )
    _begin(stack, lineage)
    return lineage


def _start_keeping(
    stack: ExitStack,
    config: NodeConfig,
    meta: MetaStore,
    *,
    store: ChunkStore,
    links: _Links,
    directory: DataDirectory,
    cursor_file: CursorFile,
    lineage: LineageWatch,
) -> _Keeping:
    copies = Copies(
        node_id=directory.node_id,
        chunks=store,
        cluster=links.cluster,
        reader=links.objects.replica_reader,
        transport=links.transport,
    )
    pace = Pace(config.rebalance_rate_bytes_per_s)
    desired = DesiredSet(copies, num_threads=config.max_repair_threads, pace=pace)
    stack.callback(desired.close)
    holdings = Holdings(meta, node_id=directory.node_id)
    follower = _make_follower(
        config, copies, desired=desired, meta=meta, cursor_file=cursor_file, holdings=holdings, lineage=lineage
    )
    _begin(stack, follower)
    stack.callback(pace.stop)
    return _Keeping(copies=copies, desired=desired, holdings=holdings, pace=pace, follower=follower)


def _make_door(config: NodeConfig, directory: DataDirectory, *, store: ChunkStore, follower: Follower) -> ChunkDoor:
    return ChunkDoor(
        config.data_dir,
        node_id=directory.node_id,
        cluster_id=directory.cluster_id,
        store=store,
        repair=follower.repair,
        max_connections=config.max_colocated_connections,
        idle_s=config.colocated_idle_s,
    )


class _Part(Protocol):
    """What runs in threads of its own between its start and its stop."""

    def start(self) -> None: ...

    def stop(self) -> None: ...


def _begin(stack: ExitStack, part: _Part) -> None:
    part.start()
    stack.callback(part.stop)


def _start_jobs(stack: ExitStack, config: NodeConfig, meta: MetaStore, *, keeping: _Keeping, lineage: LineageWatch) -> Jobs:
    """The long work of this node, and what begins it by itself."""
    copies, follower, desired = keeping.copies, keeping.follower, keeping.desired
    scrub = Scrub(
        chunks=copies.chunks, store=meta, desired=desired, follower=follower, rate_bytes_per_s=config.scrub_rate_bytes_per_s
    )
    surplus = Surplus(meta, copies=copies, holdings=keeping.holdings, pace=keeping.pace)
    sweep = make_sweep_job(
        config, meta, copies=copies, desired=desired, lineage=lineage, surplus=surplus, forget=follower.forget
    )
    node_id = copies.node_id
    jobs = Jobs(meta, node_id=node_id, kinds={"scrub": scrub, GC_KIND: sweep}, max_kept=config.max_kept_jobs)
    jobs.resume()
    stack.callback(jobs.stop)
    _begin(stack, RegularScrub(jobs, node_id=node_id, interval_s=config.scrub_interval_s))
    _begin(stack, Sweeping(config, meta, node_id=node_id, cluster=copies.cluster, jobs=jobs))
    return jobs


def _start_coordinator(
    stack: ExitStack, config: NodeConfig, meta: MetaStore, *, copies: Copies, lease: Callable[[], int | None]
) -> Reshaping:
    """What this node does for the whole cluster while it is the owner, and how the layout is changed."""
    ask = partial(ask_facts, store=meta, cluster=copies.cluster, transport=copies.transport)
    reshaping = Reshaping(meta, ask=ask)
    duties: dict[str, Duty] = {
        "retirement": Retirement(meta),
        "emptying": Emptying(meta, retry_s=config.gc_retry_s),
        "absences": Absences(meta, reshaping=reshaping, out_after_s=config.out_after_s),
        "rebalance": Rebalance(meta, ask=ask, max_kept=config.max_kept_jobs),
        "garbage collection": EpochClock(meta, interval_s=config.gc_interval_s),
    }
    ownership = Ownership(meta, what="coordinator", node_id=copies.node_id, lease=lease)
    _begin(stack, Coordinator(ownership, duties=duties, period_s=config.coordinator_period_s))
    return reshaping


def _own_tokens(config: NodeConfig, secret: Secret | None, directory: DataDirectory) -> NodeTokens | None:
    if secret is None:
        return None
    subject = f"node:{directory.node_id}"
    return NodeTokens(secret, subject=subject, cluster_id=directory.cluster_id, lifetime_s=config.node_token_s)


def _tokens(config: NodeConfig, secret: Secret | None, *, cluster_id: str) -> Tokens | None:
    if secret is None:
        return None
    return Tokens(secret, cluster_id=cluster_id, leeway_s=config.token_leeway_s, max_known=config.max_known_tokens)


def _cluster_of(config: NodeConfig, meta: MetaStore) -> str:
    return find_cluster(meta, where=config.meta, data_dir=config.data_dir, bootstrap_nodes=config.bootstrap_nodes)


def _await_place(config: NodeConfig, meta: MetaStore, *, node_id: str) -> None:
    layouts = await_layout(
        meta, bootstrap_nodes=config.bootstrap_nodes, timeout_s=config.start_timeout_s, watch_s=config.max_watch_s
    )
    if node_id not in {node.id for node in layouts.current.nodes}:
        log.info("node %s is a spare: the layout does not name it. `forebay node add %s` gives it data", node_id, node_id)


def _make_membership(config: NodeConfig, meta: MetaStore, *, node_id: str, endpoint: str) -> Membership:
    record = NodeRecord(
        endpoints=tuple(url.strip() for url in config.advertise.split(",") if url.strip()) or (endpoint,),
        zone=config.zone,
        host=config.machine or socket.gethostname(),
        data_dir=str(config.data_dir.resolve()),
    )
    return Membership(meta, node_id=node_id, record=record, ttl_s=config.lease_ttl_s)


def _make_follower(
    config: NodeConfig,
    copies: Copies,
    *,
    desired: DesiredSet,
    meta: MetaStore,
    cursor_file: CursorFile,
    holdings: Holdings,
    lineage: LineageWatch,
) -> Follower:
    repair = Repair(
        copies,
        Quarantine(config.data_dir),
        limit=config.max_pending_repairs,
        base_s=config.repair_base_s,
        max_s=config.repair_max_s,
    )
    return Follower(
        meta,
        cluster=copies.cluster,
        desired=desired,
        repair=repair,
        cursor_file=cursor_file,
        holdings=holdings,
        incarnation=lambda: lineage.incarnation,
        max_pending=config.max_pending_repairs,
        grace_s=config.repair_grace_s,
        base_s=config.repair_base_s,
        max_s=config.repair_max_s,
        watch_s=config.follow_wait_s,
    )
