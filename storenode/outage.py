"""Troubles that last: logged once when they begin and once when they end, however often they are met in between."""

from __future__ import annotations

import logging
import threading

from client.errors import StoreError

__all__ = ["Outages"]

_MAX_KEPT = 1024


class Outages:
    """Which activities fail at present. Thread-safe.

    Parameters
    ----------
    log : logging.Logger
        Where begin and end are written.
    """

    def __init__(self, log: logging.Logger) -> None:
        self._log = log
        self._lock = threading.Lock()
        self._failing: dict[str, str] = {}

    def failed(self, what: str, error: StoreError) -> None:
        """Note that `what` failed; it is written to the log unless it failed in the same way before."""
        with self._lock:
            if self._failing.get(what) == error.code:
                return
            if len(self._failing) >= _MAX_KEPT:
                # Forgetting the oldest costs a repeated line at worst.
                self._failing.pop(next(iter(self._failing)))
            self._failing[what] = error.code
        self._log.warning("%s failed and will be tried again: %s: %s", what, error.title, error.message)

    def succeeded(self, what: str) -> None:
        """Note that `what` works; the end of an outage is written to the log."""
        with self._lock:
            if self._failing.pop(what, None) is None:
                return
        self._log.info("%s works again", what)
