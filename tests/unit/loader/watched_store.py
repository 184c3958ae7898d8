"""The store in memory as the tests of the writer need it: a bucket, settings of the client, and a say in each PUT."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from typing_extensions import Buffer

from client.chunks import Stored
from client.config import ClientConfig
from client.manifest import Ref
from client.objects import ObjectStore
from client.record import BucketPolicy
from tests.support.fake_store import FakeCatalog, FakeChunks, FakeStore

__all__ = ["WatchedChunks", "watched_store"]


class WatchedChunks(FakeChunks):
    """Chunks whose arrival is counted; `before_put` may wait or raise, as a node would."""

    def __init__(self, node_ids: Sequence[str]) -> None:
        super().__init__(node_ids)
        self.put_sizes: list[int] = []
        self.before_put: Callable[[Ref], None] = lambda ref: None

    def put(self, node_id: str, ref: Ref, payload: Buffer, *, epoch: int, **options: Any) -> Stored:
        self.before_put(ref)
        self.put_sizes.append(ref.size)
        # Nothing here is slow, so deadlines and timeouts have no meaning.
        return super().put(node_id, ref, payload, epoch=epoch, tee=options.get("tee", ()))

    def fetch_into(self, node_id: str, ref: Ref, buffer: memoryview, *, start: int = 0, **options: Any) -> None:
        super().fetch_into(node_id, ref, buffer, start=start)


@contextmanager
def watched_store(**settings: Any) -> Iterator[tuple[FakeStore, FakeCatalog, WatchedChunks]]:
    """A store with the bucket ``data``, its catalog and its chunks; `settings` go into the client's configuration."""
    store = FakeStore()
    store.fake_chunks = chunks = WatchedChunks(store.node_ids)
    config = ClientConfig(**{"deadline_s": 0.05, "retry_base_s": 0.001, **settings})
    ObjectStore.__init__(store, store.fake_catalog, store.cluster, chunks, config)
    store.fake_catalog.create_bucket("data", BucketPolicy(replicas=2, ack="all"))
    try:
        yield store, store.fake_catalog, chunks
    finally:
        store.close()
