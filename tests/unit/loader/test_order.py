"""The arithmetic of lanes, and lane orders: against their definitions, and against pinned vectors."""

from __future__ import annotations

import json
import struct
from typing import Any

import blake3
import numpy as np
import pytest

from loader.errors import InvalidOption
from loader.order import (
    LaneOrder,
    lane_lengths,
    lane_permutation,
    lane_ranks,
    locate_position,
    locate_row,
    position_number,
    row_number,
)
from tests.golden.tiny import FOLDER, order_vectors

VECTORS = json.loads((FOLDER / "order.json").read_text())
DIGEST = "ab" * 32


def philox(key: tuple[int, int], *, stream: int, count: int) -> list[int]:
    """Philox4x64-10 written down from the paper (Salmon et al., SC 2011), counters from 1 as docs/FORMAT.md says."""
    mask = 2**64 - 1
    draws: list[int] = []
    for counter in range(1, count // 4 + 2):
        a, b, c, d = counter, 0, 0, stream
        k0, k1 = key
        for _ in range(10):
            p0, p1 = 0xD2E7470EE14C6C93 * a, 0xCA5A826395121157 * c
            a, b, c, d = (p1 >> 64) ^ b ^ k0, p1 & mask, (p0 >> 64) ^ d ^ k1, p0 & mask
            k0, k1 = (k0 + 0x9E3779B97F4A7C15) & mask, (k1 + 0xBB67AE8584CAA73B) & mask
        draws += [a, b, c, d]
    return draws[:count]


def test_vectors_are_the_pinned_ones() -> None:
    assert json.loads(json.dumps(order_vectors())) == VECTORS


@pytest.mark.parametrize("num_lanes", [*range(1, 34), 100, 256, 1000])
def test_permutation_is_lanes_by_reversed_bits(num_lanes: int) -> None:
    width = (num_lanes - 1).bit_length()
    expected = sorted(range(num_lanes), key=lambda lane: int(f"{lane:0{width}b}"[::-1] or "0", 2) if width else 0)
    assert lane_permutation(num_lanes).tolist() == expected
    assert lane_permutation(num_lanes)[lane_ranks(num_lanes)].tolist() == list(range(num_lanes))
    with pytest.raises(ValueError, match="read-only"):
        lane_permutation(num_lanes)[0] = 1


@pytest.mark.parametrize("num_lanes", [0, -1, 65_537])
def test_number_of_lanes_is_bounded(num_lanes: int) -> None:
    with pytest.raises(InvalidOption, match="num_lanes"):
        lane_permutation(num_lanes)


@pytest.mark.parametrize(("num_rows", "num_lanes"), [(0, 1), (0, 5), (1, 5), (4, 5), (5, 5), (23, 4), (1000, 7)])
def test_rows_are_striped_over_lanes(num_rows: int, num_lanes: int) -> None:
    lanes, indexes = locate_row(np.arange(num_rows), num_lanes=num_lanes)
    sigma = lane_permutation(num_lanes)
    assert lanes.tolist() == [sigma[row % num_lanes] for row in range(num_rows)]
    assert indexes.tolist() == [row // num_lanes for row in range(num_rows)]
    assert lane_lengths(num_rows, num_lanes).tolist() == np.bincount(lanes, minlength=num_lanes).tolist()
    assert row_number(lanes, indexes, num_lanes=num_lanes).tolist() == list(range(num_rows))
    assert position_number(*locate_position(range(num_rows), num_lanes=num_lanes), num_lanes=num_lanes).tolist() == list(
        range(num_rows)
    )


def test_arithmetic_is_exact_for_large_numbers_and_refuses_floats() -> None:
    row = (1 << 48) - 3
    lane, index = locate_row(row, num_lanes=65_536)
    assert int(index) == row // 65_536
    assert int(row_number(lane, index, num_lanes=65_536)) == row
    with pytest.raises(TypeError, match="integers"):
        locate_row([0.5], num_lanes=4)


def test_lane_order_is_the_stable_sort_of_philox_draws() -> None:
    seed, epoch, lane, block_rows = 7, 3, 11, [5, 1, 9, 40]
    made = LaneOrder(digest=DIGEST, seed=seed, epoch=epoch, lane=lane, block_rows=block_rows)
    material = b"forebay lane-philox-1\0" + bytes.fromhex(DIGEST) + struct.pack("<QQQ", seed, epoch, lane)
    key = struct.unpack("<QQ", blake3.blake3(material).digest(length=16))

    def expected(count: int, *, stream: int) -> list[int]:
        draws = philox(key, stream=stream, count=count)
        return sorted(range(count), key=lambda place: (draws[place], place))

    assert made.visits.tolist() == expected(4, stream=0)
    for visit, block in enumerate(made.visits.tolist()):
        assert made.rows_of_visit(visit).tolist() == expected(block_rows[block], stream=1 + block)


def test_equal_draws_are_ordered_by_index(monkeypatch: pytest.MonkeyPatch) -> None:
    def draws(*_: Any, count: int, **__: Any) -> Any:
        return np.array([5, 1] * count, np.uint64)[:count]

    monkeypatch.setattr("loader.order._draws", draws)
    made = LaneOrder(digest=DIGEST, seed=0, epoch=0, lane=0, block_rows=[100])
    assert made.rows_of_visit(0).tolist() == [*range(1, 100, 2), *range(0, 100, 2)]


def test_locate_finds_visit_and_place_of_each_step() -> None:
    made = LaneOrder(digest=DIGEST, seed=0, epoch=0, lane=0, block_rows=[3, 1, 4])
    expected = [(visit, place) for visit, block in enumerate(made.visits) for place in range([3, 1, 4][block])]
    visits, places = made.locate(np.arange(8))
    assert list(zip(visits.tolist(), places.tolist(), strict=True)) == expected
    visits, places = made.locate([7, 0])
    assert visits.tolist() == [2, 0]
    with pytest.raises(IndexError):
        made.locate([8])


def test_written_order_visits_blocks_and_rows_as_they_are() -> None:
    made = LaneOrder(digest=DIGEST, seed=0, epoch=0, lane=0, block_rows=[3, 1, 4], shuffle=False)
    assert made.visits.tolist() == [0, 1, 2]
    assert made.visit_ends.tolist() == [3, 4, 8]
    assert [made.block_start(block) + row for block in range(3) for row in made.rows_of_visit(block).tolist()] == list(range(8))


def test_lane_without_rows_has_an_empty_order() -> None:
    made = LaneOrder(digest=DIGEST, seed=0, epoch=0, lane=0, block_rows=[])
    assert made.visits.tolist() == made.visit_ends.tolist() == []
    assert made.locate([])[0].tolist() == []


@pytest.mark.parametrize(("name", "value"), [("seed", -1), ("seed", 2**64), ("epoch", -1), ("epoch", 2**64)])
def test_seed_and_epoch_are_bounded(name: str, value: int) -> None:
    with pytest.raises(InvalidOption, match=name):
        LaneOrder(**({"digest": DIGEST, "seed": 0, "epoch": 0, "lane": 0, "block_rows": [1]} | {name: value}))  # type: ignore[arg-type]


def test_shuffled_blocks_are_spread_evenly() -> None:
    # Over many epochs each of 6 blocks comes first about as often: 6000/6 with a standard deviation of 29.
    firsts = [int(LaneOrder(digest=DIGEST, seed=0, epoch=epoch, lane=0, block_rows=[1] * 6).visits[0]) for epoch in range(6000)]
    assert all(abs(count - 1000) < 150 for count in np.bincount(firsts, minlength=6))
