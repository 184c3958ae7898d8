"""Which connections a node keeps: those on which something moves, and no more than it has room for."""

from __future__ import annotations

from collections.abc import Callable

from storenode.connections import Connections
from tests.support.fake_cluster import Clock

PATIENCE_S = 10.0


class FakeLine:
    def __init__(self, connections: Connections, *, idle: bool = True, unsent: int = 0) -> None:
        self.moved_s = 0.0
        self.idle, self.unsent = idle, unsent
        self.was_cut_off = False
        self.accepted = connections.opened(self)

    def num_unsent_bytes(self) -> int:
        return self.unsent

    def is_idle(self) -> bool:
        return self.idle

    def cut_off(self) -> None:
        self.was_cut_off = True


class Bench:
    def __init__(self, *, limit: int = 10) -> None:
        self.clock = Clock()
        self.looks: list[Callable[[], None]] = []
        self.connections = Connections(
            limit=limit,
            patience_s=PATIENCE_S,
            refusal=b"",
            clock=self.clock,
            later=lambda seconds, look: self.looks.append(look),
        )

    def line(self, *, idle: bool = True, unsent: int = 0) -> FakeLine:
        return FakeLine(self.connections, idle=idle, unsent=unsent)

    def pass_time(self, seconds: float) -> None:
        self.clock.sleep(seconds)
        self.looks.pop()()


def test_a_client_that_takes_nothing_is_cut_off_whether_its_request_is_answered_or_not() -> None:
    bench = Bench()
    lines = [bench.line(idle=idle, unsent=100) for idle in (True, False)]
    bench.pass_time(0.0)
    bench.pass_time(PATIENCE_S - 1)
    assert [line.was_cut_off for line in lines] == [False, False]
    bench.pass_time(1.0)
    assert [line.was_cut_off for line in lines] == [True, True]


def test_a_client_that_takes_slowly_is_not() -> None:
    bench = Bench()
    line = bench.line(idle=False, unsent=1000)
    for _ in range(20):
        bench.pass_time(PATIENCE_S - 1)
        line.unsent -= 1
    assert not line.was_cut_off


def test_a_client_that_asks_nothing_is_cut_off_and_one_that_waits_for_us_is_not() -> None:
    bench = Bench()
    silent, waiting = bench.line(), bench.line(idle=False)
    bench.pass_time(PATIENCE_S)
    assert (silent.was_cut_off, waiting.was_cut_off) == (True, False)


def test_what_was_cut_off_is_not_cut_off_again() -> None:
    bench = Bench()
    line = bench.line()
    bench.pass_time(PATIENCE_S)
    assert bench.looks == []  # Nobody is left to look at.
    line.was_cut_off = False
    bench.line()
    bench.pass_time(PATIENCE_S - 1)
    assert (line.was_cut_off, len(bench.looks)) == (False, 1)


def test_the_connection_that_was_idle_for_longest_makes_room() -> None:
    bench = Bench(limit=4)
    lines = [bench.line(idle=False), bench.line(unsent=5), bench.line(), bench.line()]
    bench.clock.sleep(1.0)
    lines[2].moved_s = bench.clock()
    late = bench.line()
    assert late.accepted
    assert [line.was_cut_off for line in (*lines, late)] == [False, False, False, True, False]


def test_without_an_idle_one_there_is_no_room_until_one_ends() -> None:
    bench = Bench(limit=2)
    busy = [bench.line(idle=False) for _ in range(2)]
    assert not bench.line().accepted
    bench.connections.closed(busy[0])
    assert bench.line().accepted
