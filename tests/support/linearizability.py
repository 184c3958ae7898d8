"""Whether what clients saw of an object can have happened in some order, one operation at a time. Pure.

Theory of operation
-------------------
An object is a register: a *tag* that no two writes share, or nothing. A history says of each operation when it was called,
when it returned, and what came of it. It is linearizable if every operation can be given one moment between its call and
its return such that a single register, worked on at these moments, gives exactly these outcomes (Herlihy and Wing, 1990). A
write of unknown outcome may take effect at any moment after its call, or never.

The search is Wing and Gong's (1993) with Lowe's cache (2017): operations are placed one after another; those that nobody
unplaced has returned before are candidates; where nothing fits it goes back; a configuration, that is a set of placed
operations and a state, is entered once. Keys are checked apart, which is the same as together (locality). Four things keep
it small, and none changes a verdict:

- A candidate that fits and changes nothing (a read, a refusal) is placed at once: it could never be in the way.
- All tags that nobody names (no read found them, no condition asks for them) are one.
- Writes of unknown outcome that would do the same under the same condition take turns in the order of their calls.
- A write of unknown outcome that would change nothing is left for later.

It keeps its own stack and ends with `SearchTooLarge` instead of running for ever. What fails is cut down to the fewest
operations that still fail; each cut only takes constraints away, so what is left is as impossible as the whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from client.record import Condition

__all__ = ["Operation", "SearchTooLarge", "Violation", "check", "is_linearizable", "violations"]

MAX_CONFIGURATIONS = 1_000_000
Kind = Literal["get", "put", "delete"]
Outcome = Literal["done", "refused", "unknown"]
State = str | None
_UNNAMED = "?"  # not a tag: `Condition` takes no such ETag
_FREE = Condition()


class SearchTooLarge(Exception):
    """The search met its bound; the history is neither shown to be right nor wrong."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """What one client asked and saw.

    Attributes
    ----------
    called, returned : int
        On one clock; `returned` is None exactly if the outcome is unknown. Equal times count as overlapping.
    kind : str
        get, put or delete.
    tag : str or None
        Of a get: what it found. Of a put: what it makes current.
    outcome : str
        refused: the condition did not hold, and a delete without one: there was nothing.
    condition : Condition
        Its ETags are tags.
    """

    client: str
    kind: Kind
    key: str
    called: int
    returned: int | None
    tag: State = None
    outcome: Outcome = "done"
    condition: Condition = _FREE

    def __post_init__(self) -> None:
        assert (self.returned is None) == (self.outcome == "unknown")
        assert self.kind != "get" or self.outcome == "done", "a get that failed says nothing"

    @property
    def may_write(self) -> bool:
        """Whether it changes the register, or may have."""
        return self.kind != "get" and self.outcome != "refused"

    def after(self, state: State) -> tuple[State] | None:
        """The state that it leaves where it finds `state`; None if it can't have had this outcome there."""
        if self.kind == "get":
            return (state,) if state == self.tag else None
        happens = self.condition.holds(state) and (self.kind == "put" or state is not None)
        if self.outcome == "refused":
            return None if happens else (state,)
        return (self.tag if self.kind == "put" else None,) if happens else None

    def __str__(self) -> str:
        asked = {"If-Match": self.condition.if_match, "If-None-Match": self.condition.if_none_match}
        words = [self.kind, *([self.tag] if self.kind == "put" and self.tag else [])]
        words += [f"{name}: {tag}" for name, tag in asked.items() if tag is not None]
        outcome = f"found {self.tag or 'nothing'}" if self.kind == "get" else self.outcome
        return f"{self.client}: {' '.join(words)} -> {outcome}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Violation:
    """Operations on one key that no order explains.

    Attributes
    ----------
    operations : tuple of Operation
        As few as could be found, in the order of their calls.
    initial : frozenset
        The register may have been in any of these states before them.
    """

    key: str
    operations: tuple[Operation, ...]
    initial: frozenset[State]

    def __str__(self) -> str:
        named, start = _named(self.operations), min(op.called for op in self.operations)
        unseen = [op for op in self.operations if op.outcome == "unknown" and not (op.kind == "put" and op.tag in named)]
        shown = [op for op in self.operations if op not in unseen]
        first = sorted(str(state or "nothing") for state in self.initial if state is None or state in named)
        lines = [f"{self.key}: no order of these {len(self.operations)} operations explains what the clients saw"]
        lines += [f"  before them: {' or '.join(first)}{', or what nobody names' if len(self.initial) > len(first) else ''}"]
        lines += [f"  [{_ms(op.called - start)} .. {_ms(op.returned, since=start)}] {op}" for op in shown]
        if unseen:
            lines.append(f"  and {len(unseen)} of unknown outcome whose effect, if any, nobody read")
        return "\n".join(lines)


def check(history: Iterable[Operation], *, max_configurations: int = MAX_CONFIGURATIONS) -> list[Violation]:
    """The violations in a history of any number of keys, at most one for each; see `violations`."""
    return list(violations(history, max_configurations=max_configurations))


def violations(history: Iterable[Operation], *, max_configurations: int = MAX_CONFIGURATIONS) -> Iterator[Violation]:
    """For each key that is not linearizable, starting from nothing, its smallest failing part.

    Raises
    ------
    SearchTooLarge
        More than `max_configurations` had to be looked at for one key.
    """
    by_key: dict[str, list[Operation]] = {}
    for operation in history:
        by_key.setdefault(operation.key, []).append(operation)
    for key, operations in sorted(by_key.items()):
        if not is_linearizable(operations, max_configurations=max_configurations):
            yield _smallest(key, operations, max_configurations)


def is_linearizable(
    operations: Iterable[Operation],
    *,
    initial: Iterable[State] = (None,),
    max_configurations: int = MAX_CONFIGURATIONS,
) -> bool:
    """Whether operations on one key can have happened in some order, from one of the `initial` states."""
    search = _Search.of(operations)
    return search.run({search.canonical(state) for state in initial}, max_configurations=max_configurations)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Configuration:
    """`first` known operations and those in the bits of `more` after them are placed, and `unknown` ones in its bits."""

    first: int = 0
    more: int = 0
    unknown: int = 0
    state: State = None

    def with_known(self, index: int, state: State) -> _Configuration:
        first, more = self.first, self.more | 1 << (index - self.first)
        while more & 1:
            first, more = first + 1, more >> 1
        return _Configuration(first=first, more=more, unknown=self.unknown, state=state)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Search:
    known: Sequence[Operation]
    unknown: Sequence[Operation]
    named: frozenset[str]
    turns: Sequence[Sequence[int]] = field(default_factory=list)  # unknown ones that do the same

    @classmethod
    def of(cls, operations: Iterable[Operation]) -> _Search:
        ordered = sorted(operations, key=lambda op: op.called)
        named = _named(ordered)
        ordered = [op if op.tag is None or op.tag in named else replace(op, tag=_UNNAMED) for op in ordered]
        unknown = [op for op in ordered if op.returned is None and op.may_write]
        alike: dict[tuple[str, State, Condition], list[int]] = {}
        for index, op in enumerate(unknown):
            alike.setdefault((op.kind, op.tag, op.condition), []).append(index)
        known = [op for op in ordered if op.returned is not None]
        return cls(known=known, unknown=unknown, named=named, turns=list(alike.values()))

    def canonical(self, state: State) -> State:
        return state if state is None or state in self.named else _UNNAMED

    def run(self, initial: Iterable[State], *, max_configurations: int) -> bool:
        seen: set[_Configuration] = set()
        stack = [iter([_Configuration(state=state) for state in sorted(initial, key=str)])]
        while stack:
            here = next(stack[-1], None)
            if here is None:
                stack.pop()
            elif here.first == len(self.known):
                return True
            elif here not in seen:
                if len(seen) == max_configurations:
                    raise SearchTooLarge(f"{max_configurations} configurations of {len(self.known)} operations")
                seen.add(here)
                stack.append(iter(self._next(here)))
        return False

    def _next(self, here: _Configuration) -> list[_Configuration]:
        """Where one more operation can lead."""
        horizon, found = None, list[_Configuration]()
        for index in range(here.first, len(self.known)):
            op = self.known[index]
            assert op.returned is not None
            if horizon is not None and op.called > horizon:
                break
            if here.more >> (index - here.first) & 1:
                continue
            horizon = op.returned if horizon is None else min(horizon, op.returned)
            if (after := op.after(here.state)) is not None:
                if not op.may_write:
                    return [here.with_known(index, here.state)]
                found.append(here.with_known(index, after[0]))
        for turn in self.turns:
            index = next((index for index in turn if not here.unknown >> index & 1), -1)
            if index < 0 or (horizon is not None and self.unknown[index].called > horizon):
                continue
            after = self.unknown[index].after(here.state)
            if after is not None and after[0] != here.state:
                found.append(replace(here, unknown=here.unknown | 1 << index, state=after[0]))
        return found


def _named(operations: Iterable[Operation]) -> frozenset[str]:
    """The tags that a read found or a condition asks for."""
    named: set[str | None] = set()
    for op in operations:
        named |= {op.condition.if_match, op.condition.if_none_match, op.tag if op.kind == "get" else None}
    return frozenset(tag for tag in named if tag not in (None, "*"))


def _smallest(key: str, operations: Sequence[Operation], max_configurations: int) -> Violation:
    def fails(part: Sequence[Operation], initial: frozenset[State]) -> bool:
        try:
            return not is_linearizable(part, initial=initial, max_configurations=max_configurations)
        except SearchTooLarge:
            return False

    empty = frozenset[State]([None])
    ends = sorted(op.returned for op in operations if op.returned is not None)
    end = ends[_first(len(ends) - 1, lambda index: fails(_until(operations, ends[index]), empty))]
    part = _until(operations, end)
    starts = sorted((op.called for op in part), reverse=True)
    start = starts[_first(len(starts) - 1, lambda index: fails(*_since(part, starts[index])))]
    shorter, initial = _since(part, start)
    if not fails(shorter, initial):  # what failed did not fail for every earlier start, or only the search was too large
        shorter, initial = part, empty
    part = sorted(shorter, key=lambda op: op.called)
    for op in [op for op in part if not op.may_write]:
        without = [other for other in part if other is not op]
        if fails(without, initial):
            part = without
    return Violation(key=key, operations=tuple(part), initial=initial)


def _first(last: int, holds: Callable[[int], bool]) -> int:
    """The smallest number up to `last` for which it holds, if it holds for all greater ones and for `last`."""
    low = 0
    while low < last:
        middle = (low + last) // 2
        low, last = (low, middle) if holds(middle) else (middle + 1, last)
    return low


def _until(operations: Iterable[Operation], end: int) -> list[Operation]:
    """What had been seen at a moment: what has not returned by then has an unknown outcome."""
    return [
        op if op.returned is None or op.returned <= end else replace(op, returned=None, outcome="unknown")
        for op in operations
        if op.called <= end and (op.may_write or (op.returned is not None and op.returned <= end))
    ]


def _since(operations: Iterable[Operation], start: int) -> tuple[list[Operation], frozenset[State]]:
    """What was seen from a moment on, and in which states the register can have been then.

    What was under way at that moment may have happened before it or not, so its outcome counts as unknown.
    """
    states, part = {None, *(op.tag for op in operations if op.kind == "put" and op.called < start)}, []
    for op in operations:
        if op.called >= start or op.returned is None:
            part.append(op)
        elif op.returned >= start and op.may_write:
            part.append(replace(op, returned=None, outcome="unknown"))
    return part, frozenset(states)


def _ms(moment: int | None, *, since: int = 0) -> str:
    return "?" if moment is None else f"{(moment - since) / 1e6:,.3f} ms"
