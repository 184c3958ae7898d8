"""``/v1/admin/gc``: the epochs of garbage collection, what each node's sweeps have done, and asking for more of them."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.responses import Response

from client.wire import encode_json
from storenode.epochs import ask_for_epoch, gc_status
from storenode.requests import NodeOf
from storenode.schemas import json_of, problems

__all__ = ["router"]

router = APIRouter(tags=["node"])


@router.get(
    "/v1/admin/gc",
    operation_id="gcStatus",
    response_class=Response,
    responses={
        200: json_of("GcStatus", description="The epoch, the wanted one, and what each node has swept"),
        **problems(503),
    },
)
async def status(node: NodeOf) -> Response:
    """How far garbage collection is."""
    return Response(encode_json(await node.pools.meta.run(gc_status, node.meta)), media_type="application/json")


@router.post(
    "/v1/admin/gc",
    operation_id="startGc",
    status_code=202,
    response_class=Response,
    responses={
        202: json_of(
            {"type": "object", "properties": {"epoch": {"type": "integer"}}, "required": ["epoch"]},
            description="The epoch whose sweeps will have removed all that is garbage now",
        ),
        **problems(503),
    },
)
async def start(node: NodeOf) -> Response:
    """Have every node that is up remove what is garbage now, in the background."""
    epoch = await node.pools.meta.run(ask_for_epoch, node.meta)
    return Response(encode_json({"epoch": epoch}), status_code=202, media_type="application/json")
