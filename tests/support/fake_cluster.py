"""A cluster in memory, below the transport: the client's real code runs down to its requests, and dictionaries answer them.

Each node can be given faults, by name. So what a test sees is what verification, failover, acknowledgements and retries make
of them, not what a stand-in for these would do. Names are kept by a `FakeCatalog`, to which the routes here add the memory of
write ids that a node has.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from typing_extensions import Buffer

from client.addresses import Addresses
from client.catalog import Commit
from client.checksum import blake3_id
from client.chunks import ChunkClient
from client.cluster import Anchor, Cluster, ClusterView
from client.config import ClientConfig
from client.errors import (
    Busy,
    Conflict,
    EndpointUnreachable,
    InvalidRequest,
    MetadataUnavailable,
    StoreError,
    TruncatedBody,
    to_problem,
)
from client.frames import OBJECTS_MAGIC, decode_chunks, decode_refs
from client.http_catalog import HttpCatalog
from client.manifest import Ref
from client.objects import ObjectStore
from client.placement import Layout, Layouts, Node
from client.record import BucketPolicy, Condition, ObjectRecord
from client.transport import Into, Response, Sending, Transport
from client.wire import EPOCH_HEADER, VERSION_HEADER, WRITE_ID_HEADER, encode_json
from tests.support.fake_node import FakeNode, Fault, chunk_frame, get_chunk, object_frame, put_small, verify
from tests.support.fake_store import FakeCatalog

__all__ = ["Clock", "FakeCluster", "FakeNode", "Fault", "quick_config"]


def quick_config(**settings: Any) -> ClientConfig:
    """A configuration whose pauses are short; a test in which something can't succeed shortens the deadline as well."""
    quick: dict[str, Any] = {"deadline_s": 10.0, "retry_base_s": 0.001, "retry_max_s": 0.002, "max_threads": 4}
    return ClientConfig(**{**quick, **settings})


@dataclass(slots=True)
class Clock:
    """Seconds that pass when a test says so, or when something sleeps."""

    now_s: float = 1000.0
    slept_s: list[float] = field(default_factory=list)

    def __call__(self) -> float:
        return self.now_s

    def sleep(self, seconds: float) -> None:
        self.slept_s.append(seconds)
        self.now_s += seconds


class FakeCluster:
    """Nodes with a layout, and the parts of a client that talk to them.

    Parameters
    ----------
    num_nodes : int
        Named node-0, node-1 and so on, each in a zone of its own.
    """

    def __init__(self, num_nodes: int = 3, *, partitions: int = 64, suspect_s: float = 5.0) -> None:
        self.clock = Clock()
        self.nodes = {f"node-{number}": FakeNode(id=f"node-{number}") for number in range(num_nodes)}
        members = tuple(Node(id=name, zone=f"zone-{name}") for name in self.nodes)
        self.layout = Layout(version=1, partitions=partitions, nodes=members)
        self.older: tuple[Layout, ...] = ()
        self.epoch = 0
        self.tags: dict[tuple[str, int, bytes], int] = {}  # of (node, partition, chunk)
        self.catalog = FakeCatalog()
        self.answers: dict[str, bytes] = {}
        self.sockets: dict[str, str] = {}
        self.conflicts: dict[str, bool] = {}  # Write ids that lose their races once.
        self.batches: list[list[str]] = []  # The write ids of each request with many records.
        self.num_views = 0
        self.transport = _FakeTransport(self)
        self.cluster = Cluster(self._load_view, ttl_s=3600.0, suspect_s=suspect_s, clock=self.clock)
        self.chunks = ChunkClient(self.cluster, self.transport)

    def view(self) -> ClusterView:
        """Layout and endpoints; a node that is down has lost its lease only if it is not in ``nodes``."""
        endpoints = {name: (node.url,) for name, node in self.nodes.items()}
        layouts = Layouts(current=self.layout, older=self.older)
        return ClusterView(cluster_id="fake", layouts=layouts, epoch=self.epoch, endpoints=endpoints, sockets=self.sockets)

    def tag(self, node: FakeNode, chunks: Iterable[tuple[int, bytes]], request: _Request) -> None:
        """Keep the epoch that a request names with its chunks."""
        epoch = int(request.headers[EPOCH_HEADER])
        self.tags.update({(node.id, *chunk): epoch for chunk in chunks})

    def store(self, **settings: Any) -> ObjectStore:
        """An `ObjectStore` that asks the catalog directly, as the one in a node does. The caller closes it."""
        return ObjectStore(self.catalog, self.cluster, self.chunks, quick_config(**settings))

    def http_catalog(self, **settings: Any) -> HttpCatalog:
        """A catalog that asks the nodes, configured with all of them."""
        endpoint = ",".join(node.url for node in self.nodes.values())
        return HttpCatalog(
            self.transport,
            quick_config(endpoint=endpoint, **settings),
            origin="the test",
            addresses=Addresses(timeout_s=1.0),
        )

    def fail(self, *node_ids: str, fault: Fault) -> None:
        """Give nodes a fault."""
        for node_id in node_ids:
            self.nodes[node_id].faults.add(fault)

    def heal(self) -> None:
        """Take all faults away."""
        for node in self.nodes.values():
            node.faults.clear()

    def holders(self, ref: Ref) -> set[str]:
        """Nodes whose copy has the right bytes."""
        key = (ref.partition, ref.id)
        return {name for name, node in self.nodes.items() if key in node.chunks and blake3_id(node.chunks[key]) == ref.id}

    def _load_view(self) -> ClusterView:
        self.num_views += 1
        return self.view()


class _FakeSending(Sending):
    """Gathers the parts of a body and makes one request of them."""

    def __init__(self, transport: _FakeTransport, *args: Any, **options: Any) -> None:
        self._request = partial(transport.request, *args, **options)
        self._body = b""

    def send(self, part: memoryview) -> None:
        self._body += part

    def finish(self, **_: object) -> Response:
        return self._request(body=self._body)

    def __exit__(self, *_: object) -> None:
        pass


class _FakeTransport(Transport):
    """Answers for the nodes."""

    def __init__(self, cluster: FakeCluster) -> None:
        self._cluster = cluster
        self._mutex = threading.Lock()

    def request(
        self,
        method: str,
        url: str,
        path: str,
        *,
        headers: Mapping[str, str] | None = None,
        body: Buffer | None = None,
        into: Into | None = None,
        seen: Callable[[memoryview], object] | None = None,
        node_id: str = "",
        **_: object,
    ) -> Response:
        node = self._cluster.nodes[urlsplit(url).hostname or ""]
        request = _Request(method=method, path=path, headers=dict(headers or {}), body=b"" if body is None else bytes(body))
        node.requests.append(f"{method} {path}")
        node.before(f"{method} {path}")  # It may wait, so nothing is locked yet.
        with self._mutex:
            node.check_reachable()
            if "busy" in node.faults:
                raise Busy(f"{node.id} is busy", node_id=node.id)
            response = self._answer(node, request)
            if "drops replies" in node.faults:
                raise EndpointUnreachable(f"{node.id} broke off", node_id=node.id)
        view = into(response.headers, len(response.body)) if callable(into) else into
        if view is None:
            return response
        if len(response.body) != len(view):
            raise TruncatedBody(f"expected {len(view)} bytes, announced {len(response.body)}", node_id=node.id)
        view[:] = response.body
        if seen is not None:
            seen(view)
        return Response(status=response.status, headers=response.headers, body=b"", size=len(view))

    def begin(self, method: str, url: str, path: str, **options: Any) -> Sending:
        return _FakeSending(self, method, url, path, **options)

    def _answer(self, node: FakeNode, request: _Request) -> Response:
        match request.parts:
            case ["v1", "chunks", partition, chunk_hex]:
                key = int(partition), bytes.fromhex(chunk_hex)
                if request.method == "PUT":
                    return self._put_chunk(node, key, request)
                return get_chunk(node, key, byte_range=request.headers.get("range"))
            case ["v1", "chunks:batchPut"]:
                self._cluster.tag(node, [chunk[:2] for chunk in decode_chunks(request.body)], request)
                return _json({"chunks": [put_small(node, *chunk) for chunk in decode_chunks(request.body)]})
            case ["v1", "chunks:batchGet"]:
                body = OBJECTS_MAGIC + b"".join(chunk_frame(node, ref) for ref in decode_refs(request.body))
                return Response(status=200, headers={}, body=body, size=len(body))
            case ["v1", "chunks:touch"]:
                names = [(partition, bytes.fromhex(name)) for partition, name in request.json["chunks"]]
                if request.json.get("fetch"):
                    for other in self._cluster.nodes.values():
                        node.chunks.update({key: other.chunks[key] for key in names if key in other.chunks})
                self._cluster.tag(node, names, request)
                found = [verify(node, partition, name) for partition, name in request.json["chunks"]]
                return _json({"status": ["durable" if status == "ok" else "missing" for status in found]})
            case ["v1", "chunks:verify"]:
                return _json({"status": [verify(node, partition, name) for partition, name in request.json["chunks"]]})
        if "no metadata" in node.faults:
            raise MetadataUnavailable("the metadata engine does not answer", node_id=node.id)
        return self._answer_name(node, request)

    def _put_chunk(self, node: FakeNode, key: tuple[int, bytes], request: _Request) -> Response:
        durable: list[str] = []
        failed: dict[str, StoreError] = {}
        for name in (node.id, *request.query("tee").split(",")):
            if name:
                try:
                    self._cluster.nodes[name].store(key, request.body)
                    self._cluster.tag(self._cluster.nodes[name], [key], request)
                    durable.append(name)
                except StoreError as error:
                    failed[name] = error
        if not durable:
            raise failed[node.id]
        return _json({"durable": durable, "failed": {name: error.message for name, error in failed.items()}})

    def _answer_name(self, node: FakeNode, request: _Request) -> Response:
        catalog = self._cluster.catalog
        match request.parts:
            case ["v1", "objects:batchGet"]:
                parts = [object_frame(node, self._cluster.catalog, *item) for item in request.json["items"]]
                body = OBJECTS_MAGIC + b"".join(parts)
                return Response(status=200, headers={}, body=body, size=len(body))
            case ["v1", "cluster"]:
                return _json(self._cluster.view().to_json())
            case ["v1", "buckets"]:
                return _json({name: policy.to_json() for name, policy in catalog.buckets().items()})
            case ["v1", "buckets", bucket]:
                return self._answer_bucket(request, bucket)
            case ["v1", "records", bucket, key] if request.method == "PUT":
                return self._commit(bucket, key, request.json, condition=request.condition)
            case ["v1", "records:batchGet"]:
                return _each(lambda item: _json(catalog.lookup(**item).to_json()), request.json)
            case ["v1", "records:batchPut"]:
                self._cluster.batches.append([item["record"]["write_id"] for item in request.json])
                return _each(self._commit_item, request.json)
            case ["v1", "records", bucket, key]:
                version = request.query("version")
                return _json(catalog.lookup(bucket, key, version=int(version) if version else None).to_json())
            case ["v1", "objects", bucket, key] if request.method == "DELETE":
                write_id = request.headers[WRITE_ID_HEADER]
                delete = partial(catalog.delete, bucket, key, write_id=write_id, condition=request.condition)
                answer = self._once(write_id, delete)
                return replace(answer, headers={VERSION_HEADER: answer.body.decode()})
            case ["v1", "objects", bucket]:
                page = catalog.list(
                    bucket,
                    prefix=request.query("prefix"),
                    delimiter=request.query("delimiter"),
                    cursor=request.query("cursor") or None,
                    limit=int(request.query("limit")),
                    versions=bool(request.query("versions")),
                )
                return _json(page.to_json())
        raise InvalidRequest(f"no such route: {request.method} {request.path}")

    def _answer_bucket(self, request: _Request, bucket: str) -> Response:
        catalog = self._cluster.catalog
        if request.method == "GET":
            return _json(catalog.bucket(bucket).to_json())
        if request.method == "DELETE":
            catalog.delete_bucket(bucket)
        elif request.headers.get("if-match") == "*":
            catalog.set_bucket(bucket, BucketPolicy.from_json(request.json))
        else:
            catalog.create_bucket(bucket, BucketPolicy.from_json(request.json))
        return Response(status=204, headers={}, body=b"", size=0)

    def _commit(self, bucket: str, key: str, value: Any, *, condition: Condition) -> Response:
        record = ObjectRecord.from_json(value["record"])
        proof = Anchor.from_json(value["anchor"]) if "anchor" in value else None
        if self._cluster.conflicts.pop(record.write_id, None):
            raise Conflict(f"{bucket}/{key} lost its races")
        write = Commit(bucket=bucket, key=key, record=record, condition=condition, proof=proof)
        return self._once(record.write_id, lambda: self._cluster.catalog.commit(write).to_json())

    def _commit_item(self, item: dict[str, Any]) -> Response:
        condition = Condition(if_match=item.get("if_match"), if_none_match=item.get("if_none_match"))
        return self._commit(item["bucket"], item["key"], item, condition=condition)

    def _once(self, write_id: str, write: Callable[[], Any]) -> Response:
        """A write with the memory that a node has of it: a repeat gets the first answer."""
        answers = self._cluster.answers
        if write_id not in answers:
            answers[write_id] = encode_json(write())
        return _json(json.loads(answers[write_id]))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Request:
    method: str
    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def parts(self) -> Sequence[str]:
        """The path's parts, decoded; a key is one of them."""
        return [unquote(part) for part in urlsplit(self.path).path.strip("/").split("/", 3)]

    def query(self, name: str) -> str:
        return parse_qs(urlsplit(self.path).query).get(name, [""])[0]

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def condition(self) -> Condition:
        tags = {name: self.headers.get(name) for name in ("if-match", "if-none-match")}
        for name, tag in tags.items():
            assert tag is None or tag == "*" or tag == f'"{tag.strip(chr(34))}"', f"{name} is not quoted: {tag}"
        given = {name.replace("-", "_"): tag.strip('"') for name, tag in tags.items() if tag}
        return Condition(**given)


def _each(answer: Callable[[Any], Response], items: list[Any]) -> Response:
    """What a node answers for many records."""
    answers = []
    for item in items:
        try:
            answers.append({"info": json.loads(answer(item).body)})
        except StoreError as error:
            answers.append({"problem": to_problem(error)})
    return _json(answers)


def _json(value: Any) -> Response:
    body = encode_json(value)
    return Response(status=200, headers={}, body=body, size=len(body))
