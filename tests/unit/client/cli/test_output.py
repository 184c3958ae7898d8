"""What results look like on a terminal, in a pipe and as JSON."""

from __future__ import annotations

import io
import json
import sys
from typing import Any

import pytest

from client.cli import output
from client.cli.output import Column, Output, human_size, plural

ROWS: list[dict[str, Any]] = [
    {"key": "a [red]b[/red]", "size_bytes": 1536, "created_s": 0.0},
    {"key": "c", "size_bytes": None, "created_s": None},
]
COLUMNS: dict[str, Column] = {"size_bytes": "size", "created_s": "time", "key": "text"}


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def _terminal(monkeypatch: pytest.MonkeyPatch) -> _Terminal:
    """A terminal in the place of both streams; not a fixture, because pytest sets the streams anew when a test begins."""
    stream = _Terminal()
    monkeypatch.setattr(sys, "stdout", stream)
    monkeypatch.setattr(sys, "stderr", stream)
    return stream


@pytest.mark.parametrize(
    ("size_bytes", "shown"),
    [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (1536, "1.5 KiB"), (1024**2 - 1, "1.0 MiB"), (5 * 1024**5, "5.0 PiB")],
)
def test_human_size(size_bytes: int, shown: str) -> None:
    assert human_size(size_bytes) == shown


def test_plural() -> None:
    assert [plural(count, "object") for count in (0, 1, 2)] == ["0 objects", "1 object", "2 objects"]


def test_a_pipe_gets_lines_of_plain_values(capsys: pytest.CaptureFixture[str]) -> None:
    Output(as_json=False).table(ROWS, COLUMNS)
    assert capsys.readouterr().out == "1536\t1970-01-01T00:00:00Z\ta [red]b[/red]\n-\t-\tc\n"


def test_json_gets_whole_rows(capsys: pytest.CaptureFixture[str]) -> None:
    Output(as_json=True).table(ROWS, COLUMNS)
    assert [json.loads(line) for line in capsys.readouterr().out.splitlines()] == ROWS


def test_a_terminal_gets_a_table_for_people(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = _terminal(monkeypatch)
    monkeypatch.setattr(output, "PAGE_ROWS", 1)
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "100")
    Output(as_json=False).table(ROWS, COLUMNS)
    text = terminal.getvalue()
    assert "1.5 KiB" in text
    assert "a [red]b[/red]" in text
    assert text.count("size") == 2  # a header a page


def test_json_on_a_terminal_is_still_json(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = _terminal(monkeypatch)
    shown = Output(as_json=True)
    shown.document({"key": "ü"}, "text")
    assert terminal.getvalue() == '{"key": "ü"}\n'
    assert shown.size(2048) == "2048"


def test_a_rich_bar_leaves_the_data_on_its_own_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    errors, data = _Terminal(), io.StringIO()
    monkeypatch.setattr(sys, "stderr", errors)
    monkeypatch.setattr(sys, "stdout", data)
    shown = Output(as_json=False)
    with shown.progress("put", total=10) as progress:
        progress.advance(5)
        shown.document({}, "a line")
        progress.advance(5)
    assert data.getvalue() == "a line\n"
    assert "put" in errors.getvalue()


def test_progress_in_a_log_is_a_line_now_and_then(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    with Output(as_json=False).progress("put", total=4096) as progress:
        progress.advance(1024)
        monkeypatch.setattr(output, "PLAIN_PROGRESS_S", 0.0)
        progress.advance(1024)
        progress.expect(8192)
        progress.advance(1024)
    assert capsys.readouterr().err == "put: 2.0 KiB of 4.0 KiB\nput: 3.0 KiB of 8.0 KiB\n"
