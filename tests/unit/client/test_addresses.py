"""Of several addresses, the one is used at which the node is: no address of another, of a stranger, or of nobody."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from client.addresses import Addresses, node_at
from client.cluster import Cluster, ClusterView
from client.errors import EndpointUnreachable
from client.placement import Layout, Layouts, Node
from client.wire import encode_json
from tests.support.socket_server import Connection, answer, serving

URLS = ("http://127.0.0.1:7071", "http://b:7070")


@dataclass(slots=True)
class Network:
    """Who is at an address, as this process sees it."""

    at: dict[str, str] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)

    def __call__(self, url: str) -> str:
        self.asked.append(url)
        return self.at.get(url, "refused")


@pytest.fixture
def network() -> Network:
    return Network({URLS[1]: "b"})


@pytest.fixture
def addresses(network: Network) -> Addresses:
    return Addresses(timeout_s=1.0, ask=network)


def test_a_single_address_is_taken_unasked(addresses: Addresses, network: Network) -> None:
    assert addresses.of("b", ("http://anywhere:1",)) == "http://anywhere:1"
    assert addresses.all_of({"b": ("http://anywhere:1",)}) == ("http://anywhere:1",)
    assert network.asked == []


def test_the_first_address_that_leads_to_the_node_is_found_once(addresses: Addresses, network: Network) -> None:
    assert addresses.of("b", URLS) == addresses.of("b", URLS) == URLS[1]
    assert network.asked == list(URLS)
    network.at[URLS[0]] = "b"
    assert Addresses(timeout_s=1.0, ask=network).of("b", URLS) == URLS[0]


def test_an_address_of_another_node_is_passed_over(addresses: Addresses, network: Network) -> None:
    network.at[URLS[0]] = "a"
    assert addresses.of("b", URLS) == URLS[1]


def test_a_node_that_is_nowhere_is_unreachable_and_all_is_said(addresses: Addresses, network: Network) -> None:
    network.at = {URLS[1]: "a"}
    with pytest.raises(EndpointUnreachable, match=rf"at none of its addresses \({URLS[0]}: refused; {URLS[1]}: a\)"):
        addresses.of("b", URLS)
    network.at = {URLS[1]: "b"}
    assert addresses.of("b", URLS) == URLS[1]


def test_a_node_that_failed_or_moved_is_looked_for_anew(addresses: Addresses, network: Network) -> None:
    addresses.of("b", URLS)
    network.at = {URLS[0]: "b"}
    addresses.forget("b")
    assert addresses.of("b", URLS) == URLS[0]
    moved = ("http://elsewhere:1", URLS[1])
    network.at = {moved[0]: "b"}
    assert addresses.of("b", moved) == moved[0]


def test_only_nodes_that_are_reached_count_among_all(addresses: Addresses) -> None:
    endpoints = {"a": ("http://a:1", "http://a:2"), "b": URLS, "c": ("http://c:1",)}
    assert addresses.all_of(endpoints) == (URLS[1], "http://c:1")


def test_a_cluster_uses_the_address_that_works_and_looks_again_after_a_failure(network: Network) -> None:
    layouts = Layouts(current=Layout(version=1, partitions=16, nodes=(Node(id="b"),)))
    view = ClusterView(cluster_id="c", layouts=layouts, endpoints={"b": URLS})
    cluster = Cluster(lambda: view, ttl_s=30.0, suspect_s=5.0, addresses=Addresses(timeout_s=1.0, ask=network))
    assert cluster.endpoint("b") == URLS[1]
    network.at = {URLS[0]: "b"}
    assert cluster.endpoint("b") == URLS[1]
    cluster.failed("b")
    assert cluster.endpoint("b") == URLS[0]


# --- asking


def test_a_node_says_who_it_is_and_is_shown_no_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FOREBAY_TOKEN", "secret")
    seen: list[dict[str, str]] = []

    def script(connection: Connection) -> None:
        request = connection.request()
        assert request is not None
        seen.append(request.headers)
        connection.send(answer(200, encode_json({"status": "ok", "node_id": "b"})))

    with serving(script) as server:
        assert node_at(server.url, timeout_s=5.0) == "b"
    assert "authorization" not in seen[0]


@pytest.mark.parametrize("body", [b"<html>", b"[]", b"{}"])
def test_a_stranger_is_no_node(body: bytes) -> None:
    def script(connection: Connection) -> None:
        connection.request()
        connection.send(answer(200, body))

    with serving(script) as server:
        assert node_at(server.url, timeout_s=5.0) == "something else is there"


def test_nobody_is_no_node() -> None:
    with serving() as server:
        url = server.url
    assert "refused" in node_at(url, timeout_s=5.0)
