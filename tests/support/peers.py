"""Stand-ins for the other nodes of a cluster, for unit tests of what a node does with its own disk."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

from typing_extensions import Buffer

from client.cluster import Cluster, ClusterView
from client.errors import AllReplicasFailed, ChunkNotFound, EndpointUnreachable
from client.manifest import Ref
from client.placement import Layout, Layouts, Node
from client.transport import Response
from storenode.filesystem import FileSystem

__all__ = ["Clock", "FakeReader", "FakeTransport", "Peers", "UnsyncedFileSystem", "read_each", "three_nodes"]

PARTITIONS = 16


@dataclass(slots=True)
class Clock:
    """Seconds that pass when a test says so."""

    now_s: float = 1000.0

    def __call__(self) -> float:
        return self.now_s

    def wait(self, seconds: float) -> None:
        self.now_s += seconds


@dataclass(slots=True)
class Peers:
    """What the other nodes hold, by partition and id, whether they answer, and when they were asked."""

    clock: Clock
    payloads: dict[tuple[int, bytes], bytes] = field(default_factory=dict)
    reachable: bool = True
    read_at_s: list[float] = field(default_factory=list)

    def add(self, ref: Ref, payload: Buffer) -> Ref:
        self.payloads[ref.partition, ref.id] = bytes(payload)
        return ref

    def payload(self, partition: int, chunk_id: bytes) -> bytes:
        self.read_at_s.append(self.clock())
        if not self.reachable:
            raise EndpointUnreachable("no answer", node_id="peer")
        if (partition, chunk_id) not in self.payloads:
            raise ChunkNotFound("no copy", node_id="peer")
        return self.payloads[partition, chunk_id]


class UnsyncedFileSystem(FileSystem):
    """The real one without its fsyncs: hundreds at each opening of a chunk store, and other tests look after durability."""

    def sync(self, fd: int) -> None:
        pass

    def sync_data(self, fd: int) -> None:
        pass


def read_each(
    read: Callable[..., bytes | bytearray], wanted: Sequence[tuple[Ref, int]], **options: Any
) -> list[memoryview | AllReplicasFailed]:
    """What `client.replica.ReplicaReader.read_small` gives, by reading each chunk with `read`."""
    found: list[memoryview | AllReplicasFailed] = []
    for ref, replicas in wanted:
        try:
            found.append(memoryview(read(ref, replicas=replicas, **options)))
        except AllReplicasFailed as error:
            found.append(error)
    return found


class FakeReader:
    """Stands for `client.replica.ReplicaReader`."""

    def __init__(self, peers: Peers) -> None:
        self._peers = peers

    def read(
        self, ref: Ref, *, replicas: int, start: int = 0, end: int | None = None, exclude: Collection[str] = ()
    ) -> bytearray:
        try:
            return bytearray(self._peers.payload(ref.partition, ref.id)[start:end])
        except (EndpointUnreachable, ChunkNotFound) as exc:
            raise AllReplicasFailed(f"chunk {ref}: {exc.message}", key=str(ref)) from exc

    def read_small(
        self, wanted: Sequence[tuple[Ref, int]], *, exclude: Collection[str] = ()
    ) -> list[memoryview | AllReplicasFailed]:
        return read_each(self.read, wanted, exclude=exclude)

    def read_into(self, ref: Ref, buffer: memoryview, *, replicas: int, start: int = 0, exclude: Collection[str] = ()) -> None:
        buffer[:] = self.read(ref, replicas=replicas, start=start, end=start + len(buffer))


class FakeTransport:
    """Stands for `client.transport.Transport`; it only gets whole chunks."""

    def __init__(self, peers: Peers) -> None:
        self._peers = peers

    def request(self, method: str, url: str, path: str, *, node_id: str = "", **options: object) -> Response:
        assert method == "GET", method
        _, _, _, partition, chunk_hex = path.split("/")
        body = self._peers.payload(int(partition), bytes.fromhex(chunk_hex))
        return Response(status=200, headers={}, body=body, size=len(body))


def three_nodes(*, version: int = 1, down: Collection[str] = (), clock: Clock) -> Cluster:
    """A cluster of nodes a, b and c, of which those in `down` hold no lease."""
    nodes = tuple(Node(id=name) for name in "abc")
    layout = Layout(version=version, partitions=PARTITIONS, nodes=nodes)
    endpoints = {name: (f"http://{name}:1",) for name in "abc" if name not in down}
    view = ClusterView(cluster_id="c1", layouts=Layouts(current=layout), endpoints=endpoints)
    return Cluster(lambda: view, ttl_s=3600.0, suspect_s=5.0, clock=clock)
