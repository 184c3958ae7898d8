"""Nodes come and go while the cluster works: nothing acknowledged is ever missing, and no disk keeps what it should not."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterable
from functools import partial

import pytest

from client.client import Client
from client.errors import NodeInUse, TooFewNodes
from client.manifest import Ref
from client.record import ObjectInfo
from client.verify import verify
from tests.support.cluster import CHUNK_BYTES, LiveCluster, eventually
from tests.support.load import load_on

pytestmark = pytest.mark.slow


def put(client: Client, key: str, *, seed: int) -> ObjectInfo:
    return client.put("data", key, random.Random(seed).randbytes(5 * CHUNK_BYTES + seed))


def every_object(client: Client) -> list[ObjectInfo]:
    found, cursor = list[ObjectInfo](), None
    while True:
        page = client.list("data", cursor=cursor)
        found += page.objects
        if page.cursor is None:
            return found
        cursor = page.cursor


def assert_whole(cluster: LiveCluster, client: Client, infos: Iterable[ObjectInfo]) -> None:
    for info in infos:
        eventually(partial(cluster.is_whole, client, info), what=f"{info.key} has all its replicas")
    health = verify(client, infos)
    assert health.clean, health.to_json()


def test_a_spare_node_is_given_data(cluster: LiveCluster) -> None:
    with cluster.client() as client:
        infos = [put(client, f"object-{number}", seed=number) for number in range(8)]
        newcomer = cluster.add_spare()
        assert cluster.states(client) == {**dict.fromkeys(cluster.node_ids, "up"), newcomer: "spare"}
        plan = cluster.change(client, "add", newcomer)
        # All are on one host, so the newcomer gets a quarter of the copies and no copy of everything.
        assert plan["moved_share"] == pytest.approx(0.25, abs=0.02)
        cluster.await_complete(client)
        assert_whole(cluster, client, infos)
        assert any(cluster.stored(newcomer, ref) for info in infos for ref in client.reader(info).refs())
        (job,) = [job for job in client.admin("GET", "/v1/admin/jobs")["jobs"] if job["kind"] == "rebalance"]
        assert job["state"] in ("running", "done")


@pytest.mark.timeout(400)
def test_three_nodes_become_four_and_three_again_while_data_are_written_and_read(cluster: LiveCluster) -> None:
    leaving = cluster.node_ids[0]
    with cluster.client(*cluster.node_ids[1:]) as client:
        with load_on(client, bucket="data", size_bytes=3 * CHUNK_BYTES) as load:
            eventually(lambda: len(load.written) > 20, what="there is something to move")
            newcomer = cluster.add_spare()
            cluster.change(client, "add", newcomer)
            cluster.await_complete(client)
            cluster.change(client, "drain", leaving)
            assert cluster.states(client)[leaving] == "draining"
            with pytest.raises(NodeInUse, match="still being drained"):
                client.admin("POST", "/v1/admin/layout", json={"change": "remove", "nodes": [leaving]})
            cluster.await_complete(client)
            cluster.await_drained(client, leaving)
        assert cluster.chunk_files(leaving) == []
        infos = every_object(client)
        assert {info.key for info in infos} == set(load.written)
        assert_whole(cluster, client, infos)
        cluster.change(client, "remove", leaving)
        assert cluster.states(client)[leaving] == "spare"
        assert all(client.get("data", key) == data for key, data in load.written.items())


def test_what_a_move_left_behind_is_given_up_by_the_nodes_that_stay(cluster: LiveCluster) -> None:
    with cluster.client() as client:
        infos = [put(client, f"object-{number}", seed=number) for number in range(12)]
        assert_whole(cluster, client, infos)
        cluster.change(client, "add", cluster.add_spare())
        cluster.await_complete(client)
        placed = {(node_id, ref.partition, ref.id) for info in infos for ref, node_id in places(client, info)}

        def num_files() -> int:
            return sum(len(cluster.chunk_files(node_id)) for node_id in cluster.node_ids)

        # Sweeps were asked for, and each disk keeps just what the layout gives it.
        eventually(lambda: num_files() == len(placed), what="nodes keep only what is theirs", deadline_s=60)
        assert_whole(cluster, client, infos)


def places(client: Client, info: ObjectInfo) -> Iterable[tuple[Ref, str]]:
    for ref in client.reader(info).refs():
        for node_id in client.cluster.layout.replicas(ref.partition, count=info.record.replicas):
            yield ref, node_id


def test_what_would_leave_too_few_nodes_is_refused(cluster: LiveCluster) -> None:
    victim = cluster.node_ids[1]
    with cluster.client() as client:
        for kind in ("drain", "remove"):
            with pytest.raises((TooFewNodes, NodeInUse), match=r"a bucket asks for 3 copies|holds data; drain it first"):
                client.admin("POST", "/v1/admin/layout", json={"change": kind, "nodes": [victim]})
        for node_id in cluster.node_ids[:2]:
            cluster.change(client, "drain", node_id, force=True)
        with pytest.raises(TooFewNodes, match="no node that holds data"):
            last = {"change": "drain", "nodes": [cluster.node_ids[2]], "force": True}
            client.admin("POST", "/v1/admin/layout", json=last)


def test_of_operators_that_race_everyone_gets_a_layout_of_his_own(cluster: LiveCluster) -> None:
    plans: list[int] = []
    with cluster.client() as client:

        def operate(node_id: str) -> None:
            change = {"change": "weight", "nodes": [node_id], "weight": 2.0}
            plans.append(cluster.ask(node_id, "POST", "/v1/admin/layout", json=change)["layout"]["version"])

        operators = [threading.Thread(target=operate, args=(node_id,)) for node_id in cluster.node_ids]
        for operator in operators:
            operator.start()
        for operator in operators:
            operator.join()
        assert sorted(plans) == [2, 3, 4]
        told = cluster.standing(client)
        assert told["version"] == 4 and [node["weight"] for node in told["nodes"]] == [2.0, 2.0, 2.0]


def test_a_removed_node_comes_back_as_a_spare_and_can_be_added_again(cluster: LiveCluster) -> None:
    victim = cluster.node_ids[2]
    with cluster.client(*cluster.node_ids[:2]) as client:
        infos = [put(client, f"object-{number}", seed=number) for number in range(4)]
        assert_whole(cluster, client, infos)
        cluster.kill(victim)
        cluster.change(client, "remove", victim, force=True)
        cluster.restart(victim)
        eventually(lambda: cluster.states(client).get(victim) == "spare", what="it is up as a spare")
        cluster.change(client, "add", victim)
        cluster.await_complete(client)
        assert_whole(cluster, client, infos)
