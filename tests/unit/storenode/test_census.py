"""What lies on a disk, from a sample of it."""

from __future__ import annotations

import random
from pathlib import Path

from client.manifest import make_ref
from storenode.census import Census, take_census
from storenode.chunkstore import ChunkStore
from storenode.filesystem import FileSystem
from tests.support.peers import UnsyncedFileSystem


def test_a_small_store_is_counted_to_the_last_chunk(tmp_path: Path) -> None:
    store = ChunkStore(tmp_path, reserve_bytes=0, max_chunk_bytes=1 << 20, fs=UnsyncedFileSystem())
    assert store.census() == Census(num_chunks=0, size_bytes=0)
    for number in range(20):
        payload = random.Random(number).randbytes(1000)
        ref = make_ref(payload, partitions=16)
        store.put(ref.partition, ref.id, payload)
    (tmp_path / "chunks" / "00" / "something else").write_bytes(bytes(10**6))
    files = list((tmp_path / "chunks").rglob("*-*"))
    assert store.census() == Census(num_chunks=20, size_bytes=sum(path.stat().st_size for path in files))


def test_a_large_one_is_sampled(tmp_path: Path) -> None:
    looked: list[Path] = []

    class Counting(FileSystem):
        def list_names(self, path: Path) -> list[str]:
            looked.append(path)
            return super().list_names(path)

    directories = [tmp_path / f"{number:02x}" for number in range(256)]
    for number, path in enumerate(directories):
        path.mkdir()
        for name in range(40):
            (path / f"{name:08x}-{number:02x}{'0' * 62}").write_bytes(bytes(100))
    found = take_census(Counting(), directories)
    assert found == Census(num_chunks=10_240, size_bytes=1_024_000)
    assert len(looked) == 52  # the fewest that have 2,048 chunks
