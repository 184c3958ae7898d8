"""Bounded pools and budgets: full means busy at once, and everything taken is given back."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from client.errors import Busy
from storenode.budget import Budget
from storenode.threads import BoundedPool


@pytest.fixture
def pool() -> Iterator[BoundedPool]:
    made = BoundedPool("test", max_threads=1, max_queue=2)
    yield made
    made.close()


def test_full_queue_is_busy_at_once_and_room_comes_back(pool: BoundedPool) -> None:
    async def scenario() -> tuple[int, list[object], int]:
        release = threading.Event()
        running = [asyncio.create_task(pool.run(release.wait, 10.0)) for _ in range(2)]
        await asyncio.sleep(0)
        with pytest.raises(Busy, match="test queue") as refused:
            await pool.run(print)
        assert refused.value.retry_after_s == 1.0
        full = pool.pending
        release.set()
        return full, await asyncio.gather(*running), await pool.run(int, "7")

    assert asyncio.run(scenario()) == (2, [True, True], 7)
    assert pool.pending == 0


def test_errors_come_back_and_give_their_place_back(pool: BoundedPool) -> None:
    with pytest.raises(ValueError, match="invalid literal"):
        asyncio.run(pool.run(int, "x"))
    assert pool.pending == 0


def test_run_to_end_waits_for_the_thread_even_when_cancelled(pool: BoundedPool) -> None:
    begun, release, ended = threading.Event(), threading.Event(), threading.Event()

    def work() -> None:
        begun.set()
        release.wait(10.0)
        ended.set()

    async def scenario() -> None:
        task = asyncio.create_task(pool.run_to_end(work))
        await asyncio.to_thread(begun.wait, 10.0)
        task.cancel()
        await asyncio.sleep(0)
        assert not task.done()
        release.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert ended.is_set()

    asyncio.run(scenario())


@pytest.mark.parametrize("run", [BoundedPool.run, BoundedPool.run_to_end])
def test_cancelled_call_that_has_not_begun_is_dropped(pool: BoundedPool, run: Callable[..., Any]) -> None:
    called: list[int] = []

    async def scenario() -> None:
        release = threading.Event()
        first = asyncio.create_task(pool.run(release.wait, 10.0))
        second = asyncio.create_task(run(pool, called.append, 1))
        await asyncio.sleep(0)
        second.cancel()
        with pytest.raises(asyncio.CancelledError):
            await second
        await asyncio.sleep(0)  # The news goes from the task to the pool's queue.
        release.set()
        await first
        await pool.run(called.append, 2)

    asyncio.run(scenario())
    assert called == [2]
    assert pool.pending == 0


def test_budget_is_given_back_when_the_block_and_all_holders_are_done() -> None:
    async def scenario() -> list[int]:
        budget, taken = Budget("bytes", limit=10), list[int]()
        holders = [asyncio.get_running_loop().create_future() for _ in range(2)]
        with budget.take(7) as held:
            with pytest.raises(Busy, match="7 bytes of at most 10, and this request needs 4"):
                budget.take(4)
            held.keep_until(holders)
        for holder in holders:
            taken.append(budget.taken)
            holder.set_result(None)
            await asyncio.sleep(0)
        return [*taken, budget.taken]

    assert asyncio.run(scenario()) == [7, 7, 0]


def test_budget_is_given_back_after_an_error() -> None:
    budget = Budget("places", limit=1)
    for _ in range(2):
        with pytest.raises(ZeroDivisionError), budget.take():
            raise ZeroDivisionError
    assert budget.taken == 0
