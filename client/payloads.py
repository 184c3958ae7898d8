"""What callers give to `put`, as payloads: bytes in memory, which are not copied, or a file, read a chunk at a time."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import BinaryIO, TypeAlias, cast

from typing_extensions import Buffer

__all__ = ["Data", "cut", "in_memory"]

Data: TypeAlias = Buffer | str | os.PathLike[str] | BinaryIO


def in_memory(data: Data) -> memoryview | None:
    """The bytes of `data`; None if it is a path or a file. Raises `TypeError` for anything that is neither."""
    if isinstance(data, str | os.PathLike) or hasattr(data, "readinto") or hasattr(data, "read"):
        return None
    view = memoryview(data)
    return view.cast("B") if view.nbytes else memoryview(b"")  # An empty array of several dimensions can't be cast.


def cut(data: Data, *, chunk_size_bytes: int) -> Generator[Buffer, None, None]:
    """`data` in chunks; slices of a buffer, fresh buffers from a file."""
    view = in_memory(data)
    if view is not None:
        for start in range(0, len(view), chunk_size_bytes):
            yield view[start : start + chunk_size_bytes]
    elif isinstance(data, str | os.PathLike):
        with Path(data).open("rb", buffering=0) as file:
            yield from _cut_file(cast(BinaryIO, file), chunk_size_bytes)
    else:
        yield from _cut_file(cast(BinaryIO, data), chunk_size_bytes)


def _cut_file(file: BinaryIO, chunk_size_bytes: int) -> Iterator[Buffer]:
    while True:
        pieces, missing = [], chunk_size_bytes
        while missing:
            piece = file.read(missing)
            if not piece:
                break
            pieces.append(piece)
            missing -= len(piece)
        if pieces:
            yield pieces[0] if len(pieces) == 1 else b"".join(pieces)
        if missing:
            return
