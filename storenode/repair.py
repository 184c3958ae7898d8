"""Putting right single copies of this node: a missing one is fetched, a corrupt one is set aside and fetched anew.

Two callers, two kinds of knowledge. Who follows the records has a whole reference and the number of replicas: `restore` uses
the verified read. Who found a bad copy on this disk (a reader's complaint, scrub, the quarantine at start) knows only
partition and id: `Repair` asks the peers in the order of placement. Both are equally safe, because the id is the BLAKE3-256
of the bytes and `ChunkStore.put` takes that hash before anything is stored: whatever a peer sends, only the right bytes get
the name.

`Repair` has a bounded queue and one thread. Its durable list is the quarantine directory, so a full queue and a crash lose
nothing: what did not fit is read from there when the queue has emptied.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from client.cluster import Cluster
from client.errors import (
    AllReplicasFailed,
    BodyTooLarge,
    ChecksumMismatch,
    ChunkCorrupt,
    ChunkNotFound,
    DeadlineExceeded,
    EndpointUnreachable,
    StoreError,
)
from client.manifest import Ref
from client.replica import ReplicaReader
from client.transport import Transport
from client.wire import chunk_path
from storenode.chunkstore import ChunkStore
from storenode.outage import Outages
from storenode.quarantine import Quarantine
from storenode.retry_queue import RetryQueue
from storenode.worker import Worker

__all__ = ["MAX_REPLICAS", "Copies", "Repair"]

log = logging.getLogger(__name__)

# The most replicas that a bucket may ask for: so many peers can rightly hold a chunk.
MAX_REPLICAS = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Copies:
    """This node's copies, and the peers that can replace them.

    Attributes
    ----------
    node_id : str
        This node.
    chunks : ChunkStore
        Its disk.
    cluster : Cluster
        Layout and liveness.
    reader : ReplicaReader
        The verified read, for chunks with a known reference.
    transport : Transport
        For chunks of which only partition and id are known.
    """

    node_id: str
    chunks: ChunkStore
    cluster: Cluster
    reader: ReplicaReader
    transport: Transport

    @property
    def epoch(self) -> int:
        """The tag of copies that are found or made because a record refers to them.

        Whoever uses it has read the record before. A sweep here makes the view fresh first and then looks at the records, so
        either it finds this one, or what is tagged because of it is too new for the sweep.
        """
        return self.cluster.anchor.epoch

    def belongs_here(self, ref: Ref, *, replicas: int) -> bool:
        """Whether placement gives this node a copy."""
        return self.node_id in self.cluster.layout.replicas(ref.partition, count=replicas)

    def is_moving(self, ref: Ref, *, replicas: int) -> bool:
        """Whether the layouts that are not retired disagree about who holds a chunk."""
        layouts = self.cluster.layouts
        if not layouts.older:
            return False
        held = [set(layout.replicas(ref.partition, count=replicas)) for layout in (layouts.current, *layouts.older)]
        return any(holders != held[0] for holders in held)

    def restore(self, ref: Ref, *, replicas: int) -> None:
        """Fetch a chunk from its other replicas, under any layout that is not retired, and store it durably.

        Raises
        ------
        AllReplicasFailed
            No peer has it, or none is up. Peers under suspicion are not asked: with many chunks to fetch, each would
            cost a timeout.
        DiskFull, DiskFailed
        """
        self._require_peer(ref, replicas=replicas)
        payload = self.reader.read(ref, replicas=replicas, exclude=(self.node_id,))
        self.chunks.put(ref.partition, ref.id, payload, epoch=self.epoch)

    def restore_small(self, wanted: Sequence[tuple[Ref, int]]) -> list[StoreError | None]:
        """Do the same for many small chunks at once, given with the numbers of their replicas.

        Parameters
        ----------
        wanted : sequence of (Ref, int)
            At most a group (`storenode.chunkgroup`) that fits into a batch (`client.frames`).

        Returns
        -------
        list of StoreError or None
            For each None if it is here now, durably, else what `restore` would have raised.
        """
        outcomes: dict[tuple[Ref, int], StoreError | None] = {}
        for ref, replicas in wanted:
            try:
                self._require_peer(ref, replicas=replicas)
            except AllReplicasFailed as error:
                outcomes[ref, replicas] = error
        asked = [chunk for chunk in wanted if chunk not in outcomes]
        came: list[tuple[tuple[Ref, int], memoryview]] = []
        for chunk, payload in zip(asked, self.reader.read_small(asked, exclude=(self.node_id,)), strict=True):
            if isinstance(payload, StoreError):
                outcomes[chunk] = payload
            else:
                came.append((chunk, payload))
        stored = self.chunks.put_group([(ref.partition, ref.id, payload) for (ref, _), payload in came], epoch=self.epoch)
        outcomes.update(zip((chunk for chunk, _ in came), stored, strict=True))
        return [outcomes[chunk] for chunk in wanted]

    def _require_peer(self, ref: Ref, *, replicas: int) -> None:
        holders = self.cluster.layouts.holders(ref.partition, count=replicas)
        peers = [node_id for node_id in holders if node_id != self.node_id]
        if all(self.cluster.suspected(node_id) for node_id in peers):
            named = ", ".join(peers) or "none, for it has one replica"
            raise AllReplicasFailed(f"chunk {ref}: no other replica is up ({named})", key=str(ref))

    def mend(self, partition: int, chunk_id: bytes) -> bool:
        """Make this node's copy sound, whatever it is now; returns whether it had to be fetched.

        Raises
        ------
        AllReplicasFailed
            With what each peer said.
        DiskFull, DiskFailed
        """
        try:
            self.chunks.verify(partition, chunk_id)
            return False
        except ChunkCorrupt:
            self.chunks.quarantine(partition, chunk_id)
        except ChunkNotFound:
            pass
        said: dict[str, str] = {}
        holders = self.cluster.layouts.holders(partition, count=MAX_REPLICAS)
        for peer in self.cluster.ranked([node_id for node_id in holders if node_id != self.node_id]):
            try:
                payload = self._fetch(peer, partition, chunk_id)
            except StoreError as error:
                said[peer] = f"{error.title}: {error.message}"
                continue
            try:
                self.chunks.put(partition, chunk_id, payload, epoch=self.epoch)
                return True
            except (ChecksumMismatch, BodyTooLarge) as error:  # The peer's fault; one of this disk is raised.
                said[peer] = f"{error.title}: {error.message}"
        detail = "; ".join(f"{node} said {words}" for node, words in said.items()) or "there is no other node"
        key = f"{partition}/{chunk_id.hex()}"
        raise AllReplicasFailed(f"chunk {key} can't be fetched from any node: {detail}", key=key)

    def _fetch(self, peer: str, partition: int, chunk_id: bytes) -> bytes:
        try:
            path = chunk_path(partition, chunk_id.hex())
            return self.transport.request("GET", self.cluster.endpoint(peer), path, node_id=peer).body
        except (EndpointUnreachable, DeadlineExceeded):
            self.cluster.failed(peer)
            raise


class Repair:
    """Mends the copies that it is told of, in a thread of its own, for as long as it takes. Thread-safe.

    Parameters
    ----------
    copies : Copies
        Does the work.
    quarantine : Quarantine
        What has yet to be replaced, durably.
    limit : int
        Most chunks in the queue.
    base_s, max_s : float
        Backoff of a chunk that can't be had.
    clock : callable
        Monotonic seconds.
    uniform : callable
        Jitter.
    """

    def __init__(
        self,
        copies: Copies,
        quarantine: Quarantine,
        *,
        limit: int,
        base_s: float,
        max_s: float,
        clock: Callable[[], float] = time.monotonic,
        uniform: Callable[[float, float], float] = random.uniform,
    ) -> None:
        self._copies = copies
        self._quarantine = quarantine
        self._clock = clock
        self._lock = threading.Lock()
        self._queue: RetryQueue[tuple[int, bytes]] = RetryQueue(limit=limit, base_s=base_s, max_s=max_s, uniform=uniform)
        # A start knows nothing of what came before, so it looks there first.
        self._look_in_quarantine = True
        self._outages = Outages(log)
        self._worker = Worker("repair", self.step, base_s=base_s, max_s=max_s, uniform=uniform)

    def start(self) -> None:
        """Begin, with what an earlier run left in quarantine."""
        self._worker.start()

    def stop(self) -> None:
        """End after the chunk in hand."""
        self._worker.stop()

    def enqueue(self, partition: int, chunk_id: bytes) -> None:
        """Have this node's copy checked and, if it is bad or missing, replaced. Returns at once."""
        with self._lock:
            if not self._queue.add((partition, chunk_id), revision=0, due_s=self._clock()):
                self._look_in_quarantine = True
        self._worker.wake()

    def mend_now(self, partition: int, chunk_id: bytes) -> None:
        """Mend a copy in this thread, for somebody who waits for it; raises what `Copies.mend` does."""
        self._copies.mend(partition, chunk_id)

    def forget(self, partition: int, chunk_id: bytes) -> None:
        """Do not mend this node's copy after all: it was garbage, and is gone."""
        with self._lock:
            self._queue.done((partition, chunk_id))

    @property
    def num_pending(self) -> int:
        """Copies that wait to be mended."""
        with self._lock:
            return len(self._queue)

    def step(self) -> float | None:
        """Mend what is due; returns the seconds until there is more to do, None if nothing waits."""
        if self._look_in_quarantine and not self.num_pending:
            self._take_quarantine()
        with self._lock:
            due = self._queue.due(self._clock())
        for key in due:
            if self._worker.stopping:
                break
            self._mend(key)
        with self._lock:
            next_s = self._queue.next_due_s()
            if next_s is None:
                return 0.0 if self._look_in_quarantine else None
            return max(0.0, next_s - self._clock())

    def _take_quarantine(self) -> None:
        self._look_in_quarantine = False  # Before looking: whoever is turned away meanwhile sets it again.
        try:
            found = self._quarantine.chunks()
        except StoreError:
            self._look_in_quarantine = True
            raise
        for key in sorted(found):
            self.enqueue(*key)

    def _mend(self, key: tuple[int, bytes]) -> None:
        what = f"repair of chunk {key[0]}/{key[1].hex()}"
        try:
            if self._copies.mend(*key):
                log.info("%s: this node's copy was replaced", what)
            self._quarantine.discard(*key)
        except StoreError as error:
            self._outages.failed(what, error)
            with self._lock:
                self._queue.failed(key, now_s=self._clock())
            return
        self._outages.succeeded(what)
        with self._lock:
            self._queue.done(key)
