"""One lane as the index lists it: where its bytes are, and what they add up to.

The lane's block table says the rest; `loader.index` holds the two against each other.
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from typing import Any, Final

import xxhash

from loader.block import BlockTable
from loader.errors import IndexCorrupt

__all__ = ["LaneEntry"]

_SIZES: Final = ("offset", "blocks_bytes", "table_bytes", "rows", "num_blocks")
_FIELDS: Final = frozenset({*_SIZES, "table_check", "digest", "group"})


@dataclass(frozen=True, slots=True, kw_only=True)
class LaneEntry:
    """One lane in the index.

    Attributes
    ----------
    offset : int
        Where its blocks begin in the object.
    blocks_bytes, table_bytes : int
        Sizes of the blocks and of the table, which lies with those of the other lanes (`loader.index`).
    table_check : int
        xxh3_64 of the encoded table.
    rows, num_blocks : int
        What the table describes.
    digest : str
        `BlockTable.digest`, 64 hex digits.
    group : str or None
        The placement group that keeps the lane's chunks together.
    """

    offset: int
    blocks_bytes: int
    table_bytes: int
    table_check: int
    rows: int
    num_blocks: int
    digest: str
    group: str | None = None

    @classmethod
    def of(cls, table: BlockTable, *, encoded_table: bytes, offset: int, group: str | None = None) -> LaneEntry:
        """The entry of a lane whose blocks begin at `offset`."""
        return cls(
            offset=offset,
            blocks_bytes=table.blocks_bytes,
            table_bytes=len(encoded_table),
            table_check=xxhash.xxh3_64_intdigest(encoded_table),
            rows=table.num_rows,
            num_blocks=table.num_blocks,
            digest=table.digest(),
            group=group,
        )

    def to_json(self) -> dict[str, Any]:
        """A JSON object of the fields; the check as 16 hex digits, because JSON numbers hold 53 bits."""
        return asdict(self) | {"table_check": f"{self.table_check:016x}"}

    @classmethod
    def from_json(cls, value: object) -> LaneEntry:
        """Inverse of `to_json`; raises `IndexCorrupt`."""
        if not isinstance(value, dict) or value.keys() != _FIELDS:
            raise IndexCorrupt(f"a lane in the index has the fields {', '.join(sorted(_FIELDS))}, found {str(value)[:200]}")
        for name in _SIZES:
            if type(value[name]) is not int or not 0 <= value[name] < 1 << 63:
                raise IndexCorrupt(f"a lane's {name} is a size, found {str(value[name])[:40]!r}")
        for name, num_digits in (("table_check", 16), ("digest", 64)):
            if not isinstance(value[name], str) or re.fullmatch(f"[0-9a-f]{{{num_digits}}}", value[name]) is None:
                raise IndexCorrupt(f"a lane's {name} has {num_digits} hex digits, found {str(value[name])[:80]!r}")
        if not isinstance(value["group"], str | None):
            raise IndexCorrupt(f"a lane's group is a text or null, found {str(value['group'])[:40]!r}")
        return cls(**value | {"table_check": int(value["table_check"], 16)})
