"""Free slots against a model: no slot twice, what is held is what was brought in last, and a copy lives by itself."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from loader.slots import Block, FreeSlots


@given(st.integers(0, 1 << 30), st.integers(1, 12), st.integers(1, 9), st.booleans())
def test_slots_hold_what_was_brought_into_them_last(seed: int, num_slots: int, num_blocks: int, in_turn: bool) -> None:
    choices, free = random.Random(seed), FreeSlots(num_slots, in_turn=in_turn)
    contents: dict[int, Block] = {}
    taken: list[int] = []
    for _ in range(60):
        if taken and (not len(free) or choices.random() < 0.5):
            free.give_back(taken.pop(choices.randrange(len(taken))))
        else:
            block = 0, choices.randrange(num_blocks)
            holders = [slot for slot, held in contents.items() if held == block and slot not in taken]
            before = free.copy()
            slot, is_held = free.take(block)
            assert (slot, is_held) == before.take(block)
            assert slot not in taken
            assert (slot in holders) == is_held == bool(holders)
            contents[slot] = block
            taken.append(slot)
        assert len(free) == num_slots - len(taken)


def test_in_turn_all_blocks_stay_where_there_are_slots_for_all() -> None:
    for in_turn in (True, False):
        free = FreeSlots(4, in_turn=in_turn)
        held = []
        for block in [0, 1, 2] * 3:
            slot, is_held = free.take((0, block))
            held.append(is_held)
            free.give_back(slot)
        assert held == ([False] * 3 + [True] * 6 if in_turn else [False] * 9)


def test_slots_that_were_used_are_used_again_before_new_ones() -> None:
    free = FreeSlots(2, in_turn=False)
    free.add(range(2, 8))
    for block in range(20):
        slot, _ = free.take((0, block))
        assert slot == 0
        free.give_back(slot)
