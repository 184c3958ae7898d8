"""The shared position of a stream: who may move it, and what workers that are late, early or gone do to it."""

from __future__ import annotations

import multiprocessing
import pickle
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

import tests.support.memory_store  # noqa: F401  Takes the shared memory that all tests need.
from loader.epoch import SharedEpoch, WorkerTurn
from loader.errors import InvalidOption


def copies(epoch: SharedEpoch, count: int) -> list[SharedEpoch]:
    """Copies as forked workers have them: the same memory, their own attributes."""
    found = []
    for _ in range(count):
        child = SharedEpoch.__new__(SharedEpoch)
        child.__dict__.update(epoch.__dict__)
        found.append(child)
    return found


def begin(workers: list[SharedEpoch], *, base_seed: int = 5) -> list[WorkerTurn]:
    return [worker.begin_worker(number, num_workers=len(workers), base_seed=base_seed) for number, worker in enumerate(workers)]


def test_main_process_moves_the_stream() -> None:
    epoch = SharedEpoch()
    assert epoch.next[1:] == (0, 0, 0)
    turn = epoch.begin().turn
    epoch.advance(turn, start=30, within=2)
    assert epoch.next[1:] == (0, 30, 2)
    epoch.finish(turn)
    assert epoch.next[1:] == (1, 0, 0)
    epoch.move(7, start=5)
    assert epoch.next[1:] == (7, 5, 0)


def test_iteration_that_was_overtaken_moves_nothing() -> None:
    epoch = SharedEpoch()
    old = epoch.begin().turn
    epoch.advance(old, start=10)
    new = epoch.begin()
    assert new[1:] == (0, 10, 0)
    epoch.advance(old, start=20)
    epoch.finish(old)
    assert epoch.next[1:] == (0, 10, 0)
    epoch.move(3)
    epoch.finish(new.turn)
    assert epoch.next[1:] == (3, 0, 0)


def test_epoch_advances_once_all_workers_have_finished() -> None:
    epoch = SharedEpoch()
    epoch.move(0, start=12, within=1)
    turns = begin(copies(epoch, 3))
    assert {turn.position[1:] for turn in turns} == {(0, 12, 1)}
    assert epoch.read_by_workers
    for turn in turns:
        assert epoch.next[1:] == (0, 12, 1)
        assert not epoch.finished_by_workers
        turn.finish()
    assert epoch.next[1:] == (1, 0, 0)
    assert epoch.finished_by_workers
    # The training loop may still be in the epoch.
    assert epoch.current[1:] == (0, 12, 1)
    epoch.move(1)
    assert not epoch.read_by_workers
    assert epoch.current[1:] == (1, 0, 0)


def test_worker_that_starts_late_reads_the_epoch_of_the_others() -> None:
    epoch = SharedEpoch()
    first, second = copies(epoch, 2)
    first.begin_worker(0, num_workers=2, base_seed=1).finish()
    late = second.begin_worker(1, num_workers=2, base_seed=1)
    assert late.position.epoch == 0
    late.finish()
    assert epoch.next.epoch == 1


def test_mark_of_a_broken_off_iteration_does_not_count_for_the_next() -> None:
    epoch = SharedEpoch()
    broken = begin(copies(epoch, 2), base_seed=1)
    broken[0].finish()
    first, second = copies(epoch, 2)
    # The second worker is through before the first one has begun, whose predecessor had finished.
    second.begin_worker(1, num_workers=2, base_seed=2).finish()
    late = first.begin_worker(0, num_workers=2, base_seed=2)
    assert late.position.epoch == 0
    late.finish()
    assert epoch.next.epoch == 1


def test_mark_of_a_persistent_worker_does_not_count_for_its_next_iteration() -> None:
    epoch = SharedEpoch()
    workers = copies(epoch, 2)
    begin(workers)[0].finish()  # Then the training loop breaks off, and begins again.
    workers[1].begin_worker(1, num_workers=2, base_seed=5).finish()
    assert workers[0].begin_worker(0, num_workers=2, base_seed=5).position.epoch == 0


def test_leftover_that_finishes_between_two_begins_splits_nobody() -> None:
    epoch = SharedEpoch()
    workers = copies(epoch, 2)
    turns = begin(workers)
    turns[0].finish()
    first = workers[0].begin_worker(0, num_workers=2, base_seed=5)
    turns[1].finish()  # What was left of the old iteration.
    second = workers[1].begin_worker(1, num_workers=2, base_seed=5)
    assert first.position == second.position
    assert first.position.epoch == 0


def test_move_outdates_workers_that_are_under_way() -> None:
    epoch = SharedEpoch()
    workers = copies(epoch, 2)
    turns = begin(workers)
    turns[0].finish()
    epoch.move(0)
    turns[1].finish()
    assert epoch.next[1:] == (0, 0, 0)
    assert {turn.position.epoch for turn in begin(workers)} == {0}


@given(st.lists(st.integers(1, 6), max_size=6), st.randoms(use_true_random=False))
def test_any_interleaving_of_any_number_of_workers_advances_by_one(counts: list[int], random: Random) -> None:
    epoch = SharedEpoch()
    for expected, count in enumerate(counts):
        workers, order = copies(epoch, count), [number for number in range(count) for _ in range(2)]
        turns: dict[int, WorkerTurn] = {}
        random.shuffle(order)
        for number in order:
            assert epoch.next.epoch == expected
            if number in turns:
                turns[number].finish()
            else:
                turns[number] = workers[number].begin_worker(number, num_workers=count, base_seed=expected * 1000)
                assert turns[number].position.epoch == expected
        assert epoch.next.epoch == expected + 1


def test_too_many_workers_are_refused() -> None:
    with pytest.raises(InvalidOption, match="num_workers=506: expected up to 505"):
        SharedEpoch().begin_worker(0, num_workers=506, base_seed=0)


def test_turns_do_not_run_into_the_marks_of_workers() -> None:
    epoch = SharedEpoch()
    workers = copies(epoch, 2)
    for number in range(300):
        for turn in begin(workers, base_seed=2**63 + number):
            turn.finish()
    assert epoch.next[1:] == (300, 0, 0)


def test_pickled_copy_has_a_life_of_its_own() -> None:
    epoch = SharedEpoch()
    epoch.move(2, start=7)
    epoch.version = 9
    clone = pickle.loads(pickle.dumps(epoch))
    assert (clone.next[1:], clone.version) == ((2, 7, 0), 9)
    clone.move(5)
    assert epoch.next[1:] == (2, 7, 0)


def test_forked_process_that_is_no_worker_has_a_stream_of_its_own() -> None:
    epoch = SharedEpoch()
    epoch.move(2, start=7)

    def go_on() -> None:
        assert epoch.begin()[1:] == (2, 7, 0)
        epoch.move(6)
        assert epoch.next.epoch == 6

    child = multiprocessing.get_context("fork").Process(target=go_on)
    child.start()
    child.join()
    assert child.exitcode == 0
    child.close()
    assert epoch.next[1:] == (2, 7, 0)
