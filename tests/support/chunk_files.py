"""A chunk store on a real disk, one chunk for it, and that chunk's file as it lies there."""

from __future__ import annotations

import os
from pathlib import Path

from client.checksum import blake3_id
from storenode.chunkstore import ChunkStore
from storenode.filesystem import FileSystem
from tests.support.filesystem import VolatileFileSystem

__all__ = ["ID", "MAX_CHUNK_BYTES", "PAYLOAD", "flip_bit", "open_store", "path_of", "quarantined", "read"]

PAYLOAD = bytes(range(256)) * 600  # two full segments and a short one
ID = blake3_id(PAYLOAD)
MAX_CHUNK_BYTES = 1 << 20


def open_store(root: Path, fs: FileSystem | None = None, reserve_bytes: int = 0) -> ChunkStore:
    return ChunkStore(root, reserve_bytes=reserve_bytes, max_chunk_bytes=MAX_CHUNK_BYTES, fs=fs or VolatileFileSystem())


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
