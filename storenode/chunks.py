"""Chunks over HTTP, the data plane: raw ASGI, files mapped to the socket, no copies in Python.

A chunk on its way out is a map of its file, handed to the server in slices (`storenode.outgoing`).

A chunk on its way in is received into one buffer. While it comes, this node's disk and the other nodes that the client named
take it from there, and the reply says who holds it durably. Nothing here counts acknowledgements: the client does.

It knows nothing of objects, and of placement only how many partitions there are.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Coroutine
from functools import partial
from typing import Any
from urllib.parse import parse_qs

from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from client.checksum import SEGMENT_BYTES
from client.errors import BodyTooLarge, DeadlineExceeded, InvalidRange, InvalidRequest, StoreError
from client.retry import Deadline
from client.wire import CHECK_HEADER, encode_json, parse_range
from storenode.arriving import Arriving, receive
from storenode.bodies import BodySender
from storenode.budget import Budget
from storenode.buffers import Buffers
from storenode.exchange import DEADLINE
from storenode.metrics import Metrics
from storenode.node import Node
from storenode.outgoing import open_outgoing
from storenode.problems import internal_error, problem_response
from storenode.requests import epoch_of
from storenode.tee import Tee

__all__ = ["CHUNKS_PATH", "SIZE_HEADER", "ChunkRoutes"]

log = logging.getLogger(__name__)

CHUNKS_PATH = "/v1/chunks/"
SIZE_HEADER = "x-forebay-size"
MAX_TEES = 15  # Of the most replicas that a bucket may ask for, all but this node.
_NAME = re.compile(r"([0-9]{1,10})/([0-9a-f]{64})")
_NODE_ID = re.compile(r"[A-Za-z0-9_.-]{1,64}")


class ChunkRoutes:
    """The ASGI application for ``/v1/chunks/{partition}/{id}``.

    Parameters
    ----------
    node : Node
        Disk, threads, bounds and the way to other nodes.
    num_partitions : int
        Fixed when the cluster was made, so it is read once.
    reads : Budget
        Chunks that are being sent.
    metrics : Metrics
        Counts what fails.
    """

    def __init__(self, node: Node, *, num_partitions: int, reads: Budget, metrics: Metrics) -> None:
        self._node = node
        self._num_partitions = num_partitions
        self._reads = reads
        self._metrics = metrics
        config = node.config
        self.bodies = Budget("bytes of chunk bodies", limit=config.max_body_bytes)
        # A body that is forwarded waits for other nodes, and they may wait for this one. Half of the room is for bodies that
        # wait for nothing but this node's disk, so that two nodes never fill each other up.
        self._forwarded = Budget("bytes of chunk bodies to forward", limit=config.max_body_bytes // 2)
        self._tee = Tee(node.chunks, node.pools.tee, max_per_node=config.max_tees_per_node, timeout_s=config.tee_timeout_s)
        self._buffers = Buffers(max_kept_bytes=config.max_kept_body_bytes)
        self._late: set[asyncio.Task[object]] = set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        try:
            response = await self._answer(scope, receive, send)
        except StoreError as error:
            self._metrics.chunk_failed(error.code)
            response = problem_response(error, node_id=self._node.node_id)
        if response is not None:
            await response(scope, receive, send)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> Response | None:
        partition, chunk_id = self._parse_path(scope["path"])
        headers = Headers(scope=scope)
        if scope["method"] in ("GET", "HEAD"):
            # Each holds a map of a file for as long as its client takes for it.
            with self._reads.take():
                await self._get(send, partition, chunk_id, wanted=headers.get("range"), head=scope["method"] == "HEAD")
            return None
        if scope["method"] == "PUT":
            tees = self._parse_tees(scope["query_string"])
            epoch = epoch_of(headers)
            return await self._put(scope, partition, chunk_id, announced=headers.get("content-length"), epoch=epoch, tees=tees)
        error = InvalidRequest(f"{scope['method']} of a chunk: use GET, HEAD or PUT")
        return problem_response(error, node_id=self._node.node_id, status=405, headers={"allow": "GET, HEAD, PUT"})

    def _parse_path(self, path: str) -> tuple[int, bytes]:
        name = path.removeprefix(CHUNKS_PATH)
        match = _NAME.fullmatch(name)
        if match is None:
            raise InvalidRequest(f"chunk {name[:100]!r}: expected PARTITION/ID, a number and 64 hex digits in lower case")
        partition = int(match.group(1))
        if partition >= self._num_partitions:
            raise InvalidRequest(f"partition {partition}: this cluster has {self._num_partitions}", key=name)
        return partition, bytes.fromhex(match.group(2))

    def _parse_tees(self, query: bytes) -> tuple[str, ...]:
        values = parse_qs(query.decode("latin-1"), keep_blank_values=True).get("tee", [])
        named = dict.fromkeys(node_id for value in values for node_id in value.split(",") if node_id)
        named.pop(self._node.node_id, None)  # It stores the chunk anyway.
        if len(named) > MAX_TEES or not all(_NODE_ID.fullmatch(node_id) for node_id in named):
            raise InvalidRequest(f"tee={','.join(values)[:100]}: expected up to {MAX_TEES} node ids, separated by commas")
        return tuple(named)

    # Out

    async def _get(self, send: Send, partition: int, chunk_id: bytes, *, wanted: str | None, head: bool) -> None:
        key = f"{partition}/{chunk_id.hex()}"
        chunk = await open_outgoing(self._node, partition, chunk_id)
        bounds = parse_range(wanted, size_bytes=chunk.size)
        start, end = bounds or (0, chunk.size)
        if start % SEGMENT_BYTES or (end % SEGMENT_BYTES and end != chunk.size):
            raise InvalidRange(
                f"bytes {start} to {end} of a chunk: a range begins and ends with segments of {SEGMENT_BYTES} bytes, "
                "because those have checksums",
                key=key,
            )
        headers = {
            "content-type": "application/octet-stream",
            "content-length": str(end - start),
            "accept-ranges": "bytes",
            CHECK_HEADER: f"{chunk.check:016x}",
            SIZE_HEADER: str(chunk.size),
        }
        if bounds is not None:
            headers["content-range"] = f"bytes {start}-{end - 1}/{chunk.size}"
            headers |= chunk.checks(start, end)
        encoded = [(name.encode(), value.encode()) for name, value in headers.items()]
        await send({"type": "http.response.start", "status": 200 if bounds is None else 206, "headers": encoded})
        sender = BodySender(send, stall_timeout_s=self._node.config.stall_timeout_s)
        if not head:
            await chunk.send(sender, start, end)
        await sender.end()

    # In

    async def _put(
        self,
        scope: Scope,
        partition: int,
        chunk_id: bytes,
        *,
        announced: str | None,
        epoch: int,
        tees: tuple[str, ...],
    ) -> Response:
        if announced is None or not announced.isdecimal():
            error = InvalidRequest(f"PUT of a chunk needs its Content-Length in bytes, found {announced!r}")
            return problem_response(error, node_id=self._node.node_id, status=411 if announced is None else None)
        size_bytes = int(announced)
        if not 0 < size_bytes <= self._node.config.max_chunk_bytes:
            kind = BodyTooLarge if size_bytes else InvalidRequest
            raise kind(f"a chunk of {size_bytes} bytes: this node takes 1 to {self._node.config.max_chunk_bytes}")
        with self.bodies.take(size_bytes) as body_room, self._forwarded.take(size_bytes if tees else 0) as tee_room:
            arriving = Arriving(self._buffers.take(size_bytes))
            copies = self._start_copies(partition, chunk_id, arriving, tees, epoch=epoch, deadline=scope.get(DEADLINE))
            # A thread that outlives this request still holds the body, so the room is given back when the last one is done.
            body_room.keep_until(copies.values(), then=partial(self._buffers.give_back, arriving.buffer))
            tee_room.keep_until(copies.values())
            try:
                await receive(scope, arriving, stall_timeout_s=self._node.config.stall_timeout_s)
                return await self._outcome(copies)
            except BaseException:
                # Copies of a body that did not come whole fail by themselves. Others are made to their end, even if nobody
                # is told: a client that lost patience with a slow disk finds the chunk there when it comes again.
                for node_id, copy in copies.items():
                    self._expect_late(node_id, copy)
                raise

    def _start_copies(
        self,
        partition: int,
        chunk_id: bytes,
        arriving: Arriving,
        tees: tuple[str, ...],
        *,
        epoch: int,
        deadline: Deadline | None,
    ) -> dict[str, asyncio.Task[object]]:
        """Begin to store the chunk here and on the nodes in `tees`, all at once."""
        own = self._store(partition, chunk_id, arriving, epoch=epoch)
        copying: dict[str, Coroutine[Any, Any, object]] = {self._node.node_id: own}
        for node_id in tees:
            copying[node_id] = self._tee.forward(node_id, partition, chunk_id, arriving, epoch=epoch, deadline=deadline)
        return {node_id: asyncio.create_task(copy) for node_id, copy in copying.items()}

    async def _store(self, partition: int, chunk_id: bytes, arriving: Arriving, *, epoch: int) -> None:
        """Write this node's copy as its bytes come; returns once it is durable."""
        run, store = self._node.pools.disk.run_to_end, self._node.store
        part = await arriving.part(0)
        if len(part) == len(arriving):
            await run(store.put, partition, chunk_id, part, epoch=epoch)
            return
        writer = await run(store.writer, partition, chunk_id, arriving.buffer, epoch=epoch)
        try:
            end = len(part)
            while end < len(arriving):
                await run(writer.advance, end)
                end += len(await arriving.part(end))
            await run(writer.commit)
        finally:
            writer.close()

    async def _outcome(self, copies: dict[str, asyncio.Task[object]]) -> Response:
        """Wait for this node's copy, for the others no longer than is allowed, and say which are durable."""
        own = copies[self._node.node_id]
        await asyncio.wait(copies.values(), timeout=self._node.config.tee_timeout_s)
        await asyncio.wait([own])
        failed = {node_id: error for node_id, copy in copies.items() if (error := self._error_of(copy)) is not None}
        for node_id, error in failed.items():
            self._metrics.chunk_failed(error.code)
            if error.status >= 500:  # Otherwise it is the client's fault, and the client is told.
                log.warning("a copy of a chunk failed on node %s: %s: %s", node_id, error.title, error.message)
        for node_id, copy in copies.items():
            if not copy.done():
                self._expect_late(node_id, copy)
        durable = [node_id for node_id in copies if node_id not in failed]
        if not durable:
            raise failed[self._node.node_id]
        said = {node_id: f"{error.title}: {error.message}" for node_id, error in failed.items()}
        return Response(encode_json({"durable": durable, "failed": said}), media_type="application/json")

    def _expect_late(self, node_id: str, copy: asyncio.Task[object]) -> None:
        self._late.add(copy)
        copy.add_done_callback(partial(self._note_late, node_id))

    def _note_late(self, node_id: str, copy: asyncio.Task[object]) -> None:
        """A copy that was counted as failed has ended after all; nobody waits for how, but it must be looked at."""
        self._late.discard(copy)
        error = None if copy.cancelled() else copy.exception()
        log.info("a late copy on node %s: %s", node_id, "durable" if error is None else repr(error))

    def _error_of(self, copy: asyncio.Task[object]) -> StoreError | None:
        if not copy.done():
            return DeadlineExceeded(f"it did not answer within {self._node.config.tee_timeout_s:g} s")
        error = copy.exception()
        if error is None or isinstance(error, StoreError):
            return error
        log.error("a copy of a chunk met a defect", exc_info=error)
        return internal_error()
