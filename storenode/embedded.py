"""A whole cluster on this machine: one process a node, SQLite for the metadata. `forebay up`, tests and demos run on it.

    DIR/meta.sqlite     the metadata, shared by all nodes
    DIR/node-1/ ...     one data directory a node
    DIR/node-1.log ...  what each node has to say

The first start makes the directory a cluster: node ids are minted, the layout is written. Each step can be repeated, so a
start that was broken off is simply begun again. Later starts run the nodes of all directories; more of them than that are
spare ones, which hold nothing until the layout is changed. Nodes keep their ports as long as the cluster object lives, also
while one of them is down. When this process ends, however it ends, the nodes end.
"""

from __future__ import annotations

import os
import queue
import signal
import socket
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from client.cluster import ClusterView
from client.config import load_config
from client.errors import DeadlineExceeded, Misconfigured, StoreError
from client.placement import DEFAULT_PARTITIONS, Layout, Node
from client.transport import Transport
from client.wire import decode_json
from storenode.identity import claim
from storenode.layouts import create_layout, read_layouts
from storenode.lineage import create_cluster, read_cluster_id
from storenode.listener import reserve
from storenode.process import NodeProcess
from storenode.secret import read_secret
from storenode.sqlite import SqliteMetaStore
from storenode.tokens import NodeTokens

__all__ = ["DEFAULT_NODES", "EmbeddedCluster", "NodeExit"]

DEFAULT_NODES = 3
MAX_NODES = 64
_HOST = "127.0.0.1"
_POLL_S = 0.02


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeExit:
    """A node process that ended without being asked to.

    Attributes
    ----------
    code : int
        Its exit code; negative: the signal that killed it.
    log_path : Path
        Where its last words are.
    """

    node_id: str
    code: int
    log_path: Path


class EmbeddedCluster:
    """Node processes on this machine. A context manager: starts them on entry and stops them at the end.

    Parameters
    ----------
    directory : Path or str
        Made if it is missing.
    nodes : int, optional
        By default as many as the directory has, 3 in a new one.
    port : int
        Of the first node; the others take the next ones. 0: free ports.
    partitions : int
        For a new cluster: a power of two.
    secret_file : Path, optional
        The cluster's secret; with one, every request needs a token.
    environment : mapping
        Settings of the nodes, ``FOREBAY_...``, in addition to those of this process.
    start_timeout_s, stop_timeout_s : float
        How long the nodes may take to answer, and to end before they are killed.
    """

    def __init__(
        self,
        directory: Path | str,
        *,
        nodes: int | None = None,
        port: int = 0,
        partitions: int = DEFAULT_PARTITIONS,
        secret_file: Path | None = None,
        environment: Mapping[str, str] | None = None,
        start_timeout_s: float = 60.0,
        stop_timeout_s: float = 20.0,
    ) -> None:
        if nodes is not None and not 1 <= nodes <= MAX_NODES:
            raise Misconfigured(f"a cluster on one machine has 1 to {MAX_NODES} nodes, asked for {nodes}")
        self.directory = Path(directory).resolve()
        self.meta_path = self.directory / "meta.sqlite"
        self._num_nodes = nodes
        self._port = port
        self._partitions = partitions
        self._environment = dict(environment or {})
        self._secret_file = secret_file
        self._start_timeout_s = start_timeout_s
        self._stop_timeout_s = stop_timeout_s
        self._exits: queue.SimpleQueue[NodeExit] = queue.SimpleQueue()
        self._reserved: list[socket.socket] = []
        self._ports: dict[str, int] = {}
        self._processes: dict[str, NodeProcess] = {}
        self._spawner: ThreadPoolExecutor | None = None
        self.data_dirs: dict[str, Path] = {}
        self.spares: tuple[str, ...] = ()

    @property
    def node_ids(self) -> tuple[str, ...]:
        """The nodes, in the order of their directories."""
        return tuple(self.data_dirs)

    @property
    def endpoints(self) -> tuple[str, ...]:
        """The nodes' URLs, in the same order; also of those that are down."""
        return tuple(map(self.endpoint, self.node_ids))

    def endpoint(self, node_id: str) -> str:
        """The URL of a node."""
        return f"http://{_HOST}:{self._ports[node_id]}"

    def pid(self, node_id: str) -> int:
        """The process of a node that was started."""
        return self._processes[node_id].pid

    def running(self, node_id: str) -> bool:
        """Whether a node's process lives."""
        process = self._processes.get(node_id)
        return process is not None and process.running

    def start(self) -> None:
        """Start all nodes and return when each of them answers and knows all others.

        Raises
        ------
        Misconfigured
            Fewer nodes than the directory has, a port in use, a directory that another process holds.
        StoreError
            Why a node could not start.
        """
        try:
            self.prepare()
            self._reserve_ports()
            self._spawner = ThreadPoolExecutor(1, thread_name_prefix="forebay-spawner")
            for node_id in self.node_ids:
                self._spawn(node_id, {})
            deadline_s = time.monotonic() + self._start_timeout_s
            for process in self._processes.values():
                process.await_ready(timeout_s=deadline_s - time.monotonic())
            self._await_views(self.node_ids, deadline_s=deadline_s)
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Stop all nodes cleanly; those that take too long are killed. Repeatable."""
        for process in self._processes.values():
            process.expect_end()
            process.signal(signal.SIGTERM)
            process.signal(signal.SIGCONT)  # A paused node would not hear the other signal.
        deadline_s = time.monotonic() + self._stop_timeout_s
        for process in self._processes.values():
            if not process.wait(timeout_s=max(0.0, deadline_s - time.monotonic())):
                process.kill()
        self._processes.clear()
        while self._reserved:
            self._reserved.pop().close()
        if self._spawner is not None:
            self._spawner.shutdown()
            self._spawner = None

    def kill(self, node_id: str) -> None:
        """End a node's process with SIGKILL, as a crash would."""
        self._processes[node_id].kill()

    def restart(self, node_id: str, *, environment: Mapping[str, str] | None = None) -> None:
        """Start a node that is down, or stop and start one that runs, at its old address; returns when it answers.

        Parameters
        ----------
        environment : mapping
            Settings for this life of the node, on top of the cluster's.
        """
        if self.running(node_id):
            process = self._processes[node_id]
            process.expect_end()
            process.signal(signal.SIGTERM)
            if not process.wait(timeout_s=self._stop_timeout_s):
                process.kill()
        self._spawn(node_id, dict(environment or {}))
        self._processes[node_id].await_ready(timeout_s=self._start_timeout_s)

    def wait_for_exit(self, *, timeout_s: float | None = None) -> NodeExit | None:
        """Wait until a node ends that nobody asked to; None at the timeout."""
        try:
            return self._exits.get(timeout=timeout_s)
        except queue.Empty:
            return None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()

    def prepare(self) -> None:
        """Make the directory a cluster if it is none, and learn its nodes; raises what `start` does. Starts nothing."""
        self.directory.mkdir(parents=True, exist_ok=True)
        existing = list(self.directory.glob("node-*/node.json"))
        if existing and not self.meta_path.exists():
            raise Misconfigured(
                f"{self.directory} holds {len(existing)} nodes, but their metadata {self.meta_path} is missing; restore it, or "
                "use an empty directory"
            )
        store = SqliteMetaStore(self.meta_path)
        try:
            # A file that holds no cluster beside nodes that belong to one is not theirs.
            if existing and read_cluster_id(store) is None:
                raise Misconfigured(f"{self.meta_path} is empty, but {self.directory} holds nodes; restore the metadata")
            known = read_layouts(store)
            cluster_id = create_cluster(store)
            for path in self._paths(known.layouts.current if known else None):
                # Claimed and let go: a node that runs already is found here, with a clear message.
                with claim(path, cluster_id=cluster_id) as found:
                    self.data_dirs[found.node_id] = path
            # The host that nodes name themselves: under another one, a node that is added later would seem to be alone on a
            # second host, and be given a copy of everything.
            given = {**os.environ, **self._environment}
            host = given.get("FOREBAY_MACHINE") or socket.gethostname()
            nodes = tuple(Node(id=node_id, host=host) for node_id in self.data_dirs)
            layout = create_layout(store, Layout(version=1, partitions=self._partitions, nodes=nodes)).current
        finally:
            store.close()
        placed = {node.id for node in layout.nodes}
        if lost := placed - set(self.data_dirs):
            raise Misconfigured(
                f"the layout has node {', '.join(sorted(lost))}, and {self.directory} has no directory of it; restore it"
            )
        self.spares = tuple(node_id for node_id in self.data_dirs if node_id not in placed)

    def _paths(self, layout: Layout | None) -> list[Path]:
        """The directories of all nodes, those to be made included; the lowest numbers that are free."""
        paths = {int(path.name.removeprefix("node-")): path for path in self.directory.glob("node-*") if path.is_dir()}
        if layout is None:
            wanted = self._num_nodes or DEFAULT_NODES
            return [self.directory / f"node-{number}" for number in range(1, wanted + 1)]
        nameless = [path for path in paths.values() if not (path / "node.json").exists()]
        for path in nameless:
            # Minting another id would hide from the cluster the chunks that may still lie there. An empty directory is what a
            # start leaves that was broken off while it made a spare node.
            if (path / "chunks").exists() or len(paths) - len(nameless) < len(layout.nodes):
                raise Misconfigured(f"{path} is a node of this cluster, but its identity node.json is missing; restore it")
        wanted = len(paths) if self._num_nodes is None else self._num_nodes
        if wanted < len(paths):
            raise Misconfigured(
                f"{self.directory} has the directories of {len(paths)} nodes, and {wanted} were asked for; give --nodes "
                f"{len(paths)}. A node goes by `forebay node drain`, `forebay node remove`, and then its directory"
            )
        number = 1
        while len(paths) < wanted:
            paths.setdefault(number, self.directory / f"node-{number}")
            number += 1
        return [path for _, path in sorted(paths.items())]

    def _reserve_ports(self) -> None:
        for index, node_id in enumerate(self.node_ids):
            bound = reserve(_HOST, self._port + index if self._port else 0)
            self._reserved.append(bound)
            self._ports[node_id] = bound.getsockname()[1]

    def _spawn(self, node_id: str, environment: Mapping[str, str]) -> None:
        assert self._spawner is not None
        path = self.data_dirs[node_id]
        log_path = path.with_suffix(".log")
        settings = {
            "FOREBAY_DATA_DIR": str(path),
            "FOREBAY_HOST": _HOST,
            "FOREBAY_PORT": str(self._ports[node_id]),
            "FOREBAY_ADVERTISE": "",
        }
        if self._secret_file is not None:
            settings["FOREBAY_SECRET_FILE"] = str(self._secret_file.resolve())
        # First, because a cluster that has moved to another engine is started with that one's name.
        engine = {"FOREBAY_META": f"sqlite:///{self.meta_path}"}
        self._processes[node_id] = NodeProcess(
            {**os.environ, **engine, **self._environment, **environment, **settings},
            log_path=log_path,
            spawner=self._spawner,
            on_exit=lambda code: self._exits.put(NodeExit(node_id=node_id, code=code, log_path=log_path)),
        )

    def _await_views(self, node_ids: tuple[str, ...], *, deadline_s: float) -> None:
        """Wait until each node has heard of all: before that, a write through one that has not would find too few replicas."""
        transport = Transport(load_config()[0], token=self._tokens())
        try:
            for node_id in node_ids:
                while not set(node_ids) <= self._known_to(node_id, transport):
                    if time.monotonic() > deadline_s:
                        raise DeadlineExceeded(f"node {node_id} has not heard of all others", node_id=node_id)
                    time.sleep(_POLL_S)
        finally:
            transport.close()

    def _tokens(self) -> NodeTokens | None:
        """By which the nodes answer to this process."""
        if self._secret_file is None:
            return None
        return NodeTokens(read_secret(self._secret_file), subject="forebay up", lifetime_s=2 * self._start_timeout_s)

    def _known_to(self, node_id: str, transport: Transport) -> set[str]:
        try:
            answer = transport.request("GET", self.endpoint(node_id), "/v1/cluster", node_id=node_id)
        except StoreError:
            return set()
        return set(ClusterView.from_json(decode_json(answer.body)).endpoints)
