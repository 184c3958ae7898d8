"""The linearizability checker against a real register, and against trying every order by brute force."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import combinations, permutations

from hypothesis import event, example, given
from hypothesis import strategies as st

from client.record import Condition
from tests.support.linearizability import Operation, check, is_linearizable

MAX_OPERATIONS = 6


@st.composite
def histories(draw: st.DrawFn, *, max_size: int) -> list[Operation]:
    """What clients see of a register that does one thing at a time, each at a random moment between call and return."""
    count = draw(st.integers(0, max_size))
    moments = draw(st.permutations(range(3 * count)))
    spans = sorted((sorted(moments[3 * n : 3 * n + 3]) for n in range(count)), key=lambda span: span[1])
    state, tags, history = None, list[str](), list[Operation]()
    for number, (called, _, returned) in enumerate(spans):
        kind = draw(st.sampled_from(["get", "put", "put", "delete"]))
        base = Operation(client=f"c{number}", kind="get", key="k", called=called, returned=returned, tag=state)
        if kind == "get":
            history.append(base)
            continue
        if_match = draw(st.sampled_from([None, None, "*", *tags]))
        if_none_match = "*" if kind == "put" and if_match is None and draw(st.booleans()) else None
        condition = Condition(if_match=if_match, if_none_match=if_none_match)
        tag = f"t{number}" if kind == "put" else None
        happens = condition.holds(state) and (kind == "put" or state is not None)
        write = replace(base, kind=kind, tag=tag, condition=condition, outcome="done" if happens else "refused")  # type: ignore[arg-type]
        if draw(st.integers(0, 3)) == 0:
            write = replace(write, outcome="unknown", returned=None)
            happens &= draw(st.booleans())
        history.append(write)
        if happens:
            state = tag
        if tag is not None:
            tags.append(tag)
    return draw(st.permutations(history))


@st.composite
def mutated(draw: st.DrawFn) -> list[Operation]:
    """Such a history in which something may be wrong."""
    history = draw(histories(max_size=MAX_OPERATIONS))
    tags: list[str | None] = [None, "nobody", *(op.tag for op in history if op.kind == "put")]
    for _ in range(draw(st.integers(0, 3)) if history else 0):
        index = draw(st.integers(0, len(history) - 1))
        op = history[index]
        if op.kind == "get":
            history[index] = replace(op, tag=draw(st.sampled_from(tags)))
        elif op.returned is not None:
            moved = draw(st.sampled_from(["done", "refused", "condition"]))
            if moved == "condition":
                history[index] = replace(op, condition=Condition(if_match=draw(st.sampled_from(tags[1:]))))
            else:
                history[index] = replace(op, outcome=moved)  # type: ignore[arg-type]
    return history


def orders(history: Sequence[Operation]) -> Iterator[Sequence[Operation]]:
    """Every order of every choice of the unknown ones."""
    known = [op for op in history if op.outcome != "unknown"]
    unknown = [op for op in history if op.outcome == "unknown"]
    for count in range(len(unknown) + 1):
        for chosen in combinations(unknown, count):
            yield from permutations([*known, *chosen])


def explains(order: Sequence[Operation]) -> bool:
    for place, op in enumerate(order):
        if any(later.returned is not None and later.returned < op.called for later in order[place + 1 :]):
            return False
    state: str | None = None
    for op in order:
        holds = op.condition.holds(state) and (op.kind != "delete" or state is not None)
        if op.kind == "get":
            if op.tag != state:
                return False
        elif op.outcome == "refused":
            if holds:
                return False
        elif not holds:
            return False
        else:
            state = op.tag
    return True


@given(histories(max_size=40))
def test_what_a_register_did_passes(history: list[Operation]) -> None:
    assert check(history) == []


@given(mutated())
@example([])
def test_the_verdict_is_that_of_trying_every_order(history: list[Operation]) -> None:
    expected = any(map(explains, orders(history)))
    event("linearizable" if expected else "not")
    assert is_linearizable(history) == expected
    assert bool(check(history)) != expected


@given(mutated())
def test_what_a_violation_is_cut_down_to_fails_by_itself(history: list[Operation]) -> None:
    for violation in check(history):
        assert len(violation.operations) <= len(history)
        assert not is_linearizable(violation.operations, initial=violation.initial)
        assert str(violation)
