"""What a client has seen of the metadata, so that its ``session`` reads never show it anything older."""

from __future__ import annotations

import threading

__all__ = ["Session"]


class Session:
    """The highest revision of which anything was read or written. Thread-safe.

    A state of the metadata at or after it has every version that was seen, and lacks whatever was seen to be missing.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._seen = 0

    @property
    def seen(self) -> int:
        """The revision, counted as versions are; 0 before anything was seen."""
        return self._seen

    def saw(self, revision: int) -> None:
        """Note that something of `revision` was seen."""
        # Looked at first, for nearly every read shows nothing new.
        if revision > self._seen:
            with self._lock:
                self._seen = max(self._seen, revision)
