"""One node's background side over a real disk and real metadata, with fakes for the other nodes and for time."""

from __future__ import annotations

from pathlib import Path

from client.cluster import Cluster
from client.manifest import Ref, make_ref
from client.record import Content, ObjectRecord
from client.wire import encode_json
from storenode.chunkstore import ChunkStore
from storenode.cursor import Cursor, CursorFile
from storenode.desired import DesiredSet
from storenode.filesystem import FileSystem
from storenode.follower import Follower
from storenode.held import Holdings
from storenode.metastore import Put
from storenode.pace import Pace
from storenode.quarantine import Quarantine
from storenode.repair import Copies, Repair
from storenode.sqlite import SqliteMetaStore
from tests.support.peers import PARTITIONS, Clock, FakeReader, FakeTransport, Peers, UnsyncedFileSystem, three_nodes

__all__ = ["GRACE_S", "NodeBench"]

GRACE_S = 1.0


class NodeBench:
    """A node called a, in a cluster with b and c. Nothing runs in a thread: a test makes each step."""

    def __init__(self, root: Path, *, fs: FileSystem | None = None) -> None:
        self.root = root
        self.clock = Clock()
        self.peers = Peers(clock=self.clock)
        self.store = SqliteMetaStore(root / "meta.sqlite", clock=self.clock, wait=self.clock.wait, history_revisions=50)
        (root / "node").mkdir()
        self.chunks = ChunkStore(root / "node", reserve_bytes=0, max_chunk_bytes=1 << 20, fs=fs or UnsyncedFileSystem())
        self.pace = Pace(1.0, clock=self.clock, wait=self.clock.wait)
        self.desired: DesiredSet | None = None
        self.incarnation = ""
        self.start()

    def start(self, *, cluster: Cluster | None = None, max_pending: int = 100) -> Follower:
        """A new life of the node: only what is on the disk is left of the one before."""
        if self.desired is not None:
            self.desired.close()
        cluster = cluster or three_nodes(clock=self.clock)
        copies = Copies(
            node_id="a",
            chunks=self.chunks,
            cluster=cluster,
            reader=FakeReader(self.peers),  # type: ignore[arg-type]
            transport=FakeTransport(self.peers),  # type: ignore[arg-type]
        )
        self.desired = DesiredSet(copies, num_threads=2, pace=self.pace)
        self.cursor_file = CursorFile(self.root / "node", cluster_id="c1", fs=UnsyncedFileSystem())
        repair = Repair(copies, Quarantine(self.root / "node"), limit=10, base_s=1.0, max_s=8.0, clock=self.clock)
        self.follower = Follower(
            self.store,
            cluster=cluster,
            desired=self.desired,
            repair=repair,
            cursor_file=self.cursor_file,
            holdings=Holdings(self.store, node_id="a"),
            incarnation=lambda: self.incarnation,
            max_pending=max_pending,
            grace_s=GRACE_S,
            base_s=1.0,
            max_s=8.0,
            watch_s=2.0,
            save_s=0.0,
            clock=self.clock,
            uniform=lambda low, high: high,
        )
        self.follower.load()
        return self.follower

    def close(self) -> None:
        if self.desired is not None:
            self.desired.close()
        self.store.close()

    def object(self, text: str, *, replicas: int = 3) -> Ref:
        """An object of one chunk that the peers hold, committed."""
        ref = self.peers.add(make_ref(text.encode(), partitions=PARTITIONS), text.encode())
        self.commit(text, Content(size=ref.size, digest="", refs=(ref,)), replicas=replicas)
        return ref

    def commit(self, key: str, content: Content, *, replicas: int = 3) -> int:
        record = ObjectRecord(write_id="w", content=content, replicas=replicas)
        return self.store.txn([], [Put(key=f"obj/bucket/{key}", value=encode_json(record.to_json()))]).revision

    def holds(self, ref: Ref) -> bool:
        return self.chunks.contains(ref.partition, ref.id)

    def steps(self, count: int = 6) -> None:
        """Let time pass as the thread would: as long as each step asks for."""
        for _ in range(count):
            self.clock.wait(self.follower.step() or 0.0)

    @property
    def saved(self) -> Cursor | None:
        return self.cursor_file.load()
