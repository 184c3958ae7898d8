"""The one upload path: bytes in, durable and acknowledged chunks out.

Theory of operation
-------------------
`Upload` cuts what is written into chunks, hashes each, and hands it to a live replica, which tees it to the others. A
chunk counts as stored when enough distinct members of its replica set hold it durably (the ack level). Several chunks are
in flight at once, within a bound, so memory does not grow with the object. Nothing gets a name here: `finish` returns a
`Content` for the record that the caller commits. An upload that is abandoned leaves nothing visible.

Copies that are still missing after the commit are made by the nodes themselves, which follow the committed records.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from concurrent.futures import Executor, Future

from typing_extensions import Buffer

from client.checksum import content_digest
from client.chunks import ChunkClient
from client.cluster import Cluster
from client.config import ClientConfig
from client.errors import NotEnoughReplicas, StoreError
from client.manifest import MAX_ENTRIES, Entry, Manifest, Ref, make_ref
from client.record import INLINE_REFS, Content, acks_needed
from client.retry import Backoff, Deadline, retrying

__all__ = ["ChunkUploader", "Upload"]


class ChunkUploader:
    """Stores single chunks until enough replicas hold them. Thread-safe.

    Parameters
    ----------
    replicas : int
        Copies wanted.
    ack : str
        one, quorum or all: how many of them must be durable before a chunk counts as stored.
    """

    def __init__(self, cluster: Cluster, chunks: ChunkClient, config: ClientConfig, *, replicas: int, ack: str) -> None:
        self._cluster = cluster
        self._chunks = chunks
        self._config = config
        self._backoff = Backoff(base_s=config.retry_base_s, max_s=config.retry_max_s)
        self.replicas = replicas
        self._needed = acks_needed(replicas, ack=ack)

    def store(self, payload: Buffer, *, group: str | None = None) -> Ref:
        """Store one chunk durably on enough replicas and return its reference.

        Raises
        ------
        NotEnoughReplicas
            Fewer copies than the ack level asks for, until the deadline; says what each node answered.
        """
        ref = make_ref(payload, partitions=self._cluster.layout.partitions, group=group)
        durable: set[str] = set()
        retrying(
            lambda: self._store_once(ref, payload, durable),
            backoff=self._backoff,
            deadline=Deadline(self._config.deadline_s),
        )
        return ref

    def _store_once(self, ref: Ref, payload: Buffer, durable: set[str]) -> None:
        """One round over the replica set; `durable` collects who holds the chunk, across rounds."""
        holders = self._cluster.layout.replicas(ref.partition, count=self.replicas)
        if len(holders) < self._needed:
            raise NotEnoughReplicas(
                f"{self._needed} durable copies are asked for, but the cluster has {len(holders)} nodes", key=str(ref)
            )
        ranked = self._cluster.ranked(holders)
        trusted = [node for node in ranked if not self._cluster.suspected(node)]
        # A node under suspicion would cost each chunk a timeout; it makes its copy from the record when it is back.
        targets = trusted if len(trusted) >= self._needed else list(ranked)
        failed: dict[str, str] = {}
        for coordinator in targets:
            if coordinator in durable or len(durable) >= self._needed:
                continue
            tee = [node for node in targets if node not in durable and node != coordinator and node not in failed]
            try:
                stored = self._chunks.put(coordinator, ref, payload, tee=tee)
            except StoreError as error:
                failed[coordinator] = f"{error.title}: {error.message}"
                if not error.retryable and error.status < 500:
                    raise
                continue
            durable.update(set(stored.durable) & set(holders))
            failed.update(stored.failed)
        if len(durable) < self._needed:
            said = "; ".join(f"{node} said {words}" for node, words in failed.items()) or "the others are down"
            raise NotEnoughReplicas(
                f"chunk {ref}: {len(durable)} of {self._needed} copies are durable; {said}. Nothing was committed; "
                "`forebay cluster status` shows which nodes are up",
                key=str(ref),
            )


class Upload:
    """The content of one object, written piece by piece.

    Parameters
    ----------
    uploader : ChunkUploader
        Stores the chunks.
    executor : Executor
        Runs the transfers; shared with other uploads.
    chunk_size_bytes : int
        Size of a chunk.
    max_in_flight : int
        Chunks under way at once; with the one being filled, memory is (max_in_flight + 1) chunks.
    """

    def __init__(self, uploader: ChunkUploader, executor: Executor, *, chunk_size_bytes: int, max_in_flight: int) -> None:
        self._uploader = uploader
        self._executor = executor
        self._chunk_size_bytes = chunk_size_bytes
        self._max_in_flight = max_in_flight
        self._filling = bytearray()
        self._in_flight: deque[Future[Ref]] = deque()
        self._refs: list[Ref] = []

    def write(self, piece: Buffer) -> None:
        """Append bytes; blocks while too many chunks are in flight. Raises what a transfer raised."""
        view = memoryview(piece).cast("B")
        while len(view):
            room = self._chunk_size_bytes - len(self._filling)
            self._filling += view[:room]
            if len(self._filling) == self._chunk_size_bytes:
                self.flush()
            view = view[room:]

    def write_owned(self, payload: Buffer) -> None:
        """Append one chunk that nobody changes until `finish`; it is sent without a copy."""
        self.flush()
        self._submit(payload)

    def flush(self) -> None:
        """Send what is buffered as a chunk of its own."""
        if self._filling:
            self._submit(self._filling)
            self._filling = bytearray()

    def finish(self) -> Content:
        """Wait for all chunks and return the content, whose manifests are stored as well."""
        self.flush()
        while self._in_flight:
            self._refs.append(self._in_flight.popleft().result())
        return make_content(self._refs, self._uploader)

    def abort(self) -> None:
        """Forget the upload; what is in flight ends, and nothing refers to it."""
        for future in self._in_flight:
            future.cancel()
        self._in_flight.clear()
        self._filling = bytearray()

    def _submit(self, payload: Buffer) -> None:
        while len(self._in_flight) >= self._max_in_flight:
            self._refs.append(self._in_flight.popleft().result())
        self._in_flight.append(self._executor.submit(self._uploader.store, payload))


def make_content(refs: Sequence[Ref], uploader: ChunkUploader, *, group: str | None = None) -> Content:
    """The content made of the data chunks `refs` in order, storing a tree of manifests where they are many."""
    size = sum(ref.size for ref in refs)
    digest = content_digest([ref.id for ref in refs])
    if len(refs) <= INLINE_REFS:
        return Content(size=size, digest=digest, refs=tuple(refs))
    entries = [Entry(ref=ref, content_bytes=ref.size) for ref in refs]
    level = 0
    while True:
        parents = []
        for first in range(0, len(entries), MAX_ENTRIES):
            manifest = Manifest(level=level, entries=tuple(entries[first : first + MAX_ENTRIES]))
            covered = sum(entry.content_bytes for entry in manifest.entries)
            parents.append(Entry(ref=uploader.store(manifest.encode(), group=group), content_bytes=covered))
        if len(parents) == 1:
            return Content(size=size, digest=digest, manifest=parents[0].ref)
        entries, level = parents, level + 1
