"""Which tensors of two objects differ, told by the chunks that they lie in: bytes are read only where chunks can't tell.

Chunks are named by their content. Two tensors in the same chunks at the same places are equal. Two that fill whole chunks of
the same sizes, of which some differ, are not. Only others (small ones, files that were cut otherwise) are read.
"""

from __future__ import annotations

from dataclasses import dataclass

from loader.tensors.memory import bytes_of
from loader.tensors.reader import TensorReader

__all__ = ["Difference", "compare"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """What is different between two objects of tensors.

    Attributes
    ----------
    added, removed, changed, same : tuple of str
        Names that are only in the second, only in the first, in both with another dtype, shape or content, and equal in both.
    changed_bytes : int
        Bytes of those that were added or changed, as the second object has them.
    new_bytes : int
        Bytes of chunks that only the second object refers to: what it takes beside the first.
    """

    added: tuple[str, ...]
    removed: tuple[str, ...]
    changed: tuple[str, ...]
    same: tuple[str, ...]
    changed_bytes: int
    new_bytes: int


def compare(old: TensorReader, new: TensorReader) -> Difference:
    """What is different in `new`. Errors of the store pass through."""
    both = [name for name in new if name in old]
    equal = {name for name in both if _equal(old, new, name)}
    added = tuple(name for name in new if name not in old)
    changed = tuple(name for name in both if name not in equal)
    had = {(ref.partition, ref.id) for ref in old.refs()}
    return Difference(
        added=added,
        removed=tuple(name for name in old if name not in new),
        changed=changed,
        same=tuple(name for name in both if name in equal),
        changed_bytes=sum(map(new.num_bytes, (*added, *changed))),
        new_bytes=sum({ref: ref.size for ref in new.refs() if (ref.partition, ref.id) not in had}.values()),
    )


def _equal(old: TensorReader, new: TensorReader, name: str) -> bool:
    if (old.dtype(name), old.shape(name)) != (new.dtype(name), new.shape(name)):
        return False
    one, other = old.pieces(name), new.pieces(name)
    if one is not None and one == other:
        return True
    if one is not None and other is not None and all(piece.is_whole for piece in (*one, *other)):
        cut_alike = [piece.size for piece in one] == [piece.size for piece in other]
        if cut_alike:
            return False
    return bytes_of(old[name]) == bytes_of(new[name])
