"""A whole store in memory: the client's real code over names and nodes that are dictionaries.

`FakeStore` stands for `client.client.Client`. Its nodes hold chunks that a test can take away or damage, a node can be down,
and a repair happens when the test says so.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any, ParamSpec

from typing_extensions import Buffer

from client.catalog import Commit, Consistency, Listing, Opened, Watched
from client.checksum import blake3_id
from client.chunks import ChunkClient, ChunkSending, Stored
from client.client import Client
from client.cluster import Anchor, Cluster, ClusterView
from client.config import ClientConfig
from client.errors import (
    BucketExists,
    BucketNotEmpty,
    BucketNotFound,
    ChunkCorrupt,
    ChunkNotFound,
    EndpointUnreachable,
    InvalidRequest,
    ObjectNotFound,
    PreconditionFailed,
    SnapshotNotFound,
    StaleAnchor,
    StoreError,
)
from client.manifest import Ref
from client.names import check_bucket, check_key
from client.objects import ObjectStore
from client.placement import Layout, Layouts, Node
from client.record import BucketPolicy, Condition, Content, ObjectInfo, ObjectRecord
from client.retry import Deadline
from client.snapshots import Snapshot

__all__ = ["FakeCatalog", "FakeChunks", "FakeStore"]

PARTITIONS = 64
P = ParamSpec("P")


class FakeCatalog:
    """Implements `client.catalog.Catalog` in a dictionary; every listing is one page or as many as `page_size` makes."""

    def __init__(self) -> None:
        self.policies: dict[str, BucketPolicy] = {}
        self.history: dict[tuple[str, str], list[ObjectInfo]] = {}  # newest first
        self.revision = 0
        self.page_size = 1000
        self.anchor: Anchor | None = None  # What anchors must hold at, if it is set.
        self.kept: dict[tuple[str, str], tuple[Snapshot, dict[tuple[str, str], list[ObjectInfo]]]] = {}
        self.committed = threading.Condition()

    def create_bucket(self, bucket: str, policy: BucketPolicy) -> None:
        if self.policies.setdefault(bucket, policy) != policy:
            raise BucketExists(f"bucket {bucket!r} exists with another policy", key=bucket)

    def bucket(self, bucket: str) -> BucketPolicy:
        if bucket not in self.policies:
            raise BucketNotFound(f"no bucket {bucket!r}; `forebay bucket create {bucket}` creates it", key=bucket)
        return self.policies[bucket]

    def buckets(self) -> dict[str, BucketPolicy]:
        return dict(sorted(self.policies.items()))

    def set_bucket(self, bucket: str, policy: BucketPolicy) -> None:
        self.bucket(bucket)
        self.policies[bucket] = policy

    def delete_bucket(self, bucket: str) -> None:
        self.bucket(bucket)
        if any(name == bucket for name, _ in self.history):
            raise BucketNotEmpty(f"bucket {bucket!r} holds objects", key=bucket)
        del self.policies[bucket]

    def lookup(
        self,
        bucket: str,
        key: str,
        *,
        version: int | None = None,
        snapshot: str | None = None,
        consistency: Consistency = "strong",
    ) -> ObjectInfo:
        self.bucket(bucket)
        found = self._shown(bucket, snapshot).get((bucket, key), [])
        found = found[:1] if version is None else [info for info in found if info.version == version]
        if not found or found[0].record.tombstone:
            raise ObjectNotFound(f"no object {bucket}/{key}", key=f"{bucket}/{key}")
        return found[0]

    def begin_read(
        self,
        bucket: str,
        key: str,
        *,
        version: int | None,
        consistency: Consistency,
        place: Callable[[ObjectInfo], memoryview],
        **_: object,
    ) -> Opened:
        info = self.lookup(check_bucket(bucket), check_key(key), version=version, consistency=consistency)
        return Opened(info=info, buffer=place(info))

    def lookup_many(self, names: Sequence[tuple[str, str]]) -> list[ObjectInfo | StoreError]:
        return [_outcome(self.lookup, *name) for name in names]

    def commit_many(self, writes: Sequence[Commit]) -> list[ObjectInfo | StoreError]:
        return [_outcome(self.commit, write) for write in writes]

    def commit(self, write: Commit) -> ObjectInfo:
        bucket, key = write.bucket, write.key
        with self.committed:
            self._check(bucket, key, write.condition)
            if isinstance(write.proof, Anchor) and self.anchor is not None and not write.proof.holds(self.anchor):
                raise StaleAnchor(f"{write.name}: {write.proof} does not hold at {self.anchor}")
            self.revision += 1
            info = ObjectInfo(bucket=bucket, key=key, version=self.revision, record=write.record)
            kept = self.history.get((bucket, key), [])[: self.bucket(bucket).versions]
            self.history[bucket, key] = [info, *kept]
            self.committed.notify_all()
        return info

    def delete(self, bucket: str, key: str, *, write_id: str, condition: Condition) -> int:
        self.lookup(bucket, key)
        self._check(bucket, key, condition)
        if self.bucket(bucket).versions:
            record = ObjectRecord(write_id=write_id, content=Content(size=0, digest=""), tombstone=True)
            self.commit(Commit(bucket=bucket, key=key, record=record))
        else:
            del self.history[bucket, key]
        return self.revision

    def create_snapshot(self, bucket: str, name: str, *, snapshot_id: str) -> Snapshot:
        self.bucket(bucket)
        made = Snapshot(name=name, version=self.revision, created_s=0.0, id=snapshot_id)
        kept = {names: list(history) for names, history in self.history.items() if names[0] == bucket}
        self.kept[bucket, name] = made, kept
        return made

    def snapshots(self, bucket: str) -> tuple[Snapshot, ...]:
        self.bucket(bucket)
        return tuple(made for (name, _), (made, _) in self.kept.items() if name == bucket)

    def delete_snapshot(self, bucket: str, name: str) -> None:
        self._shown(bucket, name)
        del self.kept[bucket, name]

    def prune(self, bucket: str, *, after: str | None) -> tuple[int, str | None]:
        return 0, None

    def _shown(self, bucket: str, snapshot: str | None) -> dict[tuple[str, str], list[ObjectInfo]]:
        if snapshot is None:
            return self.history
        if (bucket, snapshot) not in self.kept:
            raise SnapshotNotFound(f"bucket {bucket} has no snapshot {snapshot!r}")
        return self.kept[bucket, snapshot][1]

    def list(
        self,
        bucket: str,
        *,
        prefix: str,
        delimiter: str,
        cursor: str | None,
        limit: int,
        versions: bool,
        snapshot: str | None = None,
    ) -> Listing:
        self.bucket(bucket)
        names: dict[str, list[ObjectInfo]] = {}
        for (name, key), history in sorted(self._shown(bucket, snapshot).items(), key=lambda item: item[0][1].encode()):
            if name != bucket or not key.startswith(prefix):
                continue
            head, found, _ = key[len(prefix) :].partition(delimiter or "\0")
            if found:
                names.setdefault(prefix + head + delimiter, [])
            elif versions or not history[0].record.tombstone:
                names[key] = history if versions else history[:1]
        limit, start = min(limit, self.page_size), int(cursor or 0)
        page = list(names.items())[start : start + limit]
        return Listing(
            objects=tuple(info for _, infos in page for info in infos),
            prefixes=tuple(name for name, infos in page if not infos),
            cursor=str(start + limit) if start + limit < len(names) else None,
            revision=self.revision,
        )

    def watch(self, bucket: str, *, prefix: str, after: int | None, timeout_s: float) -> Watched:
        def newer() -> tuple[tuple[str, ObjectInfo], ...]:
            found = [(key, infos[0]) for (name, key), infos in list(self.history.items()) if name == bucket]
            return tuple((key, info) for key, info in found if key.startswith(prefix) and info.version > (after or 0))

        with self.committed:
            if after is not None:
                self.committed.wait_for(newer, timeout=timeout_s)
            return Watched(changes=() if after is None else newer(), revision=self.revision)

    def _check(self, bucket: str, key: str, condition: Condition) -> None:
        self.bucket(bucket)
        current = self.history.get((bucket, key), [None])[0]
        if not condition.holds(None if current is None or current.record.tombstone else current.etag):
            raise PreconditionFailed(f"{bucket}/{key} is not what the condition says", key=f"{bucket}/{key}")


def _outcome(call: Callable[P, ObjectInfo], *args: P.args, **kwargs: P.kwargs) -> ObjectInfo | StoreError:
    try:
        return call(*args, **kwargs)
    except StoreError as error:
        return error


class FakeChunks(ChunkClient):
    """Nodes as dictionaries.

    Attributes
    ----------
    nodes : dict
        Of each node: its chunks by (partition, id).
    down : set of str
        Nodes that do not answer.
    verified : list
        Of each call of `verify`: the node and the number of chunks.
    """

    def __init__(self, node_ids: Sequence[str]) -> None:
        self.nodes: dict[str, dict[tuple[int, bytes], bytes]] = {node_id: {} for node_id in node_ids}
        self.down: set[str] = set()
        self.verified: list[tuple[str, int]] = []
        self.before_verify: Callable[[], None] = lambda: None

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
        self._node(node_id)
        live = [node for node in (node_id, *tee) if node not in self.down]
        for node in live:
            self.nodes[node][ref.partition, ref.id] = bytes(payload)
        return Stored(durable=tuple(live), failed={node: "down" for node in tee if node in self.down})

    def put_many(
        self, node_id: str, chunks: Sequence[tuple[Ref, Buffer]], *, epoch: int, deadline: Deadline | None = None
    ) -> list[StoreError | None]:
        self._node(node_id).update({(ref.partition, ref.id): bytes(payload) for ref, payload in chunks})
        return [None] * len(chunks)

    def sending(
        self,
        node_id: str,
        partition: int,
        chunk_hex: str,
        *,
        size_bytes: int,
        epoch: int,
        tee: Sequence[str] = (),
        timeout_s: float | None = None,
        deadline: Deadline | None = None,
    ) -> ChunkSending:
        self._node(node_id)
        return FakeSending(self, node_id, Ref(partition=partition, id=bytes.fromhex(chunk_hex), size=size_bytes, check=0))

    def fetch_into(self, node_id: str, ref: Ref, buffer: memoryview, *, start: int = 0, **_: object) -> None:
        held = self._node(node_id).get((ref.partition, ref.id))
        if held is None:
            raise ChunkNotFound(f"no chunk {ref}", node_id=node_id)
        if blake3_id(held) != ref.id:
            raise ChunkCorrupt(f"chunk {ref} is corrupt", node_id=node_id)
        buffer[:] = held[start : start + len(buffer)]

    def colocated(self) -> Collection[str]:
        return ()

    def touch(self, node_id: str, refs: Sequence[Ref], *, epoch: int, rehash: bool = True, fetch: bool = False) -> list[bool]:
        node = self._node(node_id)
        return [(ref.partition, ref.id) in node for ref in refs]

    def verify(self, node_id: str, refs: Sequence[Ref]) -> list[str]:
        self.before_verify()
        node = self._node(node_id)
        self.verified.append((node_id, len(refs)))
        held = [node.get((ref.partition, ref.id)) for ref in refs]
        return [
            "missing" if payload is None else "ok" if blake3_id(payload) == ref.id else "corrupt"
            for payload, ref in zip(held, refs, strict=True)
        ]

    def _node(self, node_id: str) -> dict[tuple[int, bytes], bytes]:
        if node_id in self.down:
            raise EndpointUnreachable(f"node {node_id} is down", node_id=node_id)
        return self.nodes[node_id]


class FakeSending(ChunkSending):
    """Gathers the parts of a chunk and puts it on a node of `chunks`."""

    def __init__(self, chunks: FakeChunks, node_id: str, ref: Ref) -> None:
        self._chunks = chunks
        self._to = node_id
        self._ref = ref
        self.parts: list[bytes] = []

    def send(self, part: memoryview) -> None:
        self.parts.append(bytes(part))

    def finish(self) -> Stored:
        payload = b"".join(self.parts)
        assert len(payload) == self._ref.size, (len(payload), self._ref.size)
        return self._chunks.put(self._to, self._ref, payload, epoch=0)

    def __exit__(self, *_: object) -> None:
        pass


@dataclass(slots=True)
class FakeJobs:
    """What the nodes' admin routes answer: the jobs, each state of them once."""

    states: list[list[dict[str, Any]]] = field(default_factory=lambda: [[]])
    started: list[str] = field(default_factory=list)
    cancelled: list[str] = field(default_factory=list)

    def next(self) -> list[dict[str, Any]]:
        return self.states.pop(0) if len(self.states) > 1 else self.states[0]


class FakeStore(Client):
    """A client whose cluster is in this process.

    Parameters
    ----------
    num_nodes : int
        Named node-1, node-2 and so on, each on a host of its own.
    chunk_size_bytes : int
        Objects are cut into chunks of this size.
    """

    def __init__(self, *, num_nodes: int = 3, chunk_size_bytes: int = 64 * 1024) -> None:
        self.node_ids = [f"node-{number}" for number in range(1, num_nodes + 1)]
        nodes = tuple(Node(id=node_id, host=f"host-{node_id}") for node_id in self.node_ids)
        layout = Layout(version=1, partitions=PARTITIONS, nodes=nodes)
        self.fake_catalog = FakeCatalog()
        self.fake_chunks = FakeChunks(self.node_ids)
        self.jobs = FakeJobs()
        self.metadata: dict[str, Any] = {"incarnation": "i1", "went_back": False, "frozen": None}

        def view() -> ClusterView:
            up = [node_id for node_id in self.node_ids if node_id not in self.fake_chunks.down]
            endpoints = {node_id: (f"http://{node_id}:7070",) for node_id in up}
            return ClusterView(cluster_id="test", layouts=Layouts(current=layout), endpoints=endpoints)

        settings: dict[str, Any] = {"deadline_s": 0.2, "retry_base_s": 0.001, "retry_max_s": 0.01}
        config = ClientConfig(chunk_size_bytes=chunk_size_bytes, **settings)
        cluster = Cluster(view, ttl_s=0.0, suspect_s=1.0)
        ObjectStore.__init__(self, self.fake_catalog, cluster, self.fake_chunks, config)

    def repair(self) -> None:
        """Give every node that is up the copies that records say it should have."""
        every = {key: payload for node in self.fake_chunks.nodes.values() for key, payload in node.items()}
        for info in (info for history in self.fake_catalog.history.values() for info in history):
            for ref in self.reader(info).refs():
                for node_id in self.cluster.layout.replicas(ref.partition, count=info.record.replicas):
                    if node_id not in self.fake_chunks.down:
                        self.fake_chunks.nodes[node_id][ref.partition, ref.id] = every[ref.partition, ref.id]

    def admin(self, method: str, path: str, *, json: Any = None, node_id: str | None = None) -> Any:
        """The nodes' admin routes, answered from `jobs` and the dictionaries."""
        if node_id in self.fake_chunks.down:
            raise EndpointUnreachable(f"node {node_id} is down", node_id=node_id)
        if (method, path) == ("GET", "/v1/admin/status") and node_id is not None:
            disk = {"total_bytes": 1000, "free_bytes": 400, "reserve_bytes": 100}
            follower = {"revision": self.fake_catalog.revision, "pending": 0}
            return {"node_id": node_id, "disk": disk, "follower": follower, "metadata": self.metadata}
        if (method, path) == ("POST", "/v1/admin/scrub") and node_id is not None:
            self.jobs.started.append(node_id)
            return next(job for job in self.jobs.states[0] if job["node_id"] == node_id)
        if (method, path) == ("GET", "/v1/admin/jobs"):
            return {"jobs": self.jobs.next()}
        if method == "DELETE" and path.startswith("/v1/admin/jobs/"):
            self.jobs.cancelled.append(path.rpartition("/")[2])
            return {**self.jobs.states[0][0], "cancelling": True}
        raise InvalidRequest(f"the fake store has no {method} {path}")

    def close(self) -> None:
        """Stop the threads."""
        ObjectStore.close(self)
