"""Whether a file is in memory, and how it gets there."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from client.pages import bring_in, is_in_memory

SIZE = 20 << 20


@pytest.fixture
def fd(tmp_path: Path) -> Iterator[int]:
    """A file that is a hole, of which nothing can be in memory yet."""
    fd = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
    os.truncate(fd, SIZE)
    yield fd
    os.close(fd)


def test_a_file_that_nobody_has_read_is_not_in_memory_until_it_is_brought_in(fd: int) -> None:
    assert not is_in_memory(fd, SIZE)
    assert len(list(bring_in(fd, SIZE))) == 3
    assert is_in_memory(fd, SIZE)


def test_a_part_of_a_file_is_not_all_of_it(fd: int) -> None:
    os.pwrite(fd, b"x", 0)
    os.pwrite(fd, b"x", SIZE // 2)
    assert not is_in_memory(fd, SIZE)
    assert is_in_memory(fd, 1)
    assert is_in_memory(fd, 1, start=SIZE // 2)
    assert not is_in_memory(fd, 5000, start=SIZE // 2)


def test_what_was_written_is_in_memory(fd: int) -> None:
    os.pwrite(fd, b"x" * (SIZE - 5), 0)
    assert is_in_memory(fd, SIZE - 5)


def test_a_file_that_is_too_short_can_not_be_brought_in(fd: int) -> None:
    os.truncate(fd, 5)
    with pytest.raises(OSError, match="Bad address"):
        list(bring_in(fd, SIZE))
    assert not is_in_memory(fd, SIZE)


@pytest.mark.parametrize("is_there", [True, False])
def test_where_the_kernel_does_not_say_it_is_tried(fd: int, monkeypatch: pytest.MonkeyPatch, is_there: bool) -> None:
    def preadv(fd: int, buffers: list[bytearray], offset: int, flags: int) -> int:
        assert flags == os.RWF_NOWAIT and 100 <= offset < SIZE + 100
        if not is_there and offset > 100:
            raise BlockingIOError
        return 1

    monkeypatch.setattr("client.pages._syscall", lambda *_: -1)
    monkeypatch.setattr(os, "preadv", preadv)
    assert is_in_memory(fd, SIZE, start=100) == is_there
