"""Small chunks read together: one request for each node and round, and what one node can't give is asked of the next.

So many chunks never wait for a node that is late with one of them, and there is no second request for the same bytes; who reads
so is in no hurry, but has much to read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from client.chunks import ChunkClient
from client.errors import StoreError
from client.manifest import Ref

__all__ = ["SmallRead", "read_group"]


@dataclass(slots=True, kw_only=True, eq=False)
class SmallRead:
    """A chunk that is wanted.

    Attributes
    ----------
    peers : list of str
        Nodes to ask yet, in this order.
    payload : memoryview or None
        Its bytes, verified, once a node has given them.
    node_id : str
        Which one that was.
    failed : dict
        What the nodes before it said.
    """

    ref: Ref
    peers: list[str]
    payload: memoryview | None = None
    node_id: str = ""
    failed: dict[str, StoreError] = field(default_factory=dict)


def read_group(group: Sequence[SmallRead], chunks: ChunkClient) -> None:
    """Read what can be had of a group within the bounds of `client.frames`."""
    while waiting := [small for small in group if small.payload is None and small.peers]:
        by_node: dict[str, list[SmallRead]] = {}
        for small in waiting:
            by_node.setdefault(small.peers.pop(0), []).append(small)
        for node_id, part in by_node.items():
            _ask(node_id, part, chunks)


def _ask(node_id: str, part: Sequence[SmallRead], chunks: ChunkClient) -> None:
    answers: Sequence[memoryview | StoreError]
    try:
        answers = chunks.get_many(node_id, [small.ref for small in part])
    except StoreError as error:
        answers = [error] * len(part)
    for small, answer in zip(part, answers, strict=True):
        if isinstance(answer, StoreError):
            small.failed[node_id] = answer
        else:
            small.payload, small.node_id = answer, node_id
