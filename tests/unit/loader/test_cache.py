"""The cache of decoded blocks: never wrong, never above its limit, whoever else writes, reads, damages or dies."""

from __future__ import annotations

import fcntl
import logging
import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor, wait
from multiprocessing import get_context
from pathlib import Path

import pytest
import xxhash

from loader.cache import DiskCache
from loader.errors import InvalidOption

WAIT_S = 10.0
DIGEST, OTHER = "ab" * 32, "cd" * 32


def block(number: int, size: int = 1000) -> bytes:
    return bytes([number]) * size


def put(cache: DiskCache, number: int, size: int = 1000) -> None:
    cache.write((1, number, 0), memoryview(block(number, size)))


def found(cache: DiskCache, number: int, size: int = 1000) -> bool:
    out = bytearray(size)
    hit = cache.read_into((1, number, 0), memoryview(out), check=xxhash.xxh3_64_intdigest(block(number, size)))
    assert not hit or bytes(out) == block(number, size)
    return hit


def files(root: Path) -> list[Path]:
    return [path for path in root.rglob("*") if path.is_file()]


def used(root: Path) -> int:
    return sum(path.stat().st_size for path in files(root))


def test_block_that_was_kept_is_found_also_by_others(tmp_path: Path) -> None:
    cache = DiskCache(tmp_path / "new" / "cache", digest=DIGEST, limit_bytes=10_000)
    assert not found(cache, 1)
    put(cache, 1)
    assert found(cache, 1)
    assert found(DiskCache(tmp_path / "new" / "cache", digest=DIGEST, limit_bytes=10_000), 1)
    assert not found(DiskCache(tmp_path / "new" / "cache", digest=OTHER, limit_bytes=10_000), 1)


@pytest.mark.parametrize("damage", ["flip", "short", "long", "empty"])
def test_damaged_block_is_dropped_and_can_be_kept_again(tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture) -> None:
    cache = DiskCache(tmp_path, digest=DIGEST, limit_bytes=10_000)
    put(cache, 1)
    (path,) = files(tmp_path)
    data = path.read_bytes()
    path.write_bytes({"flip": b"\0" + data[1:], "short": data[:-1], "long": data + b"x", "empty": b""}[damage])
    with caplog.at_level(logging.WARNING):
        assert not found(cache, 1)
    assert "dropped and fetched again" in caplog.text
    assert files(tmp_path) == []
    put(cache, 1)
    assert found(cache, 1)


def test_limit_holds_and_what_is_there_stays(tmp_path: Path) -> None:
    cache = DiskCache(tmp_path, digest=DIGEST, limit_bytes=10_500)
    for expected in (0, 10, 10):
        hits = 0
        for number in range(20):
            if found(cache, number):
                hits += 1
            else:
                put(cache, number)
            assert used(tmp_path) <= 10_500
        # A cache of half the dataset hits half the time: nothing is evicted just before it is needed again.
        assert hits == expected


@pytest.mark.parametrize("limit_bytes", [0, 999])
def test_what_can_never_fit_is_not_written(tmp_path: Path, limit_bytes: int) -> None:
    cache = DiskCache(tmp_path, digest=DIGEST, limit_bytes=limit_bytes)
    put(cache, 1)
    assert not found(cache, 1)
    assert files(tmp_path) == []


def test_blocks_of_other_datasets_make_room_the_longest_unused_first(tmp_path: Path) -> None:
    old = DiskCache(tmp_path, digest=OTHER, limit_bytes=10_000)
    for number in range(9):
        put(old, number)
        os.utime(tmp_path / OTHER[:32] / f"1-{number}-0", (1000 + number, 1000 + number))
    assert found(old, 0)  # Used now, and so the last to go.
    cache = DiskCache(tmp_path, digest=DIGEST, limit_bytes=10_000)
    for number in range(5):
        put(cache, number)
        assert used(tmp_path) <= 10_000
    assert [found(cache, number) for number in range(5)] == [True] * 5
    kept = [number for number in range(9) if found(old, number)]
    assert 0 in kept
    assert kept[1:] == list(range(9 - len(kept) + 1, 9))


def test_bytes_that_others_write_are_seen(tmp_path: Path) -> None:
    caches = [DiskCache(tmp_path, digest=DIGEST, limit_bytes=64_000) for _ in range(4)]
    for number in range(200):
        put(caches[number % 4], number)
    # Each looks after every 64th part of the limit that it adds.
    assert 60_000 <= used(tmp_path) <= 64_000 + 4 * 1000


def test_file_that_a_dead_writer_left_aside_counts_and_is_never_read(tmp_path: Path) -> None:
    context = get_context("fork")

    def die_while_writing() -> None:
        def killed(*args: object) -> None:
            os.kill(os.getpid(), signal.SIGKILL)

        os.replace = killed  # type: ignore[assignment]
        put(DiskCache(tmp_path, digest=DIGEST, limit_bytes=10_000), 1)

    child = context.Process(target=die_while_writing)
    child.start()
    child.join()
    assert child.exitcode == -signal.SIGKILL
    child.close()
    (left,) = files(tmp_path)
    cache = DiskCache(tmp_path, digest=DIGEST, limit_bytes=1_500)
    assert not found(cache, 1)
    put(cache, 2)
    assert files(tmp_path) == [left]
    # It goes like any other block that nobody uses.
    DiskCache(tmp_path, digest=OTHER, limit_bytes=1_000)
    assert files(tmp_path) == []


def test_two_processes_share_a_directory(tmp_path: Path) -> None:
    def fill(first: int) -> None:
        cache = DiskCache(tmp_path, digest=DIGEST, limit_bytes=1 << 20)
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
    cache = DiskCache(tmp_path, digest=DIGEST, limit_bytes=1 << 20)
    assert all(found(cache, number) for number in range(100))
    assert len(files(tmp_path)) == 100


def test_cache_that_cannot_be_written_says_so_once_and_goes_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = DiskCache(tmp_path, digest=DIGEST, limit_bytes=100_000)

    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch, caplog.at_level(logging.WARNING):
        patch.setattr("loader.cache.os.replace", full)
        for number in range(5):
            put(cache, number)
    assert caplog.text.count("No space left on device") == 1
    assert files(tmp_path) == []
    put(cache, 1)
    assert found(cache, 1)


def test_directory_that_is_taken_away_costs_hits_only(tmp_path: Path) -> None:
    cache = DiskCache(tmp_path / "cache", digest=DIGEST, limit_bytes=100_000)
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
        DiskCache(tmp_path / "file", digest=DIGEST, limit_bytes=1)


def test_a_use_is_noted_once_an_hour_and_not_each_time(tmp_path: Path) -> None:
    cache = DiskCache(tmp_path, digest=DIGEST, limit_bytes=10_000)
    put(cache, 0)
    path = tmp_path / DIGEST[:32] / "1-0-0"
    now = time.time()
    os.utime(path, (now - 600, now - 600))
    assert found(cache, 0)
    assert path.stat().st_mtime == pytest.approx(now - 600, abs=1)
    os.utime(path, (now - 7200, now - 7200))
    assert found(cache, 0)
    assert path.stat().st_mtime > now - 600


def test_a_smaller_limit_holds_also_for_what_is_there(tmp_path: Path) -> None:
    cache = DiskCache(tmp_path, digest=DIGEST, limit_bytes=10_000)
    for number in range(9):
        put(cache, number)
        os.utime(tmp_path / DIGEST[:32] / f"1-{number}-0", (1000 + number, 1000 + number))
    smaller = DiskCache(tmp_path, digest=DIGEST, limit_bytes=4_500)
    assert used(tmp_path) == 4_000
    assert [number for number in range(9) if found(smaller, number)] == [5, 6, 7, 8]


def test_what_a_dead_writer_left_aside_goes_after_an_hour(tmp_path: Path) -> None:
    DiskCache(tmp_path, digest=DIGEST, limit_bytes=10_000)
    for name, age_s in ((".old", 4000), (".new", 100)):
        path = tmp_path / DIGEST[:32] / name
        path.write_bytes(b"half a block")
        os.utime(path, (time.time() - age_s, time.time() - age_s))
    DiskCache(tmp_path, digest=DIGEST, limit_bytes=10_000)
    assert [path.name for path in files(tmp_path)] == [".new"]


# Claims


def is_claimed(cache: DiskCache, block: int, *, within_s: float = 0.05) -> bool:
    """Whether somebody else's claim is waited for."""
    began_s = time.monotonic()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("loader.claims._PATIENCE_S", within_s)
        with cache.claim(1, block):
            return time.monotonic() - began_s >= within_s


def test_a_block_is_claimed_by_one_and_the_next_one_waits(tmp_path: Path) -> None:
    caches = [DiskCache(tmp_path, digest=DIGEST, limit_bytes=10_000) for _ in range(2)]
    wants, order = threading.Event(), []

    def second() -> None:
        wants.set()
        with caches[1].claim(1, 1):
            order.append("second")

    with ThreadPoolExecutor(1) as pool:
        with caches[0].claim(1, 1), caches[0].claim(1, 2):
            claiming = pool.submit(second)
            assert wants.wait(WAIT_S)
            assert not wait([claiming], timeout=0.05).done
            order.append("first")
        claiming.result(WAIT_S)
    assert order == ["first", "second"]
    assert files(tmp_path) == []


def test_a_claim_goes_with_a_holder_that_is_killed(tmp_path: Path) -> None:
    context = get_context("fork")
    claimed = context.Event()

    def die_with_a_claim() -> None:
        with DiskCache(tmp_path, digest=DIGEST, limit_bytes=10_000).claim(1, 1):
            claimed.set()
            signal.pause()

    cache = DiskCache(tmp_path, digest=DIGEST, limit_bytes=10_000)
    child = context.Process(target=die_with_a_claim)
    child.start()
    assert claimed.wait(WAIT_S)
    assert is_claimed(cache, 1)
    child.kill()
    child.join()
    child.close()
    # What it left is taken over.
    assert len(files(tmp_path)) == 1
    assert not is_claimed(cache, 1, within_s=WAIT_S)
    assert files(tmp_path) == []


def test_whoever_gave_up_waiting_leaves_the_claim_to_its_holder(tmp_path: Path) -> None:
    cache = DiskCache(tmp_path, digest=DIGEST, limit_bytes=10_000)
    with cache.claim(1, 1):
        assert is_claimed(cache, 1)
        assert len(files(tmp_path)) == 1
        assert is_claimed(cache, 1)


def test_a_claim_whose_file_its_last_holder_removed_meanwhile_is_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = DiskCache(tmp_path, digest=DIGEST, limit_bytes=10_000)
    flock = fcntl.flock
    removed: list[Path] = []

    def remove_first(file: int, how: int) -> None:
        if not removed:
            removed.extend(files(tmp_path))
            removed[0].unlink()
        flock(file, how)

    monkeypatch.setattr("loader.claims.fcntl.flock", remove_first)
    with cache.claim(1, 1):
        assert removed
        assert is_claimed(cache, 1)


@pytest.mark.parametrize("case", ["full", "unwritable"])
def test_what_will_not_be_kept_is_not_waited_for(tmp_path: Path, case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = DiskCache(tmp_path, digest=DIGEST, limit_bytes=500 if case == "full" else 10_000)

    def fail(*args: object) -> None:
        raise OSError(28, "No space left on device")

    if case == "unwritable":
        monkeypatch.setattr("loader.cache.os.replace", fail)
    put(cache, 1)
    with cache.claim(1, 1):
        assert not is_claimed(cache, 1, within_s=WAIT_S)


def test_a_claim_that_cannot_be_made_stops_nobody(tmp_path: Path) -> None:
    cache = DiskCache(tmp_path / "cache", digest=DIGEST, limit_bytes=10_000)
    (tmp_path / "cache" / DIGEST[:32]).rmdir()
    assert not is_claimed(cache, 1, within_s=WAIT_S)
