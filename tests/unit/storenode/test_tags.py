"""Tags of copies: given with every put and touch, never lowered, and what garbage collection may remove by them."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from client.checksum import blake3_id
from storenode.chunkstore import ChunkStore
from storenode.filesystem import FileSystem
from storenode.garbage import Removed
from tests.support.chunk_files import ID, MAX_CHUNK_BYTES, PAYLOAD, flip_bit, open_store, path_of
from tests.support.filesystem import VolatileFileSystem

FIRST = ID[0]
SMALL = b"a small chunk"
SMALL_ID = blake3_id(SMALL)


def tag(root: Path, chunk_id: bytes = ID) -> float:
    return path_of(root, chunk_id).stat().st_mtime


def is_older(store: ChunkStore, below: int, chunk_id: bytes = ID) -> bool:
    return (5, chunk_id) in store.garbage.older(chunk_id[0], below=below)


def put_at_once(store: ChunkStore, epoch: int) -> None:
    store.put(5, ID, PAYLOAD, epoch=epoch)


def put_in_parts(store: ChunkStore, epoch: int) -> None:
    with store.writer(5, ID, memoryview(PAYLOAD), epoch=epoch) as writer:
        writer.advance(len(PAYLOAD))
        writer.commit()


def put_as_a_group(store: ChunkStore, epoch: int) -> None:
    assert store.put_group([(5, ID, PAYLOAD), (5, SMALL_ID, SMALL)], epoch=epoch) == [None, None]


def touch(store: ChunkStore, epoch: int) -> None:
    assert store.touch(5, ID, epoch=epoch)


def look_for(store: ChunkStore, epoch: int) -> None:
    assert store.touch(5, ID, epoch=epoch, rehash=False)


PUTS = [put_at_once, put_in_parts, put_as_a_group]


@pytest.mark.parametrize("put", PUTS)
def test_a_new_copy_has_its_epoch_for_a_tag(tmp_path: Path, put) -> None:  # type: ignore[no-untyped-def]
    store = open_store(tmp_path, FileSystem())
    put(store, 7)
    assert tag(tmp_path) == 7
    assert is_older(store, 8) and not is_older(store, 7)


@pytest.mark.parametrize("again", [*PUTS, touch, look_for])
def test_who_relies_on_a_copy_raises_its_tag_and_never_lowers_it(tmp_path: Path, again) -> None:  # type: ignore[no-untyped-def]
    store = open_store(tmp_path, FileSystem())
    put_at_once(store, 7)
    again(store, 9)
    assert tag(tmp_path) == 9
    again(store, 8)
    assert tag(tmp_path) == 9


@pytest.mark.parametrize("rehash", [False, True])
def test_a_copy_that_is_not_here_can_not_be_touched(tmp_path: Path, rehash: bool) -> None:
    assert not open_store(tmp_path).touch(5, ID, epoch=3, rehash=rehash)


def test_looking_for_a_copy_neither_reads_nor_syncs(tmp_path: Path) -> None:
    fs = VolatileFileSystem()
    store = open_store(tmp_path, fs)
    put_at_once(store, 1)
    fs.calls.clear()
    look_for(store, 2)
    look_for(store, 2)
    assert fs.methods == ["open_directory", "stat_name", "stamp_name", "open_directory", "stat_name"]


def test_garbage_is_removed_by_its_tag(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    put_at_once(store, 7)
    size_bytes = path_of(tmp_path).stat().st_size
    assert store.garbage.remove(FIRST, [(5, ID), (6, ID)], below=7) == Removed()
    assert store.contains(5, ID)
    withdrawn = store.num_withdrawn
    assert store.garbage.remove(FIRST, [(5, ID), (6, ID)], below=8) == Removed(num_chunks=1, size_bytes=size_bytes)
    assert not store.contains(5, ID)
    assert store.num_withdrawn > withdrawn


def test_a_copy_that_is_bad_may_be_garbage_too(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    put_at_once(store, 7)
    times = path_of(tmp_path).stat()
    flip_bit(path_of(tmp_path), 3)
    os.utime(path_of(tmp_path), ns=(times.st_atime_ns, times.st_mtime_ns))
    assert store.garbage.remove(FIRST, [(5, ID)], below=8).num_chunks == 1


@pytest.mark.parametrize("moment", ["stat_name", "pread_into"])
@pytest.mark.parametrize("put", PUTS)
def test_a_copy_that_is_garbage_until_it_is_put_again_stays_or_is_written_anew(tmp_path: Path, put, moment: str) -> None:  # type: ignore[no-untyped-def]
    class Sweeping(FileSystem):
        """What is old is garbage at the moment in which the copy is looked for, or read."""

        num_left = 1

        def stat_name(self, name: str, *, directory: int) -> os.stat_result:
            found = super().stat_name(name, directory=directory)
            self.sweep("stat_name")
            return found

        def pread_into(self, fd: int, buffer: memoryview, *, offset: int) -> int:
            self.sweep("pread_into")
            return super().pread_into(fd, buffer, offset=offset)

        def sweep(self, now: str) -> None:
            if now == moment and self.num_left:
                self.num_left -= 1
                sweep.start()
                sweep.join(0.2)  # Where somebody holds the lock it can't come to its end.

    store = open_store(tmp_path, FileSystem())
    put_at_once(store, 1)
    store = open_store(tmp_path, Sweeping())
    sweep = threading.Thread(target=store.garbage.remove, args=(FIRST, [(5, ID)]), kwargs={"below": 8})
    put(store, 9)
    sweep.join()
    assert store.verify(5, ID) == len(PAYLOAD)
    assert tag(tmp_path) == 9


def test_a_touch_between_the_look_at_a_tag_and_the_removal_waits(tmp_path: Path) -> None:
    class Slow(FileSystem):
        """Before it removes the name there is time for another's touch, if nothing holds that up."""

        def unlink(self, name: str, *, directory: int) -> None:
            toucher.start()
            toucher.join(0.2)
            super().unlink(name, directory=directory)

    found: list[bool] = []
    store = open_store(tmp_path, Slow())
    toucher = threading.Thread(target=lambda: found.append(store.touch(5, ID, epoch=9, rehash=False)))
    put_at_once(store, 1)
    assert store.garbage.remove(FIRST, [(5, ID)], below=8).num_chunks == 1
    toucher.join()
    assert found == [store.contains(5, ID)] == [False]


def test_what_was_tagged_before_the_start_counts_for_the_floor(tmp_path: Path) -> None:
    fs = VolatileFileSystem()
    store = open_store(tmp_path, fs)
    put_at_once(store, 1)
    fs.sync_everything(0)
    touch(store, 5)
    fs.power_cut()
    assert tag(tmp_path) == 1
    store = ChunkStore(tmp_path, reserve_bytes=0, max_chunk_bytes=MAX_CHUNK_BYTES, floor=5, fs=fs)
    assert is_older(store, 6) and not is_older(store, 5)
    assert store.garbage.remove(FIRST, [(5, ID)], below=5) == Removed()
    touch(store, 6)
    assert not is_older(store, 6)


def test_a_time_of_the_clock_is_no_epoch(tmp_path: Path) -> None:
    fs = VolatileFileSystem()
    store = open_store(tmp_path, fs)
    put_at_once(store, 4)
    fs.power_cut()
    assert tag(tmp_path) > 2**30
    assert is_older(store, 1)
    touch(store, 6)
    assert tag(tmp_path) == 6


def test_only_chunk_files_are_garbage(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    (tmp_path / "chunks" / "00" / "not-a-chunk").touch()
    assert store.garbage.older(0, below=100) == []
