"""Chunks that were stored a while ago, touched again: present on the nodes that count now, and protected under a new epoch.

Every holder under the current layout is asked. After a move of data it re-hashes what it has and fetches what it lacks from
where the chunk was; otherwise a look at the files is enough, because they were hashed when they were acknowledged.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial

from client.chunks import MAX_REFS_PER_CALL, ChunkClient
from client.cluster import Cluster
from client.config import ClientConfig
from client.errors import StoreError
from client.manifest import Ref
from client.retry import Backoff, Deadline, retrying

__all__ = ["Retouch"]


class Retouch:
    """Touches chunks in calls of many.

    Parameters
    ----------
    replicas, needed : int
        Copies wanted, and how many must be acknowledged.
    epoch : int
        What they are tagged with.
    moved : bool
        Whether they may have been acknowledged by nodes that do not count any more.
    too_few : callable
        ``(ref, acknowledged by, said=what each node said, roomy=holders)`` makes the error.
    """

    def __init__(
        self,
        cluster: Cluster,
        chunks: ChunkClient,
        config: ClientConfig,
        *,
        replicas: int,
        needed: int,
        epoch: int,
        moved: bool,
        too_few: Callable[..., StoreError],
    ) -> None:
        self._cluster = cluster
        self._chunks = chunks
        self._config = config
        self._replicas = replicas
        self._needed = needed
        self._epoch = epoch
        self._moved = moved
        self._too_few = too_few

    def all(self, refs: Iterable[Ref]) -> None:
        """Touch `refs`, or raise the error for the first that has too few copies when the deadline of its call comes."""
        backoff = Backoff(base_s=self._config.retry_base_s, max_s=self._config.retry_max_s)
        for part in _parts(refs):
            acked: dict[Ref, set[str]] = {ref: set() for ref in part}
            retrying(partial(self._round, acked), backoff=backoff, deadline=Deadline(self._config.deadline_s))

    def _round(self, acked: dict[Ref, set[str]]) -> None:
        layout = self._cluster.layout
        holders = {ref: layout.replicas(ref.partition, count=self._replicas) for ref in acked}
        said: dict[str, str] = {}
        trusted = {node.id for node in layout.nodes if not self._cluster.suspected(node.id)}
        # A node under suspicion would cost a timeout; it is asked only for chunks that have too few copies without it.
        for candidates in (trusted, {node.id for node in layout.nodes} - trusted):
            short = [ref for ref in acked if len(acked[ref].intersection(holders[ref])) < self._needed]
            for node_id in sorted(candidates):
                asked = [ref for ref in short if node_id in holders[ref] and node_id not in acked[ref]]
                if asked:
                    self._ask(node_id, asked, acked, said)
        for ref in acked:
            durable = acked[ref].intersection(holders[ref])
            if len(durable) < self._needed:
                raise self._too_few(ref, durable, said=said, roomy=len(holders[ref]))

    def _ask(self, node_id: str, refs: Sequence[Ref], acked: dict[Ref, set[str]], said: dict[str, str]) -> None:
        try:
            answers = self._chunks.touch(node_id, refs, epoch=self._epoch, rehash=self._moved, fetch=True)
        except StoreError as error:
            if not error.retryable and error.status < 500:
                raise
            said[node_id] = f"{error.title}: {error.message}"
            return
        for ref, durable in zip(refs, answers, strict=True):
            if durable:
                acked[ref].add(node_id)
            else:
                said[node_id] = "that it has no copy, and could not get one"


def _parts(refs: Iterable[Ref]) -> Iterator[list[Ref]]:
    """Distinct references, as many at a time as one call takes."""
    part: dict[Ref, None] = {}
    for ref in refs:
        part[ref] = None
        if len(part) == MAX_REFS_PER_CALL:
            yield list(part)
            part = {}
    if part:
        yield list(part)
