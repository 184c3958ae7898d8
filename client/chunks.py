"""Single chunks on single nodes: the client side of the data plane.

Every byte that arrives here is checked before it is handed on: a whole chunk against its reference, a range against the
segment checksums that the node stored with the chunk, beside the checksum of the whole that the reference has, too.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from typing_extensions import Buffer

from client.checksum import segment_checks, xxh3
from client.cluster import Cluster
from client.errors import (
    ChunkCorrupt,
    DeadlineExceeded,
    EndpointUnreachable,
    InvalidRequest,
    ProtocolMismatch,
    StoreError,
    from_problem,
)
from client.frames import encode_chunks
from client.manifest import Ref
from client.retry import Deadline
from client.transport import Response, Transport
from client.wire import (
    BATCH_GET_PATH,
    BATCH_PUT_PATH,
    CHECK_HEADER,
    SEGMENTS_HEADER,
    chunk_path,
    decode_json,
    encode_json,
    format_range,
    widen,
)

__all__ = ["ChunkClient", "Stored"]

MAX_REFS_PER_CALL = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """Which nodes hold a chunk durably after a PUT, and what the others said."""

    durable: tuple[str, ...]
    failed: dict[str, str]


class ChunkClient:
    """Puts, fetches and verifies chunks on the node that the caller names. Thread-safe."""

    def __init__(self, cluster: Cluster, transport: Transport) -> None:
        self._cluster = cluster
        self._transport = transport

    def put(
        self, node_id: str, ref: Ref, payload: Buffer, *, tee: Sequence[str] = (), timeout_s: float | None = None
    ) -> Stored:
        """Store a chunk on `node_id`, which forwards it to the nodes in `tee` meanwhile.

        Raises
        ------
        StoreError
            What the node answered, or that it did not. It may hold the chunk all the same.
        """
        query = f"?tee={','.join(tee)}" if tee else ""
        response = self._call(node_id, "PUT", chunk_path(ref.partition, ref.hex) + query, body=payload, timeout_s=timeout_s)
        stored = _stored(decode_json(response.body), node_id=node_id)
        for peer in stored.failed:
            self._cluster.failed(peer)
        return stored

    def put_many(
        self, node_id: str, chunks: Sequence[tuple[Ref, Buffer]], *, timeout_s: float | None = None
    ) -> list[StoreError | None]:
        """Store small chunks on `node_id` alone, within the bounds of `client.frames`.

        Returns
        -------
        list of StoreError or None
            For each chunk None if it is durable there, else what the node said of it.

        Raises
        ------
        StoreError
            What the node answered to all, or that it did not. It may hold chunks all the same.
        """
        response = self._call(node_id, "POST", BATCH_PUT_PATH, body=encode_chunks(chunks), timeout_s=timeout_s)
        answer = decode_json(response.body)
        told = answer.get("chunks") if isinstance(answer, dict) else None
        if not isinstance(told, list) or len(told) != len(chunks):
            raise ProtocolMismatch(f"node {node_id} was sent {len(chunks)} chunks: {str(answer)[:200]}", node_id=node_id)
        return [None if word == "durable" else _refusal(word, node_id=node_id) for word in told]

    def get_objects(self, node_id: str, names: Sequence[tuple[str, str]], *, timeout_s: float | None = None) -> bytes:
        """What `node_id` says of the objects of these (bucket, key): frames as `client.frames` has them, in this order."""
        body = encode_json({"items": names})
        headers = {"content-type": "application/json"}
        return self._call(node_id, "POST", BATCH_GET_PATH, body=body, headers=headers, timeout_s=timeout_s).body

    def fetch_into(
        self, node_id: str, ref: Ref, buffer: memoryview, *, start: int = 0, deadline: Deadline | None = None
    ) -> None:
        """Fill `buffer` (of bytes) with the chunk's bytes from `start` on, verified.

        Raises
        ------
        ChunkCorrupt
            The bytes that came do not match the reference. The buffer's contents are then worthless.
        ChunkNotFound
            The node has no copy.
        """
        end = start + len(buffer)
        if not 0 <= start <= end <= ref.size:
            raise InvalidRequest(f"bytes {start} to {end} of a chunk of {ref.size} bytes", key=str(ref))
        if start == end:
            return
        path = chunk_path(ref.partition, ref.hex)
        wide_start, wide_end = widen(start, end, size_bytes=ref.size)
        exact = (wide_start, wide_end) == (start, end)
        wide = buffer if exact else memoryview(bytearray(wide_end - wide_start))
        if wide_end - wide_start == ref.size:
            self._call(node_id, "GET", path, into=wide, deadline=deadline)
            sound = xxh3(wide) == ref.check
        else:
            headers = {"range": format_range(wide_start, wide_end)}
            response = self._call(node_id, "GET", path, headers=headers, into=wide, deadline=deadline)
            sound = _announced_check(response) == ref.check and _announced_segments(response) == segment_checks(wide)
        if not sound:
            raise ChunkCorrupt(
                f"chunk {ref}: the bytes that node {node_id} sent do not match the checksum", key=str(ref), node_id=node_id
            )
        if not exact:
            buffer[:] = wide[start - wide_start : end - wide_start]

    def verify(self, node_id: str, refs: Sequence[Ref]) -> list[str]:
        """Have the node re-hash its copies: ``ok``, ``missing`` or ``corrupt`` for each of `refs`.

        The node sets a corrupt copy aside and repairs it.
        """
        found: list[str] = []
        for first in range(0, len(refs), MAX_REFS_PER_CALL):
            part = refs[first : first + MAX_REFS_PER_CALL]
            body = encode_json({"chunks": [[ref.partition, ref.hex] for ref in part]})
            # Re-hashing reads every byte, so that the node may rightly be silent for longer.
            timeout_s = 30.0 + sum(ref.size for ref in part) / 50e6
            response = self._call(node_id, "POST", "/v1/chunks:verify", body=body, timeout_s=timeout_s)
            found.extend(_statuses(decode_json(response.body), count=len(part), node_id=node_id))
        return found

    def _call(self, node_id: str, method: str, path: str, **options: Any) -> Response:
        url = self._cluster.endpoint(node_id)
        try:
            response = self._transport.request(method, url, path, node_id=node_id, **options)
        except (EndpointUnreachable, DeadlineExceeded):
            self._cluster.failed(node_id)
            raise
        self._cluster.answered(node_id)
        return response


def _stored(answer: Any, *, node_id: str) -> Stored:
    try:
        failed = {str(peer): str(words) for peer, words in answer["failed"].items()}
        return Stored(durable=tuple(map(str, answer["durable"])), failed=failed)
    except (KeyError, TypeError, AttributeError) as exc:
        raise ProtocolMismatch(f"node {node_id} does not say who stored a chunk: {str(answer)[:200]}", node_id=node_id) from exc


def _refusal(word: Any, *, node_id: str) -> StoreError:
    if not isinstance(word, dict):
        raise ProtocolMismatch(f"node {node_id} says of a chunk {word!r:.100}, which is no problem", node_id=node_id)
    return from_problem(word, node_id=node_id)


def _statuses(answer: Any, *, count: int, node_id: str) -> list[str]:
    found = answer.get("status") if isinstance(answer, dict) else None
    if not isinstance(found, list) or len(found) != count:
        raise ProtocolMismatch(f"node {node_id} was asked about {count} chunks: {str(answer)[:200]}", node_id=node_id)
    return list(map(str, found))


def _announced_check(response: Response) -> int | None:
    try:
        return int(response.headers[CHECK_HEADER], 16)
    except (KeyError, ValueError):
        return None


def _announced_segments(response: Response) -> bytes | None:
    try:
        return b"".join(struct.pack("<Q", int(part, 16)) for part in response.headers[SEGMENTS_HEADER].split(","))
    except (KeyError, ValueError, struct.error):
        return None
