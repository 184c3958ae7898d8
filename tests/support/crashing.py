"""A cluster in one process, of real parts on real disks, that can be ended at any call to the world outside.

Disks, the way to other nodes and the metadata engine are numbered together: `World.crash_at(k)` makes the k-th such call the
last one. Calls that change something have two numbers, one before and one after: the request or the reply is lost. What comes
after a crash, in any thread, fails as in a process that is gone. `World.restart` then builds all parts anew from what is on
the disks and in the metadata.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from typing_extensions import Buffer

from client.chunks import ChunkClient, Stored
from client.cluster import Cluster, ClusterView
from client.config import ClientConfig
from client.errors import ChunkNotFound, StoreError
from client.manifest import Ref
from client.objects import ObjectStore
from client.placement import Layout, Node
from client.record import BucketPolicy
from client.retry import Deadline
from client.transport import Response
from storenode.catalog import MetaCatalog
from storenode.chunkstore import ChunkStore
from storenode.cursor import CursorFile
from storenode.desired import DesiredSet
from storenode.follower import Follower
from storenode.held import Holdings
from storenode.layouts import create_layout, read_anchor, read_layouts
from storenode.lineage import create_cluster, read_lineage
from storenode.metastore import Txn, TxnResult
from storenode.pace import Pace
from storenode.quarantine import Quarantine
from storenode.repair import Copies, Repair
from storenode.sqlite import SqliteMetaStore
from tests.support.filesystem import ScriptedFileSystem, SimulatedCrash
from tests.support.hooked_meta import HookedMeta

__all__ = ["SimNode", "World"]

T = TypeVar("T")
PARTITIONS = 16
_NEVER = 1 << 60


class _Points:
    """Numbers the calls, and ends the process at one of them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.count = 0
        self.last = _NEVER
        self.named: list[str] = []

    def hit(self, name: str) -> None:
        with self._lock:
            self.count += 1
            if self.count <= self.last:
                self.named.append(name)
            if self.count >= self.last:
                raise SimulatedCrash(f"at call {self.last}")


class _Disk(ScriptedFileSystem):
    """Syncs cost nothing, for only the process is lost and not the power; other tests look after what a disk keeps."""

    def __init__(self, points: _Points) -> None:
        super().__init__()
        self._points = points

    def _call(self, method: str, subject: str, call: Callable[[], T]) -> T:
        if method in ("sync", "sync_data", "sync_everything"):
            call = lambda: None  # type: ignore[assignment,return-value]  # noqa: E731
        if method in _CHANGES:
            self._points.hit(f"before {method}")
        result = call()
        self.calls.clear()
        return result


# Reading changes nothing: to end before a read is to end after the change before it.
_CHANGES = (
    *("create_unnamed", "write", "link", "rename", "unlink", "stamp_file", "stamp_name"),
    *("sync_data", "sync", "sync_everything"),
)


class _Meta(HookedMeta):
    def __init__(self, meta: SqliteMetaStore, points: _Points) -> None:
        super().__init__(meta)
        self._points = points

    def txn_many(self, txns: Sequence[Txn]) -> list[TxnResult]:
        self._points.hit("before txn")
        results = super().txn_many(txns)
        self._points.hit("after txn")
        return results


class SimNode:
    """One node's disk and background parts. Nothing runs in a thread of its own: a test makes each step."""

    def __init__(self, world: World, name: str) -> None:
        self.world = world
        self.name = name
        root = world.root / name
        root.mkdir(exist_ok=True)
        floor = read_anchor(world.meta).anchor.epoch
        self.chunks = ChunkStore(root, reserve_bytes=0, max_chunk_bytes=1 << 20, floor=floor, fs=_Disk(world.points))
        copies = Copies(
            node_id=name,
            chunks=self.chunks,
            cluster=world.cluster,
            reader=world.objects.replica_reader,
            transport=_Transport(world),  # type: ignore[arg-type]
        )
        self.desired = DesiredSet(copies, num_threads=1, pace=Pace(1e12, wait=lambda _: None))
        self.cursor = CursorFile(root, cluster_id="c", fs=_Disk(world.points))
        self.follower = Follower(
            world.meta,
            cluster=world.cluster,
            desired=self.desired,
            repair=Repair(copies, Quarantine(root), limit=100, base_s=0.0, max_s=0.0),
            cursor_file=self.cursor,
            holdings=Holdings(world.meta, node_id=name),
            incarnation=lambda: read_lineage(world.meta).incarnation,
            max_pending=1000,
            grace_s=0.0,
            base_s=0.0,
            max_s=0.0,
            watch_s=0.0,
            save_s=0.0,
        )
        self.follower.load()

    def names(self) -> set[tuple[int, bytes]]:
        return set(self.chunks.scan())


class _Chunks(ChunkClient):
    """Hands chunks to the nodes' disks, without a network between them."""

    def __init__(self, world: World, cluster: Cluster) -> None:
        super().__init__(cluster, None)  # type: ignore[arg-type]
        self._world = world

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
        for name in (node_id, *tee):
            self._world.points.hit("before put")
            self._world.nodes[name].chunks.put(ref.partition, ref.id, payload, epoch=epoch)
        self._world.points.hit("after put")
        return Stored(durable=(node_id, *tee), failed={})

    def put_many(
        self, node_id: str, chunks: Sequence[tuple[Ref, Buffer]], *, epoch: int, deadline: Deadline | None = None
    ) -> Any:
        self._world.points.hit("before put_many")
        items = [(ref.partition, ref.id, payload) for ref, payload in chunks]
        errors = self._world.nodes[node_id].chunks.put_group(items, epoch=epoch)
        self._world.points.hit("after put_many")
        return errors

    def touch(self, node_id: str, refs: Sequence[Ref], *, epoch: int, rehash: bool = True, fetch: bool = False) -> list[bool]:
        self._world.points.hit("before touch")
        node = self._world.nodes[node_id]
        held = []
        for ref in refs:
            durable = node.chunks.touch(ref.partition, ref.id, epoch=epoch, rehash=rehash)
            if fetch and not durable:
                node.follower.fetch(ref.partition, ref.id)
                durable = node.chunks.touch(ref.partition, ref.id, epoch=epoch, rehash=False)
            held.append(durable)
        return held

    def verify(self, node_id: str, refs: Sequence[Ref]) -> list[str]:
        node, statuses = self._world.nodes[node_id], []
        for ref in refs:
            try:
                node.chunks.verify(ref.partition, ref.id)
                statuses.append("ok")
            except ChunkNotFound:
                statuses.append("missing")
        return statuses

    def get_many(self, node_id: str, refs: Sequence[Ref]) -> list[memoryview | StoreError]:
        found: list[memoryview | StoreError] = []
        for ref in refs:
            try:
                found.append(memoryview(self._world.read(node_id, ref.partition, ref.id)))
            except ChunkNotFound as error:
                found.append(error)
        return found

    def fetch_into(
        self, node_id: str, ref: Ref, buffer: memoryview, *, start: int = 0, deadline: Deadline | None = None
    ) -> None:
        buffer[:] = self._world.read(node_id, ref.partition, ref.id)[start : start + len(buffer)]


class _Transport:
    """Gets whole chunks by partition and id, as repair asks for them."""

    def __init__(self, world: World) -> None:
        self._world = world

    def request(self, method: str, url: str, path: str, *, node_id: str = "", **options: object) -> Response:
        _, _, _, partition, chunk_hex = path.split("/")
        body = self._world.read(node_id, int(partition), bytes.fromhex(chunk_hex))
        return Response(status=200, headers={}, body=body, size=len(body))


class World:
    """The cluster. A context manager; `restart` is a new life of all its processes.

    Parameters
    ----------
    root : Path
        For the disks and the metadata.
    node_ids : sequence of str
        Those that are up; the first layout has the first three.
    """

    def __init__(self, root: Path, node_ids: Sequence[str] = ("a", "b", "c")) -> None:
        self.root = root
        self.node_ids = tuple(node_ids)
        self.points = _Points()
        self.nodes: dict[str, SimNode] = {}
        self._store: SqliteMetaStore | None = None
        self.start()
        if read_layouts(self.meta) is None:
            create_cluster(self.meta)
            create_layout(
                self.meta, Layout(version=1, partitions=PARTITIONS, nodes=tuple(Node(id=name) for name in node_ids[:3]))
            )
            self.store.catalog.create_bucket("data", BucketPolicy(replicas=2, ack="all"))

    def start(self) -> None:
        self._store = SqliteMetaStore(self.root / "meta.sqlite")
        self.meta = _Meta(self._store, self.points)
        settings: dict[str, Any] = {"deadline_s": 5.0, "retry_base_s": 0.0001, "max_threads": 1, "max_in_flight_chunks": 1}
        # So that some chunks are small ones, which go in groups, and some are not.
        config = ClientConfig(chunk_size_bytes=96 * 1024, **settings)
        self.cluster = Cluster(self._view, ttl_s=0.0, suspect_s=0.0, min_refresh_s=0.0)
        catalog = MetaCatalog(self.meta, marker_ttl_s=600.0)
        self.store = ObjectStore(catalog, self.cluster, _Chunks(self, self.cluster), config)

    @property
    def objects(self) -> ObjectStore:
        """The store that the nodes' background parts read with."""
        return self.store

    def up(self) -> dict[str, SimNode]:
        """The nodes, opened."""
        if not self.nodes:
            self.nodes = {name: SimNode(self, name) for name in self.node_ids}
        return self.nodes

    def read(self, node_id: str, partition: int, chunk_id: bytes) -> bytes:
        """One node's copy, verified."""
        chunks = self.nodes[node_id].chunks
        chunks.verify(partition, chunk_id)
        with chunks.open_chunk(partition, chunk_id) as chunk:
            payload = bytearray(chunk.size)
            chunk.pread_into(payload, offset=0)
        return bytes(payload)

    def crash_at(self, number: int) -> None:
        """End the process at the call of this number from now on, counted from 1."""
        self.points.last = self.points.count + number

    def calls_of(self, act: Callable[[], object]) -> int:
        """How many numbered calls `act` makes."""
        before = self.points.count
        act()
        return self.points.count - before

    def restart(self) -> None:
        """All processes are gone and come again."""
        self.stop()
        self.points.last = _NEVER
        self.start()
        self.up()

    def stop(self) -> None:
        self.points.last = _NEVER
        for node in self.nodes.values():
            node.desired.close()
        self.nodes = {}
        self.store.close()
        assert self._store is not None
        self._store.close()

    def settle(self) -> None:
        """Let all nodes follow until there is nothing left to do."""
        for _ in range(4):
            for node in self.nodes.values():
                node.follower.step()

    def _view(self) -> ClusterView:
        found = read_layouts(self.meta)
        assert found is not None
        return ClusterView(
            cluster_id="c",
            layouts=found.layouts,
            epoch=read_anchor(self.meta).anchor.epoch,
            endpoints={name: (f"http://{name}:1",) for name in self.node_ids},
        )

    def __enter__(self) -> World:
        self.up()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
