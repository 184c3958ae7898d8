"""What bodies on HTTP look like, as JSON Schema, for the OpenAPI document. Data only; `storenode.openapi` puts it together."""

from __future__ import annotations

from typing import Any

from client.catalog import MAX_BATCH_ITEMS
from client.wire import PROBLEM_TYPE

__all__ = ["BYTES", "SCHEMAS", "json_body_of", "json_of", "nullable", "problems"]

BYTES: dict[str, Any] = {"*/*": {"schema": {"type": "string", "format": "binary"}}}

_PHRASES = {
    400: "The request, a name or a checksum is wrong",
    401: "There is no token, or none that is genuine and still good",
    403: "The token does not allow this",
    404: "There is no such bucket, object, chunk, node or job",
    409: "The bucket exists, or is not empty; the change does not fit the nodes; or others were faster",
    410: "The revision is gone; begin again",
    411: "The length of the body is missing",
    412: "The condition does not hold",
    413: "The body is too large",
    416: "The range can't be satisfied",
    503: "The node, its disk, its peers or the metadata can't do it now; Retry-After may say when",
    504: "The deadline passed",
    507: "The disk is full",
}

_INTEGER, _STRING, _NUMBER, _BOOLEAN = ({"type": name} for name in ("integer", "string", "number", "boolean"))


def _object(properties: dict[str, Any], *, optional: tuple[str, ...] = ()) -> dict[str, Any]:
    required = [name for name in properties if name not in optional]
    return {"type": "object", "properties": properties, "required": required}


def nullable(schema: dict[str, Any]) -> dict[str, Any]:
    """Either `schema` or null."""
    return {"anyOf": [schema, {"type": "null"}]}


def _array(items: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": items}


def _ref(name: str) -> dict[str, Any]:
    return {"$ref": f"#/components/schemas/{name}"}


_ETAG = {"type": "string", "pattern": r"^(\*|[A-Za-z0-9_-]{1,64})$", "description": "* or an ETag, without quotes"}
_CHUNK_NAMES = {
    "type": "array",
    "maxItems": 1024,
    "items": {
        "type": "array",
        "prefixItems": [_INTEGER, {"type": "string", "pattern": "^[0-9a-f]{64}$"}],
        "minItems": 2,
        "maxItems": 2,
    },
}
_PACKED_REF = {"type": "string", "pattern": "^[0-9a-f]{96}$", "description": "{partition, size, id, xxh3_64} packed, in hex"}

SCHEMAS: dict[str, Any] = {
    "Problem": _object(
        {
            "type": {"type": "string", "description": "urn:forebay:error:CODE"},
            "title": _STRING,
            "status": _INTEGER,
            "detail": _STRING,
            "retryable": _BOOLEAN,
            "key": _STRING,
            "node_id": _STRING,
        },
        optional=("key",),
    ),
    "BucketPolicy": _object(
        {
            "replicas": {"type": "integer", "minimum": 1, "maximum": 16},
            "ack": {"enum": ["one", "quorum", "all"]},
            "versions": {"type": "integer", "minimum": 0, "maximum": 10_000},
        },
        optional=("replicas", "ack", "versions"),
    ),
    "Snapshot": _object({"name": _STRING, "version": _INTEGER, "created_s": _NUMBER, "id": _STRING}),
    "Pruned": _object({"pruned": _INTEGER, "after": nullable(_STRING)}),
    "Content": _object(
        {"size": _INTEGER, "digest": _STRING, "refs": _array(_PACKED_REF), "manifest": _PACKED_REF},
        optional=("refs", "manifest"),
    ),
    "ObjectRecord": _object(
        {
            "write_id": {"type": "string", "pattern": "^[A-Za-z0-9_-]{1,64}$"},
            "content": _ref("Content"),
            "content_type": _STRING,
            "metadata": {"type": "object", "additionalProperties": _STRING},
            "ack": {"enum": ["one", "quorum", "all"]},
            "replicas": {"type": "integer", "minimum": 1, "maximum": 16},
            "created_s": _NUMBER,
            "tombstone": _BOOLEAN,
        }
    ),
    "ObjectInfo": _object({"bucket": _STRING, "key": _STRING, "version": _INTEGER, "record": _ref("ObjectRecord")}),
    "Anchor": _object({"layout": _INTEGER, "epoch": _INTEGER}),
    "Source": _object({"bucket": _STRING, "key": _STRING, "version": _INTEGER}),
    "RecordWrite": _object(
        {"record": _ref("ObjectRecord"), "anchor": _ref("Anchor"), "source": _ref("Source")}, optional=("anchor", "source")
    ),
    "RecordWrites": {
        "type": "array",
        "maxItems": MAX_BATCH_ITEMS,
        "items": _object(
            {
                "bucket": _STRING,
                "key": _STRING,
                "record": _ref("ObjectRecord"),
                "anchor": _ref("Anchor"),
                "source": _ref("Source"),
                "if_match": _ETAG,
                "if_none_match": _ETAG,
            },
            optional=("anchor", "source", "if_match", "if_none_match"),
        ),
    },
    "RecordNames": {
        "type": "array",
        "maxItems": MAX_BATCH_ITEMS,
        "items": _object({"bucket": _STRING, "key": _STRING}),
    },
    "RecordOutcomes": _array(
        {"oneOf": [_object({"info": _ref("ObjectInfo")}), _object({"problem": _ref("Problem")})]},
    ),
    "Listing": _object(
        {
            "objects": _array(_ref("ObjectInfo")),
            "prefixes": _array(_STRING),
            "cursor": nullable(_STRING),
            "revision": _INTEGER,
        }
    ),
    "Watched": _object(
        {
            "changes": {
                "type": "array",
                "items": {
                    "type": "array",
                    "prefixItems": [_STRING, nullable(_ref("ObjectInfo"))],
                    "minItems": 2,
                    "maxItems": 2,
                },
            },
            "revision": _INTEGER,
        }
    ),
    "ChunkNames": _object({"chunks": _CHUNK_NAMES}),
    "ChunkTouches": _object({"chunks": _CHUNK_NAMES, "rehash": _BOOLEAN, "fetch": _BOOLEAN}, optional=("rehash", "fetch")),
    "NodeStatus": _object(
        {
            "node_id": _STRING,
            "disk": _object(
                {
                    "total_bytes": _INTEGER,
                    "free_bytes": _INTEGER,
                    "reserve_bytes": _INTEGER,
                    "read_only": _BOOLEAN,
                }
            ),
            "chunks": _object({"num_chunks": _INTEGER, "size_bytes": _INTEGER}),
            "follower": _object(
                {
                    "revision": nullable(_INTEGER),
                    "pending": _INTEGER,
                    "layout": _INTEGER,
                    "fetched_chunks": _INTEGER,
                    "fetched_bytes": _INTEGER,
                    "rehashed_bytes": _INTEGER,
                }
            ),
            "metadata": _object({"incarnation": _STRING, "went_back": _BOOLEAN, "frozen": nullable(_STRING)}),
        }
    ),
    "LayoutChange": _object(
        {
            "change": {"enum": ["add", "drain", "remove", "weight", "zone"]},
            "nodes": {"type": "array", "items": _STRING, "description": "Ids; for add: empty means every spare node"},
            "weight": _NUMBER,
            "zone": _STRING,
            "id": {"type": "string", "description": "Kept when the request is repeated, which then changes nothing more"},
            "dry_run": _BOOLEAN,
            "force": _BOOLEAN,
        },
        optional=("weight", "zone", "id", "dry_run", "force"),
    ),
    "LayoutProgress": _object(
        {
            "version": _INTEGER,
            "older": _array(_INTEGER),
            "move": {"type": "string", "description": "How far the data are, in words; empty if nothing moves"},
            "nodes": _array(
                _object(
                    {
                        "node_id": _STRING,
                        "state": {"enum": ["up", "down", "draining", "drained", "spare"]},
                        "up": _BOOLEAN,
                        "complete": nullable(_BOOLEAN),
                        "weight": nullable(_NUMBER),
                        "zone": nullable(_STRING),
                        "host": nullable(_STRING),
                        "endpoints": _array(_STRING),
                    }
                )
            ),
        }
    ),
    "LayoutPlan": _object(
        {
            "layout": {"type": "object", "description": "As it is now, or would be"},
            "older": _array(_INTEGER),
            "replicas": _INTEGER,
            "moved_share": _NUMBER,
            "moved_bytes": nullable(_INTEGER),
            "usable_bytes": nullable(_INTEGER),
            "limited_by": _STRING,
            "copies_left": {"type": "object", "additionalProperties": _INTEGER},
            "nodes": _array(
                _object(
                    {
                        "node_id": _STRING,
                        "before_share": _NUMBER,
                        "after_share": _NUMBER,
                        "gained_share": _NUMBER,
                        "gained_bytes": nullable(_INTEGER),
                    }
                )
            ),
            "committed": _BOOLEAN,
            "seconds": nullable(_NUMBER),
        }
    ),
    "BatchItems": _object(
        {
            "items": {
                "type": "array",
                "maxItems": 1024,
                "items": {
                    "type": "array",
                    "prefixItems": [_STRING, _STRING, {"type": "integer", "minimum": 0}],
                    "items": False,
                    "minItems": 2,
                },
            }
        }
    ),
    "StoredBatch": _object({"chunks": _array({"anyOf": [{"const": "durable"}, _ref("Problem")]})}),
    "Stored": _object(
        {"durable": _array(_STRING), "failed": {"type": "object", "additionalProperties": _STRING}},
    ),
    "Job": _object(
        {
            "id": _STRING,
            "kind": _STRING,
            "node_id": _STRING,
            "state": {"enum": ["running", "done", "failed", "cancelled"]},
            "cancelling": _BOOLEAN,
            "cursor": _STRING,
            "num_chunks": _INTEGER,
            "total_chunks": nullable(_INTEGER),
            "size_bytes": _INTEGER,
            "detail": _STRING,
            "started_s": _NUMBER,
            "updated_s": _NUMBER,
        }
    ),
    "GcStatus": _object(
        {
            "epoch": _INTEGER,
            "wanted": _INTEGER,
            "nodes": {
                "type": "object",
                "additionalProperties": _object(
                    {
                        "epoch": _INTEGER,
                        "num_removed": _INTEGER,
                        "removed_bytes": _INTEGER,
                        "num_kept": _INTEGER,
                        "problem": _STRING,
                        "up": _BOOLEAN,
                    }
                ),
            },
        }
    ),
}


def json_of(schema: dict[str, Any] | str, *, description: str) -> dict[str, Any]:
    """A response with JSON of `schema`, or of the one in `SCHEMAS` that it names."""
    return {"description": description, "content": _json(schema)}


def json_body_of(schema: dict[str, Any] | str, *, required: bool = True) -> dict[str, Any]:
    """What a route that reads its body by hand says of it."""
    return {"requestBody": {"required": required, "content": _json(schema)}}


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The responses of these statuses, all of them problem documents."""
    content = {PROBLEM_TYPE: {"schema": _ref("Problem")}}
    return {status: {"description": _PHRASES[status], "content": content} for status in statuses}


def _json(schema: dict[str, Any] | str) -> dict[str, Any]:
    return {"application/json": {"schema": _ref(schema) if isinstance(schema, str) else schema}}
