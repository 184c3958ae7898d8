"""Background threads: they outlive what their steps raise, back off, and end when they are told to."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from client.errors import DiskFull, MetadataUnavailable, StoreError
from storenode.outage import Outages
from storenode.worker import Worker

DEADLINE_S = 10.0


class Script:
    """Steps that raise what the test says, and then sleep until woken."""

    def __init__(self, *raised: Exception) -> None:
        self._raised = list(raised)
        self.done = threading.Event()
        self.num_steps = 0

    def __call__(self) -> float | None:
        self.num_steps += 1
        if self._raised:
            raise self._raised.pop(0)
        self.done.set()
        return None


@contextmanager
def working(script: Script) -> Iterator[Worker]:
    worker = Worker("repair", script, base_s=0.001, max_s=0.002)
    worker.start()
    try:
        yield worker
    finally:
        worker.stop()


def test_steps_that_raise_are_followed_by_others(caplog: pytest.LogCaptureFixture) -> None:
    script = Script(DiskFull("sda1 is full"), DiskFull("sda1 is full"), ZeroDivisionError("a defect"))
    with caplog.at_level(logging.INFO), working(script):
        assert script.done.wait(DEADLINE_S)
    assert script.num_steps == 4
    said = [record.getMessage() for record in caplog.records]
    assert said == [
        "repair failed and will be tried again: The disk is full: sda1 is full",
        "a step of repair failed; it goes on",
        "repair works again",
    ]


def test_a_sleeping_worker_is_woken_and_stopped() -> None:
    script = Script()
    with working(script) as worker:
        assert script.done.wait(DEADLINE_S)
        script.done.clear()
        worker.wake()
        assert script.done.wait(DEADLINE_S)
        worker.stop()
        assert worker.stopping
    assert script.num_steps == 2


def test_a_worker_that_was_never_started_can_be_stopped() -> None:
    Worker("idle", Script(), base_s=1.0, max_s=1.0).stop()


def test_pauses_double_up_to_their_bound_and_begin_anew_after_a_success() -> None:
    pauses: list[tuple[float, float]] = []
    outcomes: list[StoreError | None] = [DiskFull("x")] * 5 + [None, DiskFull("x")]

    def step() -> None:
        outcome = outcomes.pop(0)
        if outcome is not None:
            raise outcome
        pauses.clear()

    def draw(low: float, high: float) -> float:
        pauses.append((low, high))
        return high

    worker = Worker("repair", step, base_s=1.0, max_s=8.0, uniform=draw)
    waits = [worker.guarded_step() for _ in range(5)]
    assert waits == [1.0, 2.0, 4.0, 8.0, 8.0]
    assert worker.guarded_step() is None
    assert worker.guarded_step() == 1.0


def test_an_outage_is_logged_once_for_each_reason_and_at_its_end(caplog: pytest.LogCaptureFixture) -> None:
    outages = Outages(logging.getLogger("test"))
    with caplog.at_level(logging.INFO):
        for _ in range(3):
            outages.failed("the cursor", DiskFull("full"))
        outages.failed("the cursor", MetadataUnavailable("gone"))
        outages.failed("the cursor", MetadataUnavailable("gone"))
        outages.succeeded("the cursor")
        outages.succeeded("the cursor")
    assert [record.levelname for record in caplog.records] == ["WARNING", "WARNING", "INFO"]
