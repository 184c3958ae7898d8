"""Many objects written at once: small ones in groups that become durable and get their names together, others one by one.

Theory of operation
-------------------
An object that is one small chunk joins the open group. A full group is written by a thread: its chunks, in a request for each
holder (`client.group_upload`), and when all of them are acknowledged its records, by `client.anchoring.commit_many`. So nothing
gets a name before its bytes are durable. Empty and large objects, paths and files go through `ObjectStore.put`.

Items are taken only as they are needed, and those that were taken and have not ended are bounded, in groups and in calls of
`put`, so that memory does not grow with their number. No name is under way twice: a second item of one name waits until all
before it have ended, whichever ways they go, so that the later one wins.

Once an error is seen no more items are taken. The first error in the order of the items is the one to raise, and items before
the failed one may still be in the open group; so they are written all the same, and those behind it are left out.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from functools import partial

from client.anchoring import RefsOf, commit_many
from client.catalog import Catalog, Commit
from client.errors import StoreError
from client.frames import MAX_BATCH_BYTES, MAX_ITEMS, MAX_SMALL_BYTES
from client.in_flight import settle
from client.names import check_bucket, check_key
from client.payloads import Data, in_memory
from client.record import Ack, BucketPolicy, ObjectInfo, ObjectRecord
from client.upload import ChunkUploader, make_content
from client.write_id import new_write_id

__all__ = ["BatchWriter"]

# One is sent while the other becomes durable.
_MAX_GROUPS = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class _Item:
    """An item that was taken; only a small one's payload is here."""

    index: int
    bucket: str
    key: str
    payload: bytes = b""


_Outcomes = Sequence[ObjectInfo | StoreError]
_Sent = deque[tuple[Sequence[_Item], Future[_Outcomes]]]


class BatchWriter:
    """One call of `ObjectStore.put_many`, for its one thread.

    Parameters
    ----------
    catalog : Catalog
        Names to records.
    put : callable
        Writes one object, as `ObjectStore.put`.
    uploader : callable
        What stores chunks with given replicas and acknowledgements, as `ObjectStore.uploader`.
    refs_of : callable
        The references of a record.
    calls : Executor
        Writes objects and groups, which wait for `requests`; so the two must not share threads.
    requests : Executor
        Sends the chunks of groups.
    max_puts : int
        Objects under way one by one.
    """

    def __init__(
        self,
        catalog: Catalog,
        *,
        put: Callable[[str, str, Data], ObjectInfo],
        uploader: Callable[..., ChunkUploader],
        refs_of: RefsOf,
        calls: Executor,
        requests: Executor,
        max_puts: int,
    ) -> None:
        self._catalog = catalog
        self._put = put
        self._uploader = uploader
        self._refs_of = refs_of
        self._calls = calls
        self._requests = requests
        self._max_puts = max_puts
        self._policies: dict[str, BucketPolicy] = {}
        self._open: list[_Item] = []
        self._open_bytes = 0
        self._groups: _Sent = deque()
        self._puts: _Sent = deque()
        self._names: set[tuple[str, str]] = set()  # Of items that have not ended.
        self._infos: dict[int, ObjectInfo] = {}
        self._errors: dict[int, BaseException] = {}

    def put_many(self, items: Iterable[tuple[str, str, Data]]) -> list[ObjectInfo]:
        """See `ObjectStore.put_many`."""
        try:
            for index, (bucket, key, data) in enumerate(items):
                self._take(index, bucket, key, data)
                if self._errors:
                    break
            self._end()
        finally:
            # If the items themselves, or a signal, ended it.
            settle([future for sent in (self._groups, self._puts) for _, future in sent])
        if self._errors:
            raise self._errors[min(self._errors)]
        return [self._infos[index] for index in range(len(self._infos))]

    def _take(self, index: int, bucket: str, key: str, data: Data) -> None:
        if (bucket, key) in self._names:
            self._end()
        try:
            payload = self._small(bucket, key, data)
        except (StoreError, TypeError) as error:
            self._errors[index] = error
            return
        self._names.add((bucket, key))
        item = _Item(index=index, bucket=bucket, key=key, payload=payload)
        if not payload:
            self._send(self._puts, [item], lambda _: [self._put(bucket, key, data)], most=self._max_puts)
            return
        if len(self._open) == MAX_ITEMS or self._open_bytes + len(payload) > MAX_BATCH_BYTES:
            self._send_open()
        self._open.append(item)
        self._open_bytes += len(payload)

    def _small(self, bucket: str, key: str, data: Data) -> bytes:
        """A copy of `data` if it goes into a group, and its bucket's policy is known then; else nothing."""
        view = in_memory(data)
        if view is None or len(view) > MAX_SMALL_BYTES:
            return b""
        check_bucket(bucket)
        check_key(key)
        if bucket not in self._policies:
            self._policies[bucket] = self._catalog.bucket(bucket)
        # Copied, because it may lie here while the caller goes on and uses the buffer again.
        return bytes(view)

    def _send_open(self) -> None:
        """Send the open group, the items of each policy by themselves."""
        parts: dict[tuple[int, Ack], list[_Item]] = {}
        for item in self._open:
            policy = self._policies[item.bucket]
            parts.setdefault((policy.replicas, policy.ack), []).append(item)
        self._open, self._open_bytes = [], 0
        for (replicas, ack), part in parts.items():
            self._send(self._groups, part, partial(self._write, replicas=replicas, ack=ack), most=_MAX_GROUPS)

    def _write(self, group: Sequence[_Item], *, replicas: int, ack: Ack) -> _Outcomes:
        """Store the chunks of `group` and then name them. Raises `StoreError` if too few nodes have some of them."""
        uploader = self._uploader(replicas, ack=ack)
        refs = uploader.store_many([item.payload for item in group], executor=self._requests)
        writes = []
        for item, ref in zip(group, refs, strict=True):
            record = ObjectRecord(
                write_id=new_write_id(),
                content=make_content([ref], uploader),
                ack=ack,
                replicas=replicas,
                created_s=time.time(),
            )
            writes.append(Commit(bucket=item.bucket, key=item.key, record=record))
        return commit_many(self._catalog, writes, uploader, refs_of=self._refs_of)

    def _send(self, sent: _Sent, items: Sequence[_Item], write: Callable[[Sequence[_Item]], _Outcomes], *, most: int) -> None:
        """Have a thread write `items` as soon as fewer than `most` are in `sent`, but none behind an item that has failed."""
        while len(sent) >= most:
            self._take_first(sent)
        wanted = [item for item in items if not self._errors or item.index < min(self._errors)]
        if wanted:
            sent.append((wanted, self._calls.submit(write, wanted)))

    def _end(self) -> None:
        """Write what was taken, and wait until all of it has ended."""
        self._send_open()
        for sent in (self._groups, self._puts):
            while sent:
                self._take_first(sent)

    def _take_first(self, sent: _Sent) -> None:
        items, future = sent[0]
        error = future.exception()
        sent.popleft()
        outcomes: Sequence[ObjectInfo | BaseException] = [error] * len(items) if error is not None else future.result()
        for item, outcome in zip(items, outcomes, strict=True):
            self._names.discard((item.bucket, item.key))
            if isinstance(outcome, ObjectInfo):
                self._infos[item.index] = outcome
            else:
                self._errors[item.index] = outcome
