"""Claims on blocks that are fetched: held by one at a time, gone with their holder, and never in the way."""

from __future__ import annotations

import fcntl
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor, wait
from multiprocessing import get_context
from pathlib import Path

import pytest

from loader.cache import DiskCache
from tests.unit.loader.test_cache import DIGEST, KIB, WAIT_S, all_closed, cache_of, files, put

__all__ = ["all_closed"]


def is_claimed(cache: DiskCache, block: int, *, within_s: float = 0.05) -> bool:
    """Whether somebody else's claim is waited for."""
    began_s = time.monotonic()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("loader.claims._PATIENCE_S", within_s)
        with cache.claim(1, block):
            return time.monotonic() - began_s >= within_s


def test_a_block_is_claimed_by_one_and_the_next_one_waits(tmp_path: Path) -> None:
    caches = [DiskCache(tmp_path, digest=DIGEST, limit_bytes=100 * KIB) for _ in range(2)]
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
        with cache_of(tmp_path, digest=DIGEST, limit_bytes=100 * KIB).claim(1, 1):
            claimed.set()
            signal.pause()

    cache = cache_of(tmp_path, digest=DIGEST, limit_bytes=100 * KIB)
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
    cache = cache_of(tmp_path, digest=DIGEST, limit_bytes=100 * KIB)
    with cache.claim(1, 1):
        assert is_claimed(cache, 1)
        assert len(files(tmp_path)) == 1
        assert is_claimed(cache, 1)


def test_a_claim_whose_file_its_last_holder_removed_meanwhile_is_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = cache_of(tmp_path, digest=DIGEST, limit_bytes=100 * KIB)
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
    cache = cache_of(tmp_path, digest=DIGEST, limit_bytes=500 if case == "full" else 10_000)

    def fail(*args: object) -> None:
        raise OSError(28, "No space left on device")

    if case == "unwritable":
        monkeypatch.setattr("loader.lane_file.os.pwritev", fail)
    put(cache, 1)
    with cache.claim(1, 1):
        assert not is_claimed(cache, 1, within_s=WAIT_S)


def test_a_claim_that_cannot_be_made_stops_nobody(tmp_path: Path) -> None:
    cache = cache_of(tmp_path / "cache", digest=DIGEST, limit_bytes=100 * KIB)
    (tmp_path / "cache" / DIGEST[:32]).rmdir()
    assert not is_claimed(cache, 1, within_s=WAIT_S)
