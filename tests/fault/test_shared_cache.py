"""A cache that four processes of a host share: each block is fetched once, whoever is killed while writing, however full."""

from __future__ import annotations

import hashlib
import os
import random
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from mmap import PAGESIZE
from multiprocessing import get_context
from multiprocessing.connection import Connection
from multiprocessing.context import ForkProcess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from loader.cache import DiskCache
from tests.support.memory_store import MemoryDataset, dataset_bytes

FORK = get_context("fork")
WAIT_S = 60.0
NUM_PROCESSES, NUM_KILLS, SEED = 4, 24, 20
ROWS, ROW_BYTES = 2048, 1024
DECODED_BYTES = ROWS * (ROW_BYTES + 8)
CONTENT = dataset_bytes(
    {"row": "int64", "blob": f"uint8[{ROW_BYTES}]"},
    {"row": np.arange(ROWS), "blob": np.random.default_rng(1).integers(0, 256, (ROWS, ROW_BYTES), np.uint8)},
    num_lanes=8,
    block_size_bytes=64 * 1024,
)


def digest_of(batch: Any) -> bytes:
    return hashlib.blake2b(batch["row"].numpy().tobytes() + batch["blob"].numpy().tobytes(), digest_size=16).digest()


def expected_digests() -> list[bytes]:
    with MemoryDataset(CONTENT, batch_size=32, shuffle=True) as dataset:
        return [digest_of(batch) for batch in dataset]


class Reader:
    """A process that reads one epoch over the cache, and says after each batch what it had."""

    def __init__(self, cache_dir: Path, *, limit_bytes: int) -> None:
        self.pipe, theirs = FORK.Pipe()
        self.process: ForkProcess = FORK.Process(target=self._read, args=(theirs, cache_dir, limit_bytes))
        self.process.start()
        theirs.close()

    @staticmethod
    def _read(pipe: Connection, cache_dir: Path, limit_bytes: int) -> None:
        options = {"batch_size": 32, "shuffle": True, "cache_dir": cache_dir, "cache_limit_bytes": limit_bytes}
        with MemoryDataset(CONTENT, num_threads=2, prefetch_bytes=256 * 1024, **options) as dataset:
            len(dataset)
            pipe.send("ready")
            pipe.recv()
            for batch in dataset:
                pipe.send(digest_of(batch))
            pipe.send(dataset.receipt())

    def begin(self) -> None:
        assert self.pipe.poll(WAIT_S)
        assert self.pipe.recv() == "ready"
        self.pipe.send("begin")

    def next(self) -> Any:
        assert self.pipe.poll(WAIT_S), "it reads no further"
        return self.pipe.recv()

    def receipt(self, expected: Sequence[bytes]) -> dict[str, Any]:
        """Have it read to the end of the epoch, of which `expected` is left."""
        assert [self.next() for _ in expected] == list(expected)
        receipt: dict[str, Any] = self.next()
        return receipt

    def kill(self) -> None:
        self.process.kill()

    def close(self) -> None:
        self.pipe.close()
        self.process.join(WAIT_S)
        self.process.close()


@contextmanager
def readers(cache_dir: Path, *, limit_bytes: int) -> Iterator[list[Reader]]:
    """Four of them, which begin at once; the test may put others in their places."""
    found = [Reader(cache_dir, limit_bytes=limit_bytes) for _ in range(NUM_PROCESSES)]
    try:
        for reader in found:
            reader.begin()
        yield found
    finally:
        for reader in found:
            reader.close()


def used_bytes(root: Path) -> int:
    return sum(path.stat().st_blocks * 512 for path in root.rglob("*") if path.is_file())


@pytest.fixture(autouse=True)
def _patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Holders of claims may be without CPU time for long here, and are waited for."""
    monkeypatch.setattr("loader.claims._PATIENCE_S", WAIT_S)


def test_processes_that_want_the_same_blocks_at_once_fetch_each_of_them_once(tmp_path: Path) -> None:
    expected = expected_digests()
    with readers(tmp_path, limit_bytes=64 << 20) as four:
        receipts = [reader.receipt(expected) for reader in four]
    from_cache = [receipt["bytes_cache"] for receipt in receipts]
    assert sum(from_cache) == (NUM_PROCESSES - 1) * DECODED_BYTES
    # Each column block, and the begin of each of the 8 files, takes whole pages.
    num_blocks = receipts[0]["blocks"]
    assert DECODED_BYTES <= used_bytes(tmp_path) <= DECODED_BYTES + (2 * num_blocks + 8) * PAGESIZE


def test_processes_that_are_killed_while_they_write_harm_nobody(tmp_path: Path) -> None:
    expected, choices = expected_digests(), random.Random(SEED)
    with readers(tmp_path, limit_bytes=64 << 20) as four:
        seen = [0] * NUM_PROCESSES
        for _ in range(NUM_KILLS):
            place = choices.randrange(NUM_PROCESSES)
            for _ in range(choices.randrange(len(expected) - seen[place])):
                assert four[place].next() == expected[seen[place]]
                seen[place] += 1
            four[place].kill()
            four[place].close()
            four[place], seen[place] = Reader(tmp_path, limit_bytes=64 << 20), 0
            four[place].begin()
        for place, reader in enumerate(four):
            reader.receipt(expected[seen[place] :])
    with readers(tmp_path, limit_bytes=64 << 20) as four:
        # All that was ever written is sound, and is all there is to read.
        assert [reader.receipt(expected)["bytes_cache"] for reader in four] == [DECODED_BYTES] * NUM_PROCESSES


def test_the_limit_holds_for_all_together_and_what_fits_is_of_use(tmp_path: Path) -> None:
    expected, limit_bytes = expected_digests(), DECODED_BYTES // 2
    for _ in range(2):
        with readers(tmp_path, limit_bytes=limit_bytes) as four:
            receipts = [reader.receipt(expected) for reader in four]
        # Each may add 1/64, and the block that it is writing, before it sees what the others wrote.
        assert used_bytes(tmp_path) <= limit_bytes * (1 + NUM_PROCESSES / 64) + NUM_PROCESSES * 64 * 1024
    assert all(receipt["bytes_cache"] >= 0.8 * limit_bytes for receipt in receipts)


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting takes root")
def test_on_a_full_disk_everybody_reads_on(tmp_path: Path) -> None:
    expected = expected_digests()
    size_bytes = DECODED_BYTES // 4
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size_bytes}", "tmpfs", str(tmp_path)], check=True)
    try:
        with readers(tmp_path, limit_bytes=64 << 20) as four:
            for reader in four:
                reader.receipt(expected)
        assert 0.5 * size_bytes < used_bytes(tmp_path) <= size_bytes
        with readers(tmp_path, limit_bytes=64 << 20) as four:
            assert all(reader.receipt(expected)["bytes_cache"] > 0 for reader in four)
        assert not [path for path in tmp_path.rglob(".*") if path.is_file()]
        assert DiskCache(tmp_path, digest="ab" * 32, limit_bytes=size_bytes // 2)
        assert used_bytes(tmp_path) <= size_bytes // 2
    finally:
        subprocess.run(["umount", "--lazy", str(tmp_path)], check=True)
