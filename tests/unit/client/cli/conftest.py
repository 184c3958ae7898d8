"""The command line over a store in memory."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from typer.testing import CliRunner

from client.cli.app import build_app
from tests.support.fake_store import FakeStore


@dataclass(frozen=True, slots=True, kw_only=True)
class Ran:
    """What a command line did."""

    code: int
    out: str
    err: str
    out_bytes: bytes

    @property
    def lines(self) -> list[str]:
        return self.out.splitlines()

    @property
    def document(self) -> dict[str, Any]:
        """The one JSON document that was printed."""
        (line,) = self.lines
        value: dict[str, Any] = json.loads(line)
        return value

    @property
    def documents(self) -> list[dict[str, Any]]:
        """The JSON object of each line that was printed."""
        return [json.loads(line) for line in self.lines]


Forebay = Callable[..., Ran]


@pytest.fixture
def store() -> Iterator[FakeStore]:
    store = FakeStore()
    yield store
    FakeStore.close(store)


@pytest.fixture
def forebay(store: FakeStore, monkeypatch: pytest.MonkeyPatch) -> Forebay:
    """Run a command line against `store`, and expect the exit code `code`."""
    for name in ("FOREBAY_ENDPOINT", "FOREBAY_TOKEN", "FOREBAY_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("client.cli.connection.Client", lambda *args, **options: store)
    monkeypatch.setattr(store, "close", lambda: None)  # Each command closes its client; this one is for the next command, too.

    def run(*args: str, stdin: bytes | None = None, code: int = 0) -> Ran:
        result = CliRunner().invoke(build_app(), list(args), input=stdin, prog_name="forebay")
        ran = Ran(code=result.exit_code, out=result.stdout, err=result.stderr, out_bytes=result.stdout_bytes)
        assert ran.code == code, f"exit code {ran.code}: {ran.out}{ran.err}"
        return ran

    return run
