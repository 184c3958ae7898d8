"""Who commits for whom, and that nobody is forgotten."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from client.errors import DiskFull, MetadataUnavailable, StoreError
from storenode.group_commit import GroupCommit, Outcome
from storenode.metastore import MAX_TXNS, MAX_TXNS_BYTES, Put, Txn, TxnResult
from tests.support.cluster import eventually

TIMEOUT_S = 30.0


def txn(name: str) -> Txn:
    return Txn(changes=[Put(key=name, value=b"")])


class Engine:
    """Commits groups when the test lets it, and remembers them by the keys put."""

    def __init__(self, *, timeout_s: float = TIMEOUT_S) -> None:
        self.groups: list[list[list[str]]] = []
        self.gates: dict[int, threading.Event] = {}
        self.error: BaseException | None = None
        self.group = GroupCommit(self.commit, timeout_s=timeout_s, too_slow=lambda: MetadataUnavailable("too slow"))

    def commit(self, calls: Sequence[Sequence[Txn]]) -> list[Outcome]:
        self.groups.append([[txn.changes[0].key for txn in txns] for txns in calls])
        gate = self.gates.get(len(self.groups))
        assert gate is None or gate.wait(TIMEOUT_S)
        if self.error is not None:
            raise self.error
        return [
            StoreError("refused")
            if txns[0].changes[0].key == "bad"
            else [TxnResult(ok=True, revision=len(self.groups))] * len(txns)
            for txns in calls
        ]

    def run(self, *names: str, size_bytes: int = 1) -> list[TxnResult]:
        return self.group.run([txn(name) for name in names], size_bytes=size_bytes)

    def behind_the_first(
        self, pool: ThreadPoolExecutor, *names: str, size_bytes: int = 1
    ) -> tuple[Future[list[TxnResult]], list[Future[list[TxnResult]]]]:
        """One call that is being committed until gate 1 opens, and, behind it in this order, one for each name."""
        self.gates[1] = threading.Event()
        first = pool.submit(self.run, "first")
        eventually(lambda: len(self.groups) == 1, what="the first is committing")
        others = []
        for name in names:
            others.append(pool.submit(self.run, name, size_bytes=size_bytes))
            eventually(lambda: len(self.group._queue) == 1 + len(others), what="the call waits")
        return first, others


def test_a_call_alone_is_committed_at_once() -> None:
    engine = Engine()
    assert engine.run("a", "b") == [TxnResult(ok=True, revision=1)] * 2
    assert engine.run("c") == [TxnResult(ok=True, revision=2)]
    assert engine.groups == [[["a", "b"]], [["c"]]]


def test_those_that_wait_are_committed_together_in_their_order() -> None:
    engine = Engine()
    with ThreadPoolExecutor(4) as pool:
        first, others = engine.behind_the_first(pool, "a", "b", "c")
        engine.gates[1].set()
        assert first.result(TIMEOUT_S)[0].revision == 1
        assert [other.result(TIMEOUT_S)[0].revision for other in others] == [2, 2, 2]
    assert engine.groups == [[["first"]], [["a"], ["b"], ["c"]]]


def test_a_group_is_bounded_as_a_call_is() -> None:
    engine = Engine()
    with ThreadPoolExecutor(4) as pool:
        _, others = engine.behind_the_first(pool, "a", "b", "c", size_bytes=MAX_TXNS_BYTES // 2)
        engine.gates[1].set()
        assert [other.result(TIMEOUT_S)[0].revision for other in others] == [2, 2, 3]
    engine = Engine()
    with ThreadPoolExecutor(3) as pool:
        engine.behind_the_first(pool, "a")
        full = pool.submit(engine.run, *["b"] * MAX_TXNS)
        eventually(lambda: len(engine.group._queue) == 3, what="the full one waits")
        engine.gates[1].set()
        assert full.result(TIMEOUT_S)[0].revision == 3


def test_what_one_call_is_refused_does_not_hurt_the_others() -> None:
    engine = Engine()
    with ThreadPoolExecutor(4) as pool:
        _, (before, bad, after) = engine.behind_the_first(pool, "a", "bad", "b")
        engine.gates[1].set()
        with pytest.raises(StoreError, match="refused"):
            bad.result(TIMEOUT_S)
        assert before.result(TIMEOUT_S) == after.result(TIMEOUT_S) == [TxnResult(ok=True, revision=2)]


def test_an_error_of_the_commit_is_everybodys_and_the_next_group_goes_on() -> None:
    engine = Engine()
    with ThreadPoolExecutor(4) as pool:
        first, others = engine.behind_the_first(pool, "a", "b")
        engine.error = DiskFull("no room")
        engine.gates[1].set()
        errors = [call.exception(TIMEOUT_S) for call in (first, *others)]
    assert [str(error) for error in errors] == ["no room"] * 3
    assert all(isinstance(error, DiskFull) for error in errors)
    assert len({id(error) for error in errors}) == 3
    engine.error = None
    assert engine.run("c")[0].ok


def test_a_leader_that_meets_a_defect_leaves_nobody_waiting() -> None:
    engine = Engine()
    with ThreadPoolExecutor(3) as pool:
        first, _ = engine.behind_the_first(pool)
        engine.error = ZeroDivisionError()
        led = pool.submit(engine.run, "a")
        along = pool.submit(engine.run, "b")
        eventually(lambda: len(engine.group._queue) == 3, what="both wait")
        engine.gates[1].set()
        assert isinstance(first.exception(TIMEOUT_S), ZeroDivisionError)
        errors = {type(led.exception(TIMEOUT_S)), type(along.exception(TIMEOUT_S))}
    assert errors == {ZeroDivisionError, MetadataUnavailable}
    engine.error = None
    assert engine.run("c")[0].ok


def test_a_call_that_waited_too_long_gives_up_and_is_not_committed() -> None:
    engine = Engine(timeout_s=0.05)
    with ThreadPoolExecutor(2) as pool:
        first, (late,) = engine.behind_the_first(pool, "late")
        with pytest.raises(MetadataUnavailable, match="too slow"):
            late.result(TIMEOUT_S)
        engine.gates[1].set()
        assert first.result(TIMEOUT_S)[0].ok
    assert engine.run("next")[0].ok
    assert engine.groups == [[["first"]], [["next"]]]


def test_a_call_that_gives_up_while_it_is_committed_holds_up_nobody() -> None:
    engine = Engine()
    with ThreadPoolExecutor(3) as pool:
        _, (leader,) = engine.behind_the_first(pool, "leader")
        engine.gates[2] = threading.Event()
        engine.group._timeout_s = 1.0  # Read when a call begins to wait.
        member = pool.submit(engine.run, "member")
        eventually(lambda: len(engine.group._queue) == 3, what="the member waits")
        engine.gates[1].set()
        with pytest.raises(MetadataUnavailable, match="too slow"):
            member.result(TIMEOUT_S)
        assert engine.groups == [[["first"]], [["leader"], ["member"]]]
        engine.gates[2].set()
        assert leader.result(TIMEOUT_S)[0].ok
    assert engine.run("next")[0].ok


def test_many_threads_all_get_their_own_outcome() -> None:
    engine = Engine()
    with ThreadPoolExecutor(16) as pool:
        outcomes = list(pool.map(lambda n: engine.run(*["a"] * n), [1 + n % 7 for n in range(2000)], timeout=TIMEOUT_S))
    assert [len(outcome) for outcome in outcomes] == [1 + n % 7 for n in range(2000)]
    assert not engine.group._queue
