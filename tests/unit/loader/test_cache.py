"""The cache of decoded blocks: never wrong, never above its limit, whoever else writes, reads, damages or dies."""

from __future__ import annotations

import logging
import os
import signal
import time
from collections.abc import Iterator
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
import xxhash

from loader import lane_file
from loader.block import BlockTable
from loader.cache import DiskCache
from loader.errors import InvalidOption

WAIT_S = 10.0
DIGEST, OTHER = "ab" * 32, "cd" * 32


SIZE = 3000  # A page on disk.
KIB = 1024


def block(number: int) -> bytes:
    return bytes([number]) * SIZE


def table_of(num_blocks: int) -> BlockTable:
    sizes = np.full((num_blocks, 1), SIZE, np.int64)
    checks = np.array([[xxhash.xxh3_64_intdigest(block(number))] for number in range(num_blocks)], np.uint64)
    rows = np.full(num_blocks, 4, np.int64)
    return BlockTable(rows=rows, stored_size=sizes, raw_size=sizes, codec=np.zeros((num_blocks, 1), np.uint8), check=checks)


TABLE = table_of(200)
_open: list[DiskCache] = []


@pytest.fixture(autouse=True)
def all_closed() -> Iterator[None]:
    yield
    while _open:
        _open.pop().close()


def cache_of(root: Path, *, digest: str, limit_bytes: int) -> DiskCache:
    _open.append(DiskCache(root, digest=digest, limit_bytes=limit_bytes))
    return _open[-1]


def put(cache: DiskCache, number: int, *, lane: int = 1) -> None:
    cache.write((lane, number, 0), memoryview(block(number)), table=TABLE)


def not_wanted() -> memoryview:
    raise AssertionError("there are no values that are read one by one")


def found(cache: DiskCache, number: int, *, lane: int = 1) -> bool:
    out = bytearray(SIZE)
    hit = cache.read_into((lane, number, 0), memoryview(out), table=TABLE, read_whole=not_wanted)
    assert not hit or bytes(out) == block(number)
    return hit


def files(root: Path) -> list[Path]:
    return [path for path in root.rglob("*") if path.is_file()]


def used(root: Path) -> int:
    return sum(path.stat().st_blocks * 512 for path in files(root))


def test_block_that_was_kept_is_found_also_by_others(tmp_path: Path) -> None:
    cache = cache_of(tmp_path / "new" / "cache", digest=DIGEST, limit_bytes=100 * KIB)
    assert not found(cache, 1)
    put(cache, 1)
    assert found(cache, 1)
    assert found(cache_of(tmp_path / "new" / "cache", digest=DIGEST, limit_bytes=100 * KIB), 1)
    assert not found(cache_of(tmp_path / "new" / "cache", digest=OTHER, limit_bytes=100 * KIB), 1)


def damage(path: Path, offset: int) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        (byte,) = file.read(1)
        file.seek(offset)
        file.write(bytes([byte ^ 1]))


def test_damaged_block_is_dropped_and_can_be_kept_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cache = cache_of(tmp_path, digest=DIGEST, limit_bytes=100 * KIB)
    put(cache, 1)
    put(cache, 2)
    (path,) = files(tmp_path)
    damage(path, path.read_bytes().index(block(1)) + SIZE - 1)
    with caplog.at_level(logging.WARNING):
        assert not found(cache, 1)
    assert "a cached block is dropped and fetched again" in caplog.text
    assert found(cache, 2)
    assert not found(cache_of(tmp_path, digest=DIGEST, limit_bytes=100 * KIB), 1)
    put(cache, 1)
    assert found(cache, 1)


@pytest.mark.parametrize("size", [2, SIZE, 10 * SIZE])
def test_a_file_of_another_size_is_dropped(tmp_path: Path, size: int, caplog: pytest.LogCaptureFixture) -> None:
    cache_of(tmp_path, digest=DIGEST, limit_bytes=100 * KIB)
    (tmp_path / DIGEST[:32] / "1").write_bytes(b"\1" * size)
    cache = cache_of(tmp_path, digest=DIGEST, limit_bytes=100 * KIB)
    with caplog.at_level(logging.WARNING):
        assert not found(cache, 1)
    assert f"takes {size} bytes" in caplog.text
    assert files(tmp_path) == []
    put(cache, 1)
    assert found(cache, 1)


def test_a_file_that_is_cut_short_while_it_is_open_is_made_anew(tmp_path: Path) -> None:
    cache = cache_of(tmp_path, digest=DIGEST, limit_bytes=100 * KIB)
    put(cache, 0)
    put(cache, 1)
    assert found(cache, 0)
    (path,) = files(tmp_path)
    os.truncate(path, path.stat().st_size // 2)
    put(cache, 2)  # Finds out.
    put(cache, 2)
    assert [found(cache, number) for number in (0, 1, 2)] == [False, False, True]


def test_a_block_that_a_dead_writer_has_begun_is_never_read(tmp_path: Path) -> None:
    context = get_context("fork")

    def die_while_writing() -> None:
        pwritev = os.pwritev

        def killed(file: int, buffers: list[memoryview], offset: int) -> int:
            pwritev(file, [buffers[0][: SIZE // 2]], offset)
            os.kill(os.getpid(), signal.SIGKILL)
            return 0

        os.pwritev = killed  # type: ignore[assignment]
        put(cache_of(tmp_path, digest=DIGEST, limit_bytes=100 * KIB), 1)

    child = context.Process(target=die_while_writing)
    child.start()
    child.join()
    assert child.exitcode == -signal.SIGKILL
    child.close()
    assert used(tmp_path) > 0
    cache = cache_of(tmp_path, digest=DIGEST, limit_bytes=100 * KIB)
    assert not found(cache, 1)
    put(cache, 1)
    assert found(cache, 1)


def test_whoever_has_a_file_open_that_goes_lets_go_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    caches = [DiskCache(tmp_path, digest=DIGEST, limit_bytes=100 * KIB) for _ in range(2)]
    put(caches[0], 1)
    assert [found(cache, 1) for cache in caches] == [True, True]
    lane_file.remove(str(tmp_path / DIGEST[:32] / "1"))
    lane_file.remove(str(tmp_path / DIGEST[:32] / "1"))  # Somebody else was faster.
    assert [found(cache, 1) for cache in caches] == [True, True]
    monkeypatch.setattr("loader.lane_file._LOOK_AGAIN_S", 0.0)
    assert [found(cache, 1) for cache in caches] == [False, False]
    # What is open takes room on disk, also without a name.
    targets = [os.readlink(link.path) for link in os.scandir("/proc/self/fd") if os.path.lexists(link.path)]
    assert not [target for target in targets if str(tmp_path) in target]
    put(caches[0], 2)
    assert [found(cache, number) for cache in caches for number in (1, 2)] == [False, True] * 2


def test_more_lanes_than_may_be_open_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("loader.cache._MAX_OPEN", 3)
    cache = cache_of(tmp_path, digest=DIGEST, limit_bytes=1 << 20)
    before = len(os.listdir("/proc/self/fd"))
    for lane in range(10):
        put(cache, lane, lane=lane)
    for lane in (*range(10), *range(10)):
        assert found(cache, lane, lane=lane)
        assert len(os.listdir("/proc/self/fd")) <= before + 3


def test_limit_holds_and_what_is_there_stays(tmp_path: Path) -> None:
    limit_bytes = 44 * KIB
    cache = cache_of(tmp_path, digest=DIGEST, limit_bytes=limit_bytes)
    hits = []
    for _ in range(3):
        before = [found(cache, number) for number in range(20)]
        for number in range(20):
            if not found(cache, number):
                put(cache, number)
            assert used(tmp_path) <= limit_bytes
        hits.append(sum(before))
    # A cache of half the dataset hits half the time: nothing is evicted just before it is needed again.
    assert hits[0] == 0
    assert 9 <= hits[1] == hits[2] <= 11


@pytest.mark.parametrize("limit_bytes", [0, 2999])
def test_what_can_never_fit_is_not_written(tmp_path: Path, limit_bytes: int) -> None:
    cache = cache_of(tmp_path, digest=DIGEST, limit_bytes=limit_bytes)
    put(cache, 1)
    assert not found(cache, 1)
    assert files(tmp_path) == []


def test_lanes_of_other_datasets_make_room_the_longest_unused_first(tmp_path: Path) -> None:
    old = cache_of(tmp_path, digest=OTHER, limit_bytes=100 * KIB)
    for lane in range(9):
        put(old, lane, lane=lane)
        os.utime(tmp_path / OTHER[:32] / str(lane), (1000 + lane, 1000 + lane))
    assert used(tmp_path) == 9 * 8 * KIB  # A page for what begins a file, and one for the block.
    old = cache_of(tmp_path, digest=OTHER, limit_bytes=100 * KIB)
    assert found(old, 0, lane=0)  # Used now, and so the last to go.
    cache = cache_of(tmp_path, digest=DIGEST, limit_bytes=80 * KIB)
    for lane in range(5):
        put(cache, lane, lane=lane)
        assert used(tmp_path) <= 80 * KIB + 8 * KIB
    assert all(found(cache, lane, lane=lane) for lane in range(5))
    kept = [lane for lane in range(9) if found(old, lane, lane=lane)]
    assert 0 in kept
    assert kept[1:] == list(range(9 - len(kept) + 1, 9))


def test_bytes_that_others_write_are_seen(tmp_path: Path) -> None:
    caches = [DiskCache(tmp_path, digest=DIGEST, limit_bytes=512 * KIB) for _ in range(4)]
    for number in range(200):
        put(caches[number % 4], number)
    # Each looks after every 64th part of the limit that it adds.
    assert 480 * KIB <= used(tmp_path) <= (512 + 4 * 8 + 4) * KIB


def test_two_processes_share_a_directory(tmp_path: Path) -> None:
    def fill(first: int) -> None:
        cache = cache_of(tmp_path, digest=DIGEST, limit_bytes=1 << 20)
        for number in range(first, first + 60):
            if not found(cache, number % 100):
                put(cache, number % 100)

    context = get_context("fork")
    children = [context.Process(target=fill, args=(first,)) for first in (0, 20, 40)]
    for child in children:
        child.start()
    for child in children:
        child.join()
        assert child.exitcode == 0
        child.close()
    cache = cache_of(tmp_path, digest=DIGEST, limit_bytes=1 << 20)
    assert all(found(cache, number) for number in range(100))
    assert len(files(tmp_path)) == 1


def test_cache_that_cannot_be_written_says_so_once_and_goes_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = cache_of(tmp_path, digest=DIGEST, limit_bytes=100_000)

    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch, caplog.at_level(logging.WARNING):
        patch.setattr("loader.lane_file.os.pwritev", full)
        for number in range(5):
            put(cache, number)
    assert caplog.text.count("No space left on device") == 1
    assert not any(found(cache, number) for number in range(5))
    put(cache, 1)
    assert found(cache, 1)


def test_directory_that_is_taken_away_costs_hits_only(tmp_path: Path) -> None:
    cache = cache_of(tmp_path / "cache", digest=DIGEST, limit_bytes=100_000)
    put(cache, 1)
    for path in files(tmp_path):
        path.unlink()
    (tmp_path / "cache" / DIGEST[:32]).rmdir()
    assert not found(cache, 1)
    put(cache, 2)
    assert not found(cache, 2)


def test_unusable_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(InvalidOption, match=r"cache_dir='.*/file' can't be used"):
        cache_of(tmp_path / "file", digest=DIGEST, limit_bytes=1)


def test_a_use_is_noted_once_an_hour_and_not_each_time(tmp_path: Path) -> None:
    put(cache_of(tmp_path, digest=DIGEST, limit_bytes=100 * KIB), 0)
    path, now = tmp_path / DIGEST[:32] / "1", time.time()
    for age_s, expected_age_s in ((600, 600), (7200, 0)):
        os.utime(path, (now - age_s, now - age_s))
        assert found(cache_of(tmp_path, digest=DIGEST, limit_bytes=100 * KIB), 0)
        assert path.stat().st_mtime == pytest.approx(now - expected_age_s, abs=60)


def test_a_smaller_limit_holds_also_for_what_is_there(tmp_path: Path) -> None:
    cache = cache_of(tmp_path, digest=DIGEST, limit_bytes=100 * KIB)
    for lane in range(9):
        put(cache, lane, lane=lane)
        os.utime(tmp_path / DIGEST[:32] / str(lane), (1000 + lane, 1000 + lane))
    smaller = cache_of(tmp_path, digest=DIGEST, limit_bytes=36 * KIB)
    assert used(tmp_path) == 32 * KIB
    assert [lane for lane in range(9) if found(smaller, lane, lane=lane)] == [5, 6, 7, 8]


def test_what_a_dead_process_left_goes_after_an_hour(tmp_path: Path) -> None:
    cache_of(tmp_path, digest=DIGEST, limit_bytes=100 * KIB)
    for name, age_s in ((".old", 4000), (".new", 100)):
        path = tmp_path / DIGEST[:32] / name
        path.touch()
        os.utime(path, (time.time() - age_s, time.time() - age_s))
    cache_of(tmp_path, digest=DIGEST, limit_bytes=100 * KIB)
    assert [path.name for path in files(tmp_path)] == [".new"]
