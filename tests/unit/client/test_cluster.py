"""What a process knows of the nodes: when the view is fetched, by how many, and who is asked first."""

from __future__ import annotations

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from client.cluster import Cluster, ClusterView
from client.errors import EndpointUnreachable, MetadataCorrupt, MetadataUnavailable, StoreError
from client.placement import Layout, Layouts, Node
from tests.support.fake_cluster import Clock

WAIT_S = 10.0


def view_of(*node_ids: str, version: int = 1, down: tuple[str, ...] = ()) -> ClusterView:
    layout = Layout(version=version, partitions=16, nodes=tuple(Node(id=name) for name in node_ids))
    endpoints = {name: (f"http://{name}:1", f"http://{name}:2") for name in node_ids if name not in down}
    return ClusterView(cluster_id="c", layouts=Layouts(current=layout), endpoints=endpoints)


class Loader:
    """Gives the view it holds, or raises the error it holds, and counts."""

    def __init__(self, view: ClusterView | None = None) -> None:
        self.view = view or view_of("a", "b", "c")
        self.error: StoreError | None = None
        self.num_loads = 0

    def __call__(self) -> ClusterView:
        self.num_loads += 1
        if self.error is not None:
            raise self.error
        return self.view


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def loader() -> Loader:
    return Loader()


@pytest.fixture
def cluster(loader: Loader, clock: Clock) -> Cluster:
    return Cluster(loader, ttl_s=30.0, suspect_s=5.0, min_refresh_s=1.0, clock=clock)


def test_nothing_is_fetched_before_the_first_use(cluster: Cluster, loader: Loader) -> None:
    assert loader.num_loads == 0
    assert cluster.view() is loader.view
    assert loader.num_loads == 1


def test_a_view_is_used_until_it_is_old(cluster: Cluster, loader: Loader, clock: Clock) -> None:
    cluster.view()
    clock.sleep(29.0)
    cluster.view()
    assert loader.num_loads == 1
    clock.sleep(1.0)
    loader.view = view_of("a", version=2)
    assert cluster.layout.version == 2
    assert loader.num_loads == 2


def test_a_failure_has_the_view_fetched_at_the_next_use(cluster: Cluster, loader: Loader, clock: Clock) -> None:
    cluster.view()
    clock.sleep(2.0)
    loader.view = view_of("a", "b", "c", down=("a",))
    cluster.failed("a")
    with pytest.raises(EndpointUnreachable, match="holds no lease"):
        cluster.endpoint("a")
    assert loader.num_loads == 2


def test_a_thousand_failures_within_a_second_fetch_the_view_once(cluster: Cluster, loader: Loader, clock: Clock) -> None:
    cluster.view()
    for _ in range(1100):
        clock.sleep(1 / 1024)
        cluster.failed("a")
        cluster.view()
    assert loader.num_loads == 2


def test_a_node_that_fails_while_the_view_is_fetched_has_it_fetched_again(clock: Clock) -> None:
    views = [view_of("a", "b"), view_of("a", "b"), view_of("a", "b", down=("a",))]

    def load() -> ClusterView:
        if len(views) == 2:
            made.failed("a")
        return views.pop(0)

    made = Cluster(load, ttl_s=30.0, suspect_s=5.0, min_refresh_s=1.0, clock=clock)
    made.view()
    clock.sleep(30.0)
    made.view()
    clock.sleep(1.0)
    assert "a" not in made.view().endpoints


def test_a_view_that_cannot_be_refreshed_is_used_on(cluster: Cluster, loader: Loader, clock: Clock) -> None:
    known = cluster.view()
    loader.error = MetadataUnavailable("down")
    clock.sleep(30.0)
    assert cluster.view() is known
    assert cluster.view() is known
    assert loader.num_loads == 2  # And not asked for at each use.
    clock.sleep(1.0)
    loader.error, loader.view = None, view_of("a", version=2)
    assert cluster.view() is loader.view


def test_without_any_view_the_error_is_raised(cluster: Cluster, loader: Loader) -> None:
    loader.error = EndpointUnreachable("nobody there")
    with pytest.raises(EndpointUnreachable, match="nobody there"):
        cluster.view()
    loader.error = None
    assert cluster.view() is loader.view


def test_an_asked_for_refresh_raises_and_is_not_bounded(cluster: Cluster, loader: Loader) -> None:
    cluster.view()
    cluster.refresh()
    cluster.refresh()
    assert loader.num_loads == 3
    loader.error = MetadataUnavailable("down")
    with pytest.raises(MetadataUnavailable):
        cluster.refresh()


def test_threads_that_come_together_fetch_the_first_view_once(clock: Clock) -> None:
    entered, release = threading.Event(), threading.Event()
    loads: list[int] = []

    def load() -> ClusterView:
        loads.append(1)
        entered.set()
        assert release.wait(WAIT_S)
        return view_of("a")

    cluster = Cluster(load, ttl_s=30.0, suspect_s=5.0, clock=clock)
    with ThreadPoolExecutor(8) as pool:
        views = [pool.submit(cluster.view) for _ in range(8)]
        assert entered.wait(WAIT_S)
        release.set()
        assert len({id(view.result()) for view in views}) == 1
    assert len(loads) == 1


def test_while_one_thread_refreshes_the_others_go_on_with_what_is_known(clock: Clock) -> None:
    entered, release = threading.Event(), threading.Event()
    views = [view_of("a"), view_of("a", "b")]

    def load() -> ClusterView:
        if len(views) == 1:
            entered.set()
            assert release.wait(WAIT_S)
        return views.pop(0)

    cluster = Cluster(load, ttl_s=30.0, suspect_s=5.0, clock=clock)
    old = cluster.view()
    clock.sleep(30.0)
    with ThreadPoolExecutor(1) as pool:
        refreshing = pool.submit(cluster.view)
        assert entered.wait(WAIT_S)
        assert cluster.view() is old
        release.set()
        assert refreshing.result() is cluster.view() is not old


def test_the_preferred_endpoint_is_the_first(cluster: Cluster) -> None:
    assert cluster.endpoint("b") == "http://b:1"


def test_an_unknown_node_is_down(cluster: Cluster) -> None:
    assert cluster.suspected("stranger")
    with pytest.raises(EndpointUnreachable, match="stranger"):
        cluster.endpoint("stranger")


def test_suspicion_ends_by_itself_or_by_an_answer(cluster: Cluster, clock: Clock) -> None:
    cluster.failed("a")
    cluster.failed("b")
    assert cluster.suspected("a")
    cluster.answered("a")
    assert not cluster.suspected("a")
    clock.sleep(4.9)
    assert cluster.suspected("b")
    clock.sleep(0.2)
    assert not cluster.suspected("b")
    cluster.answered("never failed")


def test_ranking_keeps_the_order_of_placement_among_the_trusted_and_among_the_others(cluster: Cluster, loader: Loader) -> None:
    loader.view = view_of("a", "b", "c", "d", "e", down=("d",))
    assert cluster.ranked(("c", "a", "b")) == ("c", "a", "b")
    cluster.failed("c")
    assert cluster.ranked(("c", "d", "a", "e", "b")) == ("a", "e", "b", "c", "d")
    assert cluster.ranked(()) == ()


def test_near_nodes_come_first_among_the_trusted_and_among_the_others(cluster: Cluster) -> None:
    assert cluster.ranked(("c", "a", "b"), by=lambda node: node != "b") == ("b", "c", "a")
    cluster.failed("b")
    cluster.failed("a")
    assert cluster.ranked(("a", "b", "c"), by=lambda node: node != "b") == ("c", "b", "a")


def test_readers_are_spread_because_placement_is(cluster: Cluster) -> None:
    firsts = {cluster.ranked(cluster.layout.replicas(p, count=3))[0] for p in range(16)}
    assert firsts == {"a", "b", "c"}


def test_a_refresh_without_a_new_layout_keeps_what_was_computed(cluster: Cluster, loader: Loader) -> None:
    known = cluster.layouts
    loader.view = view_of("a", "b", "c", down=("b",))
    assert cluster.refresh().endpoints == loader.view.endpoints
    assert cluster.layouts is known
    loader.view = view_of("a", "b", "c", version=2)
    assert cluster.refresh() is loader.view


def test_views_come_back_from_json() -> None:
    view = view_of("a", "b", down=("b",))
    assert ClusterView.from_json(json.loads(json.dumps(view.to_json()))) == view


def test_a_view_names_the_sockets_of_nodes_that_have_one() -> None:
    view = replace(view_of("a", "b"), sockets={"b": "/disk/b/chunks.sock"})
    assert ClusterView.from_json(json.loads(json.dumps(view.to_json()))) == view


@pytest.mark.parametrize(
    "value",
    [{}, [], None, {"cluster_id": "c", "layouts": [], "nodes": {}}, {**view_of("a").to_json(), "nodes": []}],
)
def test_a_damaged_view_is_metadata_corrupt(value: object) -> None:
    with pytest.raises(MetadataCorrupt):
        ClusterView.from_json(value)  # type: ignore[arg-type]


def test_a_node_that_is_missing_makes_the_view_be_fetched_again_soon() -> None:
    clock, up = Clock(), {"a"}
    cluster = Cluster(lambda: view_of(*up), ttl_s=3600.0, suspect_s=5.0, min_refresh_s=1.0, clock=clock)
    with pytest.raises(EndpointUnreachable, match="b is down"):
        cluster.endpoint("b")
    up.add("b")
    clock.now_s += 1.0
    assert cluster.endpoint("b")
