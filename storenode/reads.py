"""The record of an object, and with it the first bytes that its reader is about to ask for. Raw ASGI.

A client that knows an object by name needs its record before it can ask anybody for its chunks. If this node holds the chunk
in which the read begins, it sends the chunk's bytes along, the record in a header before them: the read of an object of one
chunk is then one exchange. The bytes are not verified here, no more than on the chunk routes: the client does that, with the
references in the record. What can't be sent along (the chunk is elsewhere or damaged, the record too long for a header) is
left out, and the client asks for it as if it had not asked here.

Metadata and small chunks are read in the event loop where that needs no waiting, else in a thread.
"""

from __future__ import annotations

import os
import re
from collections import OrderedDict
from dataclasses import dataclass
from urllib.parse import parse_qsl

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from client.catalog import CONSISTENCY_LEVELS, Consistency
from client.checksum import SEGMENT_BYTES
from client.errors import ChunkCorrupt, ChunkNotFound, InvalidRequest, StoreError
from client.manifest import Ref
from client.record import ObjectInfo
from client.wire import RECORD_HEADER, encode_header, encode_json, widen
from storenode.bodies import BodySender
from storenode.budget import Budget
from storenode.grants import Grant
from storenode.metastore import WouldWait
from storenode.node import Node
from storenode.outgoing import open_outgoing, set_aside
from storenode.problems import problem_response
from storenode.requests import object_name

__all__ = ["BUCKETS_PATH", "RECORDS_PATH", "RecordReads"]

BUCKETS_PATH = "/v1/buckets/"
RECORDS_PATH = "/v1/records/"
# Longer ones (of many references, or with much metadata) go as the body.
_MAX_HEADER_BYTES = 8 * 1024
_MAX_REMEMBERED = 4096
_RANGE = re.compile(rb"start=([0-9]{1,18})(?:&end=([0-9]{1,18}))?")  # What nearly all reads ask.
_MAX_VERSION = 2**63 - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class _Asked:
    """What the query says.

    Attributes
    ----------
    seen : int
        For ``session``: the highest revision that the client knows of.
    start, end : int
        The bytes that will be read; None as `start`: none.
    most : int
        How many of them may be sent along.
    """

    version: int | None = None
    snapshot: str | None = None
    consistency: Consistency = "strong"
    seen: int = 0
    start: int | None = None
    end: int = _MAX_VERSION
    most: int = _MAX_VERSION


class RecordReads:
    """The ASGI application for ``GET /v1/records/{bucket}/{key}``.

    Parameters
    ----------
    node : Node
        Names and chunks.
    reads : Budget
        Chunks that are being sent.
    """

    def __init__(self, node: Node, *, reads: Budget) -> None:
        self._node = node
        self._reads = reads
        self._remembered: OrderedDict[tuple[str, str, int], bytes] = OrderedDict()

    def answer_now(self, path: str, query: bytes, grant: Grant) -> tuple[bytes, bytes | bytearray] | None:
        """The answer about an object or a bucket if it needs no waiting: a record for the header (or none), and the body.

        None, and `StoreError`s too, are for the usual way to answer; so is all that `grant` does not allow.
        """
        try:
            if path.startswith(BUCKETS_PATH):
                bucket = path.removeprefix(BUCKETS_PATH)
                if query or not grant.sees(bucket):
                    return None
                return b"", encode_json(self._node.catalog.bucket_now(bucket).to_json())
            (bucket, key), asked = object_name(path), _parse(query)
            if asked.version is not None or asked.snapshot is not None or not grant.allows("read", bucket, key):
                return None
            info = self._node.catalog.lookup_now(bucket, key)
        except WouldWait:
            return None
        encoded = self._encoded(info)
        ref, _, _ = _first_chunk(info, asked, encoded)
        if ref is None:
            return b"", encoded
        payload = self._node.open_chunks.read_now(ref) if ref.size <= SEGMENT_BYTES else None
        return None if payload is None else (encoded, payload)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        try:
            (bucket, key), asked = object_name(scope["path"]), _parse(scope["query_string"])
            info = await self._lookup(bucket, key, asked)
            encoded = self._encoded(info)
            ref, low, high = _first_chunk(info, asked, encoded)
            if ref is not None:
                if ref.size <= SEGMENT_BYTES:
                    await self._send_small(send, encoded, ref)
                else:
                    with self._reads.take():
                        await self._send_large(send, encoded, ref, *widen(low, high, size_bytes=ref.size))
                return
            response = Response(encoded, media_type="application/json")
        except StoreError as error:
            response = problem_response(error, node_id=self._node.node_id)
        await response(scope, receive, send)

    async def _lookup(self, bucket: str, key: str, asked: _Asked) -> ObjectInfo:
        if asked.version is None and asked.snapshot is None:
            try:
                return self._node.catalog.lookup_now(bucket, key)
            except WouldWait:
                pass
        lookup, run = self._node.catalog.lookup, self._node.pools.meta.run
        return await run(
            lookup,
            bucket,
            key,
            version=asked.version,
            snapshot=asked.snapshot,
            consistency=asked.consistency,
            seen=asked.seen,
        )

    def _encoded(self, info: ObjectInfo) -> bytes:
        """The record as it is sent, remembered for those that are read again and again: a version never changes."""
        name = info.bucket, info.key, info.version
        encoded = self._remembered.get(name)
        if encoded is None:
            encoded = self._remembered[name] = encode_header(info.to_json())
            if len(self._remembered) > _MAX_REMEMBERED:
                self._remembered.popitem(last=False)
        return encoded

    async def _send_small(self, send: Send, header: bytes, ref: Ref) -> None:
        payload = self._node.open_chunks.read_now(ref)
        if payload is None:
            payload = await self._read_in_thread(ref)
        await send(_start(header, {}, len(payload)))
        await send({"type": "http.response.body", "body": payload, "more_body": False})

    async def _read_in_thread(self, ref: Ref) -> bytearray:
        """The whole payload, nothing if this node has no copy that could be right."""
        withdrawn = self._node.store.num_withdrawn
        try:
            payload, fd = await self._node.pools.disk.run(_read_small, self._node, ref)
        except ChunkNotFound:
            return bytearray()
        except ChunkCorrupt:
            await set_aside(self._node, ref.partition, ref.id)
            return bytearray()
        self._node.open_chunks.keep(ref, fd, withdrawn=withdrawn)
        return payload

    async def _send_large(self, send: Send, header: bytes, ref: Ref, start: int, end: int) -> None:
        try:
            chunk = await open_outgoing(self._node, ref.partition, ref.id)
        except (ChunkNotFound, ChunkCorrupt):
            await send(_start(header, {}, 0))
            await send({"type": "http.response.body", "body": b"", "more_body": False})
            return
        checks = {} if (start, end) == (0, chunk.size) else chunk.checks(start, end)
        await send(_start(header, checks, end - start))
        sender = BodySender(send, stall_timeout_s=self._node.config.stall_timeout_s)
        await chunk.send(sender, start, end)
        await sender.end()


def _start(record: bytes, checks: dict[str, str], size_bytes: int) -> dict[str, object]:
    headers = [(b"content-length", str(size_bytes).encode()), (RECORD_HEADER.encode(), record)]
    headers += [(name.encode(), value.encode()) for name, value in checks.items()]
    return {"type": "http.response.start", "status": 200, "headers": headers}


def _read_small(node: Node, ref: Ref) -> tuple[bytearray, int]:
    """The payload of a small chunk, unverified, and a descriptor of its file."""
    with node.store.open_chunk(ref.partition, ref.id) as chunk:
        payload = bytearray(ref.size)
        chunk.pread_into(payload, offset=0)
        return payload, os.dup(chunk.fd)


def _first_chunk(info: ObjectInfo, asked: _Asked, encoded: bytes) -> tuple[Ref | None, int, int]:
    """The chunk in which the read begins, and which of its bytes are read; None if they are not to be sent along."""
    if asked.start is not None and len(encoded) <= _MAX_HEADER_BYTES:
        found = info.record.content.chunk_at(asked.start)
        if found is not None:
            ref, offset = found
            low, high = asked.start - offset, min(asked.end - offset, ref.size)
            if low < high <= low + asked.most:
                return ref, low, high
    return None, 0, 0


def _parse(query: bytes) -> _Asked:
    values: dict[str, int | str] = {}
    if (match := _RANGE.fullmatch(query)) is not None:
        return _Asked(start=int(match[1]), end=_MAX_VERSION if match[2] is None else int(match[2]))
    for name, text in parse_qsl(query.decode("latin-1"), keep_blank_values=True):
        if name in ("version", "seen", "start", "end", "most"):
            if not (text.isascii() and text.isdecimal() and int(text) <= _MAX_VERSION):
                raise InvalidRequest(f"{name}={text[:40]!r}: expected a whole number from 0 to {_MAX_VERSION}")
            values[name] = int(text)
        elif name == "snapshot":
            values[name] = text
        elif name == "consistency":
            if text not in CONSISTENCY_LEVELS:
                raise InvalidRequest(f"consistency={text[:40]!r}: use one of {', '.join(CONSISTENCY_LEVELS)}")
            values[name] = text
    return _Asked(**values)  # type: ignore[arg-type]
