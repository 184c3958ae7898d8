"""Which of the copies on a disk records refer to: eight bytes a copy, whatever the number of records. Pure.

Only copies that could be removed are remembered, as hashes of partition and id, each with the greatest number of copies that
a record was seen to ask for. Two copies of one hash are kept if either is referred to: a collision keeps garbage and never
removes more.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Iterable

from client.checksum import xxh3

__all__ = ["Chunk", "Marks"]

Chunk = tuple[int, bytes]


class Marks:
    """Copies by the first byte of their ids, and which of them are referred to."""

    def __init__(self) -> None:
        self._hashes: dict[int, array[int]] = {}
        self._kept: dict[int, bytearray] = {}

    def __len__(self) -> int:
        """Copies, of which those of one hash count as one."""
        return sum(map(len, self._hashes.values()))

    @property
    def num_kept(self) -> int:
        """Copies that a record refers to."""
        return sum(len(kept) - kept.count(0) for kept in self._kept.values())

    def expect(self, first: int, chunks: Iterable[Chunk]) -> None:
        """Remember copies, whose ids begin with the byte `first`; all of them by one call."""
        self._hashes[first] = array("Q", sorted({_hash(chunk) for chunk in chunks}))
        self._kept[first] = bytearray(len(self._hashes[first]))

    def keep(self, chunk: Chunk, *, copies: int) -> None:
        """Note that a record asks for so many copies of a chunk, which need not be among these here."""
        place = self._find(chunk)
        if place is not None:
            kept = self._kept[chunk[1][0]]
            kept[place] = max(kept[place], copies)

    def is_garbage(self, chunk: Chunk) -> bool:
        """Whether a copy was expected and no record refers to it."""
        place = self._find(chunk)
        return place is not None and not self._kept[chunk[1][0]][place]

    def copies_of(self, chunk: Chunk) -> int:
        """How many copies records ask for, at most; 0 of a chunk that is not among these here."""
        place = self._find(chunk)
        return 0 if place is None else self._kept[chunk[1][0]][place]

    def _find(self, chunk: Chunk) -> int | None:
        hashes, value = self._hashes.get(chunk[1][0]), _hash(chunk)
        if hashes is None:
            return None
        place = bisect_left(hashes, value)
        return place if place < len(hashes) and hashes[place] == value else None


def _hash(chunk: Chunk) -> int:
    return xxh3(chunk[0].to_bytes(4, "little") + chunk[1])
