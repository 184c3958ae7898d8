"""What a request says: the names in its path, its conditions, its headers and its JSON, all checked here once.

Names are taken from the path as it was sent (`storenode.app` routes by that). The server's decoded path has lost which
slashes were data and has replacement characters where bytes were no UTF-8, so that two different keys could become one.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping
from typing import Annotated, Any
from urllib.parse import quote, unquote, unquote_to_bytes

from fastapi import Depends, Path, Request
from starlette.datastructures import Headers

from client.errors import BodyTooLarge, InvalidName, InvalidRequest
from client.names import MAX_KEY_BYTES, check_bucket, check_key
from client.record import Condition
from client.wire import EPOCH_HEADER, MAX_EPOCH, META_PREFIX, WRITE_ID_HEADER, decode_json
from client.write_id import new_write_id
from storenode.bodies import BodyReceiver
from storenode.budget import Budget
from storenode.node import Node

__all__ = [
    "BucketName",
    "NodeOf",
    "ObjectName",
    "TransfersOf",
    "announced_bytes",
    "bucket_name",
    "check_headers",
    "check_write_id",
    "condition_of",
    "epoch_of",
    "etag_matches",
    "if_match_of",
    "json_body",
    "json_of_body",
    "metadata_headers",
    "metadata_of",
    "object_name",
    "whole_body",
    "write_id_of",
]

_ETAG = re.compile(r'"?([A-Za-z0-9_-]{1,64})"?')
_WRITE_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
_METADATA_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")
# What a metadata value shows as it is: printable ASCII, but for the sign that begins an encoded byte.
_PLAIN = "".join(chr(code) for code in range(0x20, 0x7F)).replace("%", "")
_CONTENT_TYPE = re.compile(r"[\x21-\x7e][\x20-\x7e]{0,255}")


async def _node_of(request: Request) -> Node:
    node: Node = request.app.state.node
    return node


async def _transfers_of(request: Request) -> Budget:
    transfers: Budget = request.app.state.transfers
    return transfers


# What the path parameters look like is told here and not checked: the names are taken from the path themselves.
_Bucket = Annotated[
    str, Path(description="Name of a bucket", json_schema_extra={"pattern": "^[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]$"})
]
_Key = Annotated[
    str,
    Path(
        description="Key of an object, percent-encoded UTF-8; it may hold slashes",
        json_schema_extra={"minLength": 1, "maxLength": MAX_KEY_BYTES},
    ),
]


async def _bucket_name(request: Request, bucket: _Bucket) -> str:
    return bucket_name(request.scope["path"])


async def _object_name(request: Request, bucket: _Bucket, key: _Key) -> tuple[str, str]:
    return object_name(request.scope["path"])


NodeOf = Annotated[Node, Depends(_node_of)]
TransfersOf = Annotated[Budget, Depends(_transfers_of)]
BucketName = Annotated[str, Depends(_bucket_name)]
ObjectName = Annotated[tuple[str, str], Depends(_object_name)]


def bucket_name(path: str) -> str:
    """The bucket in the path ``/v1/.../{bucket}`` as it was sent. Raises `InvalidName`."""
    return check_bucket(_segment(path, 3))


def object_name(path: str) -> tuple[str, str]:
    """Bucket and key in the path ``/v1/.../{bucket}/{key}`` as it was sent. Raises `InvalidName`."""
    return bucket_name(path), check_key(_segment(path, 4))


def _segment(path: str, index: int) -> str:
    """Part `index` of the path, decoded by itself; the key keeps its slashes."""
    segment = "".join(path.split("/", 4)[index : index + 1])
    try:
        return unquote_to_bytes(segment).decode()
    except UnicodeDecodeError as exc:
        raise InvalidName(f"name {segment[:200]!r} is not percent-encoded UTF-8: {exc.reason}") from exc


def condition_of(headers: Headers) -> Condition:
    """If-Match and If-None-Match of a write, each ``*`` or one ETag."""
    return Condition(if_match=_one_etag(headers, "if-match"), if_none_match=_one_etag(headers, "if-none-match"))


def _one_etag(headers: Headers, name: str) -> str | None:
    values = headers.getlist(name)
    if not values:
        return None
    if values == ["*"]:
        return "*"
    match = _ETAG.fullmatch(values[0].strip())
    if match is None or len(values) > 1:
        raise InvalidRequest(f'{name}: {", ".join(values)[:100]}: expected * or one ETag in double quotes, such as "1f0c"')
    return match.group(1)


def if_match_of(headers: Headers) -> str | None:
    """If-Match of a read."""
    return _one_etag(headers, "if-match")


def etag_matches(header: str, etag: str) -> bool:
    """Whether the If-None-Match of a read names `etag`: weakly compared, in a list or by ``*`` (RFC 9110, 13.1.2)."""
    tags = (tag.strip().removeprefix("W/").strip('"') for tag in header.split(","))
    return any(tag in ("*", etag) for tag in tags)


def announced_bytes(headers: Headers) -> int | None:
    """The body's length where the client says it; raises `InvalidRequest` for no number."""
    announced = headers.get("content-length")
    if announced is not None and not announced.isdecimal():
        raise InvalidRequest(f"Content-Length {announced[:40]!r}: expected a number of bytes")
    return None if announced is None else int(announced)


def epoch_of(headers: Headers) -> int:
    """The epoch of garbage collection that chunks are tagged with; raises `InvalidRequest` if none is given."""
    text = headers.get(EPOCH_HEADER)
    if text is None or not text.isdecimal() or not text.isascii() or int(text) > MAX_EPOCH:
        raise InvalidRequest(
            f"{EPOCH_HEADER}: expected a number up to {MAX_EPOCH}, found {text!r:.40}; GET /v1/cluster tells the epoch, and "
            "without it a chunk could be collected before it has a name"
        )
    return int(text)


def write_id_of(headers: Headers) -> str:
    """The write id of a request; a fresh one for a client that sends none, whose retries then count as new writes."""
    given = headers.get(WRITE_ID_HEADER)
    return new_write_id() if given is None else check_write_id(given)


def check_write_id(write_id: str) -> str:
    """Return `write_id` if it may serve as a metadata key and as an ETag, else raise `InvalidRequest`."""
    if not _WRITE_ID.fullmatch(write_id):
        raise InvalidRequest(f"write id {write_id[:100]!r}: use 1 to 64 of a-z, A-Z, 0-9, '_' and '-'")
    return write_id


def metadata_of(headers: Headers) -> dict[str, str]:
    """The object's metadata in ``x-forebay-meta-NAME`` headers; values are percent-encoded UTF-8."""
    found = {}
    for name, value in headers.items():
        if name.startswith(META_PREFIX):
            try:
                found[name.removeprefix(META_PREFIX)] = unquote(value, errors="strict")
            except UnicodeDecodeError as exc:
                raise InvalidRequest(f"{name}: {value[:100]!r} is not percent-encoded UTF-8") from exc
    return found


def metadata_headers(metadata: Mapping[str, str]) -> dict[str, str]:
    """The inverse of `metadata_of`."""
    # A header loses blanks at its ends, so a value that has some there is encoded whole.
    return {META_PREFIX + name: quote(value, safe=_PLAIN if value == value.strip() else "") for name, value in metadata.items()}


def check_headers(metadata: Mapping[str, str], *, content_type: str) -> None:
    """Raise `InvalidRequest` unless these can be sent as headers."""
    for name in metadata:
        if not _METADATA_NAME.fullmatch(name):
            raise InvalidRequest(f"metadata name {name[:100]!r}: use 1 to 128 letters, digits, '.', '_' and '-'")
    if not _CONTENT_TYPE.fullmatch(content_type):
        raise InvalidRequest(f"content type {content_type[:100]!r}: expected up to 256 printable ASCII characters")


async def whole_body(request: Request, *, max_bytes: int) -> bytes:
    """A request's body; raises `BodyTooLarge` if it is longer than `max_bytes`, `Busy` if there is no room for it."""
    announced = announced_bytes(request.headers)
    if announced is not None and announced > max_bytes:
        raise BodyTooLarge(f"a body of {announced} bytes; this request takes {max_bytes}")
    node: Node = request.app.state.node
    documents: Budget = request.app.state.documents
    receiver = BodyReceiver(request.receive, stall_timeout_s=node.config.stall_timeout_s)
    answering: asyncio.Task[object] | None = asyncio.current_task()
    assert answering is not None
    with documents.take(max_bytes if announced is None else announced) as room:
        room.keep_until([answering])  # What is made of the body needs memory, too.
        return await receiver.whole(max_bytes=max_bytes)


async def json_body(request: Request, *, max_bytes: int, default: Any = None) -> Any:
    """The JSON in a request's body; `default`, if there is one, for an empty body. Raises `BodyTooLarge`, `InvalidRequest`."""
    body = await whole_body(request, max_bytes=max_bytes)
    return default if not body and default is not None else json_of_body(body)


def json_of_body(body: bytes) -> Any:
    """The JSON in `body`; raises `InvalidRequest`."""
    try:
        return decode_json(body)
    except RecursionError as exc:
        raise InvalidRequest("the JSON in the body is nested too deeply") from exc
