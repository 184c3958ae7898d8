"""One side in a process of its own, which does what it is told line by line, so that sides can take turns.

Commands and answers are lines of JSON, on standard input and on what was standard output; whatever a loader itself prints goes
to standard error. Run as ``python -m benchmarks.loader.turns MODULE CLASS`` in the environment that the loader is installed in.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import shutil
import sys
import time
import warnings
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.loader.sets import SETS, load
from benchmarks.loader.sides.base import Place, Side, Stream, num_samples
from benchmarks.store.usage import peak_bytes, reset_peaks, resident_bytes

_PROBE_EVERY = 16  # Items between looks at the clock.


class Turns:
    """Does the commands; each answers with a dict."""

    def __init__(self, side: Side) -> None:
        self._side = side
        self._place: Place | None = None
        self._batch_size: int | None = None
        self._stream: Stream | None = None
        self._states: dict[int, Any] = {}

    def versions(self) -> dict[str, str]:
        """Of the loader's packages."""
        return {package: version(package) for package in self._side.packages}

    def write(self, *, arrays: str, **place: Any) -> dict[str, Any]:
        """Store a set, unless that was done before."""
        made = _place(place)
        marker = Path(f"{made.data}.written")
        if not marker.exists():
            made.data.parent.mkdir(parents=True, exist_ok=True)
            self._side.write(load(made.chosen, Path(arrays)), made)
            marker.touch()
        return {}

    def place(self, *, batch_size: int | None, **place: Any) -> dict[str, Any]:
        """Say what the commands that follow are about."""
        self._close()
        self._place, self._batch_size = _place(place), batch_size
        return {}

    def warm(self, *, min_s: float, max_s: float) -> dict[str, Any]:
        """Epochs for `min_s` seconds, each whole unless it takes more than `max_s`."""
        if self._stream is None:
            self._stream = self._open()
            self._read(self._stream, float("inf") if self._side.fills_cache else time.perf_counter() + max_s)
        stream = self._stream
        return self._measured(lambda end_s: self._read(stream, end_s), min_s=min_s, max_s=max_s)

    def cold(self, *, min_s: float, max_s: float) -> dict[str, Any]:
        """As `warm`, with a loader that was just opened over an empty cache for each epoch; opening it counts."""
        assert self._place is not None
        cache = self._place.cache

        def once(end_s: float) -> int:
            stream = self._open()
            count = self._read(stream, end_s)
            stream.close()
            return count

        shutil.rmtree(cache, ignore_errors=True)
        return self._measured(once, min_s=min_s, max_s=max_s, between=lambda: shutil.rmtree(cache, ignore_errors=True))

    def first(self) -> dict[str, Any]:
        """Seconds from opening the loader, over an empty cache if it is a cold one, to the first batch."""
        assert self._place is not None
        if self._place.cold:
            shutil.rmtree(self._place.cache, ignore_errors=True)
        began_s = time.perf_counter()
        stream = self._open()
        items = stream.epoch()
        next(items)
        seconds = time.perf_counter() - began_s
        del items
        stream.close()
        return {"seconds": seconds}

    def resume(self, *, batches: int) -> dict[str, Any]:
        """Seconds from handing the state after so many batches to a new loader to its first batch."""
        if batches not in self._states:
            stream = self._open()
            self._states[batches] = stream.state(batches)
            stream.close()
        stream = self._open()
        began_s = time.perf_counter()
        stream.resume(self._states[batches])
        next(stream.epoch())
        seconds = time.perf_counter() - began_s
        stream.close()
        return {"seconds": seconds}

    def memory(self, *, epochs: int) -> dict[str, Any]:
        """Peak of resident bytes in each of some epochs, and before the first."""
        pids = [os.getpid()]
        gc.collect()
        before = resident_bytes(pids)
        stream, peaks = self._open(), []
        for _ in range(epochs):
            reset_peaks(pids)
            self._read(stream, float("inf"))
            peaks.append(peak_bytes(pids))
        stream.close()
        return {"before": before, "peaks": peaks}

    def _open(self) -> Stream:
        assert self._place is not None
        return self._side.open(self._place, batch_size=self._batch_size)

    def _close(self) -> None:
        if self._stream is not None:
            self._stream.close()
        self._stream = None
        self._states.clear()

    def _measured(
        self, once: Callable[[float], int], *, min_s: float, max_s: float, between: Callable[[], None] = lambda: None
    ) -> dict[str, Any]:
        samples, wall_s, cpu_s, began_s = 0, 0.0, 0.0, time.perf_counter()
        while wall_s < min_s:
            start_s, start_cpu_s = time.perf_counter(), time.process_time()
            samples += once(began_s + max_s)
            wall_s += time.perf_counter() - start_s
            cpu_s += time.process_time() - start_cpu_s
            between()
        return {"samples": samples, "wall_s": wall_s, "cpu_s": cpu_s, "resident_bytes": resident_bytes([os.getpid()])}

    def _read(self, stream: Stream, end_s: float) -> int:
        """Samples of an epoch that is broken off at `end_s`."""
        count, one = 0, self._batch_size is None
        for number, item in enumerate(stream.epoch(), start=1):
            count += 1 if one else num_samples(item)
            if number % _PROBE_EVERY == 0 and time.perf_counter() > end_s:
                break
        return count


def _place(fields: dict[str, Any]) -> Place:
    return Place(
        chosen=SETS[fields["set"]],
        names=tuple(fields["names"]),
        data=Path(fields["data"]),
        url=fields["url"],
        cache=Path(fields["cache"]),
        compressed=fields["compressed"],
        cold=fields["cold"],
    )


def main() -> None:
    """Answer each line."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    warnings.simplefilter("ignore")
    module, name = sys.argv[1:]
    turns = Turns(getattr(importlib.import_module(f"benchmarks.loader.sides.{module}"), name)())
    for line in sys.stdin:
        command = json.loads(line)
        print(json.dumps(getattr(turns, command.pop("do"))(**command)), file=answers, flush=True)


if __name__ == "__main__":
    main()
