"""Objects by plain HTTP: the routes that move bytes. For curl and its like; the client itself talks to chunks and records.

A PUT runs the client's upload inside the node, a GET its verified read, so what replicated write and verified read are is said
once, in `client`. Both block and run in the gateway's threads, one short call after another: a slow connection holds memory
and a place among the transfers, but no thread.

Nothing has a name before the whole body was received, stored and committed. No byte is sent before it was checked. If a
chunk can't be read after the reply has begun, the connection is closed, so that the client misses bytes and knows it.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Annotated

from fastapi import APIRouter, Query, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from client.catalog import Consistency
from client.errors import BodyTooLarge, InvalidRange, PreconditionFailed, StoreError, TruncatedBody
from client.reader import ContentReader
from client.record import Ack, Condition, ObjectInfo
from client.wire import VERSION_HEADER, encode_json, parse_range
from storenode.bodies import BodyReceiver, BodySender, ResponseAborted
from storenode.budget import Budget
from storenode.node import Node
from storenode.problems import problem_response
from storenode.requests import (
    NodeOf,
    ObjectName,
    TransfersOf,
    announced_bytes,
    check_headers,
    condition_of,
    etag_matches,
    if_match_of,
    metadata_headers,
    metadata_of,
    write_id_of,
)
from storenode.schemas import BYTES, json_of, problems

__all__ = ["router"]

_DEFAULT_TYPE = "application/octet-stream"
_PATH = "/v1/objects/{bucket}/{key:path}"

Version = Annotated[int | None, Query(ge=0, le=2**63 - 1, description="An older version, by its number")]
InSnapshot = Annotated[str | None, Query(description="As this snapshot of the bucket shows it")]
Level = Annotated[Consistency, Query(description="How fresh the answer has to be")]
Seen = Annotated[int, Query(ge=0, le=2**63 - 1, description="For session: the highest version that the client knows of")]

router = APIRouter(tags=["objects"])


@router.put(
    _PATH,
    operation_id="putObject",
    status_code=201,
    response_class=Response,
    responses={
        201: json_of("ObjectInfo", description="It is durable and has its name"),
        **problems(400, 404, 409, 412, 413, 503, 504, 507),
    },
    openapi_extra={"requestBody": {"content": BYTES, "required": True}},
)
async def put_object(
    request: Request,
    node: NodeOf,
    transfers: TransfersOf,
    name: ObjectName,
    ack: Annotated[Ack | None, Query(description="Durable copies to wait for; by default what the bucket says")] = None,
) -> Response:
    """Store the body as an object, replicated and durable, then give it its name."""
    announced, limit = announced_bytes(request.headers), node.config.max_object_bytes
    if announced is not None and announced > limit:
        raise BodyTooLarge(f"an object of {announced} bytes; this node takes {limit}", key="/".join(name))
    with transfers.take():
        info = await _upload(request, node, name, ack=ack, announced=announced)
    return Response(encode_json(info.to_json()), status_code=201, headers=_identity(info), media_type="application/json")


async def _upload(request: Request, node: Node, name: tuple[str, str], *, ack: Ack | None, announced: int | None) -> ObjectInfo:
    headers, pool = request.headers, node.pools.gateway
    condition, metadata = condition_of(headers), metadata_of(headers)
    content_type = headers.get("content-type", _DEFAULT_TYPE)
    check_headers(metadata, content_type=content_type)
    upload = await pool.run_to_end(
        node.objects.upload,
        *name,
        ack=ack,
        metadata=metadata,
        content_type=content_type,
        write_id=write_id_of(headers),
    )
    body, limit = BodyReceiver(request.receive, stall_timeout_s=node.config.stall_timeout_s), node.config.max_object_bytes
    with upload:
        while (piece := await body.large_piece()) is not None:
            if body.received_bytes > limit:
                raise BodyTooLarge(f"the body is longer than {limit} bytes, the most for an object here", key="/".join(name))
            await pool.run_to_end(upload.write, piece)
        if announced is not None and body.received_bytes != announced:
            raise TruncatedBody(
                f"{announced} bytes were announced, {body.received_bytes} came; nothing was named", key="/".join(name)
            )
        return await pool.run_to_end(upload.commit, condition=condition)


@router.get(
    _PATH,
    operation_id="getObject",
    response_class=Response,
    responses={
        200: {"description": "The object's bytes", "content": BYTES},
        206: {"description": "The range that was asked for", "content": BYTES},
        304: {"description": "The client has this version already"},
        **problems(400, 404, 412, 416, 503),
    },
)
async def get_object(
    request: Request,
    node: NodeOf,
    transfers: TransfersOf,
    name: ObjectName,
    version: Version = None,
    snapshot: InSnapshot = None,
    consistency: Level = "strong",
    seen: Seen = 0,
) -> Response:
    """The bytes of an object or of a range of it, verified."""
    return await _read(request, node, transfers, name, version=version, snapshot=snapshot, consistency=consistency, seen=seen)


@router.head(
    _PATH,
    operation_id="headObject",
    response_class=Response,
    responses={
        200: {"description": "The headers that GET would send"},
        206: {"description": "The headers that GET would send"},
        304: {"description": "The client has this version already"},
        **problems(400, 404, 412, 416, 503),
    },
)
async def head_object(
    request: Request,
    node: NodeOf,
    transfers: TransfersOf,
    name: ObjectName,
    version: Version = None,
    snapshot: InSnapshot = None,
    consistency: Level = "strong",
    seen: Seen = 0,
) -> Response:
    """What GET would say, without the bytes."""
    return await _read(request, node, transfers, name, version=version, snapshot=snapshot, consistency=consistency, seen=seen)


async def _read(
    request: Request,
    node: Node,
    transfers: Budget,
    name: tuple[str, str],
    *,
    version: int | None,
    snapshot: str | None,
    consistency: Consistency,
    seen: int,
) -> Response:
    headers = request.headers
    info = await node.pools.meta.run(
        node.catalog.lookup, *name, version=version, snapshot=snapshot, consistency=consistency, seen=seen
    )
    asked = Condition(if_match=if_match_of(headers))
    if not asked.holds(info.etag):
        raise PreconditionFailed(f"{'/'.join(name)}: If-Match asks for {asked.if_match}, found {info.etag}", key="/".join(name))
    if (known := headers.get("if-none-match")) is not None and etag_matches(known, info.etag):
        return Response(status_code=304, headers=_identity(info))
    ranged = headers.get("range")
    if (unchanged := headers.get("if-range")) is not None and unchanged.strip('"') != info.etag:
        ranged = None  # Of another version than the client has begun with, it wants the whole (RFC 9110, 13.1.5).
    try:
        bounds = parse_range(ranged, size_bytes=info.size)
    except InvalidRange as error:
        return problem_response(error, node_id=node.node_id, headers={"content-range": f"bytes */{info.size}"})
    start, end = bounds or (0, info.size)
    sent = {
        **_identity(info),
        **metadata_headers(info.metadata),
        "accept-ranges": "bytes",
        "content-length": str(end - start),
        "content-type": info.record.content_type,
        # A stored page must not become one of this origin because a browser guesses.
        "x-content-type-options": "nosniff",
    }
    if bounds is not None:
        sent["content-range"] = f"bytes {start}-{end - 1}/{info.size}"
    status = 200 if bounds is None else 206
    if request.method == "HEAD":
        return Response(status_code=status, headers=sent)
    return _VerifiedBody(node, transfers, info, start=start, end=end, status=status, headers=sent)


@router.delete(
    _PATH,
    operation_id="deleteObject",
    status_code=204,
    response_class=Response,
    responses={204: {"description": "The object is gone"}, **problems(400, 404, 409, 412, 503)},
)
async def delete_object(request: Request, node: NodeOf, name: ObjectName) -> Response:
    """Remove an object; in a bucket that keeps versions, add a tombstone."""
    condition, write_id = condition_of(request.headers), write_id_of(request.headers)
    version = await node.pools.meta.run(node.catalog.delete, *name, write_id=write_id, condition=condition)
    return Response(status_code=204, headers={VERSION_HEADER: str(version)})


def _identity(info: ObjectInfo) -> dict[str, str]:
    return {"etag": f'"{info.etag}"', VERSION_HEADER: str(info.version)}


class _VerifiedBody(Response):
    """A response whose body is read, verified, while it is sent."""

    def __init__(
        self,
        node: Node,
        transfers: Budget,
        info: ObjectInfo,
        *,
        start: int,
        end: int,
        status: int,
        headers: dict[str, str],
    ) -> None:
        super().__init__(status_code=status, headers=headers)
        self._node = node
        self._transfers = transfers
        self._info = info
        self._start = start
        self._end = end

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        pool = self._node.pools.gateway
        with self._transfers.take():
            reader: ContentReader = self._node.objects.reader(self._info)
            pieces = reader.stream(self._start, self._end)
            try:
                # The first bytes before the head: while nothing was sent, an error is still an answer.
                first = await pool.run_to_end(_next, pieces)
                await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
                await self._send_rest(first, pieces, send)
            finally:
                # Waits for what is being read ahead, so that the place is given back after the memory.
                await pool.run_to_end(pieces.close)

    async def _send_rest(self, piece: bytearray | None, pieces: Generator[bytearray, None, None], send: Send) -> None:
        pool, sender = self._node.pools.gateway, BodySender(send, stall_timeout_s=self._node.config.stall_timeout_s)
        try:
            while piece is not None:
                await sender.piece(piece)
                piece = await pool.run_to_end(_next, pieces)
        except StoreError as error:
            raise ResponseAborted(f"{self._info.bucket}/{self._info.key}: {error.title}: {error.message}") from error
        await sender.end()


def _next(pieces: Generator[bytearray, None, None]) -> bytearray | None:
    return next(pieces, None)
