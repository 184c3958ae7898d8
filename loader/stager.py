"""The stager: stages of a stream, made by threads (`loader.prefetch`) that end when nobody wants them any more.

A stager that nothing refers to any more is closed, as is one that is left at the interpreter's exit: so the threads must not
refer to it, and know the walk only.
"""

from __future__ import annotations

import logging
import os
import time
import weakref
from dataclasses import replace
from typing import Generic, TypeVar

from loader.handoff import StillWaiting
from loader.opened import OpenStream
from loader.prefetch import Walk
from loader.receipt import Receipt
from loader.stage import Epochs, StreamSpec

__all__ = ["Stager"]

T = TypeVar("T")

log = logging.getLogger(__name__)

_STALL_S = 10.0  # A wait that is told of; it is again after as long.


class Stager(Generic[T]):
    """What is made of the stages of one stream, in order, that of each epoch followed by None.

    Parameters
    ----------
    opened : OpenStream
        Where blocks come from, and go to: nobody else uses its arena until the stager is closed.
    spec : StreamSpec
        What to read.
    epochs : Epochs
        What each epoch has of its own.
    """

    def __init__(self, opened: OpenStream, spec: StreamSpec, epochs: Epochs[T]) -> None:
        self._walk = Walk(opened, spec, epochs)
        self._forgotten = weakref.finalize(self, self._walk.close)

    def start(self) -> Stager[T]:
        """Begin."""
        try:
            self._walk.thread.start()
        except BaseException:  # Ctrl-C, when the thread runs already.
            self.close()
            raise
        return self

    def __enter__(self) -> Stager[T]:
        return self.start()

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        """End all threads, and wait for them; a fetch that is under way ends first."""
        self._walk.close()
        self._forgotten.detach()

    def next(self) -> T | None:
        """What was made next, None after the last of an epoch; raises what went wrong in a thread, or `StreamClosed`.

        While that takes long, the log and the receipt say from time to time what is being waited for.
        """
        began_s = time.monotonic()
        while True:
            try:
                return self._walk.ready.get(patience_s=_STALL_S)
            except StillWaiting:
                self._tell_of_stall(time.monotonic() - began_s)

    def _tell_of_stall(self, waited_s: float) -> None:
        waits = self._walk.opened.waits() or ["nothing is being fetched: what makes items of rows takes this long"]
        words = f"the training loop has waited {waited_s:.0f} s for data; {'; '.join(waits)}"
        log.warning("%s, epoch %d: %s", self._walk.opened.url, self._walk.reading, words)
        self.receipt().note_stall(words)

    def receipt(self) -> Receipt:
        """The receipt of the epoch that is read."""
        return self._walk.receipt(self._walk.reading)

    def take_over(self, opened: OpenStream, spec: StreamSpec) -> bool:
        """Begin the next epoch, if that is exactly what a new stager would begin with; at the end of an epoch."""
        walk = self._walk
        if walk.pid != os.getpid() or walk.opened is not opened or replace(walk.spec, epoch=walk.reading + 1, start=0) != spec:
            return False
        walk.read_next()
        return True
