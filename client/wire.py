"""How the contract looks on HTTP: paths, header names, ranges, problem documents.

Both sides import this module, so a path or a header is spelled once. Every message carries the protocol version; a
request without one (curl) is taken as current.
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import quote, urlsplit

from client.checksum import SEGMENT_BYTES, Announced
from client.errors import (
    Busy,
    InvalidRange,
    InvalidRequest,
    Misconfigured,
    ProtocolMismatch,
    StoreError,
    from_problem,
    to_problem,
)

__all__ = [
    "BATCH_GET_PATH",
    "BATCH_PUT_PATH",
    "CHECK_HEADER",
    "CHUNKS_GET_PATH",
    "EPOCH_HEADER",
    "MAX_EPOCH",
    "META_PREFIX",
    "PROBLEM_TYPE",
    "PROTOCOL",
    "PROTOCOL_HEADER",
    "RECORD_HEADER",
    "SEGMENTS_HEADER",
    "TIMEOUT_HEADER",
    "VERSION_HEADER",
    "WRITE_ID_HEADER",
    "announced_checks",
    "check_protocol",
    "chunk_path",
    "decode_json",
    "encode_header",
    "encode_json",
    "error_of",
    "format_range",
    "object_path",
    "parse_endpoint",
    "parse_range",
    "record_path",
    "widen",
]

PROTOCOL = 1
PROTOCOL_HEADER = "x-forebay-protocol"
CHECK_HEADER = "x-forebay-check"
SEGMENTS_HEADER = "x-forebay-segment-checks"
RECORD_HEADER = "x-forebay-record"
WRITE_ID_HEADER = "x-forebay-write-id"
VERSION_HEADER = "x-forebay-version"
EPOCH_HEADER = "x-forebay-epoch"  # Of garbage collection: what a chunk that is stored or touched is tagged with.
MAX_EPOCH = 2**30 - 1  # Of a tag that can be told from a time of the clock.
TIMEOUT_HEADER = "x-forebay-timeout-ms"  # The time that the client has left for the whole request.
BATCH_GET_PATH = "/v1/objects:batchGet"
BATCH_PUT_PATH = "/v1/chunks:batchPut"
CHUNKS_GET_PATH = "/v1/chunks:batchGet"
META_PREFIX = "x-forebay-meta-"
PROBLEM_TYPE = "application/problem+json"
_RANGE = re.compile(r"bytes=([0-9]{0,18})-([0-9]{0,18})")


def check_protocol(version: str | None) -> None:
    """Raise `ProtocolMismatch` unless `version` (the header's text) is one that this release serves."""
    if version is not None and version not in (str(PROTOCOL), str(PROTOCOL - 1)):
        raise ProtocolMismatch(f"this side serves protocol {PROTOCOL - 1} and {PROTOCOL}, the other speaks {version!r}")


def parse_endpoint(url: str) -> tuple[str, int]:
    """Host and port of a node's address, ``http://HOST:PORT``; raises `Misconfigured`."""
    try:
        parts = urlsplit(url)
        more = "@" in parts.netloc or parts.path.rstrip("/") or parts.query or parts.fragment
        if parts.scheme == "http" and parts.hostname and not more:
            return parts.hostname, parts.port or 80
    except ValueError:  # no number as a port, or half of an IPv6 address
        pass
    shown = url.rpartition("@")[2]  # Before it there would be a password.
    raise Misconfigured(f"endpoint {shown!r}: expected http://HOST:PORT, such as http://127.0.0.1:7070 or http://[::1]:7070")


def chunk_path(partition: int, chunk_hex: str) -> str:
    """Path of a chunk on a node."""
    return f"/v1/chunks/{partition}/{chunk_hex}"


def object_path(bucket: str, key: str) -> str:
    """Path of an object's bytes."""
    return f"/v1/objects/{bucket}/{quote(key, safe='/')}"


def record_path(bucket: str, key: str) -> str:
    """Path of an object's record."""
    return f"/v1/records/{bucket}/{quote(key, safe='/')}"


def encode_json(value: Any) -> bytes:
    """`value` as compact UTF-8 JSON."""
    # Half of a character has no UTF-8, but JSON has an escape for it, which Python writes just so.
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode(errors="backslashreplace")


def encode_header(value: Any) -> bytes:
    """`value` as compact JSON in ASCII, which a header can hold."""
    return json.dumps(value, separators=(",", ":")).encode()


def decode_json(body: bytes | str) -> Any:
    """The JSON value in `body`; raises `InvalidRequest`."""
    try:
        return json.loads(body)
    except ValueError as exc:
        raise InvalidRequest(f"expected JSON, found {body[:60]!r}: {exc}") from exc


def error_of(status: int, headers: Mapping[str, str], body: bytes, *, node_id: str) -> StoreError:
    """The error in a response that is no success."""
    try:
        problem = json.loads(body)
    except ValueError:
        problem = None
    if not isinstance(problem, dict) or "type" not in problem:
        problem = _unnamed_problem(status, body)
    return from_problem(problem, node_id=node_id, retry_after_s=_retry_after_s(headers))


def _retry_after_s(headers: Mapping[str, str]) -> float | None:
    """``Retry-After`` (RFC 9110, 10.2.3); None without a sensible one."""
    told = headers.get("retry-after", "")
    if told.isdecimal():
        return float(told)
    try:
        # A proxy may name a moment. It counts from the proxy's own time, because nobody knows whose clock is right.
        wait = parsedate_to_datetime(told) - parsedate_to_datetime(headers.get("date", ""))
        return max(0.0, wait.total_seconds())
    except (ValueError, TypeError):  # no date, or only one of the two has a time zone
        return None


def _unnamed_problem(status: int, body: bytes) -> dict[str, Any]:
    """What a response means that no route of ours wrote: a proxy's, or the server's own when it is overloaded."""
    said = f"status {status}: {body[:200].decode(errors='replace') or 'an empty body'}"
    if status in (429, 502, 503, 504):
        return to_problem(Busy(said))
    return to_problem(InvalidRequest(said) if 400 <= status < 500 else StoreError(said))


def announced_checks(headers: Mapping[str, str]) -> Announced:
    """What a node says of the chunk of which it sends bytes."""
    try:
        check = int(headers[CHECK_HEADER], 16)
        words = headers.get(SEGMENTS_HEADER, "")
        return Announced(check=check, segment_checks=b"".join(struct.pack("<Q", int(word, 16)) for word in words.split(",")))
    except (KeyError, ValueError, struct.error):
        return Announced()


def parse_range(header: str | None, *, size_bytes: int) -> tuple[int, int] | None:
    """The range that a ``Range`` header asks of `size_bytes`, as start and exclusive end; None without a header.

    Raises
    ------
    InvalidRange
        For a malformed header, several ranges, or a start past the end (RFC 9110, section 14).
    """
    if header is None:
        return None
    match = _RANGE.fullmatch(header.strip())
    if match is None or match.group(1) == match.group(2) == "":
        raise InvalidRange(f"Range {header!r}: use one range, bytes=START-END, bytes=START- or bytes=-LENGTH")
    first, last = match.groups()
    if first == "":
        start, end = max(0, size_bytes - int(last)), size_bytes
    else:
        start, end = int(first), min(int(last) + 1, size_bytes) if last else size_bytes
        if last and int(last) < int(first):
            raise InvalidRange(f"Range {header!r} ends before it starts")
    if start >= end:
        raise InvalidRange(f"Range {header!r} begins past the end of {size_bytes} bytes")
    return start, end


def format_range(start: int, end: int) -> str:
    """``Range`` header for bytes ``[start, end)``."""
    return f"bytes={start}-{end - 1}"


def widen(start: int, end: int, *, size_bytes: int) -> tuple[int, int]:
    """``[start, end)`` widened to whole checksum segments of a chunk of `size_bytes`."""
    return start - start % SEGMENT_BYTES, min(-(-end // SEGMENT_BYTES) * SEGMENT_BYTES, size_bytes)
