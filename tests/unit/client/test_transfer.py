"""Transfers of folders as a library: how they end early."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from client.errors import BucketNotFound
from client.transfer import measure_folder, put_folder, stoppable
from tests.support.fake_store import FakeStore


@pytest.fixture
def store() -> Iterator[FakeStore]:
    store = FakeStore()
    yield store
    store.close()


def test_a_transfer_that_nobody_wants_any_more_ends_at_its_next_piece() -> None:
    stop, told = threading.Event(), list[int]()
    advance = stoppable(told.append, stop)
    advance(1)
    stop.set()
    with pytest.raises(Exception) as raised:
        advance(2)
    assert type(raised.value).__name__ == "_Stopped"
    assert told == [1]


def test_what_is_stored_before_a_failure_stays_and_the_rest_is_not_begun(store: FakeStore, tmp_path: Path) -> None:
    store.buckets.create("demo")
    for number in range(40):
        (tmp_path / f"{number:02}").write_bytes(bytes([number]))
    (tmp_path / "05").unlink()
    (tmp_path / "05").symlink_to("/proc/self/mem")  # a file that can't be read
    results = put_folder(store, tmp_path, "demo", "", max_parallel=2)
    stored = [next(results).key for _ in range(5)]
    with pytest.raises(OSError):
        next(results)
    assert stored == ["00", "01", "02", "03", "04"]
    keys = {info.key for info in store.walk("demo")}
    assert set(stored) <= keys
    assert len(keys) < 15


def test_an_unknown_bucket_is_told_before_files_are_read(store: FakeStore, tmp_path: Path) -> None:
    with pytest.raises(BucketNotFound):
        put_folder(store, tmp_path / "missing", "none", "")


def test_a_folder_is_measured_in_bytes_of_its_files(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a/b").write_bytes(b"12345")
    (tmp_path / "c").write_bytes(b"678")
    (tmp_path / "link").symlink_to(tmp_path / "a")
    assert measure_folder(tmp_path) == 8
