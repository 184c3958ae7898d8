"""The chunk store on a real disk: what is acknowledged is durable and right, what is damaged is seen and set aside."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from client.checksum import SEGMENT_BYTES, blake3_id, segment_checks, xxh3
from client.errors import (
    BodyTooLarge,
    ChecksumMismatch,
    ChunkCorrupt,
    ChunkNotFound,
    DiskFailed,
    DiskFull,
    Misconfigured,
)
from storenode.chunkstore import ChunkStore
from storenode.filesystem import FileSystem
from storenode.trailer import Trailer
from tests.support.filesystem import SimulatedCrash, VolatileFileSystem

PAYLOAD = bytes(range(256)) * 600  # two full segments and a short one
ID = blake3_id(PAYLOAD)
MAX_CHUNK_BYTES = 1 << 20


def open_store(root: Path, fs: FileSystem | None = None, reserve_bytes: int = 0) -> ChunkStore:
    return ChunkStore(root, reserve_bytes=reserve_bytes, max_chunk_bytes=MAX_CHUNK_BYTES, fs=fs or VolatileFileSystem())


@pytest.fixture
def store(tmp_path: Path) -> ChunkStore:
    return open_store(tmp_path)


def path_of(root: Path, chunk_id: bytes = ID, partition: int = 5) -> Path:
    return root / "chunks" / f"{chunk_id[0]:02x}" / f"{partition:08x}-{chunk_id.hex()}"


def flip_bit(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def read(store: ChunkStore, partition: int = 5, chunk_id: bytes = ID) -> bytes:
    with store.open_chunk(partition, chunk_id) as chunk:
        buffer = bytearray(chunk.size)
        chunk.pread_into(buffer, offset=0)
        return bytes(buffer)


def quarantined(root: Path) -> list[str]:
    return sorted(os.listdir(root / "quarantine"))


# --- writing and reading


def test_what_was_put_can_be_read(store: ChunkStore) -> None:
    assert store.put(5, ID, PAYLOAD)
    with store.open_chunk(5, ID) as chunk:
        assert (chunk.size, chunk.check) == (len(PAYLOAD), xxh3(PAYLOAD))
        assert chunk.segment_checks() == segment_checks(PAYLOAD)
        assert chunk.segment_checks(1, 3) == segment_checks(PAYLOAD)[8:]
        buffer = bytearray(1000)
        chunk.pread_into(buffer, offset=SEGMENT_BYTES - 500)
        assert buffer == PAYLOAD[SEGMENT_BYTES - 500 :][:1000]
        assert os.pread(chunk.fd, 10, 0) == PAYLOAD[:10]
        with chunk.map() as mapped:
            assert mapped[: chunk.size] == PAYLOAD
    assert store.verify(5, ID) == len(PAYLOAD)
    assert store.contains(5, ID)


def test_the_file_is_payload_and_trailer(store: ChunkStore, tmp_path: Path) -> None:
    store.put(5, ID, PAYLOAD)
    assert path_of(tmp_path).read_bytes() == PAYLOAD + Trailer.of(PAYLOAD, partition=5, chunk_id=ID).encode()


def test_the_real_file_system_does_it_too(tmp_path: Path) -> None:
    store = open_store(tmp_path, FileSystem())
    assert store.put(5, ID, PAYLOAD)
    assert not store.put(5, ID, PAYLOAD)
    flip_bit(path_of(tmp_path), 3)
    assert store.quarantine(5, ID)
    assert store.put(5, ID, PAYLOAD)
    assert read(store) == PAYLOAD
    assert list(store.scan()) == [(5, ID)]
    assert store.delete(5, ID)


@pytest.mark.parametrize("size", [0, 1, SEGMENT_BYTES - 1, SEGMENT_BYTES, SEGMENT_BYTES + 1, MAX_CHUNK_BYTES])
def test_every_size_up_to_the_largest(store: ChunkStore, size: int) -> None:
    payload = os.urandom(size)
    store.put(0, blake3_id(payload), payload)
    assert store.verify(0, blake3_id(payload)) == size
    assert read(store, 0, blake3_id(payload)) == payload


def test_payload_may_be_any_buffer(store: ChunkStore) -> None:
    wide = memoryview(bytearray(PAYLOAD)).cast("I")
    assert store.put(5, ID, wide)
    assert read(store) == PAYLOAD


def test_one_id_in_two_partitions_is_two_copies(store: ChunkStore) -> None:
    assert store.put(5, ID, PAYLOAD)
    assert store.put(6, ID, PAYLOAD)
    assert store.delete(5, ID)
    assert read(store, 6) == PAYLOAD


def test_a_transfer_may_be_cut_short_by_the_kernel(tmp_path: Path) -> None:
    fs = VolatileFileSystem()
    store = open_store(tmp_path, fs)
    fs.max_transfer_bytes = 10_007
    store.put(5, ID, PAYLOAD)
    assert store.verify(5, ID) == len(PAYLOAD)
    assert read(store) == PAYLOAD


def test_bytes_that_do_not_hash_to_the_id_are_refused(store: ChunkStore) -> None:
    with pytest.raises(ChecksumMismatch, match=ID.hex()):
        store.put(5, ID, PAYLOAD[:-1])
    assert not store.contains(5, ID)


def test_too_large_a_chunk_is_refused(store: ChunkStore) -> None:
    payload = bytes(MAX_CHUNK_BYTES + 1)
    with pytest.raises(BodyTooLarge, match=f"takes {MAX_CHUNK_BYTES}"):
        store.put(5, blake3_id(payload), payload)


def test_a_chunk_that_is_not_here(store: ChunkStore) -> None:
    assert not store.contains(5, ID)
    assert not store.delete(5, ID)
    assert not store.quarantine(5, ID)
    for call in (store.open_chunk, store.verify):
        with pytest.raises(ChunkNotFound, match="00000005-" + ID.hex()):
            call(5, ID)


def test_an_open_chunk_outlives_its_deletion(store: ChunkStore) -> None:
    store.put(5, ID, PAYLOAD)
    with store.open_chunk(5, ID) as chunk:
        store.delete(5, ID)
        buffer = bytearray(chunk.size)
        chunk.pread_into(buffer, offset=0)
    assert buffer == PAYLOAD


# --- durability


def test_put_syncs_bytes_before_the_name_and_the_directory_after_it(tmp_path: Path) -> None:
    fs = VolatileFileSystem()
    store = open_store(tmp_path, fs)
    fs.calls.clear()
    store.put(5, ID, PAYLOAD)
    durable = [call for call in fs.calls if call.method in ("write", "sync_data", "link", "sync")]
    assert [call.method for call in durable] == ["write", "write", "sync_data", "link", "sync"]
    assert durable[-1].subject == f"{ID[0]:02x}"


def test_a_repeat_is_rehashed_and_its_directory_synced_before_it_counts(tmp_path: Path) -> None:
    fs = VolatileFileSystem()
    store = open_store(tmp_path, fs)
    store.put(5, ID, PAYLOAD)
    inode = path_of(tmp_path).stat().st_ino
    fs.calls.clear()
    assert not store.put(5, ID, PAYLOAD)
    assert path_of(tmp_path).stat().st_ino == inode
    assert fs.methods.count("pread_into") == 2  # the trailer, the payload
    assert fs.methods[-1] == "sync"
    assert "write" not in fs.methods


def test_directories_are_made_once(tmp_path: Path) -> None:
    open_store(tmp_path)
    fs = VolatileFileSystem()
    made = {path.name for path in (tmp_path / "chunks").iterdir()}
    assert made == {f"{first:02x}" for first in range(256)}
    store = open_store(tmp_path, fs)
    fs.calls.clear()
    store.put(5, ID, PAYLOAD)
    assert "make_directory" not in fs.methods


def test_an_acknowledged_chunk_survives_a_power_cut(tmp_path: Path) -> None:
    fs = VolatileFileSystem()
    store = open_store(tmp_path, fs)
    store.put(5, ID, PAYLOAD)
    fs.power_cut()
    assert open_store(tmp_path, fs).verify(5, ID)


def test_a_repeat_makes_durable_what_another_left_unsynced(tmp_path: Path) -> None:
    fs = VolatileFileSystem()
    store = open_store(tmp_path, fs)
    fs.fail(SimulatedCrash(), method="sync")
    with pytest.raises(SimulatedCrash):
        store.put(5, ID, PAYLOAD)
    fs.revive()
    assert not store.put(5, ID, PAYLOAD)
    fs.power_cut()
    assert open_store(tmp_path, fs).verify(5, ID)


def test_what_is_visible_after_a_start_is_durable(tmp_path: Path) -> None:
    fs = VolatileFileSystem()
    store = open_store(tmp_path, fs)
    fs.fail(SimulatedCrash(), method="sync")
    with pytest.raises(SimulatedCrash):
        store.put(5, ID, PAYLOAD)
    fs.revive()
    assert open_store(tmp_path, fs).contains(5, ID)
    fs.power_cut()
    assert open_store(tmp_path, fs).verify(5, ID)


def test_a_visible_copy_can_be_made_durable_before_it_is_relied_on(tmp_path: Path) -> None:
    fs = VolatileFileSystem()
    store = open_store(tmp_path, fs)
    fs.fail(SimulatedCrash(), method="sync")
    with pytest.raises(SimulatedCrash):
        store.put(5, ID, PAYLOAD)
    fs.revive()
    fs.calls.clear()
    store.make_durable([ID, ID])
    assert fs.methods.count("sync") == 1
    fs.power_cut()
    assert store.verify(5, ID)


def test_a_copy_whose_sync_failed_can_not_be_made_durable(tmp_path: Path) -> None:
    fs = VolatileFileSystem()
    store = open_store(tmp_path, fs)
    fs.fail(OSError(errno.EIO, "I/O error"), method="sync")
    with pytest.raises(DiskFailed):
        store.put(5, ID, PAYLOAD)
    assert store.contains(5, ID)
    with pytest.raises(DiskFailed, match="restart the node"):
        store.make_durable([ID])


@pytest.fixture
def num_put_calls(tmp_path_factory: pytest.TempPathFactory) -> int:
    fs = VolatileFileSystem()
    store = open_store(tmp_path_factory.mktemp("counted"), fs)
    fs.calls.clear()
    store.put(5, ID, PAYLOAD)
    return len(fs.calls)


def test_a_crash_at_any_call_leaves_nothing_or_a_sound_copy(tmp_path: Path, num_put_calls: int) -> None:
    fs = VolatileFileSystem()
    store = open_store(tmp_path, fs)
    for at in range(num_put_calls):
        fs.fail(SimulatedCrash(), at=at)
        with pytest.raises(SimulatedCrash):
            store.put(5, ID, PAYLOAD)
        fs.power_cut()
        if store.contains(5, ID):
            assert store.verify(5, ID)
            store.delete(5, ID)
        assert quarantined(tmp_path) == []
    assert store.put(5, ID, PAYLOAD)


@pytest.mark.parametrize(("number", "expected"), [(errno.EIO, DiskFailed), (errno.ENOSPC, DiskFull), (errno.EDQUOT, DiskFull)])
def test_an_error_at_any_call_is_named_and_leaves_nothing_damaged(
    tmp_path: Path, num_put_calls: int, number: int, expected: type[Exception]
) -> None:
    for at in range(num_put_calls):
        fs = VolatileFileSystem()
        store = open_store(tmp_path, fs)
        fs.fail(OSError(number, os.strerror(number)), at=at)
        with pytest.raises(expected, match=rf"{tmp_path}.*errno {number}"):
            store.put(5, ID, PAYLOAD)
        assert quarantined(tmp_path) == []
        again = open_store(tmp_path, fs)
        again.put(5, ID, PAYLOAD)
        assert again.verify(5, ID)
        again.delete(5, ID)


def test_a_failed_sync_of_the_bytes_gives_the_file_up(tmp_path: Path) -> None:
    fs = VolatileFileSystem()
    store = open_store(tmp_path, fs)
    fs.calls.clear()
    fs.fail(OSError(errno.EIO, "I/O error"), method="sync_data")
    with pytest.raises(DiskFailed):
        store.put(5, ID, PAYLOAD)
    assert fs.methods.count("sync_data") == 1
    assert "link" not in fs.methods
    assert store.put(5, ID, PAYLOAD)  # in a file of its own


def test_a_directory_whose_sync_failed_takes_no_chunks_until_the_next_start(tmp_path: Path) -> None:
    fs = VolatileFileSystem()
    store = open_store(tmp_path, fs)
    fs.fail(OSError(errno.EIO, "I/O error"), method="sync")
    with pytest.raises(DiskFailed, match="errno 5"):
        store.put(5, ID, PAYLOAD)
    fs.calls.clear()
    with pytest.raises(DiskFailed, match="restart the node"):
        store.put(5, ID, PAYLOAD)
    assert "sync" not in fs.methods
    other = next(data for data in (b"%d" % n for n in range(100)) if blake3_id(data)[0] != ID[0])
    assert store.put(5, blake3_id(other), other)
    assert not open_store(tmp_path, fs).put(5, ID, PAYLOAD)


# --- a full disk


def test_below_the_reserve_new_chunks_are_refused_before_a_byte_is_written(tmp_path: Path) -> None:
    fs = VolatileFileSystem()
    store = open_store(tmp_path, fs, reserve_bytes=1 << 20)
    fs.free_bytes = (1 << 20) + len(PAYLOAD)  # too little by the trailer
    fs.calls.clear()
    with pytest.raises(DiskFull, match=f"{fs.free_bytes} bytes free"):
        store.put(5, ID, PAYLOAD)
    assert "create_unnamed" not in fs.methods
    assert not store.read_only
    fs.free_bytes += 1000
    assert store.put(5, ID, PAYLOAD)


def test_a_full_disk_still_reads_acknowledges_repeats_and_sets_bad_copies_aside(tmp_path: Path) -> None:
    fs = VolatileFileSystem()
    store = open_store(tmp_path, fs, reserve_bytes=100)
    store.put(5, ID, PAYLOAD)
    fs.free_bytes = 99
    assert store.read_only
    assert store.usage().free_bytes == 99
    assert read(store) == PAYLOAD
    assert not store.put(5, ID, PAYLOAD)
    flip_bit(path_of(tmp_path), 0)
    with pytest.raises(DiskFull):
        store.put(5, ID, PAYLOAD)
    assert len(quarantined(tmp_path)) == 1


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


def test_nothing_comes_between_the_last_look_at_a_bad_copy_and_its_removal(tmp_path: Path) -> None:
    class Slow(FileSystem):
        """Between its first look and the rename there is time for another writer, if nothing holds that up."""

        def stat_name(self, name: str, *, directory: int) -> os.stat_result:
            found = super().stat_name(name, directory=directory)
            if not writer.is_alive():
                writer.start()
                writer.join(0.2)
            return found

    store = open_store(tmp_path, Slow())
    writer = threading.Thread(target=store.put, args=(5, ID, PAYLOAD))
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


# --- the whole disk


def test_scan_is_ordered_and_goes_on_behind_any_chunk(store: ChunkStore, tmp_path: Path) -> None:
    chunks = []
    for n in range(300):
        payload = b"%d" % n
        store.put(n % 3, blake3_id(payload), payload)
        chunks.append((n % 3, blake3_id(payload)))
    (tmp_path / "chunks" / "00" / "not-a-chunk").touch()
    (tmp_path / "chunks" / "00" / ("0" * 8 + "-" + "AB" * 32)).touch()
    expected = sorted(chunks, key=lambda chunk: (chunk[1][0], *chunk))
    assert list(store.scan()) == expected
    for at in range(0, 300, 17):
        assert list(store.scan(after=expected[at])) == expected[at + 1 :]
    gone = expected[100]
    store.delete(*gone)
    assert list(store.scan(after=gone)) == expected[101:]


def test_usage_is_that_of_the_disk(store: ChunkStore, tmp_path: Path) -> None:
    space = os.statvfs(tmp_path)
    usage = store.usage()
    assert usage.total_bytes == space.f_blocks * space.f_frsize
    assert 0 <= usage.free_bytes <= usage.total_bytes
    assert usage.reserve_bytes == 0
    assert not store.read_only


@pytest.mark.parametrize("number", [errno.EOPNOTSUPP, errno.EISDIR])
def test_a_file_system_without_unnamed_files_is_refused_at_the_start(tmp_path: Path, number: int) -> None:
    fs = VolatileFileSystem()
    fs.fail(OSError(number, os.strerror(number)), method="create_unnamed")
    with pytest.raises(Misconfigured, match="O_TMPFILE"):
        open_store(tmp_path, fs)


def test_a_missing_directory_is_an_error_at_the_start(tmp_path: Path) -> None:
    with pytest.raises(DiskFailed, match="No such file"):
        open_store(tmp_path / "missing")


# --- part by part


def test_a_chunk_may_come_in_parts(store: ChunkStore, tmp_path: Path) -> None:
    with store.writer(5, ID, size_bytes=len(PAYLOAD)) as writer:
        for start in range(0, len(PAYLOAD), SEGMENT_BYTES):
            writer.write(memoryview(PAYLOAD)[start : start + SEGMENT_BYTES])
        assert not store.contains(5, ID)
        assert writer.commit(memoryview(PAYLOAD))
    assert path_of(tmp_path).read_bytes() == PAYLOAD + Trailer.of(PAYLOAD, partition=5, chunk_id=ID).encode()


def test_a_writer_that_gives_up_leaves_nothing(store: ChunkStore, tmp_path: Path) -> None:
    num_open = len(os.listdir("/proc/self/fd"))
    with store.writer(5, ID, size_bytes=len(PAYLOAD)) as writer:
        writer.write(memoryview(PAYLOAD)[:SEGMENT_BYTES])
    assert not store.contains(5, ID)
    assert len(os.listdir("/proc/self/fd")) == num_open


def test_a_copy_that_appears_meanwhile_is_screened_like_any_other(store: ChunkStore, tmp_path: Path) -> None:
    with store.writer(5, ID, size_bytes=len(PAYLOAD)) as writer:
        writer.write(memoryview(PAYLOAD))
        assert store.put(5, ID, PAYLOAD)
        flip_bit(path_of(tmp_path), 3)
        assert writer.commit(memoryview(PAYLOAD))
    assert len(quarantined(tmp_path)) == 1
    assert store.verify(5, ID)


def test_a_copy_that_is_there_is_not_written_again_unless_it_goes(store: ChunkStore, tmp_path: Path) -> None:
    store.put(5, ID, PAYLOAD)
    with store.writer(5, ID, size_bytes=len(PAYLOAD)) as writer:
        writer.write(memoryview(PAYLOAD))
        store.delete(5, ID)
        assert writer.commit(memoryview(PAYLOAD))
    assert store.verify(5, ID)


# --- touching


def test_touching_counts_only_a_sound_copy_and_makes_it_durable(tmp_path: Path) -> None:
    fs = VolatileFileSystem()
    store = open_store(tmp_path, fs)
    assert not store.touch(5, ID)
    fs.fail(SimulatedCrash(), method="sync")
    with pytest.raises(SimulatedCrash):
        store.put(5, ID, PAYLOAD)
    fs.revive()
    assert store.touch(5, ID)
    fs.power_cut()
    assert store.verify(5, ID)
    flip_bit(path_of(tmp_path), 3)
    assert not store.touch(5, ID)
    assert len(quarantined(tmp_path)) == 1


def test_a_touch_does_not_count_where_a_sync_has_failed(tmp_path: Path) -> None:
    fs = VolatileFileSystem()
    store = open_store(tmp_path, fs)
    fs.fail(OSError(errno.EIO, "I/O error"), method="sync")
    with pytest.raises(DiskFailed):
        store.put(5, ID, PAYLOAD)
    with pytest.raises(DiskFailed, match="restart the node"):
        store.touch(5, ID)
