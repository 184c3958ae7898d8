"""Single chunks on single nodes: the client side of the data plane.

Every byte that arrives here is checked before it is handed on: a whole chunk against its reference, a range against the
segment checksums that the node stored with the chunk, beside the checksum of the whole that the reference has, too.

A node on this host is read through the descriptors that it passes (`client.colocated`). If that way itself fails, the same
read goes over HTTP at once; what the node says of the chunk is the same on both ways.
"""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import compress
from types import TracebackType
from typing import Any

from typing_extensions import Buffer

from client.checksum import ReadCheck, xxh3
from client.cluster import Cluster
from client.colocated import Colocated, NotColocated
from client.errors import (
    ChunkCorrupt,
    DeadlineExceeded,
    EndpointUnreachable,
    InvalidRequest,
    ProtocolMismatch,
    StoreError,
    from_problem,
)
from client.frames import CHUNK, PROBLEM, encode_chunks, encode_refs, frames
from client.manifest import REF_BYTES, Ref
from client.retry import Deadline
from client.transport import Response, Sending, Transport
from client.wire import (
    BATCH_GET_PATH,
    BATCH_PUT_PATH,
    CHUNKS_GET_PATH,
    EPOCH_HEADER,
    announced_checks,
    chunk_path,
    decode_json,
    encode_json,
    format_range,
    widen,
)

__all__ = ["ChunkClient", "ChunkSending", "Reads", "Stored"]

MAX_REFS_PER_CALL = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """Which nodes hold a chunk durably after a PUT, and what the others said."""

    durable: tuple[str, ...]
    failed: dict[str, str]


@dataclass(slots=True, kw_only=True)
class Reads:
    """What was fetched by which way, sound or not.

    Attributes
    ----------
    local, local_bytes : int
        From nodes on this host, past the network, and the bytes that were read for it.
    http, http_bytes : int
        Over HTTP.
    local_failures : int
        Of the latter: those that were tried locally before.
    """

    local: int = 0
    local_bytes: int = 0
    http: int = 0
    http_bytes: int = 0
    local_failures: int = 0


class ChunkClient:
    """Puts, fetches and verifies chunks on the node that the caller names. Thread-safe.

    Parameters
    ----------
    cluster : Cluster
        Where nodes listen, and which of them answer.
    transport : Transport
        HTTP.
    colocated : Colocated, optional
        The way to nodes on this host.

    Attributes
    ----------
    reads : Reads
        Counters.
    """

    def __init__(self, cluster: Cluster, transport: Transport, colocated: Colocated | None = None) -> None:
        self._cluster = cluster
        self._transport = transport
        self._colocated = colocated
        self._lock = threading.Lock()
        self.reads = Reads()

    def came_along(self, size_bytes: int) -> None:
        """Count bytes that came over HTTP with a record."""
        self._count(http=1, http_bytes=size_bytes)

    def colocated(self) -> Collection[str]:
        """The nodes that seem to be on this host."""
        return () if self._colocated is None else self._colocated.nodes()

    def present(self) -> set[str]:
        """The nodes that prove to be on this host."""
        return set() if self._colocated is None else self._colocated.present()

    def put(
        self,
        node_id: str,
        ref: Ref,
        payload: Buffer,
        *,
        epoch: int,
        tee: Sequence[str] = (),
        deadline: Deadline | None = None,
    ) -> Stored:
        """Store a chunk on `node_id`, tagged with `epoch`; the node forwards it to those in `tee` meanwhile.

        Raises
        ------
        StoreError
            What the node answered, or that it did not. It may hold the chunk all the same.
        """
        with self.sending(
            node_id, ref.partition, ref.hex, size_bytes=ref.size, epoch=epoch, tee=tee, deadline=deadline
        ) as sending:
            sending.send(memoryview(payload).cast("B"))
            return sending.finish()

    def sending(
        self,
        node_id: str,
        partition: int,
        chunk_hex: str,
        *,
        size_bytes: int,
        epoch: int,
        tee: Sequence[str] = (),
        timeout_s: float | None = None,
        deadline: Deadline | None = None,
    ) -> ChunkSending:
        """A `put` whose payload is sent part by part; left before its end, the node stores nothing."""
        path = chunk_path(partition, chunk_hex) + (f"?tee={','.join(tee)}" if tee else "")
        url = self._cluster.endpoint(node_id)
        sending = self._transport.begin(
            "PUT",
            url,
            path,
            size_bytes=size_bytes,
            headers={EPOCH_HEADER: str(epoch)},
            timeout_s=timeout_s,
            deadline=deadline,
            node_id=node_id,
        )
        return ChunkSending(self._cluster, sending, node_id=node_id)

    def put_many(
        self, node_id: str, chunks: Sequence[tuple[Ref, Buffer]], *, epoch: int, deadline: Deadline | None = None
    ) -> list[StoreError | None]:
        """Store small chunks on `node_id` alone, tagged with `epoch`, within the bounds of `client.frames`.

        Returns
        -------
        list of StoreError or None
            For each chunk None if it is durable there, else what the node said of it.

        Raises
        ------
        StoreError
            What the node answered to all, or that it did not. It may hold chunks all the same.
        """
        headers = {EPOCH_HEADER: str(epoch)}
        response = self._call(node_id, "POST", BATCH_PUT_PATH, body=encode_chunks(chunks), headers=headers, deadline=deadline)
        answer = decode_json(response.body)
        told = answer.get("chunks") if isinstance(answer, dict) else None
        if not isinstance(told, list) or len(told) != len(chunks):
            raise ProtocolMismatch(f"node {node_id} was sent {len(chunks)} chunks: {str(answer)[:200]}", node_id=node_id)
        return [None if word == "durable" else _refusal(word, node_id=node_id) for word in told]

    def get_many(self, node_id: str, refs: Sequence[Ref]) -> list[memoryview | StoreError]:
        """Small chunks of `node_id`, within the bounds of `client.frames`; raises what the node answered to all.

        Each is its bytes, verified, `ChunkCorrupt` if other ones came, or what else the node said of it.
        """
        body = self._call(node_id, "POST", CHUNKS_GET_PATH, body=encode_refs(refs)).body
        self._count(http=len(refs), http_bytes=sum(ref.size for ref in refs))
        came = frames(body, count=len(refs))
        return [_verified(ref, *frame, node_id=node_id) for ref, frame in zip(refs, came, strict=True)]

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
        wide_start, wide_end = widen(start, end, size_bytes=ref.size)
        exact = (wide_start, wide_end) == (start, end)
        wide = buffer if exact else memoryview(bytearray(wide_end - wide_start))
        sound = self._read_locally(node_id, ref, wide, start=wide_start, deadline=deadline)
        if sound is None:
            sound = self._read_over_http(node_id, ref, wide, start=wide_start, deadline=deadline)
        if not sound:
            raise _mismatch(ref, node_id=node_id)
        if not exact:
            buffer[:] = wide[start - wide_start : end - wide_start]

    def take_together(self, node_id: str, wanted: Sequence[tuple[Ref, memoryview]]) -> list[bool]:
        """Fill buffers with whole chunks that a node on this host has in memory; for each whether it was.

        Parameters
        ----------
        wanted : sequence of (Ref, memoryview)
            At most `MAX_TOGETHER`, each with a buffer of its size. What was not filled, for any reason, is to be fetched by
            `fetch_into`, which says why.
        """
        if self._colocated is None or node_id not in self._colocated.nodes():
            return [False] * len(wanted)
        filled = self._colocated.take_together(node_id, wanted)
        taken = [ref.size for ref, _ in compress(wanted, filled)]
        self._count(local=len(taken), local_bytes=sum(taken))
        return filled

    def verify(self, node_id: str, refs: Sequence[Ref]) -> list[str]:
        """Have the node re-hash its copies: ``ok``, ``missing`` or ``corrupt`` for each of `refs`.

        The node sets a corrupt copy aside and repairs it.
        """
        return self._ask_about(node_id, refs, path="/v1/chunks:verify")

    def touch(self, node_id: str, refs: Sequence[Ref], *, epoch: int, rehash: bool = True, fetch: bool = False) -> list[bool]:
        """Have the node tag its copies with `epoch` and make them durable: for each of `refs`, whether it now holds it so.

        Parameters
        ----------
        rehash : bool
            Count only copies that it has just re-hashed. Not needed for those that were acknowledged to this caller.
        fetch : bool
            Have it fetch those that it lacks from other nodes.
        """
        more = {"rehash": rehash, "fetch": fetch}
        headers = {EPOCH_HEADER: str(epoch)}
        found = self._ask_about(node_id, refs, path="/v1/chunks:touch", more=more, headers=headers)
        return [status == "durable" for status in found]

    def _ask_about(
        self,
        node_id: str,
        refs: Sequence[Ref],
        *,
        path: str,
        more: Mapping[str, bool] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> list[str]:
        found: list[str] = []
        for first in range(0, len(refs), MAX_REFS_PER_CALL):
            part = refs[first : first + MAX_REFS_PER_CALL]
            body = encode_json({"chunks": [[ref.partition, ref.hex] for ref in part], **(more or {})})
            # Re-hashing reads every byte, so that the node may rightly be silent for longer.
            timeout_s = 30.0 + sum(ref.size for ref in part) / 50e6
            response = self._call(node_id, "POST", path, body=body, headers=headers or {}, timeout_s=timeout_s)
            found.extend(_statuses(decode_json(response.body), count=len(part), node_id=node_id))
        return found

    def _read_locally(
        self, node_id: str, ref: Ref, buffer: memoryview, *, start: int, deadline: Deadline | None
    ) -> bool | None:
        """Whether the right bytes came; None if the node is not on this host."""
        if self._colocated is None or node_id not in self._colocated.nodes():
            return None
        try:
            sound = self._colocated.read_into(node_id, ref, buffer, start=start, deadline=deadline)
        except NotColocated:
            self._count(local_failures=1)
            return None
        except DeadlineExceeded:
            self._cluster.failed(node_id)
            raise
        self._cluster.answered(node_id)
        self._count(local=1, local_bytes=len(buffer))
        return sound

    def _read_over_http(self, node_id: str, ref: Ref, buffer: memoryview, *, start: int, deadline: Deadline | None) -> bool:
        """Whether the right bytes came."""
        whole = len(buffer) == ref.size
        headers = {} if whole else {"range": format_range(start, start + len(buffer))}
        path = chunk_path(ref.partition, ref.hex)
        check = ReadCheck(whole=whole)

        def seen(part: memoryview) -> None:
            # Parts of a chunk are checked afterwards: what comes at once is not cut where segments are.
            if whole:
                check.update(part)
            if deadline is not None:
                deadline.took(len(part))

        response = self._call(node_id, "GET", path, headers=headers, into=buffer, seen=seen, deadline=deadline)
        if not whole:
            check.update(buffer)
        self._count(http=1, http_bytes=len(buffer))
        return check.matches(ref.check, announced_checks(response.headers))

    def _count(self, **more: int) -> None:
        with self._lock:
            for name, number in more.items():
                setattr(self.reads, name, getattr(self.reads, name) + number)

    def _call(self, node_id: str, method: str, path: str, **options: Any) -> Response:
        url = self._cluster.endpoint(node_id)
        with _noting(self._cluster, node_id):
            return self._transport.request(method, url, path, node_id=node_id, **options)


class ChunkSending:
    """A chunk on its way to a node. For one thread at a time; a context manager, see `client.transport.Sending`."""

    def __init__(self, cluster: Cluster, sending: Sending, *, node_id: str) -> None:
        self._cluster = cluster
        self._sending = sending
        self._node_id = node_id

    def send(self, part: memoryview) -> None:
        """Send the next bytes of the payload."""
        with _noting(self._cluster, self._node_id):
            self._sending.send(part)

    def finish(self) -> Stored:
        """Wait until the node has answered, after all bytes were sent."""
        with _noting(self._cluster, self._node_id):
            response = self._sending.finish()
        stored = _stored(decode_json(response.body), node_id=self._node_id)
        for peer in stored.failed:
            self._cluster.failed(peer)
        return stored

    def __enter__(self) -> ChunkSending:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._sending.__exit__(kind, error, trace)


@contextmanager
def _noting(cluster: Cluster, node_id: str) -> Iterator[None]:
    """Tell the cluster whether the node answers."""
    try:
        yield
    except (EndpointUnreachable, DeadlineExceeded):
        cluster.failed(node_id)
        raise
    cluster.answered(node_id)


def _verified(ref: Ref, kind: int, content: memoryview, *, node_id: str) -> memoryview | StoreError:
    if kind == PROBLEM:
        return _refusal(decode_json(bytes(content)), node_id=node_id)
    payload = content[REF_BYTES:]
    sound = kind == CHUNK and len(payload) == ref.size and xxh3(payload) == ref.check
    return payload if sound else _mismatch(ref, node_id=node_id)


def _mismatch(ref: Ref, *, node_id: str) -> ChunkCorrupt:
    message = f"chunk {ref}: the bytes that node {node_id} sent do not match the checksum"
    return ChunkCorrupt(message, key=str(ref), node_id=node_id)


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
