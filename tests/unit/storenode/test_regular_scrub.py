"""Scrubs begin by themselves, an interval after the last one, whoever began that and however often the node was restarted."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from storenode.jobs import JobRun, Jobs
from storenode.regular_scrub import RegularScrub
from tests.support.catalogs import open_meta
from tests.support.hooked_meta import HookedMeta
from tests.support.peers import Clock

WEEK_S = 7 * 24 * 3600.0


@pytest.fixture
def meta() -> Iterator[HookedMeta]:
    with open_meta() as meta:
        yield meta


class Bench:
    """A node's jobs and its scrub timer, in a life of their own."""

    def __init__(self, meta: HookedMeta, clock: Clock, *, node_id: str = "a", interval_s: float = WEEK_S) -> None:
        self.clock = clock
        self.jobs = Jobs(meta, node_id=node_id, kinds={"scrub": self._work}, wall_clock=clock)
        self.scrub = RegularScrub(self.jobs, node_id=node_id, interval_s=interval_s, wall_clock=clock)

    def _work(self, run: JobRun) -> None:
        pass

    def pass_time(self, seconds: float) -> int:
        """Look as often as the timer asks for; returns how many scrubs there have been."""
        end_s = self.clock.now_s + seconds
        while self.clock.now_s < end_s:
            pause_s = self.scrub.step()
            self.clock.wait(min(end_s - self.clock.now_s, WEEK_S if pause_s is None else pause_s))
        self.jobs.stop()
        return len(self.jobs.ls())


def test_the_first_comes_an_interval_after_the_first_look_and_then_one_each(meta: HookedMeta) -> None:
    bench = Bench(meta, Clock())
    assert bench.pass_time(0.9 * WEEK_S) == 0
    assert bench.pass_time(0.2 * WEEK_S) == 1
    assert bench.pass_time(3 * WEEK_S) == 4


def test_a_restart_neither_hastens_nor_delays_it(meta: HookedMeta) -> None:
    clock = Clock()
    assert Bench(meta, clock).pass_time(1.5 * WEEK_S) == 1
    assert Bench(meta, clock).pass_time(0.4 * WEEK_S) == 1
    assert Bench(meta, clock).pass_time(0.2 * WEEK_S) == 2


def test_other_nodes_scrubs_do_not_count_and_those_asked_for_do(meta: HookedMeta) -> None:
    clock = Clock()
    Bench(meta, clock, node_id="b").jobs.start("scrub")
    bench = Bench(meta, clock)
    bench.jobs.start("scrub")
    assert bench.pass_time(0.9 * WEEK_S) == 2
    assert bench.pass_time(0.2 * WEEK_S) == 3


def test_a_clock_that_was_set_back_does_not_put_it_off(meta: HookedMeta) -> None:
    clock = Clock()
    clock.now_s = 100 * WEEK_S
    Bench(meta, clock).jobs.start("scrub")
    clock.now_s = 1000.0
    assert Bench(meta, clock).pass_time(1.1 * WEEK_S) == 2


def test_without_an_interval_none_begins(meta: HookedMeta) -> None:
    assert Bench(meta, Clock(), interval_s=0.0).pass_time(10 * WEEK_S) == 0
