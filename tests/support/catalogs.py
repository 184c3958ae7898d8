"""A catalog on a real engine whose clocks and calls a test owns, and short ways to write with it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from client.catalog import Commit
from client.cluster import Anchor
from client.errors import MetadataUnavailable
from client.manifest import Ref
from client.placement import Layout, Node
from client.record import BucketPolicy, Condition, Content, ObjectInfo, ObjectRecord
from client.retry import Backoff
from client.write_id import new_write_id
from storenode.catalog import MetaCatalog
from storenode.layouts import create_layout
from storenode.sqlite import SqliteMetaStore, boot_clock
from tests.support.hooked_meta import HookedMeta

__all__ = [
    "ANY",
    "MARKER_TTL_S",
    "NEW",
    "Clock",
    "make_catalog",
    "memory_directory",
    "open_meta",
    "put",
    "record",
    "retried",
    "versions",
    "write",
]

ANY = Condition()
NEW = Condition(if_none_match="*")
MARKER_TTL_S = 60.0
_NO_PAUSE = Backoff(base_s=0.0, max_s=0.0, sleep=lambda _: None)


class Clock:
    """Seconds that pass when the test says so."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


@contextmanager
def memory_directory() -> Iterator[Path]:
    """A directory in memory where that is possible: for tests that are not about fsync, which takes long on busy disks."""
    with TemporaryDirectory(dir="/dev/shm" if os.path.isdir("/dev/shm") else None) as directory:
        yield Path(directory)


@contextmanager
def open_meta(*, boot_clock: Callable[[], float] = boot_clock) -> Iterator[HookedMeta]:
    """An engine whose leases, and waits, count on `boot_clock`: one that stands still waits for ever."""
    with memory_directory() as directory:
        store = SqliteMetaStore(directory / "meta.db", clock=boot_clock, boot_id="boot")
        try:
            yield HookedMeta(store)
        finally:
            store.close()


def make_catalog(meta: HookedMeta, *, monotonic: Callable[[], float] = lambda: 0.0) -> MetaCatalog:
    """A catalog with a bucket called data, which never waits, in a cluster that has a layout."""
    create_layout(meta, Layout(version=1, partitions=16, nodes=(Node(id="n1"),)))
    catalog = MetaCatalog(meta, marker_ttl_s=MARKER_TTL_S, clock=lambda: 5.0, monotonic=monotonic, backoff=_NO_PAUSE)
    catalog.create_bucket("data", BucketPolicy())
    return catalog


def record(*, write_id: str = "", size: int = 3, tombstone: bool = False) -> ObjectRecord:
    """A record of one chunk that nobody stored."""
    ref = Ref(partition=1, id=bytes(32), size=size, check=7)
    content = Content(size=size, digest="d" * 64, refs=(ref,))
    return ObjectRecord(write_id=write_id or new_write_id(), content=content, tombstone=tombstone)


def put(catalog: MetaCatalog, key: str = "k", *, write_id: str = "", condition: Condition = ANY) -> ObjectInfo:
    """Commit a record under `key` in the bucket data."""
    return catalog.commit(Commit(bucket="data", key=key, record=record(write_id=write_id), condition=condition))


def write(key: str = "k", *, write_id: str = "", condition: Condition = ANY, bucket: str = "data") -> Commit:
    """A write of a record, anchored to the first layout."""
    proof = Anchor(layout=1, epoch=0)
    return Commit(bucket=bucket, key=key, record=record(write_id=write_id), condition=condition, proof=proof)


def versions(catalog: MetaCatalog, prefix: str = "") -> list[tuple[str, int, bool]]:
    """Key, version and tombstone of everything in the bucket data."""
    page = catalog.list("data", prefix=prefix, delimiter="", cursor=None, limit=1000, versions=True)
    assert page.cursor is None
    return [(info.key, info.version, info.record.tombstone) for info in page.objects]


def retried(call: Callable[[], ObjectInfo]) -> ObjectInfo:
    """Repeat until the metadata has answered."""
    while True:
        try:
            return call()
        except MetadataUnavailable:
            continue
