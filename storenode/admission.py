"""Which records a node commits.

A record comes from a client that has stored the chunks itself, so it is checked as far as that can be done without looking
at chunks: that it is well-formed, and that its references can exist in this cluster. Everything that a later reader, repair
or reply would stumble over is refused here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from client.catalog import Commit, Proof, Source
from client.cluster import Anchor
from client.errors import InvalidRequest, MetadataCorrupt
from client.manifest import Ref
from client.record import ACK_LEVELS, Condition, ObjectRecord
from storenode.grants import Grant
from storenode.node import Node
from storenode.requests import check_headers, check_write_id

__all__ = ["checked_write"]

_MAX_REPLICAS = 16
_PROOFS: Mapping[str, type[Anchor] | type[Source]] = {"anchor": Anchor, "source": Source}


def checked_write(
    value: Any, node: Node, *, name: tuple[str, str], condition: Condition, grant: Grant, num_partitions: int
) -> Commit:
    """The write that ``{"record", "anchor" or "source"}`` asks for; raises `InvalidRequest`, or `Forbidden` for a source."""
    bucket, key = name
    if not isinstance(value, dict) or "record" not in value:
        raise InvalidRequest(f"expected an object with record and anchor or source, found {value!r:.100}", key="/".join(name))
    record = _checked_record(value["record"], node, num_partitions=num_partitions, key="/".join(name))
    try:
        proofs: list[Proof] = [kind.from_json(value[member]) for member, kind in _PROOFS.items() if member in value]
    except MetadataCorrupt as exc:
        raise InvalidRequest(exc.message, key="/".join(name)) from exc
    if len(proofs) > 1 or (not proofs and record.content.size):
        raise InvalidRequest(
            "a record says why its chunks are there: by the anchor of its upload, or by the source that it shares them with; "
            f"found {', '.join(_PROOFS) if proofs else 'neither'}",
            key="/".join(name),
        )
    proof = proofs[0] if proofs else None
    if isinstance(proof, Source):
        grant.require("read", proof.bucket, proof.key)
    return Commit(bucket=bucket, key=key, record=record, condition=condition, proof=proof)


def _checked_record(value: Any, node: Node, *, num_partitions: int, key: str) -> ObjectRecord:
    """The record in `value`; raises `InvalidRequest` for one that could not have come from a right upload."""
    if not isinstance(value, dict):
        raise InvalidRequest(f"expected a record as a JSON object, found {value!r:.100}", key=key)
    try:
        record = ObjectRecord.from_json(value)
    except (MetadataCorrupt, OverflowError) as exc:
        raise InvalidRequest(f"the record in the body is malformed: {exc}", key=key) from exc
    check_write_id(record.write_id)
    check_headers(record.metadata, content_type=record.content_type)
    content = record.content
    refs = content.refs if content.manifest is None else (content.manifest,)
    wrong = next((ref for ref in refs if not _may_exist(ref, node, num_partitions=num_partitions)), None)
    if wrong is not None:
        raise InvalidRequest(
            f"reference {wrong} of {wrong.size} bytes: chunks here have 1 to {node.config.max_chunk_bytes} bytes and lie in "
            f"partitions 0 to {num_partitions - 1}",
            key=key,
        )
    faults = {
        "tombstone": record.tombstone,
        "ack": record.ack not in ACK_LEVELS,
        "replicas": not 1 <= record.replicas <= _MAX_REPLICAS,
        "created_s": not math.isfinite(record.created_s),
        "size": content.size < 0 or (content.manifest is not None and content.size == 0),
        "digest": len(content.digest) != 64 or not set(content.digest) <= set("0123456789abcdef"),
        "refs and manifest": content.manifest is not None and bool(value["content"].get("refs")),
    }
    named = [name for name, is_wrong in faults.items() if is_wrong]
    if named:
        raise InvalidRequest(f"the record in the body is malformed: {', '.join(named)}", key=key)
    return record


def _may_exist(ref: Ref, node: Node, *, num_partitions: int) -> bool:
    return ref.partition < num_partitions and 0 < ref.size <= node.config.max_chunk_bytes
