"""Wall clocks that can be set while a process runs; its monotonic clock stays right, as it does on a real host.

A small library (clocks.c) stands between a node and the C library's clock and adds what a file says. It is compiled when it is
wanted; installing Forebay's environment needs a C compiler anyway.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

__all__ = ["WallClock", "compiled"]

SOURCE = Path(__file__).with_name("clocks.c")
BYTES = 8


def compiled(directory: Path) -> Path | None:
    """The library, made in `directory`; None without a C compiler."""
    compiler = shutil.which(os.environ.get("CC", "cc"))
    if compiler is None:
        return None
    library = directory / "clocks.so"
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-Wall", "-Werror", "-o", library, SOURCE, "-ldl"], check=True)
    return library


class WallClock:
    """The clock of one process at a time.

    Parameters
    ----------
    library : Path
        See `compiled`.
    path : Path
        Where the offset is kept, made if it is missing.
    """

    def __init__(self, library: Path, path: Path) -> None:
        self._library = library
        self._path = path
        self._path.write_bytes(bytes(BYTES))
        self._settings = [(0, 0)]  # when on the monotonic clock, and to what

    def set(self, offset_s: int) -> None:
        """From now on it is wrong by so much."""
        # In place: processes have the file mapped.
        with self._path.open("r+b") as file:
            file.write(offset_s.to_bytes(BYTES, sys.byteorder, signed=True))
        self._settings.append((time.monotonic_ns(), offset_s))

    def was_behind(self, *, since_ns: int) -> bool:
        """Whether it was behind at any moment since then, by the monotonic clock."""
        last = max(place for place, (set_ns, _) in enumerate(self._settings) if set_ns <= since_ns)
        return any(offset_s < 0 for _, offset_s in self._settings[last:])

    @property
    def environment(self) -> dict[str, str]:
        """What makes a process go by it."""
        return {"LD_PRELOAD": str(self._library), "SOAK_CLOCK": str(self._path)}
