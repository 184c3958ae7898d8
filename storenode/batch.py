"""Many small ranges in one request: ``POST /v1/objects:batchGet``.

The request is JSON: ``{"items": [{"bucket", "key", "start", "end", "version"}, ...]}``, of which the last three may be missing.
The response is one frame for each item, in their order:

    u32     length of the head, little-endian
    head    JSON: {"status", "size", ...}; with status 200 also "etag" and "version", else "problem"
    bytes   as many as "size" says, verified

An item that can't be had costs its own frame and no other. Each item is read whole before its frame begins, which bounds its
size and is why no frame is ever torn, unless the connection is.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from client.errors import BodyTooLarge, InvalidRange, InvalidRequest, StoreError, to_problem
from client.wire import encode_json
from storenode.bodies import BodySender
from storenode.budget import Budget
from storenode.node import Node
from storenode.requests import NodeOf, TransfersOf, json_body
from storenode.schemas import BYTES, json_body_of, problems

__all__ = ["FRAMES_TYPE", "MAX_ITEMS", "router"]

FRAMES_TYPE = "application/vnd.forebay.frames"
MAX_ITEMS = 1024
# A key takes up to 1,024 bytes, and some six times that where its characters are escaped.
_MAX_REQUEST_BYTES = 2 * 1024 * 1024
_LENGTH = struct.Struct("<I")

router = APIRouter(tags=["objects"])


@dataclass(frozen=True, slots=True, kw_only=True)
class _Item:
    bucket: str
    key: str
    start: int = 0
    end: int | None = None
    version: int | None = None


@router.post(
    "/v1/objects:batchGet",
    operation_id="batchGetObjects",
    response_class=Response,
    responses={
        200: {"description": "A frame for each item; see storenode/batch.py", "content": {FRAMES_TYPE: BYTES["*/*"]}},
        **problems(400, 413, 503),
    },
    openapi_extra=json_body_of("BatchItems"),
)
async def batch_get(request: Request, node: NodeOf, transfers: TransfersOf) -> Response:
    """Many ranges of objects in one response."""
    value = await json_body(request, max_bytes=_MAX_REQUEST_BYTES)
    items = value.get("items") if isinstance(value, dict) else None
    if not isinstance(items, list) or len(items) > MAX_ITEMS:
        raise InvalidRequest(f'expected {{"items": [...]}} with up to {MAX_ITEMS} objects {{"bucket", "key", "start", "end"}}')
    return _Frames(node, transfers, [_item(item) for item in items])


class _Frames(Response):
    """A response of frames, made one by one while it is sent."""

    media_type = FRAMES_TYPE

    def __init__(self, node: Node, transfers: Budget, items: list[_Item]) -> None:
        super().__init__()
        # How long it gets is not known before the last item is read.
        del self.headers["content-length"]
        self._node = node
        self._transfers = transfers
        self._items = items

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        sender = BodySender(send, stall_timeout_s=self._node.config.stall_timeout_s)
        with self._transfers.take():
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            for item in self._items:
                head, payload = await self._node.pools.gateway.run_to_end(_read, self._node, item)
                encoded = encode_json({**head, "size": len(payload)})
                await sender.piece(_LENGTH.pack(len(encoded)) + encoded)
                await sender.piece(payload)
        await sender.end()


def _read(node: Node, item: _Item) -> tuple[dict[str, Any], bytes | bytearray]:
    """The head and the bytes of an item's frame."""
    try:
        info = node.objects.stat(item.bucket, item.key, version=item.version)
        end = info.size if item.end is None else min(item.end, info.size)
        size_bytes, limit = end - item.start, node.config.max_batch_item_bytes
        if size_bytes < 0:
            raise InvalidRange(f"bytes {item.start} to {end} of {item.bucket}/{item.key}, which has {info.size}", key=item.key)
        if size_bytes > limit:
            raise BodyTooLarge(f"{size_bytes} bytes for one item of a batch; this node takes {limit}", key=item.key)
        payload = bytearray(size_bytes)
        node.objects.reader(info).read_into(payload, start=item.start)
    except StoreError as error:
        return {"status": error.status, "problem": to_problem(error)}, b""
    return {"status": 200, "etag": info.etag, "version": info.version}, payload


def _item(value: Any) -> _Item:
    fields: dict[str, type] = {"bucket": str, "key": str, "start": int, "end": int, "version": int}
    if not isinstance(value, dict) or not {"bucket", "key"} <= set(value) <= set(fields):
        raise InvalidRequest(f"item {value!r:.100}: expected bucket and key, and start, end and version if wanted")
    for name, found in value.items():
        # By type and not by isinstance, because true is no number here.
        fits = type(found) is fields[name] and (not isinstance(found, int) or found >= 0)
        if not fits and not (found is None and name in ("end", "version")):
            wanted = "text" if fields[name] is str else "a whole number from 0 up"
            raise InvalidRequest(f"item {value!r:.100}: {name} must be {wanted}")
    return _Item(**value)
