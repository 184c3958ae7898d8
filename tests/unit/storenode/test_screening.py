"""Damaged copies: seen, set aside and made good, and no sound one ever taken for them."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from client.checksum import SEGMENT_BYTES
from client.errors import ChunkCorrupt, DiskFailed
from storenode.chunkstore import ChunkStore
from storenode.filesystem import FileSystem
from tests.support.chunk_files import ID, PAYLOAD, flip_bit, open_store, path_of, quarantined, read
from tests.support.filesystem import VolatileFileSystem


@pytest.fixture
def store(tmp_path: Path) -> ChunkStore:
    return open_store(tmp_path)


# --- damage


def test_a_flipped_bit_is_found_set_aside_and_made_good(store: ChunkStore, tmp_path: Path) -> None:
    store.put(5, ID, PAYLOAD)
    for at in (0, SEGMENT_BYTES, len(PAYLOAD) - 1):
        flip_bit(path_of(tmp_path), at)
        with pytest.raises(ChunkCorrupt, match="hash to"):
            store.verify(5, ID)
        assert store.contains(5, ID)
        assert store.quarantine(5, ID)
        assert not store.contains(5, ID)
        assert store.put(5, ID, PAYLOAD)
        assert store.verify(5, ID)
    names = quarantined(tmp_path)
    assert len(names) == 3
    assert all(name.startswith(f"00000005-{ID.hex()}.") for name in names)


def test_put_replaces_a_corrupt_copy(store: ChunkStore, tmp_path: Path) -> None:
    store.put(5, ID, PAYLOAD)
    flip_bit(path_of(tmp_path), 70_000)
    assert store.put(5, ID, PAYLOAD)
    assert read(store) == PAYLOAD
    assert len(quarantined(tmp_path)) == 1


def test_a_file_of_the_wrong_structure_is_refused_set_aside_and_made_good(store: ChunkStore, tmp_path: Path) -> None:
    store.put(5, ID, PAYLOAD)
    os.truncate(path_of(tmp_path), 1000)
    for call in (store.open_chunk, store.verify):
        with pytest.raises(ChunkCorrupt):
            call(5, ID)
    assert store.quarantine(5, ID)
    assert store.put(5, ID, PAYLOAD)
    assert store.verify(5, ID)


def test_an_unreadable_sector_is_a_corrupt_copy_and_put_replaces_it(tmp_path: Path) -> None:
    fs = VolatileFileSystem()
    store = open_store(tmp_path, fs)
    store.put(5, ID, PAYLOAD)
    for call in (store.verify, store.open_chunk):
        fs.fail(OSError(errno.EIO, "Input/output error"), method="pread_into")
        with pytest.raises(ChunkCorrupt, match="errno 5"):
            call(5, ID)
    fs.fail(OSError(errno.EIO, "Input/output error"), method="pread_into", at=1)
    assert store.put(5, ID, PAYLOAD)
    assert len(quarantined(tmp_path)) == 1


def test_other_errors_of_reading_are_not_held_against_the_copy(tmp_path: Path) -> None:
    fs = VolatileFileSystem()
    store = open_store(tmp_path, fs)
    store.put(5, ID, PAYLOAD)
    fs.fail(OSError(errno.EMFILE, "Too many open files"), method="open_file")
    with pytest.raises(DiskFailed, match="errno 24"):
        store.put(5, ID, PAYLOAD)
    assert quarantined(tmp_path) == []


def test_a_sound_copy_can_not_be_accused_away(store: ChunkStore, tmp_path: Path) -> None:
    store.put(5, ID, PAYLOAD)
    assert not store.quarantine(5, ID)
    assert read(store) == PAYLOAD
    assert quarantined(tmp_path) == []


# --- races


class Meddling(FileSystem):
    """Lets something else happen right before the first call of a method."""

    def __init__(self, method: str, meddle: Callable[[], object]) -> None:
        self._meddle: dict[str, Callable[[], object]] = {method: meddle}

    def link(self, fd: int, name: str, *, directory: int) -> None:
        self._meddle.pop("link", bool)()
        super().link(fd, name, directory=directory)

    def stat_name(self, name: str, *, directory: int) -> os.stat_result:
        self._meddle.pop("stat_name", bool)()
        return super().stat_name(name, directory=directory)


def test_losing_the_race_for_the_name_is_a_repeat(store: ChunkStore, tmp_path: Path) -> None:
    loser = open_store(tmp_path, Meddling("link", lambda: store.put(5, ID, PAYLOAD)))
    assert not loser.put(5, ID, PAYLOAD)
    assert read(store) == PAYLOAD


def test_losing_the_race_to_a_damaged_file_replaces_it(store: ChunkStore, tmp_path: Path) -> None:
    winner = open_store(tmp_path, Meddling("link", lambda: path_of(tmp_path).write_bytes(b"rubbish")))
    assert winner.put(5, ID, PAYLOAD)
    assert store.verify(5, ID)
    assert len(quarantined(tmp_path)) == 1


def test_a_replacement_is_not_quarantined_in_the_bad_copys_stead(store: ChunkStore, tmp_path: Path) -> None:
    store.put(5, ID, PAYLOAD)
    flip_bit(path_of(tmp_path), 9)
    slow = open_store(tmp_path, Meddling("stat_name", lambda: store.put(5, ID, PAYLOAD)))
    assert not slow.quarantine(5, ID)
    assert store.verify(5, ID)
    assert len(quarantined(tmp_path)) == 1


@pytest.mark.parametrize("deletes", [False, True])
def test_nothing_comes_between_the_last_look_at_a_bad_copy_and_its_removal(tmp_path: Path, deletes: bool) -> None:
    class Slow(FileSystem):
        """Between its first look and the rename there is time for another writer, if nothing holds that up."""

        def stat_name(self, name: str, *, directory: int) -> os.stat_result:
            found = super().stat_name(name, directory=directory)
            if not writer.is_alive():
                writer.start()
                writer.join(0.2)
            return found

    store = open_store(tmp_path, Slow())

    def write() -> None:
        if deletes:
            store.delete(5, ID)
        store.put(5, ID, PAYLOAD)

    writer = threading.Thread(target=write)
    path_of(tmp_path).write_bytes(b"rubbish")
    assert store.quarantine(5, ID)
    writer.join()
    assert store.verify(5, ID)
    assert len(quarantined(tmp_path)) == 1


def test_many_writers_of_one_damaged_chunk_end_with_one_sound_copy(store: ChunkStore, tmp_path: Path) -> None:
    store.put(5, ID, PAYLOAD)
    flip_bit(path_of(tmp_path), 9)
    created: list[bool] = []
    start = threading.Barrier(8)

    def write() -> None:
        start.wait()
        created.append(store.put(5, ID, PAYLOAD))
        assert store.verify(5, ID)

    threads = [threading.Thread(target=write) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(created) == [False] * 7 + [True]
    assert len(quarantined(tmp_path)) == 1
