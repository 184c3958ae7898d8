"""``/v1/admin/layout``: how the nodes stand to the layout, and an operator's change of it, planned and committed."""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.responses import Response

from client.wire import encode_json
from storenode.requests import NodeOf, json_body
from storenode.reshaping import MAX_NAMED, Wish
from storenode.schemas import json_body_of, json_of, problems

__all__ = ["router"]

_MAX_BODY_BYTES = 1024 + 128 * MAX_NAMED

router = APIRouter(tags=["node"])


@router.get(
    "/v1/admin/layout",
    operation_id="layoutProgress",
    response_class=Response,
    responses={200: json_of("LayoutProgress", description="Each node, and whether it is complete"), **problems(503)},
)
async def progress(node: NodeOf) -> Response:
    """The nodes of the layout and the spare ones, and how far the last changes have come."""
    return Response(encode_json(await node.pools.meta.run(node.reshaping.progress)), media_type="application/json")


@router.post(
    "/v1/admin/layout",
    operation_id="changeLayout",
    response_class=Response,
    responses={
        200: json_of("LayoutPlan", description="What the change does, and whether it was committed"),
        **problems(400, 404, 409, 413, 503),
    },
    openapi_extra=json_body_of("LayoutChange"),
)
async def change_layout(request: Request, node: NodeOf) -> Response:
    """Add, drain or remove nodes, or change one's weight or zone; with dry_run only say what that would do."""
    wish = Wish.from_json(await json_body(request, max_bytes=_MAX_BODY_BYTES))
    reshaped = await node.pools.meta.run(node.reshaping, wish)
    if reshaped.revision is not None:
        # Whoever changed the layout and asks this node next shall see it; the others hear of it from the metadata.
        await node.pools.meta.run(node.cluster.refresh)
    made = reshaped.plan
    seconds = [
        size_bytes / node.config.rebalance_rate_bytes_per_s
        for shift in made.shifts
        if (size_bytes := made.bytes_of(shift.gained)) is not None
    ]
    value = {**made.to_json(), "committed": reshaped.revision is not None, "seconds": max(seconds, default=None)}
    return Response(encode_json(value), media_type="application/json")
