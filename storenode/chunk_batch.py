"""``POST /v1/chunks:batchPut``: many small chunks in one body, stored as durable groups. Raw ASGI, as `storenode.chunks`.

Nothing is forwarded: small bytes are sent to each holder by the client itself. The answer says for each chunk, in order,
that it is durable here, or by a problem document why it is not; one that fails costs no other.

It knows nothing of objects, and of placement only how many partitions there are.
"""

from __future__ import annotations

from typing import Any

from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from client.errors import BodyTooLarge, InvalidRequest, StoreError, to_problem
from client.frames import MAX_BATCH_BYTES, MAX_ITEMS, decode_chunks, table_bytes
from client.wire import BATCH_PUT_PATH, encode_json
from storenode.arriving import Arriving, receive
from storenode.budget import Budget
from storenode.chunkgroup import MAX_MEMBERS
from storenode.metrics import Metrics
from storenode.node import Node
from storenode.problems import problem_response
from storenode.requests import announced_bytes, epoch_of

__all__ = ["ChunkBatchRoute"]


class ChunkBatchRoute:
    """The ASGI application.

    Parameters
    ----------
    node : Node
        Disk, threads and bounds.
    num_partitions : int
        Fixed when the cluster was made.
    bodies : Budget
        Bytes of chunk bodies, shared with the single ones.
    metrics : Metrics
        Counts what fails.
    """

    def __init__(self, node: Node, *, num_partitions: int, bodies: Budget, metrics: Metrics) -> None:
        self._node = node
        self._num_partitions = num_partitions
        self._bodies = bodies
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        try:
            response = await self._answer(scope)
        except StoreError as error:
            self._metrics.chunk_failed(error.code)
            response = problem_response(error, node_id=self._node.node_id)
        await response(scope, receive, send)

    async def _answer(self, scope: Scope) -> Response:
        node = self._node
        if scope["method"] != "POST":
            error = InvalidRequest(f"{scope['method']} {BATCH_PUT_PATH}: use POST")
            return problem_response(error, node_id=node.node_id, status=405, headers={"allow": "POST"})
        headers = Headers(scope=scope)
        size_bytes, epoch = announced_bytes(headers), epoch_of(headers)
        if size_bytes is None:
            error = InvalidRequest(f"POST {BATCH_PUT_PATH} needs its Content-Length in bytes")
            return problem_response(error, node_id=node.node_id, status=411)
        limit = min(MAX_BATCH_BYTES + table_bytes(MAX_ITEMS), node.config.max_body_bytes)
        if size_bytes > limit:
            raise BodyTooLarge(f"a batch of {size_bytes} bytes; this node takes {limit}")
        # The thread is waited for, even by a request that is cancelled: so long it holds the body.
        with self._bodies.take(size_bytes):
            body = memoryview(bytearray(size_bytes))
            await receive(scope, Arriving(body), stall_timeout_s=node.config.stall_timeout_s)
            chunks = decode_chunks(body)
            for partition, _, _ in chunks:
                if partition >= self._num_partitions:
                    raise InvalidRequest(f"partition {partition}: this cluster has {self._num_partitions}")
            errors: list[StoreError | None] = []
            # Group by group, so that a client that goes away ends it.
            for first in range(0, len(chunks), MAX_MEMBERS):
                group = chunks[first : first + MAX_MEMBERS]
                errors += await node.pools.batch.run_to_end(node.store.put_group, group, epoch=epoch)
        return Response(encode_json({"chunks": [self._told(error) for error in errors]}), media_type="application/json")

    def _told(self, error: StoreError | None) -> str | dict[str, Any]:
        if error is None:
            return "durable"
        self._metrics.chunk_failed(error.code)
        return to_problem(error)
