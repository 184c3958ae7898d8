"""Many objects read at once: a few requests for names and small chunks together, from all nodes in parallel.

Theory of operation
-------------------
Any node answers for any name, so a first round spreads the objects over the nodes that are trusted. An object that is one
small chunk comes whole from a node that has a copy, and is checked here against its reference. In a second round go to
another node: what a node did not answer, and small objects of which the first had no copy, these to one that should have it.
Whatever is left then (larger objects, damaged copies, nodes that fail on) is read one by one by `ObjectStore`, which has
the retries, the failover and the words for errors; nothing of these is here.

A node whose bytes failed their check is told after the object has been read from elsewhere, as by `client.replica`.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass

from client.byte_range import clamp
from client.checksum import xxh3
from client.errors import ChunkCorrupt, StoreError, from_problem
from client.frames import CHUNK, INFO, MAX_SMALL_BYTES, frames
from client.in_flight import in_order
from client.manifest import REF_BYTES, Ref
from client.objects import ObjectStore
from client.record import ObjectInfo
from client.wire import decode_json

__all__ = ["BatchReader", "Item"]

Item = tuple[str, str, int, int | None]
# With chunks of 64 KiB an answer has 16 MiB then, and smaller ones overlap better with what is done with them.
_BATCH_ITEMS = 256
_FEW_ITEMS = 16  # Too few to be worth another node's attention.
_NUM_ROUNDS = 2
_REF = struct.Struct("<II32sQ")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Left:
    """An item that is not read yet.

    Attributes
    ----------
    again : bool
        Whether another request for many may bring it.
    node_id : str
        Where that goes; empty: anywhere.
    info : ObjectInfo or None
        What a node said of it.
    corrupt : (Ref, StoreError) or None
        A copy that did not match its reference.
    """

    index: int
    again: bool = False
    node_id: str = ""
    info: ObjectInfo | None = None
    corrupt: tuple[Ref, StoreError] | None = None


class BatchReader:
    """Reads many objects. Thread-safe.

    Parameters
    ----------
    store : ObjectStore
        Reads what a batch does not bring, and knows the nodes.
    executor : Executor
        Runs the requests and those reads; none of its threads may wait for another one.
    """

    def __init__(self, store: ObjectStore, executor: Executor) -> None:
        self._store = store
        self._executor = executor

    def get_many(self, items: Iterable[Item]) -> list[bytes]:
        """The bytes of each ``(bucket, key, start, end)``, in order; see `ObjectStore.get` for what it raises."""
        items = list(items)
        found: list[bytes | None] = [None] * len(items)
        left = [_Left(index=index, again=True) for index in range(len(items))]
        for _ in range(_NUM_ROUNDS):
            batches = self._batches([item for item in left if item.again])
            left = [item for item in left if not item.again]
            answers = in_order(
                self._executor,
                lambda batch: self._ask(batch[0], batch[1], items=items, found=found),
                batches,
                max_in_flight=self._store.config.max_threads,
            )
            for answer in answers:
                left += answer
        left.sort(key=lambda item: item.index)
        one_by_one = in_order(
            self._executor,
            lambda item: self._read(item, items[item.index]),
            left,
            max_in_flight=2 * self._store.config.max_threads,
        )
        for item, data in zip(left, one_by_one, strict=True):
            found[item.index] = data
        return [data for data in found if data is not None]

    def _batches(self, left: Sequence[_Left]) -> list[tuple[str, list[_Left]]]:
        """Requests, each to a node; those that may go anywhere are dealt out evenly."""
        cluster = self._store.cluster
        placed: dict[str, list[_Left]] = {}
        for item in left:
            placed.setdefault(item.node_id, []).append(item)
        anywhere = placed.pop("", [])
        batches = [
            (node_id, part[first : first + _BATCH_ITEMS])
            for node_id, part in placed.items()
            for first in range(0, len(part), _BATCH_ITEMS)
        ]
        if anywhere:
            ranked = cluster.ranked(tuple(cluster.view().endpoints))
            # With none at all this request fails and the reads that follow it say why.
            nodes = [node_id for node_id in ranked if not cluster.suspected(node_id)] or list(ranked[:1]) or [""]
            # As many for one node as for another, so that none is waited for.
            rounds = -(-len(anywhere) // (_BATCH_ITEMS * len(nodes)))
            size = max(_FEW_ITEMS, -(-len(anywhere) // (rounds * len(nodes))))
            for number, first in enumerate(range(0, len(anywhere), size)):
                batches.append((nodes[number % len(nodes)], anywhere[first : first + size]))
        return batches

    def _ask(self, node_id: str, batch: Sequence[_Left], *, items: Sequence[Item], found: list[bytes | None]) -> list[_Left]:
        """One request; fills in what it brings and returns what it does not."""
        try:
            body = self._store.chunks.get_objects(node_id, [items[item.index][:2] for item in batch])
        except StoreError as error:
            if not error.retryable:
                raise
            return [_Left(index=item.index, again=True) for item in batch]
        left = []
        for item, (kind, content) in zip(batch, frames(body, count=len(batch)), strict=True):
            index = item.index
            bucket, key, start, end = items[index]
            if kind == CHUNK:
                partition, size, chunk_id, check = _REF.unpack_from(content)
                payload = content[REF_BYTES:]
                if len(payload) == size and xxh3(payload) == check:
                    end = clamp(bucket, key, size, start=start, end=end)
                    found[index] = bytes(payload[start:end])
                else:
                    left.append(_bad(index, node_id, Ref(partition=partition, id=chunk_id, size=size, check=check)))
            elif kind == INFO:
                left.append(self._elsewhere(index, node_id, ObjectInfo.from_json(decode_json(bytes(content)))))
            else:
                problem = from_problem(decode_json(bytes(content)), node_id=node_id)
                if not problem.retryable:
                    raise problem
                left.append(_Left(index=index, again=True))
        return left

    def _elsewhere(self, index: int, node_id: str, info: ObjectInfo) -> _Left:
        """Where to ask for an object that `node_id` did not bring."""
        refs = info.record.content.refs
        if len(refs) != 1 or not 0 < refs[0].size <= MAX_SMALL_BYTES:
            return _Left(index=index, info=info)
        cluster = self._store.cluster
        holders = cluster.ranked(cluster.layout.replicas(refs[0].partition, count=info.record.replicas))
        others = [holder for holder in holders if holder != node_id]
        return _Left(index=index, info=info, again=bool(others), node_id=others[0] if others else "")

    def _read(self, left: _Left, item: Item) -> bytes:
        bucket, key, start, end = item
        if left.info is not None:
            data = self._store.read(left.info, start=start, end=end)
        else:
            data = self._store.get(bucket, key, start=start, end=end)
        if left.corrupt is not None:
            # Only now that the reader has its bytes: the node re-hashes its copy before it answers.
            ref, error = left.corrupt
            self._store.replica_reader.report_corrupt(ref, {str(error.node_id): error})
        return data


def _bad(index: int, node_id: str, ref: Ref) -> _Left:
    message = f"chunk {ref}: the bytes that node {node_id} sent do not match the checksum"
    return _Left(index=index, corrupt=(ref, ChunkCorrupt(message, key=str(ref), node_id=node_id)))
