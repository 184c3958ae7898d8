"""The set of what is tried again: order, backoff, bound, and the revision it holds back."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from storenode.retry_queue import RetryQueue


def make_queue(*, limit: int = 10, draw: float = 1.0) -> RetryQueue[str]:
    return RetryQueue(limit=limit, base_s=1.0, max_s=8.0, uniform=lambda low, high: low + (high - low) * draw)


def test_a_key_is_due_at_its_time_and_not_before() -> None:
    queue = make_queue()
    queue.add("late", revision=2, due_s=20.0)
    queue.add("early", revision=1, due_s=10.0)
    assert queue.due(9.9) == []
    assert queue.due(10.0) == ["early"]
    assert queue.due(30.0) == ["early", "late"]
    assert queue.next_due_s() == 10.0


def test_backoff_doubles_up_to_its_bound_and_jitter_halves_it_at_most() -> None:
    for draw, factor in ((1.0, 1.0), (0.0, 0.5)):
        queue = make_queue(draw=draw)
        queue.add("k", revision=1, due_s=0.0)
        waits = []
        for attempt in range(1, 7):
            assert queue.failed("k", now_s=100.0) == attempt
            waits.append((queue.next_due_s() or 0.0) - 100.0)
        assert waits == [factor * s for s in (1.0, 2.0, 4.0, 8.0, 8.0, 8.0)]


def test_a_full_set_turns_new_keys_away_and_still_takes_those_it_has() -> None:
    queue = make_queue(limit=2)
    assert queue.add("a", revision=5, due_s=9.0) and queue.add("b", revision=6, due_s=9.0)
    assert not queue.add("c", revision=1, due_s=0.0)
    assert queue.add("a", revision=3, due_s=4.0)
    assert (queue.oldest_revision(), queue.next_due_s(), len(queue)) == (3, 4.0, 2)


def test_a_key_added_again_keeps_its_older_revision_and_counts_as_tried() -> None:
    queue = make_queue()
    queue.add("k", revision=5, due_s=0.0)
    assert queue.num_fresh == 1
    queue.failed("k", now_s=0.0)
    queue.add("k", revision=9, due_s=50.0)
    assert (queue.oldest_revision(), queue.num_fresh) == (5, 0)


def test_failing_an_unknown_key_does_nothing() -> None:
    queue = make_queue()
    assert queue.failed("gone", now_s=0.0) == 0
    assert len(queue) == 0 and queue.next_due_s() is None and queue.oldest_revision() is None


@given(st.lists(st.tuples(st.sampled_from("abcdef"), st.integers(1, 99), st.sampled_from(["add", "fail", "done"]))))
def test_the_oldest_revision_is_never_newer_than_that_of_any_unfinished_key(steps: list[tuple[str, int, str]]) -> None:
    queue = make_queue(limit=100)
    model: dict[str, int] = {}
    for key, revision, action in steps:
        if action == "add":
            queue.add(key, revision=revision, due_s=float(revision))
            model[key] = min(revision, model.get(key, revision))
        elif action == "fail":
            queue.failed(key, now_s=0.0)
        else:
            queue.done(key)
            model.pop(key, None)
        assert queue.oldest_revision() == min(model.values(), default=None)
        assert len(queue) == len(model)
