"""What a request needs to be allowed, by its method and path. Pure.

Whatever is not in this table, a route that somebody adds later included, is for who may administer the whole cluster. A route
that takes any token, and whose answer depends on names, looks at them itself: the items of a batch, the prefix of a listing,
the list of buckets.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from client.wire import BATCH_GET_PATH, BATCH_PUT_PATH, CHUNKS_GET_PATH
from storenode.grants import Verb

__all__ = ["Need", "needed"]


@dataclass(frozen=True, slots=True)
class Need:
    """What is needed.

    Attributes
    ----------
    of : str
        What `verb` is needed on: the ``object`` or the whole ``bucket`` in the path, ``something``, or the whole ``cluster``.
        ``sight`` is any verb at all in the bucket, ``token`` any genuine token, ``nothing`` not even that.
    """

    of: Literal["object", "bucket", "something", "cluster", "sight", "token", "nothing"]
    verb: Verb = "admin"


_NOTHING, _TOKEN, _SIGHT = Need("nothing"), Need("token"), Need("sight")
_UNDECLARED = Need("cluster")
# Whoever knows the id of a chunk, a hash of its bytes, and may read or write anything at all, may read or write that chunk.
_READ_CHUNKS, _WRITE_CHUNKS = Need("something", "read"), Need("something", "write")
_NEEDS: dict[str, Need] = {
    "GET /healthz": _NOTHING,
    "GET /readyz": _NOTHING,
    "GET /openapi.json": _TOKEN,
    "GET /v1/cluster": _TOKEN,
    "GET /v1/layout": _TOKEN,
    "GET /v1/admin/layout": _TOKEN,
    "GET /v1/admin/status": _TOKEN,  # For `forebay cluster status`, which tells users where the room and the trouble are.
    "GET /v1/buckets": _TOKEN,
    "GET /v1/buckets/*": _SIGHT,
    "PUT /v1/buckets/*": Need("bucket", "admin"),
    "DELETE /v1/buckets/*": Need("bucket", "admin"),
    "GET /v1/snapshots/*": Need("bucket", "read"),
    "PUT /v1/snapshots/*/*": Need("bucket", "admin"),
    "DELETE /v1/snapshots/*/*": Need("bucket", "admin"),
    "POST /v1/prune/*": Need("bucket", "admin"),
    "GET /v1/objects/*": _TOKEN,
    "GET /v1/watch/*": _TOKEN,
    "GET /v1/objects/*/*": Need("object", "read"),
    "HEAD /v1/objects/*/*": Need("object", "read"),
    "PUT /v1/objects/*/*": Need("object", "write"),
    "DELETE /v1/objects/*/*": Need("object", "delete"),
    "GET /v1/records/*/*": Need("object", "read"),
    "PUT /v1/records/*/*": Need("object", "write"),
    f"POST {BATCH_GET_PATH}": _TOKEN,
    "POST /v1/records:batchGet": _TOKEN,
    "POST /v1/records:batchPut": _TOKEN,
    "GET /v1/chunks/*/*": _READ_CHUNKS,
    "HEAD /v1/chunks/*/*": _READ_CHUNKS,
    "PUT /v1/chunks/*/*": _WRITE_CHUNKS,
    f"POST {BATCH_PUT_PATH}": _WRITE_CHUNKS,
    f"POST {CHUNKS_GET_PATH}": _READ_CHUNKS,
    "POST /v1/chunks:have": _READ_CHUNKS,
    "POST /v1/chunks:verify": _READ_CHUNKS,
    "POST /v1/chunks:touch": _WRITE_CHUNKS,
}
_NAMED = frozenset(("buckets", "chunks", "objects", "prune", "records", "snapshots", "watch"))


def needed(method: str, path: str) -> Need:
    """What a request needs; the path is as it was sent, and cut where `storenode.requests` cuts it."""
    parts = path.split("/", 4)
    if len(parts) > 3 and parts[1] == "v1" and parts[2] in _NAMED:
        path = f"/v1/{parts[2]}{'/*' * (len(parts) - 3)}"
    return _NEEDS.get(f"{method} {path}", _UNDECLARED)
