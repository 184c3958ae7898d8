"""Changes of the layout on an operator's word: what is committed, what only planned, and who wins a race."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from client.errors import Conflict, InvalidRequest, NodeExists, NodeInUse, NodeNotFound
from client.placement import Layout, Node
from client.record import BucketPolicy
from client.wire import encode_json
from storenode.buckets import Buckets
from storenode.held import Holdings
from storenode.layouts import change_layouts, create_layout, read_anchor, read_layouts
from storenode.membership import Membership, NodeRecord
from storenode.metastore import Change
from storenode.movement import NodeFacts
from storenode.reshaping import Reshaping, Wish
from tests.support.asgi import call
from tests.support.catalogs import open_meta
from tests.support.hooked_meta import HookedMeta
from tests.support.nodes import open_node


@pytest.fixture
def meta() -> Iterator[HookedMeta]:
    with open_meta() as meta:
        create_layout(meta, Layout(version=1, partitions=64, nodes=tuple(Node(id=name, host=name) for name in "abc")))
        for name in "abc":
            register(meta, name)
        yield meta


def register(meta: HookedMeta, name: str, *, zone: str = "zone-1") -> None:
    record = NodeRecord(endpoints=(f"http://{name}",), zone=zone, host=name, data_dir=f"/{name}")
    Membership(meta, node_id=name, record=record, ttl_s=1000.0).register()


def reshaping(meta: HookedMeta, **facts: NodeFacts) -> Reshaping:
    return Reshaping(meta, ask=lambda node_ids: {name: facts.get(name, NodeFacts(up=True)) for name in node_ids})


def nodes(meta: HookedMeta) -> tuple[Node, ...]:
    known = read_layouts(meta)
    assert known is not None
    return known.layouts.current.nodes


def test_a_node_is_added_as_it_registered(meta: HookedMeta) -> None:
    register(meta, "d", zone="zone-9")
    done = reshaping(meta)(Wish(kind="add", node_ids=("d",), weight=2.0))
    assert nodes(meta)[3] == Node(id="d", weight=2.0, zone="zone-9", host="d")
    known = read_layouts(meta)
    assert known is not None and done.revision == known.revision
    assert known.layouts == done.plan.layouts and read_anchor(meta).anchor.layout == 2


def test_all_spare_nodes_are_added_at_once(meta: HookedMeta) -> None:
    register(meta, "d")
    register(meta, "e")
    assert reshaping(meta)(Wish(kind="add")).plan.layouts.current.version == 2
    assert [node.id for node in nodes(meta)] == ["a", "b", "c", "d", "e"]
    with pytest.raises(NodeNotFound, match="there is no spare node"):
        reshaping(meta)(Wish(kind="add"))


def test_a_node_that_is_not_up_is_not_added(meta: HookedMeta) -> None:
    with pytest.raises(NodeNotFound, match="no node 'x' is up; those that are: a, b, c"):
        reshaping(meta)(Wish(kind="add", node_ids=("x",)))


def test_a_node_that_is_taken_back_keeps_its_weight_and_zone(meta: HookedMeta) -> None:
    for wish in (
        Wish(kind="weight", node_ids=("b",), weight=3.0),
        Wish(kind="zone", node_ids=("b",), zone="y"),
        Wish(kind="drain", node_ids=("b",)),
    ):
        reshaping(meta)(wish)
    assert nodes(meta)[1] == Node(id="b", weight=3.0, zone="y", host="b", state="draining")
    reshaping(meta)(Wish(kind="add", node_ids=("b",)))
    assert nodes(meta)[1] == Node(id="b", weight=3.0, zone="y", host="b")


def test_a_dry_run_changes_nothing(meta: HookedMeta) -> None:
    before = read_layouts(meta)
    done = reshaping(meta)(Wish(kind="drain", node_ids=("a",), dry_run=True))
    assert done.revision is None and done.plan.layouts.current.version == 2
    assert read_layouts(meta) == before


def test_what_is_so_already_is_not_committed_again(meta: HookedMeta) -> None:
    wish = Wish(kind="drain", node_ids=("a",))
    reshaping(meta)(wish)
    before = read_layouts(meta)
    assert reshaping(meta)(wish).revision is None
    assert read_layouts(meta) == before


def test_a_request_that_is_repeated_changes_nothing_more_and_gets_its_answer(meta: HookedMeta) -> None:
    register(meta, "d")
    wish = Wish(kind="add", node_ids=("d",), id="mine")
    done = reshaping(meta)(wish)
    again = reshaping(meta)(wish)
    assert again.revision == done.revision is not None
    assert again.plan.layouts == done.plan.layouts and again.plan.shifts == done.plan.shifts
    # Another request for the same is one of its own.
    with pytest.raises(NodeExists):
        reshaping(meta)(Wish(kind="add", node_ids=("d",), id="another"))


def test_the_greatest_number_of_replicas_of_any_bucket_counts(meta: HookedMeta) -> None:
    Buckets(meta).create("small", BucketPolicy(replicas=1, ack="one"))
    reshaping(meta)(Wish(kind="drain", node_ids=("a",), dry_run=True))
    Buckets(meta).create("large", BucketPolicy(replicas=3))
    with pytest.raises(Exception, match="asks for 3 copies"):
        reshaping(meta)(Wish(kind="drain", node_ids=("a",), dry_run=True))


def test_of_two_operators_that_race_the_second_is_planned_anew(meta: HookedMeta) -> None:
    """Both changes are in the end, one after the other."""
    other = Wish(kind="weight", node_ids=("b",), weight=2.0)

    def interfere(changes: Sequence[Change]) -> None:
        meta.before_txn = lambda changes: None
        reshaping(meta)(other)

    meta.before_txn = interfere
    done = reshaping(meta)(Wish(kind="drain", node_ids=("a",)))
    assert [node.state for node in nodes(meta)] == ["draining", "active", "active"] and nodes(meta)[1].weight == 2.0
    assert [layout.version for layout in done.plan.layouts.older] == [2, 1]


def test_an_operator_who_loses_a_race_to_the_same_change_is_told(meta: HookedMeta) -> None:
    register(meta, "d")
    wish = Wish(kind="add", node_ids=("d",))

    def interfere(changes: Sequence[Change]) -> None:
        meta.before_txn = lambda changes: None
        reshaping(meta)(wish)

    meta.before_txn = interfere
    with pytest.raises(NodeExists, match="node d is in the layout already"):
        reshaping(meta)(wish)


def test_who_loses_every_race_gives_up(meta: HookedMeta) -> None:
    def interfere(changes: Sequence[Change]) -> None:
        hook, meta.before_txn = meta.before_txn, lambda changes: None
        known = read_layouts(meta)
        assert known is not None and change_layouts(meta, known, known.layouts)
        meta.before_txn = hook

    meta.before_txn = interfere
    with pytest.raises(Conflict, match="changed 8 times while this change was planned"):
        reshaping(meta)(Wish(kind="drain", node_ids=("a",)))


def test_a_drained_node_is_removed(meta: HookedMeta) -> None:
    reshaping(meta)(Wish(kind="drain", node_ids=("a",)))
    remove = Wish(kind="remove", node_ids=("a",))
    with pytest.raises(NodeInUse):
        reshaping(meta)(remove)
    reshaping(meta, a=NodeFacts(up=True, drained=True))(remove)
    assert [node.id for node in nodes(meta)] == ["b", "c"]


def states(meta: HookedMeta) -> dict[str, tuple[str, Any]]:
    return {node["node_id"]: (node["state"], node["complete"]) for node in reshaping(meta).progress()["nodes"]}


def test_progress_tells_each_nodes_state_and_whether_it_is_complete(meta: HookedMeta) -> None:
    register(meta, "s")
    # With one layout there is nothing that anybody could lack.
    assert states(meta) == {"a": ("up", True), "b": ("up", True), "c": ("up", True), "s": ("spare", None)}
    revision = reshaping(meta)(Wish(kind="drain", node_ids=("a",))).revision
    assert revision is not None
    holdings = {name: Holdings(meta, node_id=name) for name in "abc"}
    for each in holdings.values():
        each.follow(layout=2, incarnation="")
    assert states(meta)["a"] == ("draining", None)
    # What was committed just before the layout was may be missing still.
    holdings["b"].complete_to(revision - 1)
    assert states(meta)["b"] == states(meta)["c"] == ("up", False)
    holdings["b"].complete_to(revision)
    assert states(meta)["b"] == ("up", True)
    holdings["a"].complete_to(revision)
    for surplus, state in ((1, "draining"), (0, "drained")):
        holdings["a"].left_over(surplus, layout=2)
        assert states(meta)["a"] == (state, None)
    holdings["a"].begin_again()
    assert states(meta)["a"] == ("draining", None)
    assert reshaping(meta).progress()["older"] == [1]


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({}, 'expected {"change": one of add, drain, remove, weight, zone'),
        ({"change": "explode", "nodes": ["a"]}, "one of add"),
        ({"change": "drain", "nodes": []}, "drain takes one node, found 0"),
        ({"change": "drain", "nodes": ["a", "b"]}, "drain takes one node, found 2"),
        ({"change": "weight", "nodes": ["a"]}, "names the new one"),
        ({"change": "zone", "nodes": ["a"]}, "names the new one"),
        ({"change": "weight", "nodes": ["a"], "weight": -1}, "greater than 0"),
        ({"change": "weight", "nodes": ["a"], "weight": True}, "greater than 0"),
        ({"change": "add", "nodes": ["a"], "weight": float("inf")}, "greater than 0"),
        ({"change": "zone", "nodes": ["a"], "zone": ""}, "1 to 64 characters"),
        ({"change": "add", "nodes": [1]}, "expected"),
        ({"change": "add", "nodes": ["a"], "id": 5}, "up to 64 characters"),
        ([], "expected"),
    ],
)
def test_a_wish_that_makes_no_sense_says_what_would(body: Any, said: str) -> None:
    with pytest.raises(InvalidRequest, match=said.replace("{", r"\{")):
        Wish.from_json(body)


def test_the_route_plans_commits_and_tells() -> None:
    with open_node() as bed:
        create_layout(bed.meta, bed.node.cluster.layout)
        body = {"change": "weight", "nodes": ["n2"], "weight": 2, "dry_run": True}
        planned = call(bed.app, "POST", "/v1/admin/layout", body=encode_json(body)).json()
        assert planned["committed"] is False and planned["layout"]["version"] == 2 and planned["seconds"] is None
        done = call(bed.app, "POST", "/v1/admin/layout", body=encode_json({**body, "dry_run": False})).json()
        assert done == {**planned, "committed": True}
        told = call(bed.app, "GET", "/v1/admin/layout").json()
        assert told["version"] == 2 and told["older"] == [1] and [node["state"] for node in told["nodes"]] == ["down"] * 3
        refused = call(bed.app, "POST", "/v1/admin/layout", body=encode_json({"change": "drain", "nodes": ["nobody"]}))
        assert (refused.status, refused.error) == (404, "node-not-found")
