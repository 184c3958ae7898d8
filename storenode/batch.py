"""Many objects in one request: ``POST /v1/objects:batchGet``.

The request is JSON, ``{"items": [[bucket, key], [bucket, key, version], ...]}``; `client.frames` says what comes back. An
object that is one small chunk, of which this node has a copy, is answered with the chunk; any other with its info, by which
the client reads it. So nothing here waits for another node, nothing is hashed, and no answer is larger than small chunks can
be. An object that can't be had costs its own frame and no other.

Objects are looked up and read a slice at a time, in one call of a thread each, which bounds what lies in memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from client.errors import ChunkCorrupt, InvalidRequest, StoreError, to_problem
from client.frames import INFO, MAX_ITEMS, MAX_SMALL_BYTES, PROBLEM, chunk_head, document_frame
from client.manifest import Ref
from client.record import ObjectInfo
from client.wire import BATCH_GET_PATH
from storenode.framed import FRAMES_TYPE, Frames
from storenode.gate import GrantOf
from storenode.grants import Grant
from storenode.node import Node
from storenode.requests import NodeOf, TransfersOf, json_body
from storenode.schemas import BYTES, json_body_of, problems
from storenode.smallchunks import SmallChunks

__all__ = ["router"]

# A key takes up to 1,024 bytes, and some six times that where its characters are escaped.
_MAX_REQUEST_BYTES = 2 * 1024 * 1024
_SLICE = 128  # At most 8 MiB of small chunks.

Item = tuple[str, str, int | None]

router = APIRouter(tags=["objects"])


@router.post(
    BATCH_GET_PATH,
    operation_id="batchGetObjects",
    response_class=Response,
    responses={
        200: {"description": "A frame for each item; see client/frames.py", "content": {FRAMES_TYPE: BYTES["*/*"]}},
        **problems(400, 413, 503),
    },
    openapi_extra=json_body_of("BatchItems"),
)
async def batch_get(request: Request, node: NodeOf, transfers: TransfersOf, grant: GrantOf) -> Response:
    """Many objects in one response."""
    value = await json_body(request, max_bytes=_MAX_REQUEST_BYTES)
    items = value.get("items") if isinstance(value, dict) else None
    if not isinstance(items, list) or len(items) > MAX_ITEMS:
        raise InvalidRequest(f'expected {{"items": [[bucket, key], ...]}} with up to {MAX_ITEMS} objects')
    named = list(map(_item, items))
    return Frames(
        [named[first : first + _SLICE] for first in range(0, max(1, len(named)), _SLICE)],
        make=partial(_append, node, grant),
        pool=node.pools.gateway,
        room=transfers,
        stall_timeout_s=node.config.stall_timeout_s,
    )


def _append(node: Node, grant: Grant, items: Sequence[Item], frames: bytearray) -> None:
    """The frames of a slice."""
    infos = _look_up(node, items, grant)
    with node.store.small_chunks() as small:
        for info in infos:
            if isinstance(info, StoreError):
                frames += document_frame(PROBLEM, to_problem(info))
                continue
            ref = _only_chunk(info)
            payload = _payload(node, small, ref) if ref is not None else None
            if ref is None or payload is None:
                frames += document_frame(INFO, info.to_json())
            else:
                frames += chunk_head(ref)
                frames += payload


def _payload(node: Node, small: SmallChunks, ref: Ref) -> memoryview | None:
    try:
        return small.read(ref)
    except ChunkCorrupt:
        # The client reads it elsewhere and never learns of this copy, so that it has to be mended from here.
        node.follower.repair(ref.partition, ref.id)
        return None


def _look_up(node: Node, items: Sequence[Item], grant: Grant) -> list[ObjectInfo | StoreError]:
    """What the metadata says of each item; the current versions, which are the rule, all at once."""
    plain = [version is None and grant.allows("read", bucket, key) for bucket, key, version in items]
    current = iter(node.catalog.lookup_many([item[:2] for item, is_plain in zip(items, plain, strict=True) if is_plain]))
    return [next(current) if is_plain else _by_itself(node, item, grant) for item, is_plain in zip(items, plain, strict=True)]


def _by_itself(node: Node, item: Item, grant: Grant) -> ObjectInfo | StoreError:
    bucket, key, version = item
    try:
        grant.require("read", bucket, key)
        return node.catalog.lookup(bucket, key, version=version)
    except StoreError as error:
        return error


def _only_chunk(info: ObjectInfo) -> Ref | None:
    refs = info.record.content.refs
    return refs[0] if len(refs) == 1 and 0 < refs[0].size <= MAX_SMALL_BYTES else None


def _item(value: Any) -> Item:
    # By types, because true is no number here.
    types = list(map(type, value)) if type(value) is list else []
    if types == [str, str]:
        return value[0], value[1], None
    if types == [str, str, int] and value[2] >= 0:
        return value[0], value[1], value[2]
    raise InvalidRequest(f"item {value!r:.100}: expected [bucket, key] or [bucket, key, version], a whole number")
