"""The node about itself and its cluster: health, metrics, the layout, which copies it has, and long work.

What a node says of its copies is a hint (``have``) or was just re-hashed (``verify``), never remembered.
"""

from __future__ import annotations

import logging
import re
from dataclasses import asdict
from typing import Annotated, Any

from fastapi import APIRouter, Path, Request
from starlette.responses import Response

from client.errors import AllReplicasFailed, ChunkCorrupt, ChunkNotFound, InvalidRequest, MetadataUnavailable, StoreError
from client.wire import PROTOCOL, encode_json
from storenode.chunkstore import ChunkStore
from storenode.diskspace import DiskUsage
from storenode.metrics import CONTENT_TYPE, Metrics
from storenode.node import Node
from storenode.outgoing import set_aside
from storenode.requests import NodeOf, epoch_of, json_body
from storenode.schemas import json_body_of, json_of, problems

__all__ = ["MAX_REFS_PER_CALL", "router"]

log = logging.getLogger(__name__)

MAX_REFS_PER_CALL = 1024
# A reference takes some 90 bytes as JSON; the rest is room for blanks.
_MAX_REFS_BYTES = 256 * MAX_REFS_PER_CALL
# Small copies are re-hashed many to a call, for it is the way to a thread that costs; a call ends when so much was read.
_REHASHED_BYTES = 1024 * 1024
_ID = re.compile(r"[0-9a-f]{64}")

ChunkName = tuple[int, bytes]

router = APIRouter(tags=["node"])


@router.get(
    "/healthz",
    operation_id="health",
    response_class=Response,
    responses={200: json_of({"type": "object"}, description="The process answers")},
)
async def health(node: NodeOf) -> Response:
    """Whether the process runs, whatever the state of disk and metadata."""
    return _json({"status": "ok", "node_id": node.node_id})


@router.get(
    "/readyz",
    operation_id="ready",
    response_class=Response,
    responses={200: json_of({"type": "object"}, description="It takes part in the cluster"), **problems(503)},
)
async def ready(node: NodeOf) -> Response:
    """Whether this node can serve: the metadata answers, its lease stands, its disk can be read."""
    await node.pools.meta.run(node.meta.revision)
    view = await node.pools.meta.run(node.cluster.refresh)
    if node.node_id not in view.endpoints:
        raise MetadataUnavailable(f"node {node.node_id} holds no lease (yet), so others take it for down")
    usage = await node.pools.disk.run(node.store.usage)
    return _json({"status": "ready", "node_id": node.node_id, "read_only": usage.read_only})


@router.get(
    "/metrics",
    operation_id="metrics",
    response_class=Response,
    responses={200: {"description": "Prometheus' text format", "content": {"text/plain": {"schema": {"type": "string"}}}}},
)
async def metrics(request: Request, node: NodeOf) -> Response:
    """Counters of this node."""
    counters: Metrics = request.app.state.metrics
    usage: DiskUsage | None = None
    try:
        usage = await node.pools.disk.run(node.store.usage)
    except StoreError as error:
        # A node whose disk fails is the one whose counters are wanted.
        counters.chunk_failed(error.code)
    return Response(counters.render(usage), headers={"content-type": CONTENT_TYPE})


@router.get(
    "/v1/cluster",
    operation_id="cluster",
    response_class=Response,
    responses={200: json_of({"type": "object"}, description="Layout, endpoints and limits"), **problems(503)},
)
async def cluster(node: NodeOf) -> Response:
    """The cluster as this node sees it: what a client needs to find its way."""
    view = await node.pools.meta.run(node.cluster.view)
    config = node.config
    limits = {
        "max_chunk_bytes": config.max_chunk_bytes,
        "max_object_bytes": config.max_object_bytes,
        "max_record_bytes": config.max_record_bytes,
    }
    return _json({**view.to_json(), "protocol": PROTOCOL, "node_id": node.node_id, "limits": limits})


@router.get(
    "/v1/layout",
    operation_id="layout",
    response_class=Response,
    responses={200: json_of({"type": "object"}, description="All layouts that are not retired, newest first"), **problems(503)},
)
async def layout(node: NodeOf) -> Response:
    """Which nodes hold data, and how the key space is cut."""
    view = await node.pools.meta.run(node.cluster.view)
    return _json({"layouts": view.layouts.to_json(), "epoch": view.epoch})


@router.post(
    "/v1/chunks:have",
    operation_id="haveChunks",
    response_class=Response,
    responses={
        200: json_of(
            {"type": "object", "properties": {"have": {"type": "array", "items": {"type": "boolean"}}}},
            description="For each chunk, whether a file of its name is here",
        ),
        **problems(400, 413, 503),
    },
    openapi_extra=json_body_of("ChunkNames"),
)
async def have_chunks(request: Request, node: NodeOf) -> Response:
    """Which chunks seem to be here: a hint, for nothing is read."""
    names = await _names_in(request)
    return _json({"have": await node.pools.disk.run(_have, node.store, names)})


@router.post(
    "/v1/chunks:touch",
    operation_id="touchChunks",
    response_class=Response,
    responses={
        200: json_of(
            {"type": "object", "properties": {"status": {"type": "array", "items": {"enum": ["durable", "missing"]}}}},
            description="For each chunk, whether a copy is here, tagged and durable",
        ),
        **problems(400, 413, 503),
    },
    openapi_extra=json_body_of("ChunkTouches"),
)
async def touch_chunks(request: Request, node: NodeOf) -> Response:
    """Re-hash copies, tag them and make them durable, for who would send them otherwise."""
    epoch = epoch_of(request.headers)
    value = await json_body(request, max_bytes=_MAX_REFS_BYTES)
    names = _chunk_names(value, num_partitions=request.app.state.num_partitions)
    rehash, fetch = _switch(value, "rehash", default=True), _switch(value, "fetch", default=False)
    touched = []
    for name in names:
        durable = await node.pools.disk.run(node.store.touch, *name, epoch=epoch, rehash=rehash)
        if fetch and not durable and await node.pools.gateway.run(_fetched, node, *name):
            durable = await node.pools.disk.run(node.store.touch, *name, epoch=epoch, rehash=False)
        touched.append(durable)
    # Of names that were only seen nobody knows whether they are durable.
    await node.pools.disk.run(node.store.make_durable, [chunk_id for _, chunk_id in names])
    return _json({"status": ["durable" if durable else "missing" for durable in touched]})


@router.post(
    "/v1/chunks:verify",
    operation_id="verifyChunks",
    response_class=Response,
    responses={
        200: json_of(
            {
                "type": "object",
                "properties": {"status": {"type": "array", "items": {"enum": ["ok", "missing", "corrupt"]}}},
            },
            description="For each chunk, what re-hashing it found",
        ),
        **problems(400, 413, 503),
    },
    openapi_extra=json_body_of("ChunkNames"),
)
async def verify_chunks(request: Request, node: NodeOf) -> Response:
    """Re-hash copies where they lie. Corrupt ones are set aside and replaced."""
    names = await _names_in(request)
    statuses: list[str] = []
    # One after the other: other requests want the disk too.
    while len(statuses) < len(names):
        statuses += await node.pools.disk.run(_rehash_some, node.store, names[len(statuses) :])
        if statuses[-1] == "corrupt":
            await set_aside(node, *names[len(statuses) - 1])
    return _json({"status": statuses})


@router.get(
    "/v1/admin/status",
    operation_id="nodeStatus",
    response_class=Response,
    responses={200: json_of("NodeStatus", description="This node's disk, and how far it follows"), **problems(503)},
)
async def status(node: NodeOf) -> Response:
    """The state of this node: its disk, about what lies on it, and up to which revision it holds all that it should."""
    usage = await node.pools.disk.run(node.store.usage)
    disk = {
        "total_bytes": usage.total_bytes,
        "free_bytes": usage.free_bytes,
        "reserve_bytes": usage.reserve_bytes,
        "read_only": usage.read_only,
    }
    census = await node.pools.disk.run(node.store.census)
    chunks = {"num_chunks": census.num_chunks, "size_bytes": census.size_bytes}
    progress = asdict(node.follower.progress)
    follower = {"revision": node.follower.complete_to, "pending": node.follower.num_pending, **progress}
    lineage = node.lineage.lineage
    metadata = {
        "incarnation": lineage.incarnation,
        "went_back": node.lineage.metadata_went_back,
        "frozen": lineage.frozen.error().message if lineage.frozen is not None else None,
    }
    return _json({"node_id": node.node_id, "disk": disk, "chunks": chunks, "follower": follower, "metadata": metadata})


@router.post(
    "/v1/admin/scrub",
    operation_id="startScrub",
    status_code=202,
    response_class=Response,
    responses={202: json_of("Job", description="The scrub of this node that runs now"), **problems(503)},
)
async def start_scrub(node: NodeOf) -> Response:
    """Re-hash every copy on this node's disk, in the background."""
    return _json((await node.pools.meta.run(node.jobs.start, "scrub")).to_json(), status=202)


@router.get(
    "/v1/admin/jobs",
    operation_id="listJobs",
    response_class=Response,
    responses={
        200: json_of(
            {
                "type": "object",
                "properties": {"jobs": {"type": "array", "items": {"$ref": "#/components/schemas/Job"}}},
            },
            description="The jobs of all nodes, oldest first",
        ),
        **problems(503),
    },
)
async def list_jobs(node: NodeOf) -> Response:
    """Long work in the cluster."""
    return _json({"jobs": [job.to_json() for job in await node.pools.meta.run(node.jobs.ls)]})


@router.delete(
    "/v1/admin/jobs/{job_id}",
    operation_id="cancelJob",
    status_code=202,
    response_class=Response,
    responses={202: json_of("Job", description="Its end was asked for"), **problems(400, 404, 409, 503)},
)
async def cancel_job(node: NodeOf, job_id: Annotated[str, Path(pattern="^[A-Za-z0-9-]{1,64}$")]) -> Response:
    """Ask for the end of a job, wherever it runs."""
    return _json((await node.pools.meta.run(node.jobs.cancel, job_id)).to_json(), status=202)


async def _names_in(request: Request) -> list[ChunkName]:
    value = await json_body(request, max_bytes=_MAX_REFS_BYTES)
    return _chunk_names(value, num_partitions=request.app.state.num_partitions)


def _chunk_names(value: Any, *, num_partitions: int) -> list[ChunkName]:
    items = value.get("chunks") if isinstance(value, dict) else None
    if not isinstance(items, list) or len(items) > MAX_REFS_PER_CALL:
        raise InvalidRequest(f'expected {{"chunks": [[PARTITION, "ID"], ...]}} with up to {MAX_REFS_PER_CALL} chunks')
    return [_chunk_name(item, num_partitions=num_partitions) for item in items]


def _switch(value: dict[str, Any], name: str, *, default: bool) -> bool:
    found = value.get(name, default)
    if not isinstance(found, bool):
        raise InvalidRequest(f"{name}: expected true or false, found {found!r:.100}")
    return found


def _chunk_name(item: Any, *, num_partitions: int) -> ChunkName:
    match item:
        case [int(partition), str(chunk_hex)] if not isinstance(partition, bool) and _ID.fullmatch(chunk_hex):
            if 0 <= partition < num_partitions:
                return partition, bytes.fromhex(chunk_hex)
    raise InvalidRequest(
        f"chunk {item!r:.100}: expected a partition below {num_partitions} and an id of 64 hex digits in lower case"
    )


def _fetched(node: Node, partition: int, chunk_id: bytes) -> bool:
    try:
        node.follower.fetch(partition, chunk_id)
    except AllReplicasFailed as error:
        log.info("a chunk that was to be touched can't be had: %s", error.message)
        return False
    return True


def _have(store: ChunkStore, names: list[ChunkName]) -> list[bool]:
    return [store.contains(*name) for name in names]


def _rehash_some(store: ChunkStore, names: list[ChunkName]) -> list[str]:
    """What re-hashing finds of the first of `names`: until enough was read, or a copy is corrupt."""
    found, num_read = list[str](), 0
    for name in names:
        try:
            num_read += store.verify(*name)
            found.append("ok")
        except ChunkNotFound:
            found.append("missing")
        except ChunkCorrupt:
            return [*found, "corrupt"]
        if num_read >= _REHASHED_BYTES:
            break
    return found


def _json(value: Any, *, status: int = 200) -> Response:
    return Response(encode_json(value), status_code=status, media_type="application/json")
