"""Many small chunks in one answer: ``POST /v1/chunks:batchGet``, by which nodes fetch what they lack.

`client.frames` says what is asked and what comes back. A chunk that is not here, or is damaged as far as its trailer tells,
costs its own frame and no other; a damaged one is mended. Nothing is hashed: who holds the references verifies.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

from fastapi import APIRouter, Request
from starlette.responses import Response

from client.errors import ChunkCorrupt, ChunkNotFound, InvalidRequest, to_problem
from client.frames import MAX_REFS_BYTES, PROBLEM, chunk_head, decode_refs, document_frame
from client.manifest import Ref
from client.wire import CHUNKS_GET_PATH
from storenode.framed import FRAMES_TYPE, Frames
from storenode.node import Node
from storenode.requests import NodeOf, whole_body
from storenode.schemas import BYTES, problems

__all__ = ["router"]

# What one call of a thread reads: other requests want the disk, too.
_PART_BYTES = 1024 * 1024

router = APIRouter(tags=["chunks"])


@router.post(
    CHUNKS_GET_PATH,
    operation_id="batchGetChunks",
    response_class=Response,
    responses={
        200: {"description": "A frame for each chunk; see client/frames.py", "content": {FRAMES_TYPE: BYTES["*/*"]}},
        **problems(400, 413, 503),
    },
    openapi_extra={"requestBody": {"required": True, "content": BYTES}},
)
async def batch_get_chunks(request: Request, node: NodeOf) -> Response:
    """Many small chunks of this node."""
    refs = decode_refs(await whole_body(request, max_bytes=MAX_REFS_BYTES))
    num_partitions = request.app.state.num_partitions
    if (highest := max(ref.partition for ref in refs)) >= num_partitions:
        raise InvalidRequest(f"partition {highest}: this cluster has {num_partitions}")
    return Frames(
        list(_parts(refs)),
        make=partial(_append, node),
        pool=node.pools.disk,
        room=request.app.state.batch_reads,
        stall_timeout_s=node.config.stall_timeout_s,
    )


def _parts(refs: Sequence[Ref]) -> Iterator[Sequence[Ref]]:
    first, size_bytes = 0, 0
    for index, ref in enumerate(refs):
        if size_bytes >= _PART_BYTES:
            yield refs[first:index]
            first, size_bytes = index, 0
        size_bytes += ref.size
    yield refs[first:]


def _append(node: Node, refs: Sequence[Ref], frames: bytearray) -> None:
    with node.store.small_chunks() as small:
        for ref in refs:
            try:
                payload = small.read(ref)
                if payload is None:
                    raise ChunkNotFound(f"no copy of chunk {ref} here", key=str(ref))
            except (ChunkCorrupt, ChunkNotFound) as error:
                if isinstance(error, ChunkCorrupt):
                    # Whoever asks reads it elsewhere; that this copy is bad was seen here alone.
                    node.follower.repair(ref.partition, ref.id)
                frames += document_frame(PROBLEM, to_problem(error))
                continue
            frames += chunk_head(ref)
            frames += payload
