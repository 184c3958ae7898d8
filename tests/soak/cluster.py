"""The cluster of a soak: three members of etcd, four nodes with a secret, all of them processes, and links between everybody.

    clients ── link ── node ── link ── node
                        └── link ── member of etcd ── link ── member of etcd

A node advertises its link's address, so whoever speaks to it, clients and nodes alike, goes through that link; each node has
links of its own to the members. Nothing else of a node differs from one in production but for shorter times and smaller chunks.
"""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from client.errors import StoreError
from client.placement import Layout, Node
from storenode.etcd_address import Endpoint, EtcdAddress
from storenode.identity import claim
from storenode.layouts import create_layout
from storenode.lineage import create_cluster
from storenode.listener import reserve
from storenode.process import NodeProcess
from storenode.secret import Secret, create_secret, read_secret
from tests.soak.access import LEEWAY_S
from tests.soak.clocks import WallClock, compiled
from tests.soak.disks import Disk, mounted
from tests.soak.links import Network
from tests.support.cluster import QUICK
from tests.support.etcd import Etcd, running_etcd

__all__ = ["CLIENTS", "NUM_MEMBERS", "NUM_NODES", "SoakCluster", "SoakNode", "running"]

NUM_NODES, NUM_MEMBERS = 4, 3
CLIENTS = "clients"
HOST = "127.0.0.1"
PARTITIONS = 4096
START_S = 120.0
STOP_S = 20.0
# Longer than tests of single faults have them: the machine is busy with everything at once.
ENVIRONMENT = {
    **QUICK,
    "FOREBAY_LEASE_TTL_S": "4",
    "FOREBAY_METADATA_TIMEOUT_S": "3",
    "FOREBAY_START_TIMEOUT_S": "5",
    # Epochs that pass while uploads are under way.
    "FOREBAY_GC_INTERVAL_S": "5",
    "FOREBAY_GC_RETRY_S": "1",
    "FOREBAY_TEE_TIMEOUT_S": "3",
    "FOREBAY_RESERVE_BYTES": str(8 * 1024 * 1024),
    "FOREBAY_READ_TIMEOUT_S": "5",
    "FOREBAY_DEADLINE_S": "15",
    "FOREBAY_COLOCATED": "false",
    "FOREBAY_TOKEN_LEEWAY_S": str(LEEWAY_S),
}
# Nodes read changes from etcd; one that was away for longer than this reads all records again.
ETCD_OPTIONS = ("--auto-compaction-mode=revision", "--auto-compaction-retention=20000")


@dataclass(kw_only=True)
class SoakNode:
    """One node, whether it runs or not."""

    name: str
    node_id: str
    disk: Disk
    bound: socket.socket
    url: str
    environment: dict[str, str]
    clock: WallClock | None
    log: Path
    process: NodeProcess | None = None

    @property
    def running(self) -> bool:
        return self.process is not None and self.process.running


class SoakCluster:
    """What the nemesis breaks and the clients use; made by `running`."""

    def __init__(self, etcd: Etcd, network: Network, *, secret_path: Path, on_death: Callable[[str], None]) -> None:
        self.etcd = etcd
        self.secret_path = secret_path
        self.network = network
        self.nodes: list[SoakNode] = []
        self.pinned: str | None = None  # The address of the node that clients over plain HTTP read from, if only from one.
        self._on_death = on_death
        self._spawner = ThreadPoolExecutor(1, thread_name_prefix="soak-spawner")

    @property
    def endpoints(self) -> list[str]:
        """Of all nodes, through their links."""
        return [node.url for node in self.nodes]

    @property
    def secret(self) -> Secret:
        return read_secret(self.secret_path)

    @property
    def clocks(self) -> list[WallClock]:
        """Those that can be set."""
        return [node.clock for node in self.nodes if node.clock is not None]

    @property
    def names(self) -> list[str]:
        return [node.name for node in self.nodes]

    def pids(self) -> dict[str, int]:
        """The processes of nodes and members, by their names."""
        members = {f"m{n}": member.process for n, member in enumerate(self.etcd.members)}
        every = {node.name: node.process for node in self.nodes} | members
        return {name: process.pid for name, process in every.items() if process is not None}

    def start(self, node: SoakNode) -> None:
        """Start a node that does not run; raises `StoreError` if it can't, as it may during a fault."""

        def died(code: int) -> None:
            self._on_death(f"{node.name} ended by itself with {code}: {process.last_words()}")

        node.process = process = NodeProcess(
            {**os.environ, **node.environment}, log_path=node.log, spawner=self._spawner, on_exit=died
        )
        try:
            process.await_ready(timeout_s=START_S)
        except StoreError:
            process.kill()
            raise

    def try_to_start(self, node: SoakNode) -> bool:
        """Start a node if it can be, as who supervises it would; whether it runs."""
        if not node.running:
            with suppress(StoreError):
                self.start(node)
        return node.running

    def kill(self, node: SoakNode) -> None:
        """As a power cut would, paused or not."""
        if node.process is not None and node.process.running:
            node.process.kill()

    def signal(self, node: SoakNode, number: int) -> None:
        """To a node, if it runs."""
        if node.process is not None and node.process.running:
            node.process.signal(number)

    def close(self) -> None:
        """Stop all nodes."""
        running = [node.process for node in self.nodes if node.process is not None and node.process.running]
        for process in running:
            process.expect_end()
            process.signal(signal.SIGTERM)
            process.signal(signal.SIGCONT)
        for process in running:
            if not process.wait(timeout_s=STOP_S):
                process.kill()
        for node in self.nodes:
            node.bound.close()
        self._spawner.shutdown()


@contextmanager
def running(directory: Path, *, on_death: Callable[[str], None]) -> Iterator[SoakCluster]:
    """A new cluster whose nodes all run, ended with the block.

    Parameters
    ----------
    on_death : callable
        Is told of each node that ends without having been asked to.
    """
    with ExitStack() as stack:
        (directory / "etcd").mkdir(parents=True)
        cluster: SoakCluster | None = None
        network = stack.enter_context(Network(lambda: cluster.pids() if cluster else {}, outside=CLIENTS))
        members = running_etcd(directory / "etcd", num_members=NUM_MEMBERS, options=ETCD_OPTIONS, peer_link=network.link)
        etcd = stack.enter_context(members)
        create_secret(directory / "secret")
        cluster = SoakCluster(etcd, network, secret_path=directory / "secret", on_death=on_death)
        stack.callback(cluster.close)
        # Those that members made before their processes were known: no rule would hold for them.
        network.abort_all()
        etcd.await_health()
        address = etcd.address()
        library = compiled(directory)
        disks = [stack.enter_context(mounted(directory / f"n{number}")) for number in range(NUM_NODES)]
        for number, (disk, node_id) in enumerate(zip(disks, _found(etcd, address, disks), strict=True)):
            name = f"n{number}"
            clock = WallClock(library, directory / f"{name}.clock") if library is not None else None
            cluster.nodes.append(_node(cluster, name, node_id=node_id, disk=disk, clock=clock, address=address))
        for node in cluster.nodes:
            cluster.start(node)
        yield cluster


def _found(etcd: Etcd, address: EtcdAddress, disks: list[Disk]) -> list[str]:
    """Make these disks the nodes of a new cluster; their ids."""
    with etcd.store(address) as store:
        cluster_id, ids = create_cluster(store), []
        for disk in disks:
            with claim(disk.root, cluster_id=cluster_id) as claimed:
                ids.append(claimed.node_id)
        create_layout(store, Layout(version=1, partitions=PARTITIONS, nodes=tuple(Node(id=node_id) for node_id in ids)))
        return ids


def _node(
    cluster: SoakCluster, name: str, *, node_id: str, disk: Disk, clock: WallClock | None, address: EtcdAddress
) -> SoakNode:
    bound, network = reserve(HOST, 0), cluster.network
    port = int(bound.getsockname()[1])
    members = [network.link(f"m{n}", member.endpoint.port, source=name) for n, member in enumerate(cluster.etcd.members)]
    # Each begins at another member, so that what one member has not heard of yet is known at the next node.
    first = len(cluster.nodes) % len(members)
    endpoints = tuple(Endpoint(host=HOST, port=member) for member in members[first:] + members[:first])
    meta = EtcdAddress(endpoints=endpoints, prefix=address.prefix)
    url = f"http://{HOST}:{network.link(name, port)}"
    settings: Mapping[str, str] = {
        "FOREBAY_DATA_DIR": str(disk.root),
        "FOREBAY_META": str(meta),
        "FOREBAY_HOST": HOST,
        "FOREBAY_PORT": str(port),
        "FOREBAY_ADVERTISE": url,
        "FOREBAY_MACHINE": name,
        "FOREBAY_SECRET_FILE": str(cluster.secret_path),
    }
    return SoakNode(
        name=name,
        node_id=node_id,
        disk=disk,
        bound=bound,
        url=url,
        environment={**ENVIRONMENT, **settings, **(clock.environment if clock else {})},
        clock=clock,
        log=disk.root.with_suffix(".log"),
    )
