"""The chunk store on a real disk: what is put is there and right, at once or part by part, and a full disk takes no more."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from client.checksum import SEGMENT_BYTES, blake3_id, segment_checks, xxh3
from client.errors import BodyTooLarge, ChecksumMismatch, ChunkNotFound, DiskFailed, DiskFull, Misconfigured
from storenode.chunkstore import ChunkStore
from storenode.filesystem import FileSystem
from storenode.trailer import Trailer
from tests.support.chunk_files import ID, MAX_CHUNK_BYTES, PAYLOAD, flip_bit, open_store, path_of, quarantined, read
from tests.support.filesystem import VolatileFileSystem


@pytest.fixture
def store(tmp_path: Path) -> ChunkStore:
    return open_store(tmp_path)


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


# --- part by part


def test_a_chunk_may_come_in_parts(store: ChunkStore, tmp_path: Path) -> None:
    with store.writer(5, ID, memoryview(PAYLOAD)) as writer:
        for start in range(0, len(PAYLOAD), SEGMENT_BYTES):
            writer.advance(min(len(PAYLOAD), start + SEGMENT_BYTES))
        assert not store.contains(5, ID)
        assert writer.commit()
    assert path_of(tmp_path).read_bytes() == PAYLOAD + Trailer.of(PAYLOAD, partition=5, chunk_id=ID).encode()


def test_a_writer_that_gives_up_leaves_nothing(store: ChunkStore, tmp_path: Path) -> None:
    num_open = len(os.listdir("/proc/self/fd"))
    with store.writer(5, ID, memoryview(PAYLOAD)) as writer:
        writer.advance(SEGMENT_BYTES)
    assert not store.contains(5, ID)
    assert len(os.listdir("/proc/self/fd")) == num_open


def test_a_copy_that_appears_meanwhile_is_screened_like_any_other(store: ChunkStore, tmp_path: Path) -> None:
    with store.writer(5, ID, memoryview(PAYLOAD)) as writer:
        writer.advance(len(PAYLOAD))
        assert store.put(5, ID, PAYLOAD)
        flip_bit(path_of(tmp_path), 3)
        assert writer.commit()
    assert len(quarantined(tmp_path)) == 1
    assert store.verify(5, ID)


def test_a_copy_that_is_there_is_not_written_again_unless_it_goes(store: ChunkStore, tmp_path: Path) -> None:
    store.put(5, ID, PAYLOAD)
    with store.writer(5, ID, memoryview(PAYLOAD)) as writer:
        writer.advance(len(PAYLOAD))
        store.delete(5, ID)
        assert writer.commit()
    assert store.verify(5, ID)


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
