"""Who tries what tokens do not allow is heard if one does; a clock remembers whether it was behind."""

from __future__ import annotations

import random
import time
from pathlib import Path
from typing import Any
from unittest.mock import patch

from client.errors import Forbidden
from tests.soak.access import Pass, Renewed, Tenant, Warden
from tests.soak.clocks import WallClock
from tests.soak.history import History
from tests.support.tokens import SECRET

URLS = ["http://127.0.0.1:1"]


class FakeClient:
    """Says yes or no to everything."""

    allows = False

    def __init__(self, *_: object, **__: object) -> None:
        self.snapshots = self.buckets = self

    def __enter__(self) -> FakeClient:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def __getattr__(self, name: str) -> Any:
        def call(*_: object, **__: object) -> None:
            if not self.allows:
                raise Forbidden("no")

        return call


def watched(*, allows: bool) -> History:
    """What comes of it where each call succeeds, or none."""
    history = History()
    with (
        patch("tests.soak.access.Client", FakeClient),
        patch("tests.soak.access.time.sleep"),
        patch.object(FakeClient, "allows", allows),
        Warden(URLS, SECRET, [], history, rng=random.Random(1)) as warden,
    ):
        for _ in range(40):
            warden.step()
    return history


def test_refusals_are_counted() -> None:
    history = watched(allows=False)
    assert history.violations == []
    assert history.counts["reader token refused"] and history.counts["ended token write refused"]


def test_whatever_is_done_without_being_allowed_is_found() -> None:
    said = "\n".join(watched(allows=True).violations)
    for who in ("reader token did", "elsewhere token did", "long ended token did", "written with a token that had ended"):
        assert who in said


def test_a_client_gets_another_token_and_forgets() -> None:
    history = History()
    tokens = Renewed(Pass(SECRET, "read"), history, rng=random.Random(1))
    with Tenant(URLS, tokens) as tenant:
        first = tenant()
        assert tenant() is first
        later_s = time.monotonic() + 60
        with (
            patch("tests.soak.access.time.monotonic", return_value=later_s),
            patch("tests.soak.access.time.time", return_value=9e9),
        ):
            assert tenant() is not first
    assert history.counts["token renewed"] == 2


def test_a_clock_remembers_when_it_was_behind(tmp_path: Path) -> None:
    clock = WallClock(tmp_path / "library", tmp_path / "clock")
    before_ns = time.monotonic_ns()
    assert not clock.was_behind(since_ns=before_ns)
    clock.set(-60)
    behind_ns = time.monotonic_ns()
    clock.set(60)
    assert clock.was_behind(since_ns=before_ns) and clock.was_behind(since_ns=behind_ns)
    assert not clock.was_behind(since_ns=time.monotonic_ns())
