"""A node that turns a client away and names a time: whatever the client does, it does not ask that node before."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from client.client import Client
from client.cluster import ClusterView
from client.errors import AllReplicasFailed, Busy, NotEnoughReplicas, StoreError
from client.manifest import make_ref
from client.placement import Layout, Layouts, Node
from client.wire import encode_json
from tests.support.socket_server import Connection, Request, SocketServer, answer, problem, serving

PAYLOAD = b"payload"
REF = make_ref(PAYLOAD, partitions=64)


class Nodes:
    """A cluster of servers that are all but a view and one answer each: the chunk, or that they are busy for a minute."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.servers: list[SocketServer] = []

    def script(self, node_id: str, *, busy: bool) -> Callable[[Connection], None]:
        def answer_to(request: Request) -> bytes:
            if request.path == "/v1/cluster":
                return answer(200, encode_json(self.view().to_json()))
            self.asked.append(node_id)
            if busy:
                return problem(Busy("no room for a chunk"), headers="retry-after: 60\r\n")
            return answer(200, PAYLOAD)

        def script(connection: Connection) -> None:
            while request := connection.request():
                connection.send(answer_to(request))

        return script

    def view(self) -> ClusterView:
        names = [f"n{number}" for number in range(len(self.servers))]
        layout = Layout(version=1, partitions=64, nodes=tuple(Node(id=name, zone=name) for name in names))
        endpoints = {name: (server.url,) for name, server in zip(names, self.servers, strict=True)}
        return ClusterView(cluster_id="c", layouts=Layouts(current=layout), endpoints=endpoints)


@contextmanager
def client_of(monkeypatch: pytest.MonkeyPatch, *servers: SocketServer) -> Iterator[Client]:
    for name, value in {"DEADLINE_S": "0.3", "RETRY_BASE_S": "0.001", "RETRY_MAX_S": "0.01"}.items():
        monkeypatch.setenv(f"FOREBAY_{name}", value)
    with Client([server.url for server in servers]) as client:
        client.cluster.view()
        yield client


@pytest.mark.parametrize(
    ("call", "kind"),
    [
        (lambda client: client.buckets.get("data"), Busy),
        (lambda client: client.get_many([("data", "a", 0, None), ("data", "b", 0, None)]), Busy),
        (lambda client: client.replica_reader.read(REF, replicas=1), AllReplicasFailed),
        (lambda client: client.uploader(1, ack="one").store(PAYLOAD), NotEnoughReplicas),
        (lambda client: client.uploader(1, ack="one").store_many([b"a", b"b"], executor=client._call_pool), NotEnoughReplicas),
    ],
    ids=["names", "batch get", "chunk read", "chunk put", "batch put"],
)
def test_it_is_asked_once_and_its_words_are_the_last(
    monkeypatch: pytest.MonkeyPatch, call: Callable[[Client], Any], kind: type[StoreError]
) -> None:
    nodes = Nodes()
    with serving(nodes.script("n0", busy=True)) as server:
        nodes.servers = [server]
        with client_of(monkeypatch, server) as client:
            for _ in range(2):  # The second call knows from the first.
                with pytest.raises(kind, match="no room for a chunk"):
                    call(client)
    assert nodes.asked == ["n0"]


def test_other_replicas_are_asked_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = Nodes()
    with serving(nodes.script("n0", busy=True)) as busy, serving(nodes.script("n1", busy=False)) as good:
        nodes.servers = [busy, good]
        with client_of(monkeypatch, busy, good) as client:
            for _ in range(4):
                assert client.replica_reader.read(REF, replicas=2) == PAYLOAD
    assert nodes.asked.count("n0") <= 1
    assert nodes.asked.count("n1") == 4
