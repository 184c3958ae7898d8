"""The node's API as an OpenAPI document: complete, and true where the framework would guess.

FastAPI describes the routes that it serves. Those that it never sees, of chunks and of records, are added by hand; the
validation error that it claims for every route and this node never sends is taken out.
"""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from client.catalog import CONSISTENCY_LEVELS
from client.names import MAX_KEY_BYTES
from client.wire import (
    BATCH_PUT_PATH,
    CHECK_HEADER,
    PROTOCOL,
    PROTOCOL_HEADER,
    RECORD_HEADER,
    SEGMENTS_HEADER,
    TIMEOUT_HEADER,
)
from storenode.schemas import BYTES, SCHEMAS, json_of, problems

__all__ = ["install_schema"]

_CHUNK_NAME = [
    {"name": "partition", "in": "path", "required": True, "schema": {"type": "integer", "minimum": 0}},
    {"name": "id", "in": "path", "required": True, "schema": {"type": "string", "pattern": "^[0-9a-f]{64}$"}},
]
_OBJECT_NAME = [
    {
        "name": "bucket",
        "in": "path",
        "required": True,
        "schema": {"type": "string", "pattern": "^[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]$"},
    },
    {"name": "key", "in": "path", "required": True, "schema": {"type": "string", "minLength": 1, "maxLength": MAX_KEY_BYTES}},
]
_WHOLE = {"type": "integer", "minimum": 0, "maximum": 2**63 - 1}
_RANGE = {
    "name": "range",
    "in": "header",
    "required": False,
    "schema": {"type": "string"},
    "description": "bytes=START-END, of whole segments of 64 KiB",
}
_TEE = {
    "name": "tee",
    "in": "query",
    "required": False,
    "schema": {"type": "string"},
    "description": "Ids of nodes to forward the chunk to, separated by commas",
}


_OPEN = ("/healthz", "/readyz")
_TOKEN = {
    "type": "http",
    "scheme": "bearer",
    "bearerFormat": "JWT",
    "description": "Made by `forebay token create`; its scopes say which verbs it allows on which buckets and keys",
}


def install_schema(app: FastAPI) -> None:
    """Have `app` serve the whole API's description."""

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = _build(app)
        return app.openapi_schema

    # The way that FastAPI documents for extending its schema.
    app.openapi = openapi  # type: ignore[method-assign]


def _build(app: FastAPI) -> dict[str, Any]:
    schema = get_openapi(
        title="Forebay storage node",
        version=str(PROTOCOL),
        description=(
            f"Every message carries {PROTOCOL_HEADER}; a request without it is taken as current. A request may say in "
            f"{TIMEOUT_HEADER} how many milliseconds its client has left, after which it is ended. "
            "Every failure is a problem document (RFC 9457). Where the cluster has a secret, requests need a token."
        ),
        routes=app.routes,
    )
    schema["paths"]["/v1/chunks/{partition}/{id}"] = _chunk_operations()
    schema["paths"][BATCH_PUT_PATH] = {"post": _batch_operation()}
    schema["paths"]["/v1/records/{bucket}/{key}"]["get"] = _record_read()
    for path, operations in schema["paths"].items():
        for method, operation in operations.items():
            operation["responses"].pop("422", None)
            for status in (504,) if path in _OPEN else (401, 403, 504):
                operation["responses"].setdefault(str(status), problems(status)[status])
            if method == "head":
                # The same descriptions serve GET; the answer to HEAD has no body, not even of a problem.
                operation["responses"] = {
                    status: {name: value for name, value in answer.items() if name != "content"}
                    for status, answer in operation["responses"].items()
                }
    # With and without: a cluster without a secret asks for nothing.
    schema["security"] = [{"token": []}, {}]
    for path in _OPEN:
        schema["paths"][path]["get"]["security"] = []
    schema.setdefault("components", {})["securitySchemes"] = {"token": _TOKEN}
    components = schema["components"].setdefault("schemas", {})
    for name in ("HTTPValidationError", "ValidationError"):
        components.pop(name, None)
    components.update(SCHEMAS)
    return schema


def _chunk_operations() -> dict[str, Any]:
    checks = {
        CHECK_HEADER: {"schema": {"type": "string"}, "description": "xxh3_64 of the whole chunk, in hex"},
        SEGMENTS_HEADER: {"schema": {"type": "string"}, "description": "xxh3_64 of each segment of the range, in hex"},
    }
    read = {
        200: {"description": "The chunk, not verified by the node", "content": BYTES, "headers": checks},
        206: {"description": "Segments of the chunk, not verified by the node", "content": BYTES, "headers": checks},
        **problems(400, 404, 416, 503),
    }
    stored = {
        200: json_of("Stored", description="Who holds the chunk durably, and what the others said"),
        **problems(400, 411, 413, 503, 507),
    }
    return {
        "get": _operation("getChunk", "A copy of a chunk", read, _RANGE),
        "head": _operation("headChunk", "What this node's copy says of itself", read, _RANGE),
        "put": {
            **_operation("putChunk", "Store a chunk durably, here and on the nodes in tee", stored, _TEE),
            "requestBody": {"required": True, "content": BYTES},
        },
    }


def _batch_operation() -> dict[str, Any]:
    return {
        "operationId": "batchPutChunks",
        "summary": "Store many small chunks durably, here; see client/frames.py for the body",
        "tags": ["chunks"],
        "requestBody": {"required": True, "content": BYTES},
        "responses": {
            str(status): answer
            for status, answer in {
                200: json_of("StoredBatch", description="For each chunk, that it is durable, or why not"),
                **problems(400, 411, 413, 503),
            }.items()
        },
    }


def _record_read() -> dict[str, Any]:
    along = {
        RECORD_HEADER: {"schema": {"type": "string"}, "description": "The ObjectInfo, in JSON; the body holds bytes"},
        CHECK_HEADER: {"schema": {"type": "string"}, "description": "xxh3_64 of the whole chunk, in hex"},
        SEGMENTS_HEADER: {"schema": {"type": "string"}, "description": "xxh3_64 of each segment that is sent, in hex"},
    }
    answer = json_of("ObjectInfo", description="The record and its version; or, if asked for, the first bytes of the read")
    numbers = {
        "version": "An older version, by its number",
        "start": "First byte that will be read, to have the bytes of its chunk sent along",
        "end": "Where the read ends (exclusive)",
        "most": "Most bytes to be sent along",
    }
    return {
        "operationId": "getRecord",
        "summary": "What is known of an object: references to its chunks",
        "tags": ["names"],
        "parameters": [
            *_OBJECT_NAME,
            *({"name": name, "in": "query", "schema": _WHOLE, "description": text} for name, text in numbers.items()),
            {"name": "consistency", "in": "query", "schema": {"enum": list(CONSISTENCY_LEVELS)}},
        ],
        "responses": {
            "200": {**answer, "headers": along, "content": {**answer["content"], **BYTES}},
            **{str(status): problem for status, problem in problems(400, 404, 503).items()},
        },
    }


def _operation(
    operation_id: str, summary: str, responses: dict[int | str, dict[str, Any]], *parameters: dict[str, Any]
) -> dict[str, Any]:
    return {
        "operationId": operation_id,
        "summary": summary,
        "tags": ["chunks"],
        "parameters": [*_CHUNK_NAME, *parameters],
        "responses": {str(status): answer for status, answer in responses.items()},
    }
