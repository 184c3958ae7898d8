"""Every failure that Forebay can report, named for what went wrong.

One root, `StoreError`; each subclass is one row of the contract: a stable ``code`` (the tail of the problem's ``type`` URN),
an HTTP ``status`` and whether a retry may help. The node turns an error into an RFC 9457 problem document with
`to_problem`, the client turns it back with `from_problem`, so an error crosses the wire and keeps its class. This table is
the only place that knows status codes.

A message says what was asked, what was found and what would be right. It never carries a secret.
"""

from __future__ import annotations

from typing import Any, ClassVar

__all__ = [
    "AllReplicasFailed",
    "BodyTooLarge",
    "BucketExists",
    "BucketNotEmpty",
    "BucketNotFound",
    "Busy",
    "ChecksumMismatch",
    "ChunkCorrupt",
    "ChunkNotFound",
    "Conflict",
    "CursorExpired",
    "DeadlineExceeded",
    "DiskFailed",
    "DiskFull",
    "EndpointUnreachable",
    "Forbidden",
    "ForeignPackage",
    "InternalError",
    "InvalidName",
    "InvalidRange",
    "InvalidRequest",
    "JobNotFound",
    "LayoutsPending",
    "MetadataCorrupt",
    "MetadataFrozen",
    "MetadataUnavailable",
    "Misconfigured",
    "NodeExists",
    "NodeInUse",
    "NodeNotFound",
    "NodeOverfilled",
    "NotEnoughReplicas",
    "ObjectNotFound",
    "PreconditionFailed",
    "ProtocolMismatch",
    "SnapshotExists",
    "SnapshotNotFound",
    "StaleAnchor",
    "StoreError",
    "TooFewNodes",
    "TooFewZones",
    "TooManySnapshots",
    "TruncatedBody",
    "Unauthenticated",
    "from_problem",
    "to_problem",
]

URN_PREFIX = "urn:forebay:error:"
_CLASSES: dict[str, type[StoreError]] = {}


class StoreError(Exception):
    """Root of all errors of the store and its client.

    Parameters
    ----------
    message : str
        What was asked, what was found, what would be right.
    key : str, optional
        The ``bucket/key``, chunk or other name that the request was about.
    node_id : str, optional
        The node (or endpoint) that reported the failure.
    retry_after_s : float, optional
        How long the node asks a client to wait, in seconds.
    """

    code: ClassVar[str] = "store-error"
    status: ClassVar[int] = 500
    title: ClassVar[str] = "The store failed"
    retryable: ClassVar[bool] = False

    def __init__(
        self,
        message: str,
        *,
        key: str | None = None,
        node_id: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.key = key
        self.node_id = node_id
        self.retry_after_s = retry_after_s
        # Of the metadata, where that an object is not there is known of one.
        self.revision: int | None = None

    def __init_subclass__(cls) -> None:
        _CLASSES[cls.code] = cls

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self.message, self.key, self.node_id, self.retry_after_s)


def _rebuild(
    cls: type[StoreError], message: str, key: str | None, node_id: str | None, retry_after_s: float | None
) -> StoreError:
    return cls(message, key=key, node_id=node_id, retry_after_s=retry_after_s)


class InvalidRequest(StoreError):
    code, status, title = "invalid-request", 400, "The request is malformed"


class InvalidName(StoreError):
    code, status, title = "invalid-name", 400, "The name is not allowed"


class ChecksumMismatch(StoreError):
    """The bytes that arrived are not the bytes that were announced."""

    code, status, title = "checksum-mismatch", 400, "The checksum does not match the bytes"


class TruncatedBody(StoreError):
    """The body ended before its announced length. Nothing was stored."""

    code, status, title, retryable = "truncated-body", 400, "The body ended early", True


class ProtocolMismatch(StoreError):
    code, status, title = "protocol-mismatch", 400, "The protocol versions do not fit"


class Unauthenticated(StoreError):
    """The cluster asks for a token, and the request has none that is genuine and still good."""

    code, status, title = "unauthenticated", 401, "A token is needed"


class Forbidden(StoreError):
    """The token is genuine, and does not allow this."""

    code, status, title = "forbidden", 403, "The token does not allow this"


class BucketNotFound(StoreError):
    code, status, title = "bucket-not-found", 404, "No such bucket"


class ObjectNotFound(StoreError):
    code, status, title = "object-not-found", 404, "No such object"


class ChunkNotFound(StoreError):
    """This node holds no copy of the chunk; another replica may."""

    code, status, title = "chunk-not-found", 404, "No such chunk on this node"


class SnapshotNotFound(StoreError):
    code, status, title = "snapshot-not-found", 404, "No such snapshot"


class JobNotFound(StoreError):
    code, status, title = "job-not-found", 404, "No such job"


class NodeNotFound(StoreError):
    code, status, title = "node-not-found", 404, "No such node"


class NodeExists(StoreError):
    code, status, title = "node-exists", 409, "The node is in the layout already"


class NodeInUse(StoreError):
    """The node holds data that others have yet to take over."""

    code, status, title = "node-in-use", 409, "The node still counts"


class NodeOverfilled(StoreError):
    """A change of the layout would give a node more than its disk takes."""

    code, status, title = "node-overfilled", 409, "A node would be overfilled"


class TooFewNodes(StoreError):
    """A change of the layout would leave fewer nodes than there are copies of a chunk."""

    code, status, title = "too-few-nodes", 409, "Too few nodes for all copies"


class TooFewZones(StoreError):
    """A change of the layout would put copies into one zone that are in several now."""

    code, status, title = "too-few-zones", 409, "Too few zones for all copies"


class LayoutsPending(StoreError):
    """Too many changes of the layout are not complete."""

    code, status, title = "layouts-pending", 409, "Earlier changes are not complete"


class BucketExists(StoreError):
    code, status, title = "bucket-exists", 409, "The bucket exists already"


class BucketNotEmpty(StoreError):
    code, status, title = "bucket-not-empty", 409, "The bucket is not empty"


class Conflict(StoreError):
    """A write that no precondition protected lost too many races in a row."""

    code, status, title, retryable = "conflict", 409, "Other writers were faster", True


class StaleAnchor(StoreError):
    """An upload took so long that its chunks are no longer held in place; they must be touched before it is committed."""

    code, status, title = "stale-anchor", 409, "The chunks must be touched again"


class CursorExpired(StoreError):
    """The revision that a listing began at has been compacted away; list again from the start."""

    code, status, title = "cursor-expired", 410, "The listing's revision is gone"


class SnapshotExists(StoreError):
    code, status, title = "snapshot-exists", 409, "The snapshot exists already"


class TooManySnapshots(StoreError):
    code, status, title = "too-many-snapshots", 409, "The bucket has as many snapshots as it may have"


class PreconditionFailed(StoreError):
    code, status, title = "precondition-failed", 412, "The condition does not hold"


class BodyTooLarge(StoreError):
    code, status, title = "body-too-large", 413, "The body is too large"


class InvalidRange(StoreError):
    code, status, title = "invalid-range", 416, "The range can't be satisfied"


class Busy(StoreError):
    """A bounded queue of the node is full; ``retry_after_s`` says when to come back."""

    code, status, title, retryable = "busy", 503, "The node is at its limit", True


class InternalError(StoreError):
    """A defect: an exception that nobody named. The node's log has its traceback."""

    code, status, title = "internal-error", 500, "The node failed"


class ChunkCorrupt(StoreError):
    """This node's copy failed its checksum. It is being repaired; another replica has the bytes."""

    code, status, title, retryable = "chunk-corrupt", 503, "This copy is corrupt", True


class NotEnoughReplicas(StoreError):
    """Fewer durable copies than the ack level asks for. The name was not committed."""

    code, status, title, retryable = "not-enough-replicas", 503, "Too few replicas answered", True


class AllReplicasFailed(StoreError):
    """No replica of a chunk gave its bytes; the message lists what each one said."""

    code, status, title, retryable = "all-replicas-failed", 503, "No replica could be read", True


class MetadataUnavailable(StoreError):
    code, status, title, retryable = "metadata-unavailable", 503, "The metadata engine does not answer", True


class MetadataFrozen(StoreError):
    """Nothing may be committed now: an operator moves the metadata, or a backup of it came back. Reads go on."""

    code, status, title, retryable = "metadata-frozen", 503, "Commits are frozen", True


class MetadataCorrupt(StoreError):
    """A record or manifest does not decode. No sweep goes on past it."""

    code, status, title = "metadata-corrupt", 500, "A record can't be read"


class EndpointUnreachable(StoreError):
    """Nothing answers there. The message says how the endpoint was configured."""

    code, status, title, retryable = "endpoint-unreachable", 503, "The endpoint does not answer", True


class DiskFailed(StoreError):
    code, status, title, retryable = "disk-failed", 503, "The disk reported an error", True


class DiskFull(StoreError):
    """The disk has no room above its reserve. Nothing was half-written; reads go on."""

    code, status, title = "disk-full", 507, "The disk is full"


class DeadlineExceeded(StoreError):
    code, status, title, retryable = "deadline-exceeded", 504, "The deadline passed", True


class Misconfigured(StoreError):
    """A setting is wrong; raised at start, before anything was touched."""

    code, status, title = "misconfigured", 500, "The configuration is wrong"


class ForeignPackage(StoreError):
    """A package named like one of ours, but of somebody else, is first on the import path."""

    code, status, title = "foreign-package", 500, "Another package has our name"


def to_problem(error: StoreError) -> dict[str, Any]:
    """The RFC 9457 problem document of `error`."""
    problem: dict[str, Any] = {
        "type": URN_PREFIX + error.code,
        "title": error.title,
        "status": error.status,
        "detail": error.message,
        "retryable": error.retryable,
    }
    if error.key is not None:
        problem["key"] = error.key
    if error.node_id is not None:
        problem["node_id"] = error.node_id
    if error.revision is not None:
        problem["revision"] = error.revision
    return problem


def from_problem(problem: dict[str, Any], *, node_id: str, retry_after_s: float | None = None) -> StoreError:
    """The error that `problem` describes; an unknown type becomes a plain `StoreError`.

    Parameters
    ----------
    problem : dict
        A decoded problem document.
    node_id : str
        Who sent it, for documents that do not say.
    """
    code = str(problem.get("type", "")).removeprefix(URN_PREFIX)
    error = _CLASSES.get(code, StoreError)(
        str(problem.get("detail") or problem.get("title") or "no detail given"),
        key=problem.get("key"),
        node_id=problem.get("node_id") or node_id,
        retry_after_s=retry_after_s,
    )
    revision = problem.get("revision")
    error.revision = revision if isinstance(revision, int) else None
    return error
