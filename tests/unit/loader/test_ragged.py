"""Rows of varying length as values and offsets."""

from __future__ import annotations

import numpy as np

from loader.ragged import Ragged

ROWS = Ragged(values=np.arange(12).reshape(6, 2), offsets=np.array([0, 2, 2, 5, 6]))


def test_rows_are_what_lies_between_their_offsets() -> None:
    assert len(ROWS) == 4
    assert [row.tolist() for row in ROWS] == [[[0, 1], [2, 3]], [], [[4, 5], [6, 7], [8, 9]], [[10, 11]]]
    assert ROWS.lengths.tolist() == [2, 0, 3, 1]


def test_slice_begins_at_zero_and_copies_nothing() -> None:
    part = ROWS[1:3]
    assert [row.tolist() for row in part] == [[], [[4, 5], [6, 7], [8, 9]]]
    assert part.offsets.tolist() == [0, 0, 3]
    assert np.shares_memory(part.values, ROWS.values)
    assert len(ROWS[2:2]) == len(ROWS[3:1]) == 0
    assert [len(row) for row in ROWS[2:]] == [3, 1]
