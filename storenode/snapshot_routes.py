"""Snapshots over HTTP, and the removal of versions that nothing keeps."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Request
from starlette.responses import Response

from client.names import MAX_KEY_BYTES
from client.wire import encode_json
from storenode.requests import BucketName, NodeOf, write_id_of
from storenode.schemas import json_of, problems

__all__ = ["router"]

_PATH = "/v1/snapshots/{bucket}/{snapshot}"
Name = Annotated[str, Path(pattern="^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$", description="Name of a snapshot")]

router = APIRouter(tags=["names"])


@router.get(
    "/v1/snapshots/{bucket}",
    operation_id="listSnapshots",
    response_class=Response,
    responses={
        200: json_of(
            {
                "type": "object",
                "properties": {"snapshots": {"type": "array", "items": {"$ref": "#/components/schemas/Snapshot"}}},
            },
            description="The bucket's snapshots, oldest first",
        ),
        **problems(400, 404, 503),
    },
)
async def list_snapshots(node: NodeOf, bucket: BucketName) -> Response:
    """The snapshots of a bucket."""
    found = await node.pools.meta.run(node.catalog.snapshots, bucket)
    return _json({"snapshots": [snapshot.to_json() for snapshot in found]})


@router.put(
    _PATH,
    operation_id="putSnapshot",
    status_code=201,
    response_class=Response,
    responses={
        201: json_of("Snapshot", description="It was made, now or by an earlier request of this write id"),
        **problems(400, 404, 409, 503),
    },
)
async def put_snapshot(request: Request, node: NodeOf, bucket: BucketName, snapshot: Name) -> Response:
    """Keep a bucket readable as it is now. The write id tells a repeat from another request for the same name."""
    write_id = write_id_of(request.headers)
    made = await node.pools.meta.run(node.catalog.create_snapshot, bucket, snapshot, snapshot_id=write_id)
    return _json(made.to_json(), status=201)


@router.delete(
    _PATH,
    operation_id="deleteSnapshot",
    status_code=204,
    response_class=Response,
    responses={204: {"description": "It is gone"}, **problems(400, 404, 409, 503)},
)
async def delete_snapshot(node: NodeOf, bucket: BucketName, snapshot: Name) -> Response:
    """Give a snapshot up. What only it kept goes with the next write to each object, or by pruning the bucket."""
    await node.pools.meta.run(node.catalog.delete_snapshot, bucket, snapshot)
    return Response(status_code=204)


@router.post(
    "/v1/prune/{bucket}",
    operation_id="pruneBucket",
    response_class=Response,
    responses={
        200: json_of("Pruned", description="How many versions were removed, and where to go on"),
        **problems(400, 404, 503),
    },
)
async def prune(
    node: NodeOf,
    bucket: BucketName,
    after: Annotated[str | None, Query(max_length=MAX_KEY_BYTES, description="From the answer before")] = None,
) -> Response:
    """Remove versions that neither the policy nor a snapshot keeps, of a bounded number of objects."""
    num_pruned, after = await node.pools.meta.run(node.catalog.prune, bucket, after=after)
    return _json({"pruned": num_pruned, "after": after})


def _json(value: Any, *, status: int = 200) -> Response:
    return Response(encode_json(value), status_code=status, media_type="application/json")
