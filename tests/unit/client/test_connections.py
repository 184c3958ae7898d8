"""Which connections are lent, and to whom none is lent for a while."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from client.connections import Connections
from client.errors import Busy, Misconfigured
from tests.support.fake_cluster import Clock

ONE, OTHER = "http://127.0.0.1:1", "http://127.0.0.1:2"


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def connections(clock: Clock) -> Iterator[Connections]:
    made = Connections(max_open=2, max_idle=2, clock=clock)
    yield made
    made.close()


def test_no_more_are_lent_for_one_endpoint_than_configured(connections: Connections) -> None:
    first, _ = connections.borrow(ONE)
    connections.borrow(ONE)
    with pytest.raises(Busy, match="2 requests to"):
        connections.borrow(ONE)
    connections.borrow(OTHER)
    connections.give_back(ONE, first, reusable=False)
    connections.borrow(ONE)


def test_what_could_not_be_lent_does_not_count(connections: Connections) -> None:
    for _ in range(3):
        with pytest.raises(Misconfigured):
            connections.borrow("nonsense")


def test_an_endpoint_that_wants_to_be_left_alone_is_for_as_long_as_it_said(connections: Connections, clock: Clock) -> None:
    connections.leave_alone(ONE, Busy("too many chunks here", node_id="n1", retry_after_s=5.0))
    connections.borrow(OTHER)
    clock.sleep(3.0)
    for _ in range(2):
        with pytest.raises(Busy, match="too many chunks here") as caught:
            connections.borrow(ONE)
        assert (caught.value.node_id, caught.value.retry_after_s) == ("n1", 2.0)
    clock.sleep(2.0)
    connections.borrow(ONE)
