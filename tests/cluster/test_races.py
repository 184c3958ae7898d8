"""Conditional writes under races, over HTTP, with replies lost on the way: exactly one winner, and it knows."""

from __future__ import annotations

import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest

from client.client import Client
from client.errors import EndpointUnreachable, PreconditionFailed
from client.transport import Response
from tests.support.cluster import LiveCluster

pytestmark = pytest.mark.slow

RACERS = 10
RACES = 50  # Of each kind: a thousand racers in all.
LOST_REPLIES = 0.3


@contextmanager
def _clients_that_lose_replies(cluster: LiveCluster) -> Iterator[list[Client]]:
    """One client for each racer; some answers to their commits are thrown away after the node has given them."""
    with ExitStack() as stack:
        clients = [stack.enter_context(cluster.client()) for _ in range(RACERS)]
        for number, client in enumerate(clients):
            _lose_replies(client, draws=random.Random(number))
        yield clients


def _lose_replies(client: Client, *, draws: random.Random) -> None:
    transport = client._transport
    request = transport.request

    def losing(method: str, url: str, path: str, **options: Any) -> Response:
        response = request(method, url, path, **options)
        if method == "PUT" and path.startswith("/v1/records/") and draws.random() < LOST_REPLIES:
            raise EndpointUnreachable(f"the reply to {method} {path} was lost by the test")
        return response

    transport.request = losing  # type: ignore[method-assign]


@pytest.mark.parametrize("condition", ["if_none_match", "if_match"])
def test_of_racing_conditional_writes_exactly_one_wins_and_knows(cluster: LiveCluster, condition: str) -> None:
    with _clients_that_lose_replies(cluster) as clients, ThreadPoolExecutor(RACERS) as threads, cluster.client() as reader:
        for race in range(RACES):
            key = f"race-{race}"
            none_match = "*" if condition == "if_none_match" else None
            match = None if none_match else reader.put("data", key, b"before").etag

            def attempt(
                racer: int, key: str = key, match: str | None = match, none_match: str | None = none_match
            ) -> str | None:
                payload = f"racer {racer}".encode()
                try:
                    return clients[racer].put("data", key, payload, if_match=match, if_none_match=none_match).etag
                except PreconditionFailed:
                    return None

            etags = list(threads.map(attempt, range(RACERS)))
            winners = [racer for racer, etag in enumerate(etags) if etag is not None]
            assert len(winners) == 1, f"{key}: {winners} believe that they won"
            assert reader.stat("data", key).etag == etags[winners[0]]
            assert reader.get("data", key) == f"racer {winners[0]}".encode()
