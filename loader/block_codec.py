"""The codec of column blocks: decoded bytes to stored bytes and back, and views of the decoded ones.

A column's decoded bytes are one contiguous array [rows, *shape] where the type is fixed, else rows + 1 little-endian uint64
offsets and then the bytes of all values. They are stored as one zstd frame, or raw where zstd doesn't pay.

Invariants: the check is the xxh3_64 of the *decoded* bytes. One check so serves the wire, a local cache of decoded blocks and
the dataset's digest, which therefore doesn't depend on the compressor. Decoding writes into the caller's buffer, exactly
`raw_size` bytes or a `BlockCorrupt`; it allocates nothing that a hostile frame could choose the size of, and zstd runs
without the GIL.

This module does not know lanes, offsets or files; a caller names the place of a block for the error.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import xxhash
import zstandard

from loader.columns import ColumnType
from loader.errors import BlockCorrupt, InvalidOption

__all__ = [
    "CODEC_RAW",
    "CODEC_ZSTD",
    "MAX_BLOCK_ROWS",
    "OFFSET_BYTES",
    "ColumnPart",
    "EncodedBlock",
    "check_block_size",
    "check_decoded",
    "decode_column_into",
    "decode_value",
    "encode_column",
    "fixed_view",
    "new_compressor",
    "parse_compression",
    "variable_view",
]

Buffer = bytes | bytearray | memoryview

CODEC_RAW: Final = 0
CODEC_ZSTD: Final = 1
MAX_BLOCK_ROWS: Final = 8192
MIN_BLOCK_SIZE_BYTES: Final = 1 << 10
MAX_BLOCK_SIZE_BYTES: Final = 1 << 28
OFFSET_BYTES: Final = 8


def parse_compression(compression: str) -> int | None:
    """The level of ``zstd:LEVEL`` (1 to 22), None for ``none``.

    Raises
    ------
    InvalidOption
        If there is no such compression.
    """
    if compression == "none":
        return None
    match = re.fullmatch(r"zstd:([1-9][0-9]?)", compression)
    if match is None or int(match[1]) > 22:
        raise InvalidOption(f"compression {compression!r}: expected none or zstd:1 to zstd:22")
    return int(match[1])


def new_compressor(compression: str) -> zstandard.ZstdCompressor | None:
    """The compressor that `compression` names (see `parse_compression`). It belongs to one thread at a time."""
    level = parse_compression(compression)
    return None if level is None else zstandard.ZstdCompressor(level=level, write_checksum=False, write_content_size=True)


def check_block_size(block_size_bytes: int) -> int:
    """`block_size_bytes` if a block may have it, else `InvalidOption`."""
    if not MIN_BLOCK_SIZE_BYTES <= block_size_bytes <= MAX_BLOCK_SIZE_BYTES:
        raise InvalidOption(
            f"block_size_bytes={block_size_bytes}: expected {MIN_BLOCK_SIZE_BYTES} to {MAX_BLOCK_SIZE_BYTES} decoded bytes"
        )
    return block_size_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class ColumnPart:
    """One column of one block as it is stored.

    Attributes
    ----------
    data : bytes or bytearray
        The stored bytes.
    raw_size : int
        Number of decoded bytes.
    codec : int
        `CODEC_RAW` or `CODEC_ZSTD`.
    check : int
        xxh3_64 of the decoded bytes.
    """

    data: bytes | bytearray
    raw_size: int
    codec: int
    check: int


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodedBlock:
    """A finished block: its number of rows, and its columns in the schema's order, which is the order they are stored in."""

    rows: int
    parts: tuple[ColumnPart, ...]


def encode_column(raw: bytes | bytearray, *, compressor: zstandard.ZstdCompressor | None) -> ColumnPart:
    check = xxhash.xxh3_64_intdigest(raw)
    if compressor is not None:
        stored = compressor.compress(raw)
        # Below a saving of 5% a frame costs more time to decode than its bytes cost to move.
        if len(stored) * 20 < len(raw) * 19:
            return ColumnPart(data=stored, raw_size=len(raw), codec=CODEC_ZSTD, check=check)
    return ColumnPart(data=raw, raw_size=len(raw), codec=CODEC_RAW, check=check)


def decode_column_into(stored: Buffer, *, codec: int, raw_size: int, check: int, out: memoryview, where: str) -> None:
    """Decode a stored column block into `out` and verify it.

    Parameters
    ----------
    stored : bytes-like
        The stored bytes.
    codec, raw_size, check : int
        As the block table has them.
    out : memoryview
        Writable, contiguous, of `raw_size` bytes. Its content is undefined after an error.
    where : str
        The place in the dataset, for the error: ``"lane 3, block 7, column 'tokens'"``.

    Raises
    ------
    BlockCorrupt
        If the stored bytes don't decode to exactly `raw_size` bytes with this check.
    """
    assert out.nbytes == raw_size
    if codec == CODEC_ZSTD:
        _decompress_into(stored, out=out, where=where)
    elif codec != CODEC_RAW:
        raise BlockCorrupt(f"{where}: codec {codec} is unknown, expected {CODEC_RAW} or {CODEC_ZSTD}")
    elif len(stored) != raw_size:
        raise BlockCorrupt(f"{where}: {len(stored)} bytes are stored raw, expected {raw_size}")
    else:
        out[:] = stored
    check_decoded(out, check=check, where=where)


# Decompressors that are not in use and have not failed, one for each thread that has needed one: a new one takes new memory.
_idle: Final[list[zstandard.ZstdDecompressor]] = []


def _taken() -> zstandard.ZstdDecompressor:
    try:
        return _idle.pop()
    except IndexError:
        return zstandard.ZstdDecompressor()


def _decompress_into(stored: Buffer, *, out: memoryview, where: str) -> None:
    try:
        # With the whole frame at hand and room for its whole content, libzstd decodes straight into `out`, without a window
        # of its own. The size that a frame claims is compared first, so that a hostile one can't ask for such a window.
        announced = zstandard.get_frame_parameters(stored).content_size
        if announced != out.nbytes:
            raise BlockCorrupt(f"{where}: the zstd frame holds {announced} bytes, expected {out.nbytes}")
        decompressor = _taken()
        decoded = decompressor.stream_reader(stored).readinto(out)
    except zstandard.ZstdError as exc:
        raise BlockCorrupt(f"{where}: {len(stored)} stored bytes are no zstd frame ({exc})") from exc
    if decoded != out.nbytes:
        raise BlockCorrupt(f"{where}: the zstd frame ends after {decoded} bytes, expected {out.nbytes}")
    _idle.append(decompressor)


def check_decoded(data: Buffer, *, check: int, where: str) -> None:
    """Verify decoded bytes, wherever they came from; raises `BlockCorrupt`."""
    found = xxhash.xxh3_64_intdigest(data)
    if found != check:
        raise BlockCorrupt(f"{where}: the {len(data)} decoded bytes have checksum {found:016x}, expected {check:016x}")


def fixed_view(buffer: Buffer, column_type: ColumnType, rows: int) -> npt.NDArray[Any]:
    """The array [rows, *shape] that the decoded bytes of a fixed column are; no copy."""
    if len(buffer) != rows * column_type.item_bytes:
        raise BlockCorrupt(f"{rows} rows of {column_type} take {rows * column_type.item_bytes} bytes, found {len(buffer)}")
    view: npt.NDArray[Any] = np.frombuffer(buffer, column_type.dtype).reshape(rows, *column_type.shape)
    return view


def variable_view(buffer: Buffer, rows: int) -> tuple[npt.NDArray[np.int64], memoryview]:
    """Offsets [rows + 1] and bytes of a decoded variable column; row i is ``data[offsets[i]:offsets[i + 1]]``; no copy.

    Raises
    ------
    BlockCorrupt
        If the offsets don't begin at 0, rise, and end with the bytes.
    """
    start = OFFSET_BYTES * (rows + 1)
    if len(buffer) < start:
        raise BlockCorrupt(f"the offsets of {rows} rows take {start} bytes, found {len(buffer)}")
    # Read as signed: an offset past 2**63 is then negative, and so out of order.
    offsets = np.frombuffer(buffer, "<i8", count=rows + 1)
    data = memoryview(buffer)[start:]
    if offsets[0] != 0 or offsets[-1] != len(data) or bool(np.any(offsets[1:] < offsets[:-1])):
        raise BlockCorrupt(f"the offsets of {rows} rows don't rise from 0 to {len(data)}")
    return offsets, data


def decode_value(column_type: ColumnType, data: Buffer) -> object:
    """The value that `data`, the bytes of one row, stand for. It shares no memory with them.

    Images stay bytes. Raises `BlockCorrupt` where the bytes are no value of the type.
    """
    if column_type.dtype is not None:
        if len(data) % column_type.item_bytes or (column_type.is_fixed and len(data) != column_type.item_bytes):
            raise BlockCorrupt(f"{len(data)} bytes are no value of {column_type}")
        shape = column_type.shape if column_type.is_fixed else (-1, *column_type.shape)
        return np.frombuffer(data, column_type.dtype).reshape(shape).copy()
    value = bytes(data)
    try:
        match column_type.kind:
            case "str":
                return value.decode()
            case "json":
                return json.loads(value)
            case _:
                return value
    except (ValueError, RecursionError) as exc:
        raise BlockCorrupt(f"{len(data)} bytes are no {column_type} ({exc})") from exc
