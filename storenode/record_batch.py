"""Many records in one request: ``POST /v1/records:batchPut`` and ``POST /v1/records:batchGet``.

A request is a JSON list of up to `MAX_BATCH_ITEMS` items in `MAX_BATCH_BYTES`; the response is a list with ``{"info": ...}`` or
``{"problem": ...}`` for each, in their order. An item that is refused hurts no other one; a request that is no such list is
refused as a whole. All of it happens in a thread, for a thousand items take longer to decode than an event loop may stand
still.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from client.catalog import MAX_BATCH_BYTES, MAX_BATCH_ITEMS, Commit
from client.errors import BodyTooLarge, Forbidden, InvalidRequest, StoreError, to_problem
from client.record import Condition, ObjectInfo
from client.wire import encode_json
from storenode.admission import checked_write
from storenode.gate import GrantOf
from storenode.grants import Grant, Verb
from storenode.node import Node
from storenode.requests import NodeOf, json_of_body, whole_body
from storenode.schemas import json_body_of, json_of, problems

__all__ = ["router"]

_CONDITIONS = ("if_match", "if_none_match")

router = APIRouter(tags=["names"])


@router.post(
    "/v1/records:batchPut",
    operation_id="batchPutRecords",
    response_class=Response,
    responses={
        200: json_of("RecordOutcomes", description="What a PUT of each record would have answered"),
        **problems(400, 413, 503, 507),
    },
    openapi_extra=json_body_of("RecordWrites"),
)
async def batch_put(request: Request, node: NodeOf, grant: GrantOf) -> Response:
    """Give many objects their records, each as PUT /v1/records does, at little more than the cost of one."""
    body = await whole_body(request, max_bytes=MAX_BATCH_BYTES)
    return await node.pools.meta.run(_put, node, body, grant, num_partitions=request.app.state.num_partitions)


@router.post(
    "/v1/records:batchGet",
    operation_id="batchGetRecords",
    response_class=Response,
    responses={
        200: json_of("RecordOutcomes", description="What a GET of each record would have answered"),
        **problems(400, 413, 503),
    },
    openapi_extra=json_body_of("RecordNames"),
)
async def batch_get(request: Request, node: NodeOf, grant: GrantOf) -> Response:
    """What is known of many objects."""
    return await node.pools.meta.run(_get, node, await whole_body(request, max_bytes=MAX_BATCH_BYTES), grant)


def _put(node: Node, body: bytes, grant: Grant, *, num_partitions: int) -> Response:
    admitted = [_write(item, node, grant, num_partitions=num_partitions) for item in _items(body)]
    outcomes = iter(node.catalog.commit_many([write for write in admitted if isinstance(write, Commit)]))
    return _answer(node, [next(outcomes) if isinstance(write, Commit) else write for write in admitted])


def _get(node: Node, body: bytes, grant: Grant) -> Response:
    names = [_allowed(_name(item), "read", grant) for item in _items(body)]
    outcomes = iter(node.catalog.lookup_many([name for name in names if isinstance(name, tuple)]))
    return _answer(node, [next(outcomes) if isinstance(name, tuple) else name for name in names])


def _items(body: bytes) -> list[Any]:
    items = json_of_body(body)
    if not isinstance(items, list) or len(items) > MAX_BATCH_ITEMS:
        raise InvalidRequest(f"expected a list of up to {MAX_BATCH_ITEMS} objects with bucket and key, found {items!r:.100}")
    return items


def _write(item: Any, node: Node, grant: Grant, *, num_partitions: int) -> Commit | StoreError:
    """The write that an item asks for, or what is wrong with it."""
    name = _allowed(_name(item, also=("record",), optional=(*_CONDITIONS, "anchor", "source")), "write", grant)
    if isinstance(name, StoreError):
        return name
    bucket, key = name
    try:
        size_bytes, limit = len(encode_json(item["record"])), node.config.max_record_bytes
        if size_bytes > limit:
            raise BodyTooLarge(f"a record of {size_bytes} bytes; this node takes {limit}", key=f"{bucket}/{key}")
        return checked_write(item, node, name=name, condition=_condition(item), grant=grant, num_partitions=num_partitions)
    except StoreError as error:
        return error


def _condition(item: dict[str, Any]) -> Condition:
    given = {name: item[name] for name in _CONDITIONS if name in item}
    if not all(isinstance(tag, str) for tag in given.values()):
        raise InvalidRequest(f"conditions {given!r:.100}: expected * or an ETag as text")
    return Condition(**given)


def _name(item: Any, *, also: tuple[str, ...] = (), optional: tuple[str, ...] = ()) -> tuple[str, str] | StoreError:
    """The bucket and the key in an item that has these and `also`, and perhaps `optional`."""
    needed = ("bucket", "key", *also)
    if not isinstance(item, dict) or not set(needed) <= set(item) <= {*needed, *optional}:
        expected = ", ".join((*needed, *(f"perhaps {name}" for name in optional)))
        return InvalidRequest(f"item {item!r:.100}: expected {expected}")
    bucket, key = item["bucket"], item["key"]
    if not isinstance(bucket, str) or not isinstance(key, str):
        return InvalidRequest(f"item {item!r:.100}: bucket and key must be text")
    return bucket, key


def _allowed(name: tuple[str, str] | StoreError, verb: Verb, grant: Grant) -> tuple[str, str] | StoreError:
    """The name, if `verb` is allowed on it, else why not."""
    try:
        if isinstance(name, tuple):
            grant.require(verb, *name)
    except Forbidden as error:
        return error
    return name


def _answer(node: Node, outcomes: Sequence[ObjectInfo | StoreError]) -> Response:
    answers = [
        {"info": outcome.to_json()}
        if isinstance(outcome, ObjectInfo)
        else {"problem": {**to_problem(outcome), "node_id": outcome.node_id or node.node_id}}
        for outcome in outcomes
    ]
    return Response(encode_json(answers), media_type="application/json")
