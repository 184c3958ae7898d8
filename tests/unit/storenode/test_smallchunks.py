"""Small chunks read whole: right to the last byte of the trailer, or not at all."""

from __future__ import annotations

import errno
import os
from dataclasses import replace
from pathlib import Path

import pytest

from client.checksum import SEGMENT_BYTES
from client.errors import ChunkCorrupt
from client.manifest import Ref, make_ref
from storenode.chunkstore import ChunkStore
from storenode.trailer import Trailer, small_trailer
from tests.support.filesystem import VolatileFileSystem

PAYLOAD = bytes(range(256)) * 16
REF = make_ref(PAYLOAD, partitions=64)


@pytest.fixture
def fs() -> VolatileFileSystem:
    return VolatileFileSystem()


@pytest.fixture
def store(tmp_path: Path, fs: VolatileFileSystem) -> ChunkStore:
    store = ChunkStore(tmp_path, reserve_bytes=0, max_chunk_bytes=1 << 20, fs=fs)
    store.put(REF.partition, REF.id, PAYLOAD)
    fs.calls.clear()
    return store


def read(store: ChunkStore, ref: Ref = REF) -> bytes | None:
    with store.small_chunks() as small:
        payload = small.read(ref)
        return None if payload is None else bytes(payload)


def test_three_calls_bring_a_chunk(store: ChunkStore, fs: VolatileFileSystem) -> None:
    assert read(store) == PAYLOAD
    assert fs.methods == ["open_directory", "open_file", "pread_into"]


@pytest.mark.parametrize("size", [1, SEGMENT_BYTES - 1, SEGMENT_BYTES])
def test_every_size_up_to_a_segment(store: ChunkStore, size: int) -> None:
    payload = os.urandom(size)
    ref = make_ref(payload, partitions=64)
    store.put(ref.partition, ref.id, payload)
    assert read(store, ref) == payload
    assert small_trailer(ref.partition, ref.id, size, ref.check) == (
        Trailer.of(payload, partition=ref.partition, chunk_id=ref.id).encode()
    )


@pytest.mark.parametrize("at", [len(PAYLOAD), len(PAYLOAD) + 20, -1])
def test_a_damaged_trailer_is_seen(store: ChunkStore, tmp_path: Path, at: int) -> None:
    (path,) = tmp_path.glob("chunks/*/*")
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)
    with pytest.raises(ChunkCorrupt, match=REF.hex):
        read(store)


@pytest.mark.parametrize("more", [-1, 1])
def test_a_file_of_another_length_is_seen(store: ChunkStore, tmp_path: Path, more: int) -> None:
    (path,) = tmp_path.glob("chunks/*/*")
    os.truncate(path, path.stat().st_size + more)
    with pytest.raises(ChunkCorrupt, match=REF.hex):
        read(store)


def test_a_reference_of_other_bytes_is_seen(store: ChunkStore) -> None:
    for other in (replace(REF, check=REF.check ^ 1), replace(REF, size=REF.size - 1)):
        with pytest.raises(ChunkCorrupt):
            read(store, other)


def test_what_is_not_here_is_no_copy(store: ChunkStore) -> None:
    assert read(store, replace(REF, partition=REF.partition ^ 1)) is None


@pytest.mark.parametrize("method", ["open_file", "pread_into"])
def test_what_can_not_be_read_is_as_good_as_damaged(store: ChunkStore, fs: VolatileFileSystem, method: str) -> None:
    fs.fail(OSError(errno.EIO, "I/O error"), method=method)
    with pytest.raises(ChunkCorrupt, match="errno 5"):
        read(store)
    assert read(store) == PAYLOAD
