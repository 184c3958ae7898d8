"""The client as applications open it: over real sockets to a server of a few lines."""

from __future__ import annotations

import os
import pickle
from collections.abc import Iterator

import pytest

from client import Client
from client.cluster import ClusterView
from client.errors import (
    _CLASSES,
    ChunkNotFound,
    EndpointUnreachable,
    Misconfigured,
    ObjectNotFound,
    StoreError,
    from_problem,
    to_problem,
)
from client.placement import Layouts
from client.wire import encode_json
from tests.support.fake_cluster import FakeCluster
from tests.support.socket_server import Connection, SocketServer, answer, serving


@pytest.fixture
def server() -> Iterator[SocketServer]:
    """Three nodes behind one address."""
    fake = FakeCluster()

    def script(connection: Connection) -> None:
        while request := connection.request():
            try:
                response = fake.transport.request(
                    request.method, "http://node-0", request.path, headers=request.headers, body=request.body
                )
            except StoreError as error:
                connection.send(answer(error.status, encode_json(to_problem(error))))
                continue
            head = "".join(f"{name}: {value}\r\n" for name, value in response.headers.items())
            connection.send(answer(response.status, response.body, headers=head))

    with serving(script) as made:
        view = ClusterView(
            cluster_id="fake", layouts=Layouts(current=fake.layout), endpoints=dict.fromkeys(fake.nodes, (made.url,))
        )
        fake.view = lambda: view  # type: ignore[method-assign]
        yield made


def test_a_client_puts_and_gets_over_sockets(server: SocketServer) -> None:
    data = os.urandom(300_000)
    with Client(server.url) as client:
        client.buckets.create("data", replicas=3)
        info = client.put("data", "a/100%/ключ", data, metadata={"a": "b"})
        assert client.get("data", "a/100%/ключ") == data
        assert client.get("data", "a/100%/ключ", start=70_001, end=200_000) == data[70_001:200_000]
        assert client.stat("data", "a/100%/ключ") == info
        assert client.admin("GET", "/v1/buckets").keys() == {"data"}
        client.delete("data", "a/100%/ключ")
        with pytest.raises(ObjectNotFound):
            client.get("data", "a/100%/ключ")


def test_nothing_is_contacted_before_the_first_call() -> None:
    with Client("http://127.0.0.1:1"):
        pass


def test_a_wrong_address_is_said_at_once_with_where_it_came_from() -> None:
    with Client(["http://127.0.0.1:1"]) as client, pytest.raises(EndpointUnreachable) as caught:
        client.get("data", "k")
    assert "http://127.0.0.1:1 (from the endpoints argument)" in caught.value.message


def test_a_wrong_setting_is_said_before_anything_is_opened() -> None:
    with pytest.raises(Misconfigured, match="HOST:PORT"):
        Client("127.0.0.1:7070")


def test_a_fork_of_the_process_is_told_to_open_a_client_of_its_own(server: SocketServer) -> None:
    with Client(server.url) as client:
        client.buckets.create("data", replicas=1)
        child = os.fork()
        if child == 0:
            try:
                client.buckets.list()
                os._exit(1)
            except Misconfigured:
                os._exit(0)
            finally:
                os._exit(2)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert client.buckets.list().keys() == {"data"}  # The parent's connection is as it was.


@pytest.mark.parametrize("kind", [_CLASSES[code] for code in sorted(_CLASSES)])
def test_errors_survive_pickling_and_the_wire(kind: type[StoreError]) -> None:
    error = kind("what happened", key="data/k", node_id="n1", retry_after_s=2.5)
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), again.args, again.__dict__) == (kind, error.args, error.__dict__)
    received = from_problem(to_problem(error), node_id="n2", retry_after_s=2.5)
    if kind.__module__ == "client.errors":
        assert (type(received), received.__dict__) == (kind, error.__dict__)


def test_an_error_without_details_names_who_sent_it() -> None:
    received = from_problem(to_problem(ChunkNotFound("none")), node_id="n2")
    assert (received.node_id, received.key) == ("n2", None)
