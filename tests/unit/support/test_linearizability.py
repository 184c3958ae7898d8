"""The linearizability checker on histories whose verdict is known, one for each way in which a store can be wrong."""

from __future__ import annotations

from typing import Any

import pytest

from client.record import Condition
from tests.support.linearizability import Operation, SearchTooLarge, check, is_linearizable

NEW = Condition(if_none_match="*")


def op(client: str, kind: Any, called: int, returned: int | None, tag: str | None = None, **settings: Any) -> Operation:
    if returned is None:
        settings["outcome"] = "unknown"
    return Operation(client=client, kind=kind, key="k", called=called, returned=returned, tag=tag, **settings)


def put(client: str, called: int, returned: int | None, tag: str, **settings: Any) -> Operation:
    return op(client, "put", called, returned, tag, **settings)


def get(client: str, called: int, returned: int, tag: str | None) -> Operation:
    return op(client, "get", called, returned, tag)


GOOD = {
    "nothing": [],
    "reads before, while and after a write": [
        get("b", 0, 1, None),
        put("a", 2, 9, "x"),
        get("b", 3, 4, None),
        get("b", 5, 6, "x"),
        get("b", 10, 11, "x"),
    ],
    "writes that overlap, in the order that the readers saw": [
        put("a", 0, 9, "x"),
        put("b", 0, 9, "y"),
        get("c", 1, 2, "y"),
        get("c", 3, 4, "x"),
        get("c", 10, 11, "x"),
    ],
    "an unknown write that takes effect long after": [
        put("a", 0, 1, "x"),
        put("b", 2, None, "y"),
        get("c", 3, 4, "x"),
        get("c", 50, 51, "x"),
        get("c", 90, 91, "y"),
    ],
    "an unknown write that never does": [put("a", 0, 1, "x"), put("b", 2, None, "y"), get("c", 90, 91, "x")],
    "an unknown write that nobody read explains a refusal": [
        put("a", 0, 1, "x"),
        put("b", 2, None, "y"),
        put("c", 3, 4, "z", condition=Condition(if_match="x"), outcome="refused"),
    ],
    "an unknown delete": [put("a", 0, 1, "x"), op("b", "delete", 2, None), get("c", 3, 4, "x"), get("c", 5, 6, None)],
    "one winner of If-None-Match": [
        put("a", 0, 5, "x", condition=NEW),
        put("b", 0, 5, "y", condition=NEW, outcome="refused"),
        get("c", 6, 7, "x"),
    ],
    "a second winner after a delete": [
        put("a", 0, 1, "x", condition=NEW),
        op("a", "delete", 2, 3, condition=Condition(if_match="x")),
        put("b", 4, 5, "y", condition=NEW),
    ],
    "a delete of nothing": [op("a", "delete", 0, 1, outcome="refused"), put("a", 2, 3, "x")],
}
BAD = {
    "a stale read": [put("a", 0, 1, "x"), put("a", 2, 3, "y"), get("b", 4, 5, "x")],
    "a lost write": [put("a", 0, 1, "x"), get("b", 2, 3, None)],
    "a write that two readers saw in opposite orders": [
        put("a", 0, 9, "x"),
        put("b", 0, 9, "y"),
        get("c", 10, 11, "x"),
        get("d", 12, 13, "y"),
    ],
    "a lost update": [
        put("a", 0, 1, "x"),
        put("b", 2, 9, "y", condition=Condition(if_match="x")),
        put("c", 2, 9, "z", condition=Condition(if_match="x")),
    ],
    "two winners of If-None-Match": [put("a", 0, 5, "x", condition=NEW), put("b", 0, 5, "y", condition=NEW)],
    "a winner whose condition was long past, the bytes being the same again": [
        put("a", 0, 1, "x1"),
        put("a", 2, 3, "y"),
        put("a", 4, 5, "x2"),
        put("b", 6, 7, "z", condition=Condition(if_match="x1")),
    ],
    "a read of a write that was refused": [
        put("a", 0, 1, "x"),
        put("b", 2, 3, "y", condition=NEW, outcome="refused"),
        get("c", 4, 5, "y"),
    ],
    "a read of what nobody wrote": [put("a", 0, 1, "x"), get("b", 2, 3, "w")],
    "an unknown write that takes effect before it was asked for": [get("a", 0, 1, "x"), put("b", 2, None, "x")],
    "an unknown write that takes effect twice": [
        put("b", 0, None, "y"),
        get("c", 1, 2, "y"),
        put("a", 3, 4, "x"),
        get("c", 5, 6, "x"),
        get("c", 7, 8, "y"),
    ],
    "a refusal that nothing explains": [
        put("a", 0, 1, "x"),
        put("b", 2, 3, "y", condition=Condition(if_match="x"), outcome="refused"),
    ],
    "a delete that found nothing although there was something": [
        put("a", 0, 1, "x"),
        op("b", "delete", 2, 3, outcome="refused"),
    ],
    "a delete that was undone": [put("a", 0, 1, "x"), op("b", "delete", 2, 3), get("c", 4, 5, "x")],
}


@pytest.mark.parametrize("name", GOOD)
def test_what_can_have_happened_passes(name: str) -> None:
    assert check(GOOD[name]) == []


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_have_happened_fails(name: str) -> None:
    (violation,) = check(BAD[name])
    assert violation.key == "k"


def test_keys_are_checked_apart() -> None:
    bad = BAD["a stale read"]
    other = [Operation(client="z", kind="get", key="other", called=n, returned=n + 1) for n in range(5)]
    assert [violation.key for violation in check([*other, *bad])] == ["k"]


def test_a_violation_is_cut_down_to_what_cannot_be() -> None:
    history, now = list[Operation](), 0
    for n in range(200):
        history += [put("a", now, now + 1, f"t{n}"), get("b", now + 2, now + 3, f"t{n}")]
        now += 4
    stale = get("c", now, now + 1, "t7")
    history += [stale, *(put("d", now + 2 + n, now + 3 + n, f"later{n}") for n in range(50))]
    (violation,) = check(history)
    assert stale in violation.operations
    assert len(violation.operations) <= 3
    text = str(violation)
    assert "c: get -> found t7" in text
    assert "later" not in text


def test_a_violation_says_when_what_was_asked_and_what_came_of_it() -> None:
    refused = put("b", 3_000_000, 4_500_000, "y", condition=Condition(if_match="x"), outcome="refused")
    lines = str(check([put("u", 0, None, "u", condition=NEW), put("a", 1_000_000, 2_000_000, "x"), refused])[0]).splitlines()
    assert lines == [
        "k: no order of these 3 operations explains what the clients saw",
        "  before them: nothing, or what nobody names",
        "  [1.000 ms .. 2.000 ms] a: put x -> done",
        "  [3.000 ms .. 4.500 ms] b: put y If-Match: x -> refused",
        "  and 1 of unknown outcome whose effect, if any, nobody read",
    ]


def test_a_long_history_with_many_unknown_writes_is_checked_in_bounds() -> None:
    history, now = list[Operation](), 0
    for n in range(2_000):
        if n % 10 == 0:
            history.append(put("u", now, None, f"u{n}"))
        history += [put("a", now, now + 9, f"a{n}"), put("b", now, now + 9, f"b{n}")]
        history += [get("c", now + 10, now + 11, f"b{n}"), get("d", now + 10, now + 12, f"b{n}")]
        now += 20
    assert is_linearizable(history, max_configurations=50_000)


def test_the_search_says_when_it_meets_its_bound() -> None:
    history = [put(f"c{n}", 0, 100, f"t{n}") for n in range(20)]
    history += [get("r", 101 + n, 102 + n, f"t{n}") for n in range(3)]
    with pytest.raises(SearchTooLarge, match="100 configurations"):
        is_linearizable(history, max_configurations=100)
