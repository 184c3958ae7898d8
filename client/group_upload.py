"""Small chunks uploaded together: one request for each holder and round, acknowledgements counted for each chunk.

Nothing is teed. Every holder is sent what it should have by the client itself, all holders at the same time; a chunk counts
as stored when enough distinct members of its replica set have said that it is durable. Once that holds for all chunks, slow
nodes are no longer waited for: their requests end by themselves, and what they miss they fetch from the records.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future, as_completed
from dataclasses import dataclass, field

from client.chunks import ChunkClient
from client.cluster import Cluster
from client.config import ClientConfig
from client.errors import DiskFull, StoreError
from client.frames import MAX_BATCH_BYTES, MAX_ITEMS
from client.manifest import Ref
from client.retry import Backoff, Deadline, retrying

__all__ = ["GroupUpload", "TooFew"]

# (ref, acknowledged by, said=what each node said, roomy=number of holders that have room) -> the error.
TooFew = Callable[..., StoreError]


@dataclass(slots=True, kw_only=True, eq=False)
class _Chunk:
    """A chunk under way; `durable` lasts over rounds, what was said and who is full is of the present one."""

    ref: Ref
    payload: bytes
    durable: set[str] = field(default_factory=set)
    holders: tuple[str, ...] = ()
    said: dict[str, str] = field(default_factory=dict)
    full: set[str] = field(default_factory=set)

    @property
    def acked(self) -> set[str]:
        """Who counts: the newest replica set's members alone."""
        return self.durable.intersection(self.holders)


class GroupUpload:
    """One call of `ChunkUploader.store_many`, which explains the parameters.

    Attributes
    ----------
    refs : list of Ref
        In the order in which the chunks were given.
    """

    def __init__(
        self,
        cluster: Cluster,
        chunks: ChunkClient,
        config: ClientConfig,
        payloads: Sequence[tuple[Ref, bytes]],
        *,
        replicas: int,
        needed: int,
        epoch: int,
        executor: Executor,
    ) -> None:
        self._cluster = cluster
        self._client = chunks
        self._config = config
        self._replicas = replicas
        self._needed = needed
        self._epoch = epoch
        self._executor = executor
        self._deadline = Deadline(config.deadline_s)
        self._chunks = {(ref.partition, ref.id): _Chunk(ref=ref, payload=payload) for ref, payload in payloads}
        self.refs = [ref for ref, _ in payloads]

    def store(self, *, too_few: TooFew) -> None:
        """Rounds over the nodes until all chunks are acknowledged, or the deadline comes."""
        backoff = Backoff(base_s=self._config.retry_base_s, max_s=self._config.retry_max_s)
        retrying(lambda: self._round(too_few), backoff=backoff, deadline=self._deadline)

    def _round(self, too_few: TooFew) -> None:
        layout = self._cluster.layout
        for chunk in self._chunks.values():
            chunk.holders = layout.replicas(chunk.ref.partition, count=self._replicas)
            chunk.said, chunk.full = {}, set()
        suspects = {node.id for node in layout.nodes if self._cluster.suspected(node.id)}
        # A node under suspicion would cost a timeout; it is asked only for chunks that have too few copies without it.
        self._send(without=suspects)
        self._send(without=set())
        for chunk in self._short():
            roomy = len(chunk.holders) - len(chunk.full - chunk.acked)
            raise too_few(chunk.ref, chunk.acked, said=chunk.said, roomy=roomy)

    def _short(self) -> list[_Chunk]:
        return [chunk for chunk in self._chunks.values() if len(chunk.acked) < self._needed]

    def _send(self, *, without: set[str]) -> None:
        """Send the chunks that are short to holders that were not asked in this round, until all have enough copies."""
        wanted: dict[str, list[_Chunk]] = {}
        for chunk in self._short():
            for node_id in chunk.holders:
                if node_id not in without and node_id not in chunk.durable and node_id not in chunk.said:
                    wanted.setdefault(node_id, []).append(chunk)
        sent = {
            self._executor.submit(self._put, node_id, part): (node_id, part)
            for node_id, chunks in wanted.items()
            for part in _batches(chunks)
        }
        for future in as_completed(sent):
            self._note(*sent[future], future)
            if not self._short():
                return

    def _put(self, node_id: str, part: Sequence[_Chunk]) -> list[StoreError | None]:
        chunks = [(chunk.ref, chunk.payload) for chunk in part]
        return self._client.put_many(node_id, chunks, epoch=self._epoch, deadline=self._deadline)

    def _note(self, node_id: str, part: Sequence[_Chunk], future: Future[list[StoreError | None]]) -> None:
        try:
            errors: Sequence[StoreError | None] = future.result()
        except StoreError as refusal:
            errors = [refusal] * len(part)
        for chunk, error in zip(part, errors, strict=True):
            if error is None:
                chunk.durable.add(node_id)
                continue
            chunk.said[node_id] = f"{error.title}: {error.message}"
            if isinstance(error, DiskFull):
                chunk.full.add(node_id)
            elif not error.retryable and error.status < 500:
                raise error


def _batches(chunks: Sequence[_Chunk]) -> Iterator[Sequence[_Chunk]]:
    first, size_bytes = 0, 0
    for index, chunk in enumerate(chunks):
        if index - first == MAX_ITEMS or size_bytes + chunk.ref.size > MAX_BATCH_BYTES:
            yield chunks[first:index]
            first, size_bytes = index, 0
        size_bytes += chunk.ref.size
    yield chunks[first:]
