"""A node in memory: its chunks in a dictionary, the faults that a test gives it, and what it answers about them."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from client.checksum import blake3_id, segment_checks, xxh3
from client.errors import (
    ChecksumMismatch,
    ChunkNotFound,
    DeadlineExceeded,
    DiskFull,
    EndpointUnreachable,
    StoreError,
    to_problem,
)
from client.frames import INFO, PROBLEM, chunk_head, document_frame
from client.manifest import Ref
from client.transport import Response
from client.wire import CHECK_HEADER, SEGMENTS_HEADER, parse_range
from tests.support.fake_store import FakeCatalog

__all__ = ["FakeNode", "Fault", "chunk_frame", "get_chunk", "object_frame", "put_small", "verify"]

Fault = Literal["down", "silent", "busy", "full", "missing", "corrupt", "swapped", "short", "drops replies", "no metadata"]


@dataclass(slots=True)
class FakeNode:
    """A node: its chunks by (partition, id), what is wrong with it, and what it was asked.

    Faults: ``down`` refuses connections, ``silent`` never answers, ``busy`` turns everything away, ``full`` has no room,
    ``missing`` finds no chunk, ``corrupt`` flips a bit of what it sends, ``swapped`` sends other bytes with checksums that fit
    them, ``short`` sends too little, ``drops replies`` does what it is asked and breaks the connection, ``no metadata``
    knows no names.
    """

    id: str
    chunks: dict[tuple[int, bytes], bytes] = field(default_factory=dict)
    faults: set[Fault] = field(default_factory=set)
    requests: list[str] = field(default_factory=list)
    before: Callable[[str], None] = lambda request: None

    @property
    def url(self) -> str:
        return f"http://{self.id}:7070"

    def check_reachable(self) -> None:
        if "down" in self.faults:
            raise EndpointUnreachable(f"{self.id} refuses", node_id=self.id)
        if "silent" in self.faults:
            raise DeadlineExceeded(f"{self.id} was silent", node_id=self.id)

    def store(self, key: tuple[int, bytes], payload: bytes) -> None:
        self.check_reachable()
        if "full" in self.faults:
            raise DiskFull(f"{self.id} is full", node_id=self.id)
        if blake3_id(payload) != key[1]:
            raise ChecksumMismatch("the bytes do not have this id", node_id=self.id)
        self.chunks[key] = payload


def get_chunk(node: FakeNode, key: tuple[int, bytes], *, byte_range: str | None) -> Response:
    if key not in node.chunks or "missing" in node.faults:
        raise ChunkNotFound(f"{node.id} has no such chunk", node_id=node.id)
    chunk = node.chunks[key]
    if "swapped" in node.faults:
        chunk = bytes(byte ^ 1 for byte in chunk)
    start, end = parse_range(byte_range, size_bytes=len(chunk)) or (0, len(chunk))
    sent = bytearray(chunk[start:end])
    checks = segment_checks(sent)
    if "corrupt" in node.faults:
        sent[len(sent) // 2] ^= 0x10
    if "short" in node.faults:
        del sent[-1]
    words = (f"{check:016x}" for check in struct.unpack(f"<{len(checks) // 8}Q", checks))
    headers = {CHECK_HEADER: f"{xxh3(chunk):016x}", SEGMENTS_HEADER: ",".join(words)}
    return Response(status=200 if byte_range is None else 206, headers=headers, body=bytes(sent), size=len(sent))


def chunk_frame(node: FakeNode, ref: Ref) -> bytes:
    try:
        return chunk_head(ref) + get_chunk(node, (ref.partition, ref.id), byte_range=None).body
    except StoreError as error:
        return document_frame(PROBLEM, to_problem(error))


def put_small(node: FakeNode, partition: int, chunk_id: bytes, payload: memoryview) -> str | dict[str, Any]:
    try:
        node.store((partition, chunk_id), bytes(payload))
    except StoreError as error:
        return to_problem(error)
    return "durable"


def object_frame(node: FakeNode, catalog: FakeCatalog, bucket: str, key: str) -> bytes:
    try:
        info = catalog.lookup(bucket, key)
    except StoreError as error:
        return document_frame(PROBLEM, to_problem(error))
    refs = info.record.content.refs
    held = node.chunks.get((refs[0].partition, refs[0].id)) if len(refs) == 1 and "missing" not in node.faults else None
    if held is None:
        return document_frame(INFO, info.to_json())
    sent = bytearray(held)
    if "corrupt" in node.faults:
        sent[len(sent) // 2] ^= 0x10
    return chunk_head(refs[0]) + sent


def verify(node: FakeNode, partition: int, chunk_hex: str) -> str:
    held = node.chunks.get((partition, bytes.fromhex(chunk_hex)))
    return "missing" if held is None else "ok" if blake3_id(held).hex() == chunk_hex else "corrupt"
