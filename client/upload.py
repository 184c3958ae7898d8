"""The one upload path: bytes in, durable and acknowledged chunks out.

Theory of operation
-------------------
`Upload` cuts what is written into chunks, hashes each, asks whether it is there already, and if not hands it to a live
replica, which tees it to the others. A
chunk counts as stored when enough distinct members of its replica set hold it durably (the ack level). Several chunks are
in flight at once, within a bound, so memory does not grow with the object. Nothing gets a name here: `finish` returns a
`Content` for the record that the caller commits (`client.anchoring`). An upload that is abandoned leaves nothing visible.

What an uploader stores is tagged with the epoch of garbage collection at which it began, which protects chunks that have no
name yet. Epoch and layout of the beginning are its anchor.

Copies that are still missing after the commit are made by the nodes themselves, which follow the committed records.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable, Sequence
from concurrent.futures import CancelledError, Executor, Future

from typing_extensions import Buffer

from client.checksum import content_digest
from client.chunks import ChunkClient
from client.cluster import Cluster
from client.config import ClientConfig
from client.errors import DiskFull, InvalidRequest, NotEnoughReplicas, StoreError
from client.group_upload import GroupUpload
from client.in_flight import settle
from client.manifest import MAX_ENTRIES, Entry, Manifest, Ref, make_ref
from client.placement import Layout
from client.record import INLINE_REFS, Content, acks_needed
from client.retouch import Retouch
from client.retry import Backoff, Deadline, retrying
from client.touches import Touches

__all__ = ["ChunkUploader", "Upload", "make_content"]

# A smaller chunk is sent in the time that it takes to ask for it.
_ASKED_FROM_BYTES = 256 * 1024


class ChunkUploader:
    """Stores single chunks until enough replicas hold them. Thread-safe.

    Parameters
    ----------
    replicas : int
        Copies wanted.
    ack : str
        one, quorum or all: how many of them must be durable before a chunk counts as stored.

    Attributes
    ----------
    anchor : Anchor
        What holds all chunks that were stored so far in place; each commit of them needs it.
    """

    def __init__(self, cluster: Cluster, chunks: ChunkClient, config: ClientConfig, *, replicas: int, ack: str) -> None:
        self._cluster = cluster
        self._chunks = chunks
        self._config = config
        self._touches = Touches(chunks)
        self.anchor = cluster.anchor
        self.replicas = replicas
        self._needed = acks_needed(replicas, ack=ack)

    def store(self, payload: Buffer, *, group: str | None = None, stop: threading.Event | None = None) -> Ref:
        """Store one chunk durably on enough replicas and return its reference.

        Parameters
        ----------
        group : str, optional
            Placement group; without one the chunk is placed by its id.
        stop : Event, optional
            Once it is set no further request is made.

        Raises
        ------
        NotEnoughReplicas
            Fewer copies than the ack level asks for, until the deadline; says what each node answered.
        DiskFull
            Too few replicas have room left.
        CancelledError
            If it was stopped.
        """
        payload = memoryview(payload).cast("B")  # An array of something wider has fewer items than bytes.
        ref = make_ref(payload, partitions=self._layout().partitions, group=group)
        stop = stop or threading.Event()
        durable = self._held(ref) if ref.size >= _ASKED_FROM_BYTES else set()
        deadline = Deadline(self._config.deadline_s)
        retrying(
            lambda: self._store_once(ref, payload, durable=durable, deadline=deadline, stop=stop),
            backoff=Backoff(base_s=self._config.retry_base_s, max_s=self._config.retry_max_s, sleep=stop.wait),
            deadline=deadline,
        )
        return ref

    def store_many(self, payloads: Sequence[Buffer], *, executor: Executor) -> list[Ref]:
        """Store small chunks, of 1 to `client.frames.MAX_SMALL_BYTES` each, and return their references in order.

        Each holder is sent its own, in as few requests as the bounds of `client.frames` allow.

        Parameters
        ----------
        executor : Executor
            Runs the requests, one for each node at a time. The caller must not be one of its threads.

        Raises
        ------
        NotEnoughReplicas, DiskFull
            As `store`, for the first chunk that has too few copies. Others may be stored then.
        """
        # A request to a slow node may outlive this call, so that it must not depend on what the caller may change.
        views = [bytes(payload) for payload in payloads]
        partitions = self._layout().partitions
        group = GroupUpload(
            self._cluster,
            self._chunks,
            self._config,
            [(make_ref(view, partitions=partitions), view) for view in views],
            replicas=self.replicas,
            needed=self._needed,
            epoch=self.anchor.epoch,
            executor=executor,
        )
        group.store(too_few=self._too_few)
        return group.refs

    @property
    def is_outdated(self) -> bool:
        """Whether an epoch of garbage collection has passed since the anchor was taken; another one, and chunks may go."""
        return self._cluster.anchor.epoch > self.anchor.epoch

    def anchor_again(self, refs: Iterable[Ref]) -> None:
        """Bring chunks that were stored before to the nodes that count now, protect them anew, and take a new anchor.

        Raises
        ------
        NotEnoughReplicas
            Too few nodes hold, or can fetch, some of them until the deadline; says what each node answered.
        """
        anchor = self._cluster.refresh().anchor
        retouch = Retouch(
            self._cluster,
            self._chunks,
            self._config,
            replicas=self.replicas,
            needed=self._needed,
            epoch=anchor.epoch,
            moved=anchor.layout != self.anchor.layout,
            too_few=self._too_few,
        )
        retouch.all(refs)
        self.anchor = anchor

    def _held(self, ref: Ref) -> set[str]:
        """The replicas that hold the chunk durably already. Most chunks are new, which one of them is enough to tell."""
        holders = self._cluster.layout.replicas(ref.partition, count=self.replicas)
        first, *others = self._cluster.ranked(holders)
        epoch = self.anchor.epoch
        if not self._touches.holds(first, ref, epoch=epoch):
            return set()
        return {first, *(node for node in others if self._touches.holds(node, ref, epoch=epoch))}

    def _layout(self) -> Layout:
        """The layout, if it has nodes enough for any chunk: otherwise waiting would not help."""
        layout = self._cluster.layout
        if len(layout.nodes) < self._needed:
            layout = self._cluster.refresh().layout
        if len(layout.nodes) < self._needed:
            raise NotEnoughReplicas(
                f"{self._needed} durable copies are asked for, but the cluster has only {len(layout.nodes)} nodes. Start more, "
                "or write to a bucket with fewer replicas"
            )
        return layout

    def _store_once(self, ref: Ref, payload: Buffer, *, durable: set[str], deadline: Deadline, stop: threading.Event) -> None:
        """One round over the replica set; `durable` collects who holds the chunk, across rounds."""
        # The newest replica set is what counts: a copy on a node that has left it since is no replica.
        holders = self._cluster.layout.replicas(ref.partition, count=self.replicas)
        ranked = self._cluster.ranked(holders)
        trusted = [node for node in ranked if not self._cluster.suspected(node)]
        # A node under suspicion would cost each chunk a timeout; it makes its copy from the record when it is back. It is
        # asked only if there would be too few copies without it.
        targets = trusted if len(trusted) >= self._needed else ranked
        said: dict[str, str] = {}
        full: set[str] = set()
        for coordinator in ranked:
            if coordinator in durable or len(durable.intersection(holders)) >= self._needed:
                continue
            if stop.is_set():
                raise CancelledError(f"the upload of chunk {ref} was stopped")
            if said and not deadline.remaining_s():
                said.setdefault(coordinator, "nothing, because there was no time left to ask it")
                continue
            tee = [node for node in targets if node not in durable and node != coordinator and node not in said]
            try:
                stored = self._chunks.put(coordinator, ref, payload, epoch=self.anchor.epoch, tee=tee, deadline=deadline)
            except StoreError as error:
                said[coordinator] = f"{error.title}: {error.message}"
                if isinstance(error, DiskFull):
                    full.add(coordinator)
                elif not error.retryable and error.status < 500:
                    raise
                continue
            durable.update(stored.durable)
            said.update(stored.failed)
        acked = durable.intersection(holders)
        if len(acked) < self._needed:
            raise self._too_few(ref, acked, said=said, roomy=len(holders) - len(full - acked))

    def _too_few(self, ref: Ref, acked: set[str], *, said: dict[str, str], roomy: int) -> StoreError:
        kind = NotEnoughReplicas if roomy >= self._needed else DiskFull
        answers = "; ".join(f"{node} said {words}" for node, words in said.items()) or "the others are down"
        return kind(
            f"chunk {ref}: {len(acked)} of {self._needed} copies are durable; {answers}. Nothing was committed; "
            "`forebay cluster status` shows which nodes are up",
            key=str(ref),
        )


class Upload:
    """The content of one object, written piece by piece. For one thread at a time.

    Once a chunk has failed, every later call raises the same error: content with a gap can't be finished.

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
        self._stop = threading.Event()
        self._holds_lent = False

    def write(self, piece: Buffer) -> None:
        """Append bytes; blocks while too many chunks are in flight. Raises what a transfer raised."""
        self._check_going_on()
        if not memoryview(piece).nbytes:
            return  # Also because an empty array of several dimensions can't be cast.
        view = memoryview(piece).cast("B")
        while len(view):
            room = self._chunk_size_bytes - len(self._filling)
            self._filling += view[:room]
            if len(self._filling) == self._chunk_size_bytes:
                self.flush()
            view = view[room:]

    def write_owned(self, payload: Buffer) -> None:
        """Append one chunk that nobody changes until `finish` or `abort` has returned; it is sent without a copy."""
        self._check_going_on()
        self.flush()
        if memoryview(payload).nbytes:
            self._holds_lent = True
            self._submit(payload)

    def flush(self) -> None:
        """Send what is buffered as a chunk of its own."""
        if self._filling:
            self._submit(self._filling)
            self._filling = bytearray()

    def finish(self) -> Content:
        """Wait for all chunks and return the content, whose manifests are stored as well."""
        self._check_going_on()
        self.flush()
        self._take_all()
        return make_content(self._refs, self._uploader)

    def abort(self) -> None:
        """End the upload, whatever has become of it; what was stored gets no name.

        Returns once nothing reads what `write_owned` was given. Requests that send copies end by themselves.
        """
        self._stop.set()
        for future in self._in_flight:
            future.cancel()
        if self._holds_lent:
            settle(self._in_flight)
        self._in_flight.clear()
        self._filling = bytearray()

    def _check_going_on(self) -> None:
        if self._stop.is_set():
            raise InvalidRequest("this upload has ended; begin another one")

    def _submit(self, payload: Buffer) -> None:
        if self._uploader.is_outdated:
            # None may be on its way under the old anchor.
            self._take_all()
            self._uploader.anchor_again(self._refs)
        while len(self._in_flight) >= self._max_in_flight:
            self._take_first()
        self._in_flight.append(self._executor.submit(self._uploader.store, payload, stop=self._stop))

    def _take_all(self) -> None:
        while self._in_flight:
            self._take_first()

    def _take_first(self) -> None:
        # One that failed stays where it is, and so does its error.
        self._refs.append(self._in_flight[0].result())
        self._in_flight.popleft()


def make_content(
    refs: Sequence[Ref], uploader: ChunkUploader, *, group: str | None = None, max_entries: int = MAX_ENTRIES
) -> Content:
    """The content made of the data chunks `refs` in order, storing a tree of manifests where they are many."""
    size = sum(ref.size for ref in refs)
    digest = content_digest([ref.id for ref in refs])
    if len(refs) <= INLINE_REFS:
        return Content(size=size, digest=digest, refs=tuple(refs))
    entries = [Entry(ref=ref, content_bytes=ref.size) for ref in refs]
    level = 0
    while True:
        parents = []
        for first in range(0, len(entries), max_entries):
            manifest = Manifest(level=level, entries=tuple(entries[first : first + max_entries]))
            stored = uploader.store(manifest.encode(), group=group)
            parents.append(Entry(ref=stored, content_bytes=manifest.content_bytes))
        if len(parents) == 1:
            return Content(size=size, digest=digest, manifest=parents[0].ref)
        entries, level = parents, level + 1
