"""Bytes that tell whether they are right."""

from __future__ import annotations

import random

import pytest

from tests.soak.values import SHARED, WrongBytes, read, shared, size_of, value

CHUNK_BYTES = 64 * 1024


@pytest.mark.parametrize("size_bytes", [100, 4096, 10 * CHUNK_BYTES + 7])
def test_bytes_tell_their_name(size_bytes: int) -> None:
    data = value("c1-7", size_bytes)
    assert len(data) == size_bytes
    assert read(data) == "c1-7"


def test_no_bytes_tell_nothing() -> None:
    assert read(value("c1-7", 0)) is None


@pytest.mark.parametrize("place", [0, 20, 2000, 4095])
def test_one_wrong_bit_is_found(place: int) -> None:
    data = bytearray(value("c1-7", 4096))
    data[place] ^= 0x10
    with pytest.raises(WrongBytes):
        read(bytes(data))


def test_bytes_that_are_cut_or_joined_with_others_are_found() -> None:
    data, other = value("c1-7", 4096), value("c2-7", 4096)
    for wrong in (data[:4000], data + b"x", data[:2048] + other[2048:], bytes(4096)):
        with pytest.raises(WrongBytes):
            read(wrong)


def test_shared_bodies_are_few_and_say_so() -> None:
    rng = random.Random(1)
    bodies = {shared(rng) for _ in range(100)}
    assert len(bodies) == 4
    assert all(str(read(body)).startswith(SHARED) for body in bodies)


def test_sizes_are_of_every_kind() -> None:
    rng = random.Random(1)
    sizes = [size_of(rng, chunk_bytes=CHUNK_BYTES) for _ in range(2000)]
    assert 0 in sizes
    assert any(0 < size < CHUNK_BYTES for size in sizes)
    assert any(CHUNK_BYTES < size < 3 * CHUNK_BYTES for size in sizes)
    assert any(size > 8 * CHUNK_BYTES for size in sizes), "none has a manifest"
