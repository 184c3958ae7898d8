"""`forebay node`: what is asked of the cluster, and how its answers are printed."""

from __future__ import annotations

from typing import Any

import pytest

from client.cli import nodes
from client.errors import NodeInUse
from tests.support.fake_store import FakeStore
from tests.unit.client.cli.conftest import Forebay

MIB = 1 << 20
PLAN = {
    "layout": {"version": 2, "partitions": 64, "nodes": []},
    "older": [1],
    "replicas": 3,
    "moved_share": 0.25,
    "moved_bytes": 300 * MIB,
    "usable_bytes": 4096 * MIB,
    "limited_by": "node-2",
    "copies_left": {},
    "nodes": [
        {"node_id": "node-4", "before_share": 0.0, "after_share": 0.25, "gained_share": 0.25, "gained_bytes": 300 * MIB},
        {"node_id": "node-1", "before_share": 1.0, "after_share": 0.75, "gained_share": 0.0, "gained_bytes": None},
    ],
    "committed": True,
    "seconds": 100.0,
}


class Layouts:
    """Stands for the nodes' layout route."""

    def __init__(self, store: FakeStore) -> None:
        self.asked: list[Any] = []
        self.plan: dict[str, Any] = dict(PLAN)
        self.refuse: Exception | None = None
        self.stages: list[dict[str, Any]] = [{"version": 2, "older": [], "move": "", "nodes": []}]
        self._store = store

    def admin(self, method: str, path: str, *, json: Any = None, node_id: str | None = None) -> Any:
        assert path == "/v1/admin/layout"
        if method == "GET":
            return self.stages.pop(0) if len(self.stages) > 1 else self.stages[0]
        self.asked.append(json)
        if self.refuse:
            raise self.refuse
        return self.plan


@pytest.fixture
def layouts(store: FakeStore, monkeypatch: pytest.MonkeyPatch) -> Layouts:
    layouts = Layouts(store)
    monkeypatch.setattr(store, "admin", layouts.admin)
    return layouts


def test_each_command_asks_for_its_change(forebay: Forebay, layouts: Layouts) -> None:
    plain = {"force": False, "dry_run": False}
    for args, wish in (
        (("add", "x", "y"), {"change": "add", "nodes": ["x", "y"], **plain}),
        (("add", "--all", "--weight", "2"), {"change": "add", "nodes": [], "weight": 2.0, **plain}),
        (("drain", "x", "--force"), {"change": "drain", "nodes": ["x"], **plain, "force": True}),
        (("remove", "x", "--dry-run"), {"change": "remove", "nodes": ["x"], **plain, "dry_run": True}),
        (("weight", "x", "0.5"), {"change": "weight", "nodes": ["x"], "weight": 0.5, **plain}),
        (("zone", "x", "z9"), {"change": "zone", "nodes": ["x"], "zone": "z9", **plain}),
    ):
        forebay("node", *args)
        asked = layouts.asked.pop()
        assert asked.pop("id") and asked == wish


def test_add_takes_names_or_all(forebay: Forebay, layouts: Layouts) -> None:
    for args in ((), ("x", "--all")):
        assert "give --all for every spare one" in forebay("node", "add", *args, code=2).err
    assert layouts.asked == []


def test_a_plan_is_printed_with_what_it_moves_and_what_fits(forebay: Forebay, layouts: Layouts) -> None:
    assert forebay("node", "add", "node-4").lines == [
        "layout 2 is in force",
        "25.0% of all copies move, about 300.0 MiB; that takes 2 min or more",
        "then about 4.0 GiB of data fit, with 3 replicas, before node node-2 is full",
        "node-4\t0.0%\t25.0%\t25.0%, 300.0 MiB",
        "node-1\t100.0%\t75.0%\t0.0%",
    ]
    assert forebay("node", "add", "node-4", "--json").document == PLAN
    layouts.plan |= {"moved_share": 0.0, "moved_bytes": 0}
    assert forebay("node", "add", "node-4").lines[1] == "nothing moves"
    layouts.plan |= {**PLAN, "committed": False}
    assert forebay("node", "add", "node-4", "--dry-run").lines[:2] == [
        "layout 2 would be made",
        "25.0% of all copies would move, about 300.0 MiB; that takes 2 min or more",
    ]
    assert forebay("node", "add", "node-4").out == "nothing to change: layout 2 is so already\n"


def test_copies_that_are_left_of_a_lost_node_are_told(forebay: Forebay, layouts: Layouts) -> None:
    layouts.plan |= {"copies_left": {"1": 1, "2": 63}, "moved_bytes": None, "usable_bytes": None, "seconds": None}
    assert forebay("node", "remove", "node-4", "--force").lines[:3] == [
        "layout 2 is in force",
        "25.0% of all copies move",
        "copies left on nodes that are up: 1 partition with 1, 63 partitions with 2, of 3",
    ]


def test_a_refusal_is_printed_as_it_came(forebay: Forebay, layouts: Layouts) -> None:
    layouts.refuse = NodeInUse("node x holds data; drain it first: `forebay node drain x --wait`")
    ran = forebay("node", "remove", "x", code=1)
    assert ran.err == "error: node x holds data; drain it first: `forebay node drain x --wait`\n"


def test_nodes_are_listed_with_their_states(forebay: Forebay, layouts: Layouts) -> None:
    node = {"node_id": "n", "state": "spare", "weight": None, "zone": "z", "host": "h", "endpoints": ["http://h:1"]}
    layouts.stages[0]["nodes"] = [node]
    assert forebay("node", "ls").out == "n\tspare\t-\tz\th\thttp://h:1\n"
    assert forebay("node", "ls", "--json").documents == [node]


def stage(older: list[int], *complete: bool, state: str = "draining", move: str = "") -> dict[str, Any]:
    nodes = [{"node_id": f"n{number}", "state": "up", "complete": done} for number, done in enumerate(complete)]
    return {"version": 2, "older": older, "move": move, "nodes": [*nodes, {"node_id": "x", "state": state, "complete": None}]}


def test_waiting_tells_of_the_move_to_its_end(forebay: Forebay, layouts: Layouts, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nodes, "POLL_S", 0.0)
    layouts.stages = [
        stage([1], False, False),
        stage([1], False, True, move="layout 2: 1 of 2 nodes complete, about 5 bytes left"),
        stage([1], False, True, move="layout 2: 1 of 2 nodes complete, about 5 bytes left"),
        stage([], True, True),
        stage([], True, True, state="drained"),
    ]
    assert forebay("node", "drain", "x", "--wait").lines[-4:] == [
        "layout 2: the move has not begun",
        "layout 2: 1 of 2 nodes complete, about 5 bytes left",
        "layout 2 is complete; node x gives up its copies, after the others have re-hashed theirs",
        "layout 2 is complete, and node x is empty",
    ]
    layouts.stages = [stage([], True, state="up")]
    # Only who drains a node waits for it to be empty.
    assert forebay("node", "weight", "x", "2", "--wait").lines[-1] == "layout 2 is complete"
    assert forebay("node", "weight", "x", "2", "--wait", "--json").documents[-1] == layouts.stages[0]
    layouts.stages = [stage([1], False)]
    forebay("node", "drain", "x", "--wait", "--dry-run")
