"""One storage node as a process: built from its configuration, served, and taken down in the opposite order.

Start: the address is bound first, because a port in use is the most common mistake; then the metadata is awaited, the data
directory claimed, the chunk store opened; the node takes its lease, awaits a layout (`storenode.bootstrap`), listens, begins
its background work and answers. Until it listens, connections are refused, so that nobody waits for a node that waits itself.
Stop (SIGTERM, Ctrl-C): accept no more, finish the requests under way within a bound, end jobs and follower, release the
lease.
A process that is killed instead leaves nothing that the next start does not put right.

Nobody else knows all parts of a node; they are handed to each other here.
"""

from __future__ import annotations

import logging
import os
import resource
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from types import FrameType
from typing import Protocol

import uvicorn

from client.addresses import Addresses
from client.chunks import ChunkClient
from client.cluster import Cluster
from client.colocated import Colocated
from client.config import load_config
from client.errors import Busy
from client.objects import ObjectStore
from client.transport import Transport
from storenode.absence import Absences
from storenode.app import create_app
from storenode.bootstrap import await_layout, find_cluster, outlasting
from storenode.catalog import MetaCatalog
from storenode.chunkstore import ChunkStore
from storenode.colocated import ChunkDoor
from storenode.config import NodeConfig
from storenode.connections import Connections
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
from storenode.listener import BACKLOG, begin, reserve, url_of
from storenode.membership import Membership, NodeRecord, ViewLoader, ViewWatcher
from storenode.metastore import MetaStore
from storenode.node import Node
from storenode.openchunks import OpenChunks
from storenode.ownership import Ownership
from storenode.pace import Pace
from storenode.problems import refusal
from storenode.protocol import NodeProtocol
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
from storenode.threads import BUSY_RETRY_S, Pools
from storenode.tokens import NodeTokens, Tokens

__all__ = ["Ready", "serve"]

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ready:
    """What a node tells when it answers."""

    node_id: str
    cluster_id: str
    endpoint: str
    data_dir: str

    def to_json(self) -> dict[str, str]:
        """The same as a JSON object."""
        return asdict(self)


def serve(config: NodeConfig, *, announce: Callable[[Ready], None]) -> None:
    """Run a node in this process until it is told to stop.

    Parameters
    ----------
    announce : callable
        Called once, when the node answers.

    Raises
    ------
    Misconfigured
        The address, the data directory or the metadata can't be used. Nothing was changed.
    StoreError
        The disk or the metadata engine failed at start.
    """
    # Raised in the main thread wherever it is, so that a stop during the start unwinds what was begun, too. While the
    # server runs it has handlers of its own and raises the signal again when it is done.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _exit)
    _allow_many_files()
    with ExitStack() as stack:
        listener = stack.enter_context(reserve(config.host, config.port))
        endpoint = url_of(listener, host=config.host)
        node = stack.enter_context(_running(config, listener=listener, endpoint=endpoint))
        ready = Ready(
            node_id=node.node_id,
            cluster_id=node.cluster.view().cluster_id,
            endpoint=endpoint,
            data_dir=str(config.data_dir),
        )
        options = uvicorn.Config(
            create_app(node),
            loop="uvloop",
            http=partial(NodeProtocol, connections=_connections(config, node.node_id)),  # type: ignore[arg-type]
            ws="none",
            log_config=None,
            access_log=False,
            lifespan="off",
            proxy_headers=False,
            server_header=False,
            date_header=False,
            backlog=BACKLOG,
            timeout_graceful_shutdown=max(1, round(config.shutdown_timeout_s)),
        )
        stack.callback(_limit_shutdown, config.shutdown_timeout_s)
        _Server(options, announce=lambda: announce(ready)).run(sockets=[listener])


def _allow_many_files() -> None:
    """Take all descriptors that the system grants: the bounds in the configuration add up to more than the usual 1024."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def _connections(config: NodeConfig, node_id: str) -> Connections:
    limit = config.max_connections
    full = Busy(f"this node has {limit} connections, and a request on each of them", retry_after_s=BUSY_RETRY_S)
    return Connections(limit=limit, patience_s=config.stall_timeout_s, refusal=refusal(full, node_id=node_id))


def _limit_shutdown(timeout_s: float) -> None:
    """From now on the process has so long to end. Threads may wait for other nodes for longer than anybody waits for us."""

    def give_up() -> None:
        log.warning("some work did not end within %.0f s of the stop and is dropped; it was not acknowledged", timeout_s)
        # Not sys.exit, which would wait for those threads. Nothing that was acknowledged depends on them.
        os._exit(0)

    timer = threading.Timer(timeout_s, give_up)
    timer.daemon = True
    timer.start()


class _Server(uvicorn.Server):
    """uvicorn, which says when it answers."""

    def __init__(self, config: uvicorn.Config, *, announce: Callable[[], None]) -> None:
        super().__init__(config)
        self._announce = announce

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets=sockets)
        if not self.should_exit:
            self._announce()


def _exit(number: int, frame: FrameType | None) -> None:
    sys.exit(0)


@contextmanager
def _running(config: NodeConfig, *, listener: socket.socket, endpoint: str) -> Iterator[Node]:
    """A node whose parts are open and whose background work runs; at the end all of it is taken down."""
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
        client_config, _ = load_config()
        transport = Transport(client_config, token=_own_tokens(config, secret, directory))
        stack.callback(transport.close)
        load_view = ViewLoader(meta, cluster_id=cluster_id)
        addresses = Addresses(timeout_s=client_config.connect_timeout_s)
        cluster = Cluster(load_view, ttl_s=client_config.view_ttl_s, suspect_s=client_config.suspect_s, addresses=addresses)
        colocated = Colocated(cluster, client_config)
        stack.callback(colocated.close)
        chunks = ChunkClient(cluster, transport, colocated)
        catalog = MetaCatalog(meta, marker_ttl_s=config.write_marker_ttl_s)
        # Repair is in no hurry, and must not read twice what trainers wait for.
        objects = ObjectStore(catalog, cluster, chunks, client_config.model_copy(update={"hedge_waste": 0.0}))
        stack.callback(objects.close)
        pools = Pools.of(config)
        stack.callback(pools.close)

        cursor_file = CursorFile(config.data_dir, cluster_id=cluster_id, fs=FileSystem())
        lineage = LineageWatch(
            meta,
            cluster_id=cluster_id,
            node_id=directory.node_id,
            cursor=cursor_file.load(),
            period_s=config.lease_ttl_s / 3,
        )
        # Before this node takes a revision, which could make up for one that the metadata has lost.
        _begin(stack, lineage)
        membership = _make_membership(config, meta, node_id=directory.node_id, endpoint=endpoint)
        _begin(stack, membership)
        _await_place(config, meta, node_id=directory.node_id)
        begin(listener)
        watcher = ViewWatcher(meta, cluster=cluster, watch_s=config.follow_wait_s)
        _begin(stack, watcher)

        copies = Copies(
            node_id=directory.node_id, chunks=store, cluster=cluster, reader=objects.replica_reader, transport=transport
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
        door = ChunkDoor(
            config.data_dir,
            node_id=directory.node_id,
            cluster_id=cluster_id,
            store=store,
            repair=follower.repair,
            max_connections=config.max_colocated_connections,
            idle_s=config.colocated_idle_s,
        )
        _begin(stack, door)
        jobs = _start_jobs(
            stack,
            config,
            meta,
            copies=copies,
            follower=follower,
            desired=desired,
            holdings=holdings,
            lineage=lineage,
            pace=pace,
        )
        reshaping = _start_coordinator(stack, config, meta, copies=copies, lease=lambda: membership.lease)
        yield Node(
            node_id=directory.node_id,
            config=config,
            store=store,
            open_chunks=open_chunks,
            meta=meta,
            catalog=catalog,
            cluster=cluster,
            chunks=chunks,
            objects=objects,
            pools=pools,
            follower=follower,
            lineage=lineage,
            jobs=jobs,
            reshaping=reshaping,
            tokens=_tokens(config, secret, cluster_id=cluster_id),
        )


class _Part(Protocol):
    """What runs in threads of its own between its start and its stop."""

    def start(self) -> None: ...

    def stop(self) -> None: ...


def _begin(stack: ExitStack, part: _Part) -> None:
    part.start()
    stack.callback(part.stop)


def _start_jobs(
    stack: ExitStack,
    config: NodeConfig,
    meta: MetaStore,
    *,
    copies: Copies,
    follower: Follower,
    desired: DesiredSet,
    holdings: Holdings,
    lineage: LineageWatch,
    pace: Pace,
) -> Jobs:
    """The long work of this node, and what begins it by itself."""
    scrub = Scrub(
        chunks=copies.chunks, store=meta, desired=desired, follower=follower, rate_bytes_per_s=config.scrub_rate_bytes_per_s
    )
    surplus = Surplus(meta, copies=copies, holdings=holdings, pace=pace)
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
