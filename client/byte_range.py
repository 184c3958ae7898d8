"""Ranges of an object's bytes, ``[start, end)``, as callers ask for them: an `end` past the last byte means the last byte."""

from __future__ import annotations

from client.errors import InvalidRange
from client.record import ObjectInfo

__all__ = ["clamp", "num_bytes"]


def clamp(bucket: str, key: str, size: int, *, start: int, end: int | None) -> int:
    """Where bytes ``[start, end)`` of an object of `size` bytes end; raises `InvalidRange`."""
    end = size if end is None else min(end, size)
    if not 0 <= start <= size or end < start:
        raise InvalidRange(f"bytes {start} to {end} of {bucket}/{key}, which has {size} bytes")
    return end


def num_bytes(info: ObjectInfo, *, start: int, end: int | None) -> int:
    """How many bytes of an object ``[start, end)`` are; raises `InvalidRange`."""
    return clamp(info.bucket, info.key, info.size, start=start, end=end) - start
