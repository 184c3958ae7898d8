"""The measures of shuffling, on orders whose quality is known; and Forebay's order is one of all rows."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.shuffle.orders import forebay, full
from benchmarks.shuffle.quality import Quality, measure


def quality(order: np.ndarray) -> Quality:
    return measure(order, num_classes=10, batch_size=100, num_batches=5)


def test_full_shuffle_is_one() -> None:
    found = quality(full(100_000, seed=0))
    assert found.batch == pytest.approx(1, abs=0.1)
    assert found.batches == pytest.approx(1, abs=0.25)
    assert found.neighbours == pytest.approx(0, abs=0.02)


def test_sorted_order_is_as_bad_as_can_be() -> None:
    found = quality(np.arange(100_000))
    assert found.batch > 90
    assert found.batches > 400
    assert found.neighbours == pytest.approx(1, abs=0.001)


def test_even_batches_have_no_variance() -> None:
    assert quality(np.arange(100_000).reshape(10, -1).T.ravel()).batch == 0


def test_forebays_order_has_each_row_once() -> None:
    order = forebay(1000, num_lanes=8, block_rows=7, batch_size=32, seed=0)
    assert sorted(order.tolist()) == list(range(1000))
