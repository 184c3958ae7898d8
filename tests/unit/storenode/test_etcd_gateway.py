"""Calls to members that misbehave: who is asked next, what is never asked twice, and when a call gives up."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest

from client.errors import MetadataUnavailable
from storenode.etcd import EtcdMetaStore
from storenode.etcd_address import Endpoint, EtcdAddress
from storenode.metastore import Put
from tests.support.socket_server import Connection, Script, SocketServer, answer, each, serving

DONE = answer(200, json.dumps({"header": {"revision": "7"}, "succeeded": True}).encode())
NO_LEADER = answer(503, json.dumps({"error": "etcdserver: no leader", "message": "etcdserver: no leader", "code": 14}).encode())
TIMED_OUT = answer(
    503, json.dumps({"error": {"grpc_code": 14, "http_code": 503, "message": "etcdserver: request timed out"}}).encode()
)


def always(data: bytes) -> Script:
    def script(connection: Connection) -> None:
        while connection.request():
            connection.send(data)

    return script


def hang_up(connection: Connection) -> None:
    connection.request()


@contextmanager
def store_on(*servers: SocketServer, timeout_s: float = 5.0) -> Iterator[EtcdMetaStore]:
    endpoints = tuple(Endpoint(host="127.0.0.1", port=int(server.url.rpartition(":")[2])) for server in servers)
    store = EtcdMetaStore(EtcdAddress(endpoints=endpoints), timeout_s=timeout_s)
    try:
        yield store
    finally:
        store.close()


def write(store: EtcdMetaStore) -> int:
    return store.txn([], [Put(key="k", value=b"v")]).revision


def test_requests_ask_for_a_leader_and_go_over_one_connection() -> None:
    asked = []

    def script(connection: Connection) -> None:
        while request := connection.request():
            asked.append((request.path, request.headers.get("grpc-metadata-hasleader")))
            connection.send(DONE)

    with serving(script) as server, store_on(server) as store:
        assert (write(store), store.revision()) == (7, 7)
        assert server.num_connections == 1
    assert asked == [("/v3/kv/txn", "true"), ("/v3/kv/range", "true")]


@pytest.mark.parametrize("call", [write, EtcdMetaStore.revision], ids=["write", "read"])
def test_a_member_without_a_leader_is_passed_over_and_asked_no_more(call: Callable[[EtcdMetaStore], int]) -> None:
    with serving(each(NO_LEADER)) as first, serving(always(DONE)) as second, store_on(first, second) as store:
        assert call(store) == 7
        assert call(store) == 7
        assert (first.num_connections, second.num_connections) == (1, 1)


@pytest.mark.parametrize("script", [hang_up, each(TIMED_OUT), each(answer(200, b"<html>"))], ids=["cut", "said", "no etcd"])
def test_a_write_that_may_have_happened_is_not_asked_for_again(script: Script) -> None:
    with serving(script) as first, serving(always(DONE)) as second, store_on(first, second) as store:
        with pytest.raises(MetadataUnavailable, match="whether it happened is unknown"):
            write(store)
        assert second.num_connections == 0
        assert write(store) == 7


@pytest.mark.parametrize("script", [hang_up, each(TIMED_OUT), each(answer(200, b"{}"))], ids=["cut", "said", "no etcd"])
def test_a_read_goes_on_at_the_next_member(script: Script) -> None:
    with serving(script) as first, serving(always(DONE)) as second, store_on(first, second) as store:
        assert store.revision() == 7


def test_members_are_asked_again_until_the_time_is_up() -> None:
    with serving(each(NO_LEADER, NO_LEADER, DONE)) as server, store_on(server) as store:
        assert store.revision() == 7
    with serving(always(NO_LEADER)) as server, store_on(server, timeout_s=0.3) as store:
        began_s = time.monotonic()
        with pytest.raises(MetadataUnavailable, match=r"within 0\.3 s .*no leader"):
            store.revision()
        assert 0.3 <= time.monotonic() - began_s < 2.0


def test_a_kept_connection_that_the_member_closed_costs_no_write_its_answer() -> None:
    def once(connection: Connection) -> None:
        connection.request()
        connection.send(DONE)

    with serving(once) as server, store_on(server) as store:
        for _ in range(3):
            assert write(store) == 7
            # The end of the connection is on its way.
            time.sleep(0.05)
        assert server.num_connections == 3


def test_closing_ends_a_call_under_way() -> None:
    with serving(Connection.wait_for_close) as server, store_on(server, timeout_s=60.0) as store, ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(store.revision)
        while not store._gateway._connections._used:
            time.sleep(0.001)
        store.close()
        with pytest.raises(MetadataUnavailable, match="closed"):
            waiting.result(10.0)


def test_an_error_names_what_was_found_and_not_that_the_time_was_up() -> None:
    def leaderless_then_silent(connection: Connection) -> None:
        connection.request()
        connection.send(NO_LEADER)
        connection.wait_for_close()

    with (
        serving(leaderless_then_silent) as server,
        store_on(server, timeout_s=0.3) as store,
        pytest.raises(MetadataUnavailable, match="no leader"),
    ):
        store.revision()
