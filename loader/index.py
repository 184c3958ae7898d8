"""The index and the footer: what a dataset is, found from the end of the one object that holds it.

::

    blocks of lane 0 | blocks of lane 1 | ... | block table of lane 0 | of lane 1 | ... | index (JSON) | footer (32 bytes)

A reader takes the last `FOOTER_BYTES` bytes, then the index, then the tables of the lanes that it needs: those of many lanes
by few requests, for they lie together (ADR 0028). In format 1 each lane's table followed its blocks. The commit of the one
object reveals everything at once.

Invariants: an index that decodes is consistent: blocks and tables follow each other without gaps, their rows are those that the
arithmetic of `loader.order` gives, and its digest is the hash of what it describes. The digest names the content (schema,
rows, order, checks of the decoded blocks): it doesn't change with compression, placement groups or offsets.

This module does no I/O. It does not know objects, URLs or versions of a name.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final

import blake3
import xxhash

from loader.block import BlockTable, check_block_size, parse_compression
from loader.block_table import table_bytes
from loader.columns import Schema
from loader.errors import ColumnError, FormatUnsupported, IndexCorrupt, IndexMissing, InvalidOption
from loader.lane import LaneEntry
from loader.order import MAX_LANES, MAX_ROWS, lane_lengths

__all__ = ["FOOTER_BYTES", "FORMAT_VERSION", "MAX_INDEX_BYTES", "DatasetIndex", "Footer", "LaneEntry", "dataset_digest"]

FORMAT_VERSION: Final = 2
MAX_INDEX_BYTES: Final = 1 << 26
_MAGIC: Final = b"FOREBAYD"
_FOOTER: Final = struct.Struct("<8sIIQQ")
FOOTER_BYTES: Final = _FOOTER.size
_DIGEST_CONTEXT: Final = b"forebay dataset 1\0"
_FIELDS: Final[dict[str, type]] = {
    "format": int,
    "digest": str,
    "schema": list,
    "num_rows": int,
    "num_lanes": int,
    "block_size_bytes": int,
    "compression": str,
    "lanes": list,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Footer:
    """The last bytes of a dataset: where its index is.

    Attributes
    ----------
    index_offset, index_bytes : int
        The index's place in the object.
    index_check : int
        xxh3_64 of the index.
    """

    index_offset: int
    index_bytes: int
    index_check: int

    def encode(self) -> bytes:
        """The footer: magic, format version, index size, xxh3_64 of the index, xxh3_64 of the footer up to here."""
        body = _FOOTER.pack(_MAGIC, FORMAT_VERSION, self.index_bytes, self.index_check, 0)[:-8]
        return body + struct.pack("<Q", xxhash.xxh3_64_intdigest(body))

    @classmethod
    def decode(cls, tail: bytes | bytearray | memoryview, *, object_bytes: int) -> Footer:
        """The footer that an object of `object_bytes` bytes ends with, from its last bytes `tail`.

        Raises
        ------
        IndexMissing
            If the object is no dataset.
        IndexCorrupt
            If it is one, but its footer is damaged.
        FormatUnsupported
            If a newer version wrote it.
        """
        if object_bytes < FOOTER_BYTES or len(tail) < FOOTER_BYTES:
            raise IndexMissing(f"no Forebay dataset: a dataset ends with {FOOTER_BYTES} bytes of footer, found {object_bytes}")
        data = bytes(tail[-FOOTER_BYTES:])
        magic, version, index_bytes, index_check, check = _FOOTER.unpack(data)
        if magic != _MAGIC:
            raise IndexMissing(f"no Forebay dataset: its footer would begin with {_MAGIC!r}, found {magic!r}")
        found = xxhash.xxh3_64_intdigest(data[:-8])
        if found != check:
            raise IndexCorrupt(f"the dataset's footer has checksum {found:016x}, expected {check:016x}")
        if version > FORMAT_VERSION:
            raise FormatUnsupported(f"the dataset has format {version}, this Forebay reads up to {FORMAT_VERSION}: upgrade")
        if version < 1 or not 1 <= index_bytes <= min(MAX_INDEX_BYTES, object_bytes - FOOTER_BYTES):
            raise IndexCorrupt(
                f"the footer announces format {version} and an index of {index_bytes} bytes in an object of {object_bytes}"
            )
        return cls(index_offset=object_bytes - FOOTER_BYTES - index_bytes, index_bytes=index_bytes, index_check=index_check)


def dataset_digest(schema: Schema, *, num_rows: int, lane_digests: list[str]) -> str:
    """BLAKE3-256, in hex, over the schema's canonical JSON, N, L and the lanes' digests; see docs/FORMAT.md."""
    columns = _canonical(schema.to_json())
    hasher = blake3.blake3(_DIGEST_CONTEXT)
    hasher.update(struct.pack("<Q", len(columns)) + columns)
    hasher.update(struct.pack("<QQ", num_rows, len(lane_digests)))
    hasher.update(b"".join(bytes.fromhex(digest) for digest in lane_digests))
    return hasher.hexdigest()


def _canonical(value: object) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetIndex:
    """What a dataset is and where its lanes lie. Made by `of` or `decode`, and consistent then.

    Attributes
    ----------
    table_offsets : list of int
        Where each lane's block table begins in the object.
    """

    schema: Schema
    num_rows: int
    block_size_bytes: int
    compression: str
    lanes: tuple[LaneEntry, ...]
    digest: str
    format: int = FORMAT_VERSION
    table_offsets: list[int] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "table_offsets", [table for _, table in self._places()])

    @classmethod
    def of(cls, schema: Schema, *, block_size_bytes: int, compression: str, lanes: tuple[LaneEntry, ...]) -> DatasetIndex:
        """The index of these lanes, with the digest computed."""
        num_rows = sum(lane.rows for lane in lanes)
        digest = dataset_digest(schema, num_rows=num_rows, lane_digests=[lane.digest for lane in lanes])
        index = cls(
            schema=schema,
            num_rows=num_rows,
            block_size_bytes=block_size_bytes,
            compression=compression,
            lanes=lanes,
            digest=digest,
        )
        index._check()
        return index

    @property
    def num_lanes(self) -> int:
        return len(self.lanes)

    @property
    def data_bytes(self) -> int:
        """Bytes of all lanes with their tables: where the index begins."""
        return sum(lane.blocks_bytes + lane.table_bytes for lane in self.lanes)

    def encode(self) -> bytes:
        """The last part of the object: index and footer."""
        index = _canonical(
            {
                "format": self.format,
                "digest": self.digest,
                "schema": self.schema.to_json(),
                "num_rows": self.num_rows,
                "num_lanes": self.num_lanes,
                "block_size_bytes": self.block_size_bytes,
                "compression": self.compression,
                "lanes": [lane.to_json() for lane in self.lanes],
            }
        )
        check = xxhash.xxh3_64_intdigest(index)
        return index + Footer(index_offset=self.data_bytes, index_bytes=len(index), index_check=check).encode()

    @classmethod
    def decode(cls, data: bytes | bytearray | memoryview, *, footer: Footer) -> DatasetIndex:
        """The index that `data`, the bytes that `footer` points to, is.

        Raises
        ------
        IndexCorrupt
            If it is damaged or contradicts itself.
        FormatUnsupported
            If a newer version wrote it.
        """
        found = xxhash.xxh3_64_intdigest(data)
        if len(data) != footer.index_bytes or found != footer.index_check:
            raise IndexCorrupt(
                f"the index has {len(data)} bytes with checksum {found:016x}, "
                f"expected {footer.index_bytes} bytes with {footer.index_check:016x}"
            )
        try:
            index = cls._from_json(json.loads(bytes(data)))
            index._check()
        except (InvalidOption, ColumnError, ValueError, RecursionError) as exc:
            raise IndexCorrupt(f"the index is malformed: {exc}") from exc
        if index.data_bytes != footer.index_offset:
            raise IndexCorrupt(f"the lanes end at byte {index.data_bytes}, but the index begins at {footer.index_offset}")
        return index

    @classmethod
    def _from_json(cls, value: Any) -> DatasetIndex:
        if not isinstance(value, dict) or type(value.get("format")) is not int:
            raise IndexCorrupt("the index is a JSON object with a format number")
        if value["format"] > FORMAT_VERSION:
            raise FormatUnsupported(
                f"the index has format {value['format']}, this Forebay reads up to {FORMAT_VERSION}: upgrade"
            )
        if value.keys() != _FIELDS.keys() or value["format"] < 1:
            raise IndexCorrupt(f"the index has the fields {', '.join(_FIELDS)}, found {', '.join(map(str, value))[:400]}")
        for name, kind in _FIELDS.items():
            if type(value[name]) is not kind:
                raise IndexCorrupt(f"the index's {name} is of type {kind.__name__}, found {type(value[name]).__name__}")
        if value["num_lanes"] != len(value["lanes"]):
            raise IndexCorrupt(f"the index says {value['num_lanes']} lanes and lists {len(value['lanes'])}")
        return cls(
            schema=Schema.from_json(value["schema"]),
            num_rows=value["num_rows"],
            block_size_bytes=value["block_size_bytes"],
            compression=value["compression"],
            lanes=tuple(LaneEntry.from_json(lane) for lane in value["lanes"]),
            digest=value["digest"],
            format=value["format"],
        )

    def decode_table(self, lane: int, data: bytes | bytearray | memoryview) -> BlockTable:
        """The block table of `lane`, verified against the index; raises `IndexCorrupt`."""
        entry = self.lanes[lane]
        found = xxhash.xxh3_64_intdigest(data)
        if len(data) != entry.table_bytes or found != entry.table_check:
            raise IndexCorrupt(
                f"lane {lane}: the block table has {len(data)} bytes with checksum {found:016x}, "
                f"expected {entry.table_bytes} bytes with {entry.table_check:016x}"
            )
        try:
            table = BlockTable.decode(data, schema=self.schema)
        except IndexCorrupt as exc:
            raise IndexCorrupt(f"lane {lane}: {exc}") from exc
        described = (table.num_rows, table.num_blocks, table.blocks_bytes, table.digest())
        if described != (entry.rows, entry.num_blocks, entry.blocks_bytes, entry.digest):
            raise IndexCorrupt(
                f"lane {lane}: the block table describes {described} (rows, blocks, bytes, digest), "
                f"expected {(entry.rows, entry.num_blocks, entry.blocks_bytes, entry.digest)}"
            )
        return table

    def _check(self) -> None:
        """Raise `IndexCorrupt`, or what a wrong option raises, unless the fields agree with each other."""
        check_block_size(self.block_size_bytes)
        parse_compression(self.compression)
        if not 1 <= self.num_lanes <= MAX_LANES or not 0 <= self.num_rows <= MAX_ROWS:
            raise IndexCorrupt(
                f"{self.num_rows} rows in {self.num_lanes} lanes: expected up to {MAX_ROWS} rows, 1 to {MAX_LANES} lanes"
            )
        expected_rows = lane_lengths(self.num_rows, self.num_lanes)
        for number, (lane, rows, (start, _)) in enumerate(zip(self.lanes, expected_rows, self._places(), strict=True)):
            if lane.rows != rows:
                raise IndexCorrupt(f"lane {number} has {lane.rows} rows, expected {rows} of {self.num_rows}")
            if lane.offset != start or lane.blocks_bytes < 0:
                raise IndexCorrupt(f"lane {number} begins at byte {lane.offset}, expected {start}")
            if lane.table_bytes != table_bytes(lane.num_blocks, num_columns=len(self.schema)):
                raise IndexCorrupt(f"lane {number} has a table of {lane.table_bytes} bytes for {lane.num_blocks} blocks")
            if not 0 <= lane.num_blocks <= lane.rows or (lane.rows and not lane.num_blocks):
                raise IndexCorrupt(f"lane {number} has {lane.num_blocks} blocks for {lane.rows} rows")
        expected = dataset_digest(self.schema, num_rows=self.num_rows, lane_digests=[lane.digest for lane in self.lanes])
        if self.digest != expected:
            raise IndexCorrupt(f"the index says digest {self.digest}, its content has {expected}")

    def _places(self) -> Iterator[tuple[int, int]]:
        """Where the blocks and the table of each lane begin, as their sizes have it."""
        start, table = 0, sum(lane.blocks_bytes for lane in self.lanes)
        for lane in self.lanes:
            if self.format == 1:
                table = start + lane.blocks_bytes
            yield start, table
            table += lane.table_bytes
            start = table if self.format == 1 else start + lane.blocks_bytes
