"""Work that keeps to a rate."""

from __future__ import annotations

import threading

from storenode.pace import Pace
from tests.support.peers import Clock


def test_bytes_are_let_through_at_the_rate_and_idle_time_is_not_saved_up() -> None:
    clock = Clock()
    pace = Pace(100.0, clock=clock, wait=clock.wait)
    began_s = clock()
    pace.take(1000)
    assert clock() == began_s  # it is paid for by whoever comes next
    pace.take(50)
    assert clock() == began_s + 10
    clock.now_s += 1000
    idle_s = clock()
    pace.take(100)
    pace.take(100)
    assert clock() == idle_s + 1


def test_a_stop_lets_through_what_waits() -> None:
    pace = Pace(1.0)
    pace.take(10**9)
    waiting = threading.Thread(target=pace.take, args=(1,))
    waiting.start()
    pace.stop()
    waiting.join(timeout=30)
    assert not waiting.is_alive()
