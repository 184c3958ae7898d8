"""``forebay://`` through fsspec: its own suites for file systems, and what is ours."""

from __future__ import annotations

import pickle
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.tests.abstract import (
    AbstractCopyTests,
    AbstractFixtures,
    AbstractGetTests,
    AbstractOpenTests,
    AbstractPipeTests,
    AbstractPutTests,
)

from client.filesystem import ForebayFileSystem
from client.record import BucketPolicy
from tests.support.fake_store import FakeStore


class FakeFileSystem(ForebayFileSystem):
    """Over a store in memory; an instance for each test."""

    cachable = False

    def __init__(self, store: FakeStore) -> None:
        super().__init__()
        self._connect = lambda: store


@pytest.fixture
def store() -> Iterator[FakeStore]:
    store = FakeStore()
    store.fake_catalog.create_bucket("data", BucketPolicy())
    yield store
    store.close()


@pytest.fixture
def fs(store: FakeStore) -> ForebayFileSystem:
    return FakeFileSystem(store)


class Fixtures(AbstractFixtures):  # type: ignore[misc]
    """What fsspec's suites ask for."""

    @pytest.fixture
    def fs(self, store: FakeStore) -> ForebayFileSystem:
        return FakeFileSystem(store)

    @pytest.fixture
    def fs_path(self) -> str:
        return "data"

    @pytest.fixture
    def fs_join(self) -> Callable[..., str]:
        return lambda *parts: "/".join(parts)

    @pytest.fixture
    def supports_empty_directories(self) -> bool:
        return False


class TestCopy(Fixtures, AbstractCopyTests):  # type: ignore[misc]
    pass


class TestGet(Fixtures, AbstractGetTests):  # type: ignore[misc]
    pass


class TestOpen(Fixtures, AbstractOpenTests):  # type: ignore[misc]
    pass


class TestPipe(Fixtures, AbstractPipeTests):  # type: ignore[misc]
    pass


class TestPut(Fixtures, AbstractPutTests):  # type: ignore[misc]
    pass


def test_fsspec_finds_it_by_its_url() -> None:
    fs, path = fsspec.core.url_to_fs("forebay://data/a/b.bin", endpoints="http://127.0.0.1:1")
    assert isinstance(fs, ForebayFileSystem) and path == "data/a/b.bin"
    assert pickle.loads(pickle.dumps(fs)) == fs


def test_threads_that_come_at_once_share_one_client_and_the_other_is_closed() -> None:
    both, opened, closed = threading.Barrier(2, timeout=10), [], []

    class Counted(FakeStore):
        def close(self) -> None:
            closed.append(self)
            super().close()

    def connect() -> FakeStore:
        opened.append(store := Counted())
        both.wait()
        return store

    fs = FakeFileSystem(FakeStore())
    fs._connect = connect
    with ThreadPoolExecutor(2) as pool:
        found = [future.result() for future in [pool.submit(lambda: fs.store) for _ in range(2)]]
    assert found[0] is found[1] is fs.store and len(opened) == 2
    assert closed == [store for store in opened if store is not fs.store]
    fs.store.close()


def test_listings_and_entries(fs: ForebayFileSystem) -> None:
    fs.pipe({"data/a/b/one": b"1", "data/a/two": b"22", "data/a.txt": b"333", "data/z": b""})
    assert fs.ls("", detail=False) == ["data"]
    assert sorted(fs.ls("data", detail=False)) == ["data/a", "data/a.txt", "data/z"]
    assert sorted(fs.ls("forebay://data/a/", detail=False)) == ["data/a/b", "data/a/two"]
    assert fs.ls("data/a/two")[0]["size"] == 2
    assert fs.isdir("data/a/b") and fs.isfile("data/z") and not fs.exists("data/y")
    assert fs.find("data/a") == ["data/a/b/one", "data/a/two"] and fs.find("data/y") == []
    assert fs.du("data") == 6 and fs.glob("data/**/o*") == ["data/a/b/one"]
    for missing in ("data/y", "no-bucket", "no-bucket/a"):
        with pytest.raises(FileNotFoundError):
            fs.ls(missing)
        with pytest.raises(FileNotFoundError):
            fs.info(missing)


def test_a_file_is_there_once_it_is_closed_and_only_whole(fs: ForebayFileSystem) -> None:
    with fs.open("data/key", "wb", block_size=1 << 16) as file:
        file.write(b"x" * 200_000)
        assert not fs.exists("data/key")
    assert fs.cat("data/key") == b"x" * 200_000
    for size in (10, 200_000):
        with pytest.raises(RuntimeError), fs.open("data/key", "wb", block_size=1 << 16) as file:
            file.write(b"y" * size)
            raise RuntimeError
        assert fs.size("data/key") == 200_000
    with pytest.raises(FileExistsError), fs.open("data/key", "xb") as file:
        file.write(b"z")
    with pytest.raises(ValueError, match="append"):
        fs.open("data/key", "ab")


def test_an_open_file_shows_the_version_that_was_opened(fs: ForebayFileSystem, store: FakeStore) -> None:
    store.buckets.set("data", versions=1)
    fs.pipe("data/key", b"old" * 100_000)
    with fs.open("data/key", block_size=1000) as file:
        assert file.read(3) == b"old"
        fs.pipe("data/key", b"new")
        file.seek(-6, 2)
        assert file.read() == b"oldold" and file.details["size"] == 300_000
    assert fs.cat("data/key") == b"new"


def test_transactions_make_files_visible_together(fs: ForebayFileSystem) -> None:
    with fs.transaction:
        with fs.open("data/a", "wb") as file:
            file.write(b"1")
        assert not fs.exists("data/a")
    assert fs.cat("data/a") == b"1"
    with pytest.raises(RuntimeError), fs.transaction:
        with fs.open("data/b", "wb") as file:
            file.write(b"1")
        raise RuntimeError
    assert not fs.exists("data/b")


def test_ranges(fs: ForebayFileSystem) -> None:
    fs.pipe("data/key", b"0123456789")
    assert fs.cat_file("data/key", start=2, end=5) == b"234"
    assert fs.cat_file("data/key", start=-3) == b"789" and fs.cat_file("data/key", end=-8) == b"01"
    assert fs.cat_file("data/key", start=8, end=4) == b"" and fs.tail("data/key", 2) == b"89"
    assert fs.cat_ranges(["data/key"] * 2, [0, 5], [1, 7]) == [b"0", b"56"]


def test_buckets_are_made_and_removed_as_folders(fs: ForebayFileSystem) -> None:
    fs.mkdir("more")
    with pytest.raises(FileExistsError):
        fs.mkdir("more")
    fs.makedirs("more", exist_ok=True)
    fs.pipe("more/a/b", b"1")
    with pytest.raises(FileExistsError):
        fs.rmdir("more")
    fs.rm("more", recursive=True)
    assert fs.ls("", detail=False) == ["data"]


def test_files_go_to_and_fro(fs: ForebayFileSystem, tmp_path: Path) -> None:
    (tmp_path / "from" / "sub").mkdir(parents=True)
    (tmp_path / "from" / "sub" / "a").write_bytes(b"1" * 100_000)
    seen: list[int] = []

    class Seeing(fsspec.callbacks.Callback):  # type: ignore[misc]
        def call(self, *args: Any, **options: Any) -> None:
            seen.append(self.value)

    fs.put(str(tmp_path / "from"), "data/to", recursive=True)
    fs.get_file("data/to/sub/a", str(tmp_path / "back"), callback=Seeing())
    assert (tmp_path / "back").read_bytes() == b"1" * 100_000 and seen[-1] == 100_000
    fs.mv("data/to/sub/a", "data/moved")
    assert fs.find("data") == ["data/moved"]
