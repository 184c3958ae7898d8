"""Free slots of memory, each of which holds the block that was brought into it last, until it is given to another one. Pure."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable

__all__ = ["Block", "FreeSlots"]

Block = tuple[int, int]
"""A lane, and the number of a block in it."""


class FreeSlots:
    """The slots that may be taken.

    Parameters
    ----------
    num_slots : int
        How many there are at first, all of them free.
    in_turn : bool
        Which slot a block gets that none holds: the one that has been free for the longest time, or for the shortest. In turn,
        all blocks stay if there are slots for all of them. Otherwise as little memory as possible is touched.
    """

    def __init__(self, num_slots: int, *, in_turn: bool) -> None:
        self._in_turn = in_turn
        self._free: OrderedDict[int, None] = OrderedDict()  # Those that were never taken, then in the order of their return.
        self._blocks: dict[int, Block] = {}  # Of each slot: what was brought in last.
        self._holders: dict[Block, tuple[int, ...]] = {}  # Of each block: the free slots that hold it.
        self.add(range(num_slots))

    def __len__(self) -> int:
        return len(self._free)

    def copy(self) -> FreeSlots:
        """Another one, which changes by itself."""
        copied = FreeSlots(0, in_turn=self._in_turn)
        copied._free, copied._blocks, copied._holders = self._free.copy(), self._blocks.copy(), self._holders.copy()
        return copied

    def add(self, slots: Iterable[int]) -> None:
        """Have new slots."""
        for slot in slots:
            self._free[slot] = None
            self._free.move_to_end(slot, last=False)

    def take(self, block: Block) -> tuple[int, bool]:
        """A slot for a block, and whether it holds the block; there must be a free one."""
        is_held = block in self._holders
        if is_held:
            slot = self._holders[block][-1]
            del self._free[slot]
        else:
            slot, _ = self._free.popitem(last=not self._in_turn)
        if slot in self._blocks:
            self._set_holders(self._blocks[slot], tuple(holder for holder in self._holders_of(slot) if holder != slot))
        self._blocks[slot] = block
        return slot, is_held

    def give_back(self, slot: int) -> None:
        """Take back a slot that was taken, with what is in it."""
        self._free[slot] = None
        self._set_holders(self._blocks[slot], (*self._holders_of(slot), slot))

    def _holders_of(self, slot: int) -> tuple[int, ...]:
        """The free slots that hold the same block as this one."""
        return self._holders.get(self._blocks[slot], ())

    def _set_holders(self, block: Block, slots: tuple[int, ...]) -> None:
        if slots:
            self._holders[block] = slots
        else:
            self._holders.pop(block, None)
