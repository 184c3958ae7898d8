"""`forebay gc`: asking for it, and waiting until the nodes that are up have done it."""

from __future__ import annotations

from typing import Any

import pytest

from client.cli.gc import sweeps
from tests.support.fake_store import FakeStore
from tests.unit.client.cli.conftest import Forebay


def status(**nodes: dict[str, Any]) -> dict[str, Any]:
    known = {"epoch": -1, "num_removed": 0, "removed_bytes": 0, "num_kept": 0, "problem": "", "up": True}
    return {"epoch": 7, "wanted": 9, "nodes": {name: {**known, **node} for name, node in nodes.items()}}


class Collection:
    """Stands for the nodes' route: each GET gives the next answer, the last one again and again."""

    def __init__(self, *answers: dict[str, Any]) -> None:
        self.answers = list(answers)
        self.num_asked = 0

    def admin(self, method: str, path: str, **_: Any) -> Any:
        assert path == "/v1/admin/gc"
        if method == "POST":
            self.num_asked += 1
            return {"epoch": 9}
        return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]


@pytest.fixture
def use(store: FakeStore, monkeypatch: pytest.MonkeyPatch):  # type: ignore[no-untyped-def]
    def use(*answers: dict[str, Any]) -> Collection:
        collection = Collection(*answers)
        monkeypatch.setattr(store, "admin", collection.admin)
        monkeypatch.setattr("client.cli.gc.POLL_S", 0.0)
        return collection

    return use


def test_it_asks_and_says_what_will_happen(forebay: Forebay, use) -> None:  # type: ignore[no-untyped-def]
    collection = use(status(a={}))
    assert "will sweep at epoch 9" in forebay("gc").out
    assert forebay("gc", "--json").document == {"epoch": 9}
    assert collection.num_asked == 2


def test_waiting_prints_what_each_node_freed(forebay: Forebay, use) -> None:  # type: ignore[no-untyped-def]
    before = status(a={"epoch": 7, "num_removed": 5, "removed_bytes": 50}, b={"epoch": 7})
    half = status(a={"epoch": 9, "num_removed": 8, "removed_bytes": 90}, b={"epoch": 8, "problem": "Corrupt: a manifest"})
    done = status(
        a={"epoch": 9, "num_removed": 8, "removed_bytes": 90},
        b={"epoch": 9, "num_removed": 1, "removed_bytes": 7},
        c={"epoch": 2, "up": False},
    )
    use(before, half, half, done)
    ran = forebay("gc", "--wait")
    assert ran.lines == ["a\t3\t40\t-", "b\t1\t7\t-", "c\t0\t0\t-"]
    assert ran.err.count("node b removes nothing and tries again: Corrupt: a manifest") == 1
    use(before, done)
    document = forebay("gc", "--wait", "--json").document
    assert document["complete"] and document["epoch"] == 9
    assert document["nodes"][0] == {"node_id": "a", "up": True, "num_removed": 3, "removed_bytes": 40, "problem": ""}


def test_waiting_ends_with_an_error_when_time_is_up(forebay: Forebay, use) -> None:  # type: ignore[no-untyped-def]
    use(status(a={"epoch": 8}))
    assert "1 node not done after 0 s: a" in forebay("gc", "--wait", "--timeout", "0", code=1).err


def test_sweeps_ends_with_the_last_node_that_is_up() -> None:
    answers = [status(a={"epoch": 8}, b={"epoch": 9}), status(a={"epoch": 8, "up": False}, b={"epoch": 9})]
    slept: list[float] = []
    assert list(sweeps(lambda: answers[len(slept)], 9, timeout_s=60.0, clock=lambda: 0.0, sleep=slept.append)) == answers
    assert len(slept) == 1
