"""Rows become the same blocks however they are handed over, and L is a function of the rows."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loader.block import BlockBuilder
from loader.columns import Schema
from loader.errors import InvalidOption
from loader.lanes import (
    DECIDE_BYTES,
    DEFAULT_MAX_LANES,
    LANE_BYTES,
    LaneDealer,
    RowBuffer,
    check_num_lanes,
    choose_num_lanes,
    encoded_bytes,
)
from loader.order import lane_lengths, locate_row

SCHEMA = Schema.of({"number": "int32", "text": "bytes", "pair": "uint8[2]"})


def columns(start: int, stop: int) -> dict[str, Any]:
    numbers = np.arange(start, stop)
    return {
        "number": numbers.astype(np.int32),
        "text": [b"x" * (number * 7 % 61) for number in numbers.tolist()],
        "pair": np.stack([numbers, numbers + 1], axis=1).astype(np.uint8),
    }


def sample(row: int) -> dict[str, Any]:
    return {name: values[0] for name, values in columns(row, row + 1).items()}


def deal(pieces: list[int], *, num_lanes: int, direct: bool) -> list[list[bytes]]:
    """Each lane's blocks, as the decoded bytes of all their columns, of rows handed over in `pieces` (0: a single row)."""
    lanes: list[list[bytes]] = [[] for _ in range(num_lanes)]

    def emit(lane: int, block: BlockBuilder) -> None:
        lanes[lane].append(b"|".join(bytes(part.data) for part in block.encode(None).parts))

    dealer = LaneDealer(SCHEMA, num_lanes=num_lanes, block_size_bytes=1024, emit=emit)
    buffer, row = RowBuffer(SCHEMA), 0
    for size in pieces:
        if size == 0:
            buffer.append(SCHEMA.check_sample(sample(row)))
            row += 1
        elif direct:
            dealer.deal(buffer.take())
            dealer.deal(SCHEMA.check_batch(columns(row, row + size)))
            row += size
        else:
            buffer.extend(SCHEMA.check_batch(columns(row, row + size)))
            row += size
    assert buffer.num_rows + dealer.num_rows == row
    dealer.deal(buffer.take())
    dealer.finish()
    return lanes


@given(
    pieces=st.lists(st.integers(0, 60), max_size=12),
    num_lanes=st.sampled_from([1, 2, 3, 5, 8, 16]),
    direct=st.booleans(),
)
def test_blocks_do_not_depend_on_how_rows_are_handed_over(pieces: list[int], num_lanes: int, direct: bool) -> None:
    num_rows = sum(max(1, size) for size in pieces)
    one_by_one = deal([0] * num_rows, num_lanes=num_lanes, direct=False)
    assert deal(pieces, num_lanes=num_lanes, direct=direct) == one_by_one


def test_rows_lie_where_the_order_says() -> None:
    num_rows, num_lanes = 1000, 12
    found: dict[int, list[int]] = {lane: [] for lane in range(num_lanes)}

    def emit(lane: int, block: BlockBuilder) -> None:
        found[lane] += np.frombuffer(block.encode(None).parts[0].data, "<i4").tolist()

    dealer = LaneDealer(SCHEMA, num_lanes=num_lanes, block_size_bytes=1024, emit=emit)
    dealer.deal(SCHEMA.check_batch(columns(0, num_rows)))
    dealer.finish()
    assert [len(found[lane]) for lane in range(num_lanes)] == lane_lengths(num_rows, num_lanes).tolist()
    for row in range(num_rows):
        lane, index = locate_row(row, num_lanes=num_lanes)
        assert found[int(lane)][int(index)] == row


def test_a_batch_may_change_after_it_was_taken() -> None:
    schema = Schema.of({"number": "int32"})
    given, buffer = np.arange(10, dtype=np.int32), RowBuffer(schema)
    buffer.extend(schema.check_batch({"number": given}))
    given[:] = -1
    assert np.array_equal(np.asarray(buffer.take()[0]), np.arange(10))


def test_batches_of_any_memory_layout_are_taken() -> None:
    schema = Schema.of({"image": "uint8[3,4]", "flag": "bool"})
    images = np.asfortranarray(np.arange(120, dtype=np.uint8).reshape(10, 3, 4))
    buffer = RowBuffer(schema)
    for part in (slice(0, 0), slice(0, 10, 2), slice(9, None, -2)):
        buffer.extend(schema.check_batch({"image": images[part], "flag": np.zeros(10, bool)[part]}))
    expected = np.concatenate([images[::2], images[::-2]])
    assert np.array_equal(np.asarray(buffer.take()[0]), expected)


def test_bytes_are_counted_as_blocks_count_them() -> None:
    batch = SCHEMA.check_batch(columns(0, 50))
    block = BlockBuilder(SCHEMA, block_size_bytes=1 << 20)
    block.extend(batch, start=0)
    # A block has one offset more than it has rows.
    assert encoded_bytes(batch) == block.decoded_bytes - 8
    buffer = RowBuffer(SCHEMA)
    buffer.extend(batch)
    for row in range(50):
        buffer.append(SCHEMA.check_sample(sample(row)))
    assert buffer.num_bytes == 2 * encoded_bytes(batch)
    assert (buffer.num_rows, buffer.take()[0].__len__(), buffer.num_bytes) == (100, 100, 0)


@pytest.mark.parametrize(
    ("num_rows", "decoded_bytes", "lanes"),
    [
        (0, 0, 1),
        (1, 10**9, 1),
        (1000, LANE_BYTES - 1, 1),
        (1000, 2 * LANE_BYTES, 2),
        (1000, 3 * LANE_BYTES, 2),
        (3, 100 * LANE_BYTES, 2),
        (10**6, DECIDE_BYTES - 1, 128),
        (10**6, DECIDE_BYTES, DEFAULT_MAX_LANES),
        (10**6, 10**12, DEFAULT_MAX_LANES),
    ],
)
def test_lanes_are_a_power_of_two_one_for_128_kib(num_rows: int, decoded_bytes: int, lanes: int) -> None:
    assert choose_num_lanes(num_rows, decoded_bytes=decoded_bytes) == lanes


@pytest.mark.parametrize("num_lanes", [0, -1, 1025])
def test_a_number_of_lanes_out_of_range_is_refused(num_lanes: int) -> None:
    with pytest.raises(InvalidOption, match="1 to 1024"):
        check_num_lanes(num_lanes)
