"""A byte-level text set made of the sources of Python itself: real data on every machine, without a network."""

from __future__ import annotations

import sysconfig
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

__all__ = ["python_sources"]


def python_sources(*, min_bytes: int, row_bytes: int) -> npt.NDArray[np.uint8]:
    """Rows [rows, row_bytes] of consecutive source text, `min_bytes` or more in all.

    The standard library comes first, in the order of its paths; distributions that ship without its tests are short of 20 MB,
    so sources of installed packages follow as far as needed.
    """
    text = bytearray()
    for path in _source_files():
        text += path.read_bytes()
        if len(text) >= min_bytes + row_bytes:
            break
    rows = len(text) // row_bytes
    return np.frombuffer(bytes(text[: rows * row_bytes]), np.uint8).reshape(rows, row_bytes)


def _source_files() -> Iterator[Path]:
    library, packages = Path(sysconfig.get_path("stdlib")), Path(sysconfig.get_path("purelib"))
    installed = ("site-packages", "dist-packages")
    yield from (path for path in sorted(library.rglob("*.py")) if not any(part in installed for part in path.parts))
    yield from sorted(packages.rglob("*.py"))
