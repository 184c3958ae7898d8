"""Names over HTTP: buckets, records, listings and watches. What the client's catalog asks; no bytes of objects pass here."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from client.catalog import MAX_LIST_LIMIT
from client.errors import InvalidRequest
from client.record import BucketPolicy
from client.wire import encode_json
from storenode.admission import checked_write
from storenode.gate import GrantOf
from storenode.requests import (
    BucketName,
    NodeOf,
    ObjectName,
    condition_of,
    json_body,
)
from storenode.schemas import json_body_of, json_of, problems

__all__ = ["router"]

_BUCKET_PATH = "/v1/buckets/{bucket}"
_RECORD_PATH = "/v1/records/{bucket}/{key:path}"
# A thread waits no longer than this at a time, because it can't be told that the client has gone or the node stops.
WATCH_SLICE_S = 1.0
_MAX_POLICY_BYTES = 4096

router = APIRouter(tags=["names"])


@router.get(
    "/v1/buckets",
    operation_id="listBuckets",
    response_class=Response,
    responses={
        200: json_of(
            {"type": "object", "additionalProperties": {"$ref": "#/components/schemas/BucketPolicy"}},
            description="The policy of each bucket, by name",
        ),
        **problems(503),
    },
)
async def list_buckets(node: NodeOf, grant: GrantOf) -> Response:
    """All buckets in which the token allows anything."""
    buckets = await node.pools.meta.run(node.catalog.buckets)
    return _json({name: policy.to_json() for name, policy in buckets.items() if grant.sees(name)})


@router.get(
    _BUCKET_PATH,
    operation_id="getBucket",
    response_class=Response,
    responses={200: json_of("BucketPolicy", description="Its policy"), **problems(400, 404, 503)},
)
async def get_bucket(node: NodeOf, bucket: BucketName) -> Response:
    """The policy of a bucket."""
    return _json((await node.pools.meta.run(node.catalog.bucket, bucket)).to_json())


@router.put(
    _BUCKET_PATH,
    operation_id="putBucket",
    response_class=Response,
    responses={
        200: json_of("BucketPolicy", description="If-Match: * was given, and the policy is changed"),
        201: json_of("BucketPolicy", description="It exists with this policy"),
        **problems(400, 404, 409, 413, 503),
    },
    openapi_extra=json_body_of("BucketPolicy", required=False),
)
async def put_bucket(request: Request, node: NodeOf, bucket: BucketName) -> Response:
    """Create a bucket or, with ``If-Match: *``, change its policy. Without a body: the defaults."""
    condition = condition_of(request.headers)
    if condition.if_match not in (None, "*") or condition.if_none_match not in (None, "*"):
        raise InvalidRequest(f"bucket {bucket}: buckets have no ETags; use If-Match: * or If-None-Match: *")
    if condition.if_match and condition.if_none_match:
        raise InvalidRequest(f"bucket {bucket}: If-Match and If-None-Match together can never hold")
    value = await json_body(request, max_bytes=_MAX_POLICY_BYTES, default={})
    if not isinstance(value, dict):
        raise InvalidRequest(f"bucket {bucket}: expected a JSON object with replicas, ack, versions, found {value!r:.100}")
    policy = BucketPolicy.from_json(value)
    change = node.catalog.set_bucket if condition.if_match else node.catalog.create_bucket
    await node.pools.meta.run(change, bucket, policy)
    return _json(policy.to_json(), status=200 if condition.if_match else 201)


@router.delete(
    _BUCKET_PATH,
    operation_id="deleteBucket",
    status_code=204,
    response_class=Response,
    responses={204: {"description": "It is gone"}, **problems(400, 404, 409, 503)},
)
async def delete_bucket(node: NodeOf, bucket: BucketName) -> Response:
    """Delete an empty bucket."""
    await node.pools.meta.run(node.catalog.delete_bucket, bucket)
    return Response(status_code=204)


@router.get(
    "/v1/objects/{bucket}",
    operation_id="listObjects",
    response_class=Response,
    responses={
        200: json_of("Listing", description="One page, ordered by key, all pages at one revision"),
        **problems(400, 404, 410, 503),
    },
)
async def list_objects(
    node: NodeOf,
    grant: GrantOf,
    bucket: BucketName,
    prefix: Annotated[str, Query(description="What the keys begin with")] = "",
    delimiter: Annotated[str, Query(description="Keys that agree up to it become one entry")] = "",
    cursor: Annotated[str | None, Query(max_length=8192, description="From the page before")] = None,
    limit: Annotated[int, Query(ge=1, le=MAX_LIST_LIMIT, description="Most entries in the page")] = MAX_LIST_LIMIT,
    versions: Annotated[bool, Query(description="Older versions and tombstones too, newest first")] = False,
    snapshot: Annotated[str | None, Query(description="As this snapshot of the bucket shows them")] = None,
) -> Response:
    """Objects of a bucket."""
    grant.require("read", bucket, prefix)
    page = await node.pools.meta.run(
        node.catalog.list,
        bucket,
        prefix=prefix,
        delimiter=delimiter,
        cursor=cursor,
        limit=limit,
        versions=versions,
        snapshot=snapshot,
    )
    return _json(page.to_json())


@router.get(
    "/v1/watch/{bucket}",
    operation_id="watchObjects",
    response_class=Response,
    responses={
        200: json_of("Watched", description="Changes in their order; none if the time passed without any"),
        **problems(400, 404, 410, 503),
    },
)
async def watch_objects(
    node: NodeOf,
    grant: GrantOf,
    bucket: BucketName,
    prefix: Annotated[str, Query(description="What the keys begin with")] = "",
    after: Annotated[int | None, Query(ge=0, description="A revision; without it, only the newest one is told")] = None,
    timeout_s: Annotated[float, Query(ge=0, allow_inf_nan=False, description="Longest wait")] = 30.0,
) -> Response:
    """Wait for changes of a bucket."""
    grant.require("read", bucket, prefix)
    clock = asyncio.get_running_loop().time
    # A shorter wait than asked for is always right: the answer says how far it goes.
    end_s = clock() + min(timeout_s, node.config.max_watch_s)
    while True:
        rest_s = max(0.0, end_s - clock())
        watched = await node.pools.watch.run(
            node.catalog.watch, bucket, prefix=prefix, after=after, timeout_s=min(rest_s, WATCH_SLICE_S)
        )
        if watched.changes or after is None or rest_s <= WATCH_SLICE_S:
            break
        after = watched.revision
    return _json(watched.to_json())


@router.put(
    _RECORD_PATH,
    operation_id="putRecord",
    status_code=201,
    response_class=Response,
    responses={
        201: json_of("ObjectInfo", description="The record is committed, or was by an earlier request of this write id"),
        **problems(400, 404, 409, 412, 413, 503, 507),
    },
    openapi_extra=json_body_of("RecordWrite"),
)
async def put_record(request: Request, node: NodeOf, name: ObjectName, grant: GrantOf) -> Response:
    """Give chunks that are stored already a name, all at once."""
    condition = condition_of(request.headers)
    value = await json_body(request, max_bytes=node.config.max_record_bytes)
    num_partitions = request.app.state.num_partitions
    write = checked_write(value, node, name=name, condition=condition, grant=grant, num_partitions=num_partitions)
    info = await node.pools.meta.run(node.catalog.commit, write)
    return _json(info.to_json(), status=201)


def _json(value: Any, *, status: int = 200) -> Response:
    return Response(encode_json(value), status_code=status, media_type="application/json")
