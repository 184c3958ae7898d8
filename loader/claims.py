"""Which process of a host fetches a block, so that ranks that want the same one at the same time fetch it once.

A claim is a file that its holder keeps locked. The lock goes with its holder, however that ends, so that a claim is never
left to wait for: what remains is an empty file that the next one takes over. Nothing depends on claims but how often a
block is fetched: whoever has waited for long enough fetches it as well.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

__all__ = ["claimed"]

_PATIENCE_S: Final = 2.0  # Many times what fetching a block takes; its holder may be stopped.
_FIRST_PAUSE_S: Final = 0.001
_LONGEST_PAUSE_S: Final = 0.02


@contextmanager
def claimed(path: str) -> Iterator[None]:
    """Hold the claim at `path` for the length of the block, or give up waiting for it.

    Raises
    ------
    OSError
        If the file can't be made or locked at all.
    """
    file, pause_s = _try(path), _FIRST_PAUSE_S
    end_s = time.monotonic() + _PATIENCE_S
    while file is None and time.monotonic() < end_s:
        # The kernel wakes up whoever waits for a lock, but can't be told for how long to wait.
        time.sleep(pause_s)
        pause_s = min(_LONGEST_PAUSE_S, 2 * pause_s)
        file = _try(path)
    try:
        yield
    finally:
        if file is not None:
            # While it is locked: afterwards it might be another's.
            with contextlib.suppress(OSError):
                os.unlink(path)
            os.close(file)


def _try(path: str) -> int | None:
    """The file, locked; None if somebody else holds it."""
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Its last holder may have removed it after it was opened here, and somebody may hold the one that came after it.
            if os.fstat(file).st_nlink:
                return file
        except BlockingIOError:
            os.close(file)
            return None
        except BaseException:
            os.close(file)
            raise
        os.close(file)
