"""Rows as MosaicML's and LitData's shards pack them: the sizes of the values that vary (u32 each), then all values of the row.

Everything is parsed, nothing is executed: no pickle is ever loaded. Sizes come from the file, so each is held against the row's
own before a byte is taken. This does not know what the values mean.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import zstandard

from loader.source_rows import SourceError
from loader.values import Array

__all__ = ["PackedRows", "inflated", "pil_array", "read_bounds"]

_U4: Final = np.dtype("<u4")
_PIL_CHANNELS: Final = {"L": (), "RGB": (3,), "RGBA": (4,)}


def inflated(data: bytes | memoryview, *, most_bytes: int, where: str) -> bytes:
    """What a zstd frame holds; one that announces more than `most_bytes` is a `SourceError`, before anything is allocated."""
    try:
        announced = zstandard.frame_content_size(data)
        if announced <= most_bytes:
            return zstandard.ZstdDecompressor().decompress(data, max_output_size=most_bytes)
    except zstandard.ZstdError as exc:
        raise SourceError(f"{where}: can't be decompressed: {exc}") from exc
    raise SourceError(f"{where}: a zstd frame of {announced} bytes, expected at most {most_bytes}")


def read_bounds(data: memoryview, *, num_rows: int, where: str) -> npt.NDArray[np.int64]:
    """Where the rows of a shard begin and end: it starts with their number and then has one offset more than rows, u32 all.

    Raises
    ------
    SourceError
        If the number is not `num_rows`, or the offsets fall or leave the shard.
    """
    if len(data) < _U4.itemsize * (num_rows + 2):
        raise SourceError(f"{where}: {len(data)} bytes, too few for the table of {num_rows} rows; it was cut short")
    found = int(np.frombuffer(data, _U4, count=1)[0])
    if found != num_rows:
        raise SourceError(f"{where}: says {found} rows, but the index says {num_rows}")
    bounds = np.frombuffer(data, _U4, count=num_rows + 1, offset=_U4.itemsize).astype(np.int64)
    if bounds[0] < _U4.itemsize * (num_rows + 2) or np.any(np.diff(bounds) < 0) or bounds[-1] > len(data):
        raise SourceError(f"{where}: its table of rows leads out of its {len(data)} bytes; it is damaged or was cut short")
    return bounds


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedRows:
    """The values of some rows, where they lie in one buffer.

    Attributes
    ----------
    starts, sizes : int64 [rows, columns]
        Where each value begins, and its bytes.
    where : str
        The file, for errors.
    first_row : int
        Number of the first row in it.
    """

    data: memoryview
    starts: npt.NDArray[np.int64]
    sizes: npt.NDArray[np.int64]
    where: str
    first_row: int = 0

    @classmethod
    def of(
        cls, data: memoryview, bounds: npt.NDArray[np.int64], fixed: Sequence[int | None], *, where: str, first_row: int = 0
    ) -> PackedRows:
        """The rows between `bounds`, of columns with the sizes `fixed`, None for one whose size is in front of each row.

        Raises
        ------
        SourceError
            For a row whose sizes don't add up to its own.
        """
        begins, num_rows, varying = bounds[:-1], len(bounds) - 1, [size is None for size in fixed]
        head_bytes = _U4.itemsize * sum(varying)
        sizes = np.empty((num_rows, len(fixed)), np.int64)
        short = np.flatnonzero(np.diff(bounds) < head_bytes)
        if not len(short):
            heads = np.frombuffer(data, np.uint8)[begins[:, None] + np.arange(head_bytes)]
            sizes[:, varying] = np.ascontiguousarray(heads).view(_U4)
            sizes[:, [not varies for varies in varying]] = [size for size in fixed if size is not None]
            short = np.flatnonzero(begins + head_bytes + sizes.sum(axis=1) != bounds[1:])
        if len(short):
            row = int(short[0])
            raise SourceError(f"{where}, row {first_row + row}: its values don't add up to its {np.diff(bounds)[row]} bytes")
        starts = begins[:, None] + head_bytes + np.cumsum(sizes, axis=1) - sizes
        return cls(data=data, starts=starts, sizes=sizes, where=where, first_row=first_row)

    def bytes_of(self, column: int) -> list[bytes]:
        """The bytes of a column's values."""
        starts, sizes = self.starts[:, column].tolist(), self.sizes[:, column].tolist()
        return [bytes(self.data[start : start + size]) for start, size in zip(starts, sizes, strict=True)]

    def numbers(self, column: int, dtype: npt.DTypeLike, *, shape: tuple[int, ...] = ()) -> Array:
        """A column whose values are all arrays of `shape`, as one array [rows, *shape]; raises `SourceError`."""
        kind = np.dtype(dtype).newbyteorder("<")
        size, starts = kind.itemsize * int(np.prod(shape, dtype=np.int64)), self.starts[:, column]
        wrong = np.flatnonzero(self.sizes[:, column] != size)
        if len(wrong):
            row = int(wrong[0])
            found = int(self.sizes[row, column])
            raise SourceError(
                f"{self.where}, row {self.first_row + row}: {found} bytes for {kind}{list(shape)}, expected {size}"
            )
        steps = np.diff(starts)
        if len(steps) and bool(np.all(steps == steps[0])):
            flat = np.frombuffer(self.data, np.uint8)[starts[0] :]
            rows = np.lib.stride_tricks.as_strided(flat, (len(starts), size), (int(steps[0]), 1), writeable=False)
            return np.ascontiguousarray(rows).view(kind).reshape(-1, *shape)
        joined = b"".join([self.data[start : start + size] for start in starts.tolist()])
        return np.frombuffer(joined, kind).reshape(-1, *shape)


def pil_array(data: bytes, *, where: str) -> Any:
    """The pixels of an image as both store those of PIL: width, height and length of the mode (u32 each), mode, pixels."""
    if len(data) >= 12:
        width, height, mode_bytes = np.frombuffer(data, _U4, count=3).tolist()
        mode = data[12 : 12 + mode_bytes].decode("ascii", errors="replace")
        if mode in _PIL_CHANNELS:
            shape = (height, width, *_PIL_CHANNELS[mode])
            if len(data) == 12 + mode_bytes + int(np.prod(shape, dtype=np.int64)):
                return np.frombuffer(data, np.uint8, offset=12 + mode_bytes).reshape(shape)
        elif len(data) > 12 + mode_bytes:
            known = ", ".join(_PIL_CHANNELS)
            raise SourceError(f"{where}: an image of mode {mode[:10]!r}; only {known} are read, so save it as PNG")
    raise SourceError(f"{where}: no image of PIL's: {len(data)} bytes that don't fit its width and height")
