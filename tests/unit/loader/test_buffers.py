"""Staging buffers: used again when nobody looks at them any more, and not a moment earlier."""

from __future__ import annotations

import gc
from typing import Any

import numpy as np
import torch

from loader.buffers import BufferPool


def address(array: np.ndarray[Any, Any]) -> int:
    return int(array.__array_interface__["data"][0])


def test_buffer_is_used_again_once_its_array_is_gone() -> None:
    pool = BufferPool(np.dtype("<f4"), (3,), max_idle=1)
    first = pool.take(10)
    assert (first.shape, first.dtype, first.flags.writeable) == ((10, 3), np.dtype("<f4"), True)
    place = address(first)
    other = pool.take(10)
    assert address(other) != place
    del first
    assert address(pool.take(10)) == place


def test_any_view_keeps_the_buffer() -> None:
    pool = BufferPool(np.dtype("<i8"), (), max_idle=4)
    array = pool.take(8)
    place = address(array)
    array[:] = 7
    views: list[Any] = [array[2:3], torch.from_numpy(array)[4:], array.data, torch.from_numpy(array).unbind(0)[1]]
    del array
    while views:
        assert address(pool.take(8)) != place
        views.pop()
    assert address(pool.take(8)) == place


def test_smaller_array_fits_into_a_larger_buffer_and_a_larger_replaces_it() -> None:
    pool = BufferPool(np.dtype("u1"), (2,), max_idle=1)
    array = pool.take(100)
    place = address(array)
    del array
    small = pool.take(3)
    assert (address(small), small.shape) == (place, (3, 2))
    del small
    large = pool.take(1000)
    place = address(large)
    del large
    # What was too small is not kept in its stead.
    assert address(pool.take(1000)) == place


def test_no_more_than_max_idle_buffers_are_kept() -> None:
    pool = BufferPool(np.dtype("u1"), (), max_idle=2)
    arrays = [pool.take(1 << 20) for _ in range(5)]
    places = {address(array) for array in arrays}
    arrays.clear()
    again = [pool.take(1 << 20) for _ in range(3)]
    assert len(pool._idle) == 0
    assert sum(address(array) in places for array in again) >= 2


def test_no_rows_and_no_elements_are_fine() -> None:
    pool = BufferPool(np.dtype("<u2"), (4,), max_idle=2)
    assert pool.take(0).shape == (0, 4)
    assert pool.take(0).shape == (0, 4)


def test_buffer_that_a_garbage_collection_returns_while_another_is_taken() -> None:
    pool = BufferPool(np.dtype("u1"), (), max_idle=4)
    cycle: list[Any] = [pool.take(16)]
    cycle.append(cycle)

    class Collecting(list[Any]):
        def pop(self, *args: Any) -> Any:
            gc.collect()
            return super().pop(*args)

    pool._idle = Collecting()
    del cycle
    # The buffer comes back inside `take`, in this very thread: a lock would wait for ever.
    assert pool.take(16).shape == (16,)
