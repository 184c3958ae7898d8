"""Jobs: delivered in order, however long their pieces take; no more at a time than there are places."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest

from loader.handoff import HandOff, StreamClosed
from loader.jobs import Job, JobRunner

DEADLINE_S = 20.0


@pytest.fixture
def queue() -> HandOff[str]:
    return HandOff(limit=3)


@pytest.fixture
def runner(queue: HandOff[str]) -> Iterator[JobRunner[str]]:
    runner = JobRunner(queue, num_threads=2)
    yield runner
    queue.close()
    runner.threads.close()
    runner.threads.join()


def nothing() -> None:
    pass


def test_results_come_in_the_order_of_the_jobs(queue: HandOff[str], runner: JobRunner[str]) -> None:
    second_done = threading.Event()
    runner.run(Job(pieces=[lambda: None if second_done.wait(DEADLINE_S) else pytest.fail("never")], finish=lambda: "first"))
    runner.run(Job(pieces=[second_done.set], finish=lambda: "second"))
    assert second_done.wait(DEADLINE_S)
    assert [queue.get(), queue.get()] == ["first", "second"]


def test_whoever_does_the_last_piece_finishes(queue: HandOff[str], runner: JobRunner[str]) -> None:
    done: list[int] = []
    both = threading.Barrier(2, timeout=DEADLINE_S)

    def piece() -> None:
        both.wait()
        done.append(threading.get_ident())

    runner.run(Job(pieces=[piece, piece], finish=lambda: f"{len(set(done))} {threading.get_ident() in done}"))
    assert queue.get() == "2 True"


def test_job_without_pieces_is_done_where_it_is_given(queue: HandOff[str], runner: JobRunner[str]) -> None:
    runner.run(Job(pieces=(), finish=lambda: threading.current_thread().name))
    assert queue.get() == threading.current_thread().name


def test_no_job_begins_before_the_queue_has_a_place(queue: HandOff[str], runner: JobRunner[str]) -> None:
    asked, asked_at_begin = 0, []
    full = threading.Event()

    def give() -> None:
        for number in range(5):
            runner.run(Job(pieces=[nothing], finish=lambda: "made"))
            asked_at_begin.append(asked)
            if number == 2:
                full.set()

    giver = threading.Thread(target=give)
    giver.start()
    assert full.wait(DEADLINE_S)
    for _ in range(5):
        asked += 1
        assert queue.get() == "made"
    giver.join(DEADLINE_S)
    assert asked_at_begin[:3] == [0, 0, 0]
    assert asked_at_begin[3] >= 1
    assert asked_at_begin[4] >= 2


@pytest.mark.parametrize("where", ["piece", "finish"])
def test_error_comes_in_the_place_of_its_job_and_stays(queue: HandOff[str], runner: JobRunner[str], where: str) -> None:
    failed = threading.Event()

    def fail() -> Any:
        failed.set()
        raise ZeroDivisionError

    runner.run(Job(pieces=(), finish=lambda: "ready"))
    runner.run(Job(pieces=[nothing if where == "finish" else fail], finish=fail))
    runner.run(Job(pieces=(), finish=lambda: "never"))
    assert failed.wait(DEADLINE_S)
    assert queue.get() == "ready"
    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            queue.get()


def test_nothing_begins_after_the_end(queue: HandOff[str], runner: JobRunner[str]) -> None:
    runner.threads.close()
    with pytest.raises(StreamClosed):
        runner.run(Job(pieces=[nothing], finish=lambda: ""))
    queue.close()
    with pytest.raises(StreamClosed):
        runner.run(Job(pieces=(), finish=lambda: ""))
