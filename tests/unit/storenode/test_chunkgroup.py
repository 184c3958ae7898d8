"""Groups of chunks on a real disk: durable together or not acknowledged, and one bad chunk harms no other."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from client.checksum import blake3_id
from client.errors import ChecksumMismatch, DiskFailed, DiskFull, Misconfigured
from storenode.chunkstore import ChunkStore
from storenode.filesystem import FileSystem
from storenode.trailer import Trailer
from tests.support.filesystem import SimulatedCrash, VolatileFileSystem

PAYLOADS = [b"chunk %d" % number for number in range(5)]
IDS = [blake3_id(payload) for payload in PAYLOADS]
GROUP = [(number, chunk_id, payload) for number, (chunk_id, payload) in enumerate(zip(IDS, PAYLOADS, strict=True))]
STORED = [None] * len(GROUP)
EIO = OSError(errno.EIO, "I/O error")


def open_store(root: Path, fs: FileSystem, reserve_bytes: int = 0) -> ChunkStore:
    return ChunkStore(root, reserve_bytes=reserve_bytes, max_chunk_bytes=1 << 20, fs=fs)


def path_of(root: Path, number: int) -> Path:
    return root / "chunks" / f"{IDS[number][0]:02x}" / f"{number:08x}-{IDS[number].hex()}"


def is_sound(root: Path, number: int) -> bool:
    return (
        path_of(root, number).read_bytes()
        == PAYLOADS[number] + Trailer.of(PAYLOADS[number], partition=number, chunk_id=IDS[number]).encode()
    )


@pytest.fixture
def fs() -> VolatileFileSystem:
    return VolatileFileSystem()


@pytest.fixture
def store(tmp_path: Path, fs: VolatileFileSystem) -> ChunkStore:
    opened = open_store(tmp_path, fs)
    fs.calls.clear()
    return opened


def test_a_group_pays_for_two_syncs_in_the_order_that_makes_it_durable(store: ChunkStore, fs: VolatileFileSystem) -> None:
    assert store.put_group(GROUP) == STORED
    done = [method for method in fs.methods if method in ("write", "sync_data", "sync_everything", "link", "sync")]
    assert done == [*["write"] * 5, "sync_everything", *["link"] * 5, "sync_everything"]


def test_an_acknowledged_group_survives_a_power_cut(store: ChunkStore, fs: VolatileFileSystem, tmp_path: Path) -> None:
    assert store.put_group(GROUP) == STORED
    fs.power_cut()
    assert all(is_sound(tmp_path, number) for number in range(5))


def test_the_real_file_system_does_it_too(tmp_path: Path) -> None:
    store = open_store(tmp_path, FileSystem())
    assert store.put_group(GROUP) == STORED
    assert store.put_group(GROUP) == STORED
    assert all(is_sound(tmp_path, number) for number in range(5))
    with pytest.raises(OSError, match=os.strerror(errno.EBADF)):
        FileSystem().sync_everything(-1)


def test_an_empty_group_costs_no_sync(store: ChunkStore, fs: VolatileFileSystem) -> None:
    assert store.put_group([]) == []
    assert "sync_everything" not in fs.methods


def test_a_chunk_that_has_another_id_harms_no_other(store: ChunkStore, tmp_path: Path) -> None:
    errors = store.put_group([*GROUP[:2], (9, IDS[2], b"other bytes"), *GROUP[3:]])
    assert [type(error) for error in errors] == [type(None), type(None), ChecksumMismatch, type(None), type(None)]
    assert all(is_sound(tmp_path, number) for number in (0, 1, 3, 4))
    assert not store.contains(9, IDS[2])


def test_copies_that_are_here_are_rehashed_and_their_names_synced_again(store: ChunkStore, fs: VolatileFileSystem) -> None:
    store.put_group(GROUP)
    fs.calls.clear()
    assert store.put_group(GROUP) == STORED
    assert fs.methods.count("pread_into") == 2 * 5
    assert fs.methods.count("sync_everything") == 1
    assert "write" not in fs.methods


def test_a_repeat_makes_durable_what_another_left_unsynced(store: ChunkStore, fs: VolatileFileSystem, tmp_path: Path) -> None:
    fs.fail(SimulatedCrash(), method="sync")
    with pytest.raises(SimulatedCrash):
        store.put(*GROUP[0])
    fs.revive()
    assert store.put_group(GROUP) == STORED
    fs.power_cut()
    assert is_sound(tmp_path, 0)


def test_a_bad_copy_makes_room_for_a_good_one(store: ChunkStore, tmp_path: Path) -> None:
    store.put_group(GROUP)
    path_of(tmp_path, 1).write_bytes(b"rotten")
    assert store.put_group(GROUP) == STORED
    assert is_sound(tmp_path, 1)
    assert len(os.listdir(tmp_path / "quarantine")) == 1


def test_one_chunk_twice_in_a_group_is_one_copy(store: ChunkStore, tmp_path: Path) -> None:
    assert store.put_group([GROUP[0], GROUP[0]]) == [None, None]
    assert is_sound(tmp_path, 0)


def test_a_copy_that_appears_meanwhile_counts_only_if_it_is_sound(tmp_path: Path) -> None:
    class Faster(VolatileFileSystem):
        """Before the group's first link another writer takes the name, for bytes that rot at once."""

        def link(self, fd: int, name: str, *, directory: int) -> None:
            if "link" not in self.methods:
                path_of(tmp_path, 0).write_bytes(b"rotten")
            super().link(fd, name, directory=directory)

    fs = Faster()
    assert open_store(tmp_path, fs).put_group(GROUP) == STORED
    fs.power_cut()
    assert all(is_sound(tmp_path, number) for number in range(5))


def test_without_room_for_all_none_of_the_new_ones_is_written(tmp_path: Path, fs: VolatileFileSystem) -> None:
    store = open_store(tmp_path, fs, reserve_bytes=1 << 20)
    fs.free_bytes = 1 << 30
    store.put(*GROUP[0])
    fs.free_bytes = (1 << 20) + 2 * os.path.getsize(path_of(tmp_path, 0))  # Four are new.
    fs.calls.clear()
    errors = store.put_group(GROUP)
    assert [type(error) for error in errors] == [type(None), *[DiskFull] * 4]
    assert "create_unnamed" not in fs.methods


@pytest.mark.parametrize("method", ["create_unnamed", "write", "link", "stat_name"])
def test_a_chunk_whose_own_call_fails_harms_no_other(
    store: ChunkStore, fs: VolatileFileSystem, tmp_path: Path, method: str
) -> None:
    fs.fail(EIO, at=2, method=method)
    errors = store.put_group(GROUP)
    assert [type(error) for error in errors] == [type(None), type(None), DiskFailed, type(None), type(None)]
    fs.power_cut()
    assert all(is_sound(tmp_path, number) for number in (0, 1, 3, 4))
    assert store.put_group(GROUP) == STORED


def test_a_failed_sync_of_the_bytes_gives_all_files_up(store: ChunkStore, fs: VolatileFileSystem, tmp_path: Path) -> None:
    store.put(*GROUP[0])
    fs.calls.clear()
    fs.fail(EIO, method="sync_everything")
    errors = store.put_group(GROUP)
    # What was here before as well: the error may have been about its name.
    assert all(isinstance(error, DiskFailed) for error in errors)
    assert "link" not in fs.methods
    assert fs.methods.count("sync_everything") == 1
    assert store.put_group(GROUP) == STORED  # in files of their own


def test_directories_whose_names_could_not_be_synced_take_no_chunks_until_the_next_start(
    store: ChunkStore, fs: VolatileFileSystem, tmp_path: Path
) -> None:
    fs.fail(EIO, at=1, method="sync_everything")
    assert all(isinstance(error, DiskFailed) for error in store.put_group(GROUP[:3]))
    for partition, chunk_id, _ in GROUP[:3]:
        store.delete(partition, chunk_id)
    fs.calls.clear()
    assert [type(error) for error in store.put_group(GROUP)] == [*[DiskFailed] * 3, type(None), type(None)]
    assert fs.methods.count("write") == 2  # No byte for a directory that will not take it.
    with pytest.raises(DiskFailed, match="restart"):
        store.put(*GROUP[0])
    assert open_store(tmp_path, fs).put_group(GROUP) == STORED


def test_a_directory_that_failed_during_the_sync_is_not_trusted(tmp_path: Path) -> None:
    class FailingBeside(VolatileFileSystem):
        """While the group's names are synced, another thread's put is told of the lost write."""

        def sync_everything(self, fd: int) -> None:
            super().sync_everything(fd)
            if self.methods.count("sync_everything") == 2:
                self.fail(EIO, method="sync")
                with pytest.raises(DiskFailed):
                    opened.put(7, IDS[1], PAYLOADS[1])

    opened = open_store(tmp_path, FailingBeside())
    assert [type(error) for error in opened.put_group(GROUP)] == [type(None), DiskFailed, *[type(None)] * 3]


def num_calls(root: Path) -> int:
    fs = VolatileFileSystem()
    store = open_store(root, fs)
    fs.calls.clear()
    store.put_group(GROUP)
    return len(fs.calls)


def test_a_crash_at_any_call_leaves_nothing_or_sound_copies(
    store: ChunkStore, fs: VolatileFileSystem, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    for at in range(num_calls(tmp_path_factory.mktemp("counted"))):
        fs.fail(SimulatedCrash(), at=at)
        with pytest.raises(SimulatedCrash):
            store.put_group(GROUP)
        fs.power_cut()
        for partition, chunk_id, _ in GROUP:
            if store.contains(partition, chunk_id):
                assert store.verify(partition, chunk_id)
                store.delete(partition, chunk_id)
    assert os.listdir(tmp_path / "quarantine") == []
    assert store.put_group(GROUP) == STORED


def test_after_an_error_at_any_call_what_was_acknowledged_survives_a_power_cut(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    for at in range(num_calls(tmp_path_factory.mktemp("counted"))):
        fs = VolatileFileSystem()
        store = open_store(tmp_path, fs)
        fs.fail(EIO, at=at)
        try:
            errors = store.put_group(GROUP)
        except DiskFailed:  # The directory of all chunks could not be opened.
            errors = [DiskFailed("all")] * 5
        assert any(errors), at
        fs.power_cut()
        for number, error in enumerate(errors):
            assert error is not None or is_sound(tmp_path, number)
            open_store(tmp_path, fs).delete(number, IDS[number])
        assert os.listdir(tmp_path / "quarantine") == []


@pytest.mark.parametrize(("release", "fits"), [("5.7.19-generic", False), ("4.18.0", False), ("5.8.0", True), ("6.1", True)])
def test_a_kernel_that_hides_failed_writes_is_refused(tmp_path: Path, fs: VolatileFileSystem, release: str, fits: bool) -> None:
    fs.release = release
    if fits:
        open_store(tmp_path, fs)
        return
    with pytest.raises(Misconfigured, match=release):
        open_store(tmp_path, fs)
