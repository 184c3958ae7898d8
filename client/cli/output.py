"""The one way in which commands print: text for people, tab-separated lines for pipes, JSON for programs.

Results go to standard output, everything else (progress, notes, errors) to standard error. With ``--json`` a command prints
one JSON document, or one JSON object a line where it prints a list or goes on for a while. Sizes and times are for people
on a terminal, and plain bytes and UTC in a pipe. Other packages' commands print through this module too.

It does not know what is printed, and takes rich only once something is drawn on a terminal.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from itertools import islice
from typing import Annotated, Any, Literal, Protocol, TextIO

import typer

__all__ = ["AsJson", "Column", "Output", "Progress", "human_size", "plural"]

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON: one document, or one object a line for lists.")]
Column = Literal["text", "number", "size", "time"]
PAGE_ROWS = 1000
PLAIN_PROGRESS_S = 5.0


class Progress(Protocol):
    """Is told how far something has come. Thread-safe."""

    def advance(self, amount: int) -> None:
        """So many bytes, objects or whatever is counted are done since the last call."""

    def expect(self, total: int) -> None:
        """The whole is so large."""


class Output:
    """Prints the results of one command.

    Parameters
    ----------
    as_json : bool
        Whether the command was given ``--json``.
    """

    def __init__(self, *, as_json: bool) -> None:
        self.as_json = as_json
        self.terminal = sys.stdout.isatty() and not as_json

    def document(self, value: Mapping[str, Any], text: str) -> None:
        """Print one result: `value` as JSON, or `text`."""
        self._line(json.dumps(value, ensure_ascii=False) if self.as_json else text)

    def fields(self, value: Mapping[str, Any], columns: Mapping[str, Column]) -> None:
        """Print one result: `value` as JSON, or a line for each field that `columns` names."""
        if self.as_json:
            self.document(value, "")
            return
        width = max(map(len, map(_title, columns)))
        for name, kind in columns.items():
            shown = self.show(value.get(name), kind)
            self._line(f"{_title(name):<{width}}  {shown}" if self.terminal else f"{_title(name)}\t{shown}")

    def table(self, rows: Iterable[Mapping[str, Any]], columns: Mapping[str, Column]) -> None:
        """Print many results as they come: a JSON object, a line or a row of a table for each.

        Parameters
        ----------
        columns : mapping
            For text: which entries of a row are shown, in which order, and how.
        """
        if self.terminal:
            remaining = iter(rows)
            # A page at a time, so that memory does not grow with the listing.
            while page := list(islice(remaining, PAGE_ROWS)):
                self._draw(page, columns)
            return
        for row in rows:
            cells = (self.show(row.get(name), kind) for name, kind in columns.items())
            self.document(row, "" if self.as_json else "\t".join(cells))

    def note(self, text: str) -> None:
        """Say something that is no result, on standard error."""
        print(text, file=sys.stderr, flush=True)

    def size(self, size_bytes: int) -> str:
        """A number of bytes: ``1.5 MiB`` on a terminal, else its digits."""
        return human_size(size_bytes) if self.terminal else str(size_bytes)

    def show(self, value: Any, kind: Column) -> str:
        """One value as text."""
        if value is None:
            return "-"
        if kind == "size":
            return self.size(value)
        if kind == "time":
            return self._time(value)
        if isinstance(value, list | tuple):
            return ", ".join(map(str, value)) or "-"
        if isinstance(value, Mapping):
            return ", ".join(f"{key}={item}" for key, item in value.items()) or "-"
        return str(value) or "-"

    @contextmanager
    def progress(
        self, label: str, *, total: int | None = None, unit: Literal["bytes", "count"] = "bytes"
    ) -> Iterator[Progress]:
        """Show how far the block has come: a bar on a terminal, now and then a line elsewhere."""
        if not sys.stderr.isatty():
            yield _PlainProgress(label, total=total, unit=unit, stream=sys.stderr)
            return
        with _bar(label, total=total, unit=unit) as progress:
            yield progress

    def _time(self, seconds: float) -> str:
        moment = datetime.fromtimestamp(seconds, UTC)
        if self.terminal:
            return moment.astimezone().strftime("%Y-%m-%d %H:%M:%S")
        return moment.strftime("%Y-%m-%dT%H:%M:%SZ")

    def _line(self, text: str) -> None:
        # Flushed, so that whoever reads the pipe sees a result when it is there. Looked up late: a progress bar on the
        # same terminal puts itself in the place of sys.stdout meanwhile.
        print(text, flush=True)

    def _draw(self, rows: list[Mapping[str, Any]], columns: Mapping[str, Column]) -> None:
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        table = Table(box=None, pad_edge=False, header_style="bold")
        for name, kind in columns.items():
            table.add_column(_title(name), justify="left" if kind in ("text", "time") else "right", overflow="fold")
        for row in rows:
            # Text, not a string: a key may hold what rich takes for markup.
            table.add_row(*(Text(self.show(row.get(name), kind)) for name, kind in columns.items()))
        Console().print(table)


def human_size(size_bytes: float) -> str:
    """A number of bytes with a binary unit: ``1.5 MiB``."""
    if abs(size_bytes) < 1024:
        return f"{size_bytes:.0f} B"
    for unit in ("KiB", "MiB", "GiB", "TiB"):
        size_bytes /= 1024
        if abs(size_bytes) < 1023.95:
            return f"{size_bytes:.1f} {unit}"
    return f"{size_bytes / 1024:.1f} PiB"


def plural(count: int, noun: str) -> str:
    """``1 object``, ``2 objects``; the noun's plural must end in s."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def _title(name: str) -> str:
    return name.removeprefix("num_").removesuffix("_s").removesuffix("_bytes").replace("_", " ")


class _PlainProgress:
    """Writes a line every few seconds, so that a log shows that something happens, and short work stays silent."""

    def __init__(self, label: str, *, total: int | None, unit: str, stream: TextIO) -> None:
        self._label = label
        self._total = total
        self._unit = unit
        self._stream = stream
        self._lock = threading.Lock()
        self._done = 0
        self._last_s = time.monotonic()

    def advance(self, amount: int) -> None:
        with self._lock:
            self._done += amount
            now_s = time.monotonic()
            if now_s - self._last_s < PLAIN_PROGRESS_S:
                return
            self._last_s = now_s
            print(f"{self._label}: {self._count()}", file=self._stream, flush=True)

    def expect(self, total: int) -> None:
        self._total = total

    def _count(self) -> str:
        numbers = (self._done,) if self._total is None else (self._done, self._total)
        return " of ".join(human_size(number) if self._unit == "bytes" else str(number) for number in numbers)


@contextmanager
def _bar(label: str, *, total: int | None, unit: str) -> Iterator[Progress]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        MofNCompleteColumn,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )
    from rich.progress import Progress as Bars

    amounts = (DownloadColumn(binary_units=True), TransferSpeedColumn()) if unit == "bytes" else (MofNCompleteColumn(),)
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), *amounts, TimeRemainingColumn())
    # Results that are printed meanwhile go above the bar, but only where both share the terminal.
    bars = Bars(*columns, console=Console(stderr=True), transient=True, redirect_stdout=sys.stdout.isatty())
    with bars:
        yield _Bar(bars, label, total=total)


class _Bar:
    def __init__(self, bars: Any, label: str, *, total: int | None) -> None:
        self._bars = bars
        self._task = bars.add_task(label, total=total)

    def advance(self, amount: int) -> None:
        self._bars.advance(self._task, amount)

    def expect(self, total: int) -> None:
        self._bars.update(self._task, total=total)
