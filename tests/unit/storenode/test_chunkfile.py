"""One chunk file: whatever is wrong with it is found when it is opened, read or re-hashed, and never ends the process."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from client.checksum import SEGMENT_BYTES, blake3_id, segment_checks, xxh3
from client.errors import ChunkCorrupt, DiskFailed
from storenode.chunkfile import ChunkPath, OpenChunk, parse_name, read_trailer, rehash
from storenode.filesystem import FileSystem, opened
from storenode.trailer import Trailer
from tests.support.filesystem import ScriptedFileSystem

PAYLOAD = bytes(range(256)) * 600  # two full segments and a short one
ID = blake3_id(PAYLOAD)


@pytest.fixture
def at(tmp_path: Path) -> ChunkPath:
    at = ChunkPath.under([tmp_path / f"{first:02x}" for first in range(256)], partition=5, chunk_id=ID)
    at.path.parent.mkdir()
    at.path.write_bytes(PAYLOAD + Trailer.of(PAYLOAD, partition=5, chunk_id=ID).encode())
    return at


def open_chunk(at: ChunkPath, fs: FileSystem | None = None) -> OpenChunk:
    fs = fs or FileSystem()
    fd = os.open(at.path, os.O_RDONLY)
    try:
        return OpenChunk(fs, fd=fd, at=at, trailer=read_trailer(fs, fd, at=at))
    except BaseException:
        os.close(fd)
        raise


def rehash_file(at: ChunkPath, fs: FileSystem | None = None) -> None:
    fs = fs or FileSystem()
    with opened(os.open(at.path, os.O_RDONLY)) as fd:
        trailer = read_trailer(fs, fd, at=at)
        rehash(fs, fd, at=at, trailer=trailer, view=memoryview(bytearray(trailer.size)))


def flip_bit(path: Path, place: int) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


def test_the_place_is_the_specified_one(at: ChunkPath, tmp_path: Path) -> None:
    assert at.path == tmp_path / ID.hex()[:2] / f"00000005-{ID.hex()}"
    assert parse_name(at.name) == (5, ID)


@pytest.mark.parametrize("name", ["", "-", "node.json", "5-" + "ab" * 32, "00000005-" + "AB" * 32, "00000005-" + "ab" * 31])
def test_other_names_are_no_chunks(name: str) -> None:
    assert parse_name(name) is None


def test_an_open_chunk_gives_bytes_checksums_and_a_map(at: ChunkPath) -> None:
    rehash_file(at)
    with open_chunk(at) as chunk:
        assert (chunk.size, chunk.check) == (len(PAYLOAD), xxh3(PAYLOAD))
        assert chunk.segment_checks() == segment_checks(PAYLOAD)
        assert chunk.segment_checks(1, 3) == segment_checks(PAYLOAD)[8:]
        assert chunk.segment_checks(3, 3) == b""
        buffer = bytearray(1000)
        chunk.pread_into(buffer, offset=SEGMENT_BYTES - 500)
        assert buffer == PAYLOAD[SEGMENT_BYTES - 500 :][:1000]
        chunk.pread_into(bytearray(), offset=len(PAYLOAD))
        assert os.pread(chunk.fd, 10, 0) == PAYLOAD[:10]
        mapped = chunk.map()
    with mapped:  # outlives the descriptor
        assert mapped[: len(PAYLOAD)] == PAYLOAD
    chunk.close()


@pytest.mark.parametrize("place", [0, 70_000, len(PAYLOAD) - 1])
def test_a_flipped_bit_of_the_payload_is_found_by_rehashing(at: ChunkPath, place: int) -> None:
    flip_bit(at.path, place)
    open_chunk(at).close()
    with pytest.raises(ChunkCorrupt, match=rf"{at.path}: its bytes hash to"):
        rehash_file(at)


@pytest.mark.parametrize("length", [0, 1, 73, 100, len(PAYLOAD) - 1, len(PAYLOAD), len(PAYLOAD) + 97])
def test_a_file_cut_short_is_found_by_opening(at: ChunkPath, length: int) -> None:
    os.truncate(at.path, length)
    with pytest.raises(ChunkCorrupt):
        open_chunk(at)


@pytest.mark.parametrize("length", [len(PAYLOAD) + 99, 1 << 20, 1 << 42])
def test_a_file_that_grew_is_found_by_opening(at: ChunkPath, length: int) -> None:
    os.truncate(at.path, length)
    with pytest.raises(ChunkCorrupt):
        open_chunk(at)


def test_a_file_cut_short_while_it_is_read_is_an_error_and_no_signal(at: ChunkPath) -> None:
    with open_chunk(at) as chunk:
        os.truncate(at.path, 1000)
        with pytest.raises(ChunkCorrupt, match="ends at byte 1000"):
            chunk.pread_into(bytearray(2000), offset=0)


@pytest.mark.parametrize("place", [-1, -20, -74, -75, -98])
def test_a_damaged_trailer_is_found_by_opening(at: ChunkPath, place: int) -> None:
    flip_bit(at.path, place)
    with pytest.raises(ChunkCorrupt, match=rf"{at.path}: the trailer's checksum"):
        open_chunk(at)


def test_a_file_in_another_chunks_place_is_found_by_opening(at: ChunkPath, tmp_path: Path) -> None:
    elsewhere = ChunkPath.under([tmp_path / f"{first:02x}" for first in range(256)], partition=6, chunk_id=ID)
    at.path.rename(elsewhere.path)
    with pytest.raises(ChunkCorrupt, match=f"is of chunk 00000005-{ID.hex()}"):
        open_chunk(elsewhere)


@pytest.mark.parametrize("wrong", ["whole", "segments"])
def test_a_sound_trailer_with_checksums_of_other_bytes_is_found_by_rehashing(at: ChunkPath, wrong: str) -> None:
    check = 1 if wrong == "whole" else xxh3(PAYLOAD)
    table = bytes(24) if wrong == "segments" else segment_checks(PAYLOAD)
    trailer = Trailer(partition=5, id=ID, size=len(PAYLOAD), check=check, segment_checks=table)
    at.path.write_bytes(PAYLOAD + trailer.encode())
    with pytest.raises(ChunkCorrupt, match="checksums of other bytes"):
        rehash_file(at)


def test_an_unreadable_sector_is_damage_and_another_error_is_the_disks(at: ChunkPath) -> None:
    fs = ScriptedFileSystem()
    for number, expected in ((errno.EIO, ChunkCorrupt), (errno.ENXIO, DiskFailed)):
        fs.fail(OSError(number, os.strerror(number)), method="pread_into", at=1)
        with open_chunk(at, fs) as chunk, pytest.raises(expected, match=rf"{at.path}.*errno {number}"):
            chunk.pread_into(bytearray(10), offset=0)


def test_reads_that_the_kernel_cuts_short_are_continued(at: ChunkPath) -> None:
    fs = ScriptedFileSystem()
    fs.max_transfer_bytes = 7_001
    rehash_file(at, fs)
    assert fs.methods.count("pread_into") > 20
