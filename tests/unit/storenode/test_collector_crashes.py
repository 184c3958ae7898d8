"""The process ends at any call of the disk during a sweep or a touch: the next one recovers, and nothing live is lost."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from client.catalog import Commit
from client.checksum import blake3_id
from client.errors import DiskFailed, StoreError
from client.manifest import Ref, make_ref
from client.record import Content, ObjectRecord
from client.write_id import new_write_id
from storenode import collector as collector_module
from storenode.chunkstore import ChunkStore
from storenode.collector import Collector
from tests.support.catalogs import make_catalog, open_meta
from tests.support.filesystem import SimulatedCrash, VolatileFileSystem
from tests.support.hooked_meta import HookedMeta
from tests.support.surplus import NothingElsewhere

EPOCH = 5
OLD = EPOCH - 2
PARTITIONS = 16
# So that a sweep has few calls, each of which is cut once: of the directories these, in which all chunks lie.
NUM_DIRECTORIES = 4


def _payloads() -> Iterator[bytes]:
    return (payload for payload in map(b"%d".__mod__, range(10_000)) if blake3_id(payload)[0] < NUM_DIRECTORIES)


LIVE, GARBAGE, TOUCHED, BAD = (payload for payload, _ in zip(_payloads(), range(4), strict=False))
REFS = {payload: make_ref(payload, partitions=PARTITIONS) for payload in (LIVE, GARBAGE, TOUCHED, BAD)}


class Disk:
    """A disk with a chunk that is referred to, garbage, a bad copy of garbage, and one that an upload relies on again."""

    def __init__(self, root: Path, meta: HookedMeta) -> None:
        self.root = root
        self.meta = meta
        self.fs = VolatileFileSystem()
        self.open()
        for payload, ref in REFS.items():
            self.store.put(ref.partition, ref.id, payload, epoch=OLD)
        (path,) = root.glob(f"chunks/*/*-{REFS[BAD].hex}")
        path.write_bytes(b"rotten")
        os.utime(path, (OLD, OLD))
        self.store.quarantine(REFS[BAD].partition, REFS[BAD].id)
        self.fs.sync_everything(0)
        self.fs.calls.clear()

    def open(self, *, floor: int = 0) -> None:
        self.store = ChunkStore(self.root, reserve_bytes=0, max_chunk_bytes=1 << 20, floor=floor, fs=self.fs)

    def work(self) -> None:
        """Rely on one chunk again, and sweep."""
        ref = REFS[TOUCHED]
        self.acknowledged = False
        assert self.store.touch(ref.partition, ref.id, epoch=EPOCH)
        self.acknowledged = True
        self.sweep(EPOCH)

    def sweep(self, epoch: int) -> None:
        collector = Collector(
            self.meta,
            garbage=self.store.garbage,
            refs=lambda record: record.content.refs,
            reach=lambda epoch: None,
            require_may_remove=lambda: None,
            surplus=NothingElsewhere(),
            forget=lambda partition, chunk_id: None,
            max_chunks=3,
        )
        for _ in collector.sweep(epoch):
            pass

    def is_sound(self, ref: Ref) -> bool:
        with suppress(StoreError):
            return self.store.verify(ref.partition, ref.id) == ref.size
        return False

    def files(self) -> set[str]:
        return {path.name.partition("-")[2][:64] for path in self.root.rglob("*-*")}


@pytest.fixture
def meta(monkeypatch: pytest.MonkeyPatch) -> Iterator[HookedMeta]:
    monkeypatch.setattr(collector_module, "_NUM_DIRECTORIES", NUM_DIRECTORIES)
    with open_meta() as meta:
        catalog = make_catalog(meta)
        content = Content(size=REFS[LIVE].size, digest="d" * 64, refs=(REFS[LIVE],))
        catalog.commit(Commit(bucket="data", key="k", record=ObjectRecord(write_id=new_write_id(), content=content)))
        yield meta


@pytest.fixture
def num_calls(meta: HookedMeta, tmp_path: Path) -> int:
    (tmp_path / "counted").mkdir()
    disk = Disk(tmp_path / "counted", meta)
    disk.work()
    assert disk.files() == {REFS[LIVE].hex, REFS[TOUCHED].hex}
    return len(disk.fs.calls)


@pytest.mark.parametrize("power", [False, True], ids=["killed", "power cut"])
def test_a_crash_at_any_call_loses_nothing_and_leaves_no_garbage(
    meta: HookedMeta, tmp_path: Path, num_calls: int, power: bool
) -> None:
    for at in range(num_calls):
        (tmp_path / f"{at}").mkdir()
        disk = Disk(tmp_path / f"{at}", meta)
        disk.fs.fail(SimulatedCrash(), at=at)
        with pytest.raises(SimulatedCrash):
            disk.work()
        if power:
            disk.fs.power_cut()
        disk.fs.revive()
        disk.open(floor=EPOCH)
        # The upload may yet be committed, in this epoch or the next.
        disk.sweep(EPOCH + 1)
        assert disk.is_sound(REFS[LIVE]), at
        assert disk.is_sound(REFS[TOUCHED]) or not disk.acknowledged, at
        disk.sweep(EPOCH + 2)
        assert disk.files() == {REFS[LIVE].hex}, at


def test_an_error_at_any_call_is_named_and_the_next_sweep_goes_on(meta: HookedMeta, tmp_path: Path, num_calls: int) -> None:
    for at in range(num_calls):
        (tmp_path / f"{at}").mkdir()
        disk = Disk(tmp_path / f"{at}", meta)
        disk.fs.fail(OSError(errno.EIO, os.strerror(errno.EIO)), at=at)
        with suppress(DiskFailed, AssertionError):  # A copy that can't be read when it is touched is set aside as bad.
            disk.work()
        assert disk.is_sound(REFS[LIVE]), at
        assert disk.is_sound(REFS[TOUCHED]) or not disk.acknowledged, at
        disk.sweep(EPOCH + 2)
        assert disk.files() == {REFS[LIVE].hex}, at
