"""Real nodes that can be broken on purpose, and what lies on their disks, past the client and past the nodes.

`LiveCluster` runs node processes on free ports. A test names a node and what happens to it: killed, paused, a chunk file
damaged, the disk full. Waiting is always for a condition and has a deadline.
"""

from __future__ import annotations

import signal
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from blake3 import blake3

from client.client import Client
from client.config import load_config
from client.manifest import Ref
from client.record import ObjectInfo
from client.transport import Transport
from client.wire import decode_json, encode_json
from client.write_id import new_write_id
from storenode.embedded import EmbeddedCluster
from storenode.identity import claim
from storenode.lineage import read_cluster_id
from storenode.listener import reserve
from storenode.ownership import Ownership
from storenode.sqlite import SqliteMetaStore
from tests.support.signals import stop_process

__all__ = ["CHUNK_BYTES", "QUICK", "LiveCluster", "cluster", "eventually", "running_cluster", "shared_cluster"]

DEADLINE_S = 30.0
MOVE_S = 90.0  # for data to move
LAYOUT_PATH = "/v1/admin/layout"
POLL_S = 0.02
CHUNK_BYTES = 64 * 1024

# Quick enough for tests: a node that was killed leaves the view, and what it missed is fetched, within seconds.
QUICK = {
    "FOREBAY_LEASE_TTL_S": "2",
    "FOREBAY_COORDINATOR_PERIOD_S": "0.3",
    "FOREBAY_GC_RETRY_S": "1",
    "FOREBAY_REPAIR_GRACE_S": "0.2",
    "FOREBAY_REPAIR_BASE_S": "0.1",
    "FOREBAY_REPAIR_MAX_S": "1",
    "FOREBAY_FOLLOW_WAIT_S": "0.3",
    "FOREBAY_TEE_TIMEOUT_S": "2",
    "FOREBAY_METADATA_TIMEOUT_S": "3",
    "FOREBAY_SHUTDOWN_TIMEOUT_S": "2",
    "FOREBAY_SUSPECT_S": "1",
    "FOREBAY_RESERVE_BYTES": str(64 * 1024 * 1024),
    "FOREBAY_SCRUB_RATE_BYTES_PER_S": str(1 << 30),
    "FOREBAY_CHUNK_SIZE_BYTES": str(CHUNK_BYTES),
}
# For clients in the test's own process: small chunks, so that small objects have many, and errors after seconds.
CLIENT = {
    "FOREBAY_CHUNK_SIZE_BYTES": str(CHUNK_BYTES),
    "FOREBAY_READ_TIMEOUT_S": "5",
    "FOREBAY_DEADLINE_S": "20",
    "FOREBAY_SUSPECT_S": "1",
    # All nodes of a test are on one host. As a rule they are read as nodes elsewhere are, over the network.
    "FOREBAY_COLOCATED": "false",
}


def eventually(condition: Callable[[], object], *, what: str, deadline_s: float = DEADLINE_S) -> None:
    """Wait until `condition` is true; fail the test, naming `what`, if that does not happen in time."""
    end_s = time.monotonic() + deadline_s
    while not condition():
        assert time.monotonic() < end_s, f"did not happen within {deadline_s} s: {what}"
        time.sleep(POLL_S)


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[LiveCluster]:
    """Three nodes of a new cluster with a bucket called data, for one test that may break it."""
    with running_cluster(tmp_path) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def shared_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveCluster]:
    """The same for all tests of a module that break nothing and use keys of their own."""
    with running_cluster(tmp_path_factory.mktemp("cluster")) as cluster:
        yield cluster


@contextmanager
def running_cluster(directory: Path, *, environment: Mapping[str, str] | None = None) -> Iterator[LiveCluster]:
    """Three nodes with settings of a test's own, clients like theirs, and a bucket called data."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in CLIENT.items():
            patch.setenv(name, value)
        with LiveCluster(directory, environment=environment) as cluster:
            with cluster.client() as client:
                client.buckets.create("data")
            yield cluster


class LiveCluster(EmbeddedCluster):
    """An embedded cluster with the means to break it.

    Parameters
    ----------
    directory : Path
        Of the test.
    settings : keyword arguments
        As for `EmbeddedCluster`; its ``environment`` goes on top of what makes tests quick.
    """

    def __init__(self, directory: Path, *, environment: Mapping[str, str] | None = None, **settings: Any) -> None:
        super().__init__(directory, environment={**QUICK, **(environment or {})}, **settings)

    def client(self, *node_ids: str) -> Client:
        """A client of these nodes, or of all."""
        return Client([self.endpoint(node_id) for node_id in node_ids or self.node_ids])

    def transport(self) -> Transport:
        """For requests to one node, past the client's retries and failover."""
        return Transport(load_config()[0])

    # Changes of the layout

    def change(self, client: Client, kind: str, *node_ids: str, **given: Any) -> dict[str, Any]:
        """Have the layout changed, and all nodes hear of it; the plan."""
        wish = {"change": kind, "nodes": list(node_ids), "id": new_write_id(), **given}
        plan: dict[str, Any] = client.admin("POST", LAYOUT_PATH, json=wish)
        assert plan["committed"], plan
        version = plan["layout"]["version"]
        eventually(lambda: client.cluster.refresh().layout.version >= version, what=f"layout {version} is known")
        return plan

    def standing(self, client: Client) -> dict[str, Any]:
        """How the nodes stand to the layout."""
        told: dict[str, Any] = client.admin("GET", LAYOUT_PATH)
        return told

    def states(self, client: Client) -> dict[str, str]:
        """The nodes' states."""
        return {node["node_id"]: node["state"] for node in self.standing(client)["nodes"]}

    def await_complete(self, client: Client) -> None:
        """Wait until all nodes hold what the layout gives them, and older layouts are retired."""
        eventually(lambda: not self.standing(client)["older"], what="older layouts are retired", deadline_s=MOVE_S)

    def await_drained(self, client: Client, node_id: str) -> None:
        """Wait until a draining node is empty."""
        eventually(lambda: self.states(client)[node_id] == "drained", what=f"{node_id} is drained", deadline_s=MOVE_S)

    def coordinator(self) -> str | None:
        """The node that is the coordinator."""
        store = SqliteMetaStore(self.meta_path)
        try:
            return Ownership(store, what="coordinator", node_id="", lease=lambda: None).owner()
        finally:
            store.close()

    def chunk_files(self, node_id: str) -> list[Path]:
        """All chunk files on a node's disk."""
        return [path for path in (self.data_dirs[node_id] / "chunks").rglob("*") if path.is_file()]

    # What happens to a node

    def add_spare(self) -> str:
        """Start a node that the cluster has not seen; returns when it answers."""
        store = SqliteMetaStore(self.meta_path)
        cluster_id = read_cluster_id(store)
        store.close()
        assert cluster_id is not None
        path = self.directory / f"node-{len(self.data_dirs) + 1}"
        with claim(path, cluster_id=cluster_id) as found:
            node_id = found.node_id
        self.data_dirs[node_id] = path
        bound = reserve("127.0.0.1", 0)
        self._reserved.append(bound)
        self._ports[node_id] = bound.getsockname()[1]
        self.restart(node_id)
        return node_id

    @contextmanager
    def paused(self, node_id: str) -> Iterator[None]:
        """Stop a node's process with SIGSTOP for the length of the block: it keeps its connections and says nothing.

        Not while it writes to the metadata that all share: in one file, that would stop every other writer, too.
        """
        deadline_s = time.monotonic() + DEADLINE_S
        stop_process(self.pid(node_id), self._processes[node_id].signal)
        while not self._metadata_writable():
            self._processes[node_id].signal(signal.SIGCONT)
            assert time.monotonic() < deadline_s, "somebody writes to the metadata all the time"
            time.sleep(0.05)  # For it to end what it is writing.
            stop_process(self.pid(node_id), self._processes[node_id].signal)
        try:
            yield
        finally:
            self._processes[node_id].signal(signal.SIGCONT)

    def _metadata_writable(self) -> bool:
        if not self.meta_path.exists():
            return True  # They are elsewhere.
        with closing(sqlite3.connect(self.meta_path, isolation_level=None, timeout=0.2)) as db:
            try:
                db.execute("BEGIN IMMEDIATE")
            except sqlite3.OperationalError:
                return False
            db.execute("ROLLBACK")
        return True

    def fill(self, node_id: str) -> None:
        """Restart a node with a reserve that its disk can't have: it takes no chunk any more."""
        self.restart(node_id, environment={"FOREBAY_RESERVE_BYTES": str(1 << 60)})

    def flip_bit(self, node_id: str, ref: Ref, *, offset: int = 0) -> None:
        """Flip one bit of a node's copy on its disk."""
        path = self.chunk_file(node_id, ref)
        assert path is not None
        with path.open("r+b") as file:
            file.seek(offset)
            byte = file.read(1)[0]
            file.seek(offset)
            file.write(bytes([byte ^ 0x01]))

    def cut_short(self, node_id: str, ref: Ref, *, size_bytes: int) -> None:
        """Cut a node's copy on its disk to its first bytes."""
        path = self.chunk_file(node_id, ref)
        assert path is not None
        with path.open("r+b") as file:
            file.truncate(size_bytes)

    @contextmanager
    def metadata_locked(self) -> Iterator[None]:
        """Hold the metadata's write lock for the length of the block, as a stuck process would."""
        with closing(sqlite3.connect(self.meta_path, isolation_level=None)) as db:
            db.execute("BEGIN EXCLUSIVE")
            yield
            db.execute("ROLLBACK")

    # What lies on the disks

    def chunk_file(self, node_id: str, ref: Ref) -> Path | None:
        """The file of a node's copy, None if it has none."""
        path = self.data_dirs[node_id] / "chunks" / ref.hex[:2] / f"{ref.partition:08x}-{ref.hex}"
        return path if path.exists() else None

    def stored(self, node_id: str, ref: Ref) -> bytes | None:
        """The bytes of a node's copy as they lie on its disk, None if it has none."""
        path = self.chunk_file(node_id, ref)
        try:
            return None if path is None else path.read_bytes()[: ref.size]
        except FileNotFoundError:  # set aside meanwhile
            return None

    def sound_copies(self, ref: Ref) -> set[str]:
        """The nodes whose disks hold the right bytes of a chunk."""
        return {
            node_id
            for node_id in self.node_ids
            if (data := self.stored(node_id, ref)) is not None and blake3(data).digest() == ref.id
        }

    def is_whole(self, client: Client, info: ObjectInfo) -> bool:
        """Whether every replica of every chunk of an object, manifests included, lies on its disk with the right bytes."""
        layout = client.cluster.layout
        return all(
            set(layout.replicas(ref.partition, count=info.record.replicas)) <= self.sound_copies(ref)
            for ref in client.reader(info).refs()
        )

    def half_written(self, node_id: str) -> list[Path]:
        """Files in a node's data directory that belong to nothing."""
        known = ("chunks", "quarantine")
        files = [path for path in self.data_dirs[node_id].rglob("*") if path.is_file()]
        return [
            path
            for path in files
            if path.name not in ("node.json", "follower.json")
            and path.relative_to(self.data_dirs[node_id]).parts[0] not in known
        ]

    # Questions to one node

    def ask(self, node_id: str, method: str, path: str, *, json: Any = None) -> Any:
        """One request to one node, decoded; errors are raised as they come."""
        transport = self.transport()
        try:
            body = None if json is None else encode_json(json)
            headers = {"content-type": "application/json"}
            answer = transport.request(method, self.endpoint(node_id), path, headers=headers, body=body, node_id=node_id)
            return decode_json(answer.body) if answer.body else None
        finally:
            transport.close()

    def up_nodes(self, asked: str) -> set[str]:
        """The nodes that the node `asked` takes for up."""
        return set(self.ask(asked, "GET", "/v1/cluster")["nodes"])
