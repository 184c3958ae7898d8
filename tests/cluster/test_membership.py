"""Nodes come and go while the cluster works."""

from __future__ import annotations

import random
from functools import partial

import pytest

from client.client import Client
from client.record import ObjectInfo
from tests.support.cluster import CHUNK_BYTES, LiveCluster, eventually


def put(client: Client, key: str, *, seed: int) -> ObjectInfo:
    return client.put("data", key, random.Random(seed).randbytes(5 * CHUNK_BYTES + seed))


def test_a_spare_node_is_given_data(cluster: LiveCluster) -> None:
    with cluster.client() as client:
        infos = [put(client, f"object-{number}", seed=number) for number in range(8)]
        newcomer = cluster.add_spare()
        states = {node["node_id"]: node["state"] for node in client.admin("GET", "/v1/admin/layout")["nodes"]}
        assert states == {**dict.fromkeys(cluster.node_ids, "up"), newcomer: "spare"}
        plan = client.admin("POST", "/v1/admin/layout", json={"change": "add", "nodes": [newcomer]})
        assert plan["committed"] and plan["moved_bytes"] > 0
        # All are on one host, so the newcomer gets a quarter of the copies and no copy of everything.
        assert plan["moved_share"] == pytest.approx(0.25, abs=0.02)
        eventually(lambda: client.cluster.refresh().layout.version == 2, what="all nodes have heard of the new layout")
        for info in infos:
            eventually(partial(cluster.is_whole, client, info), what=f"{info.key} has all its replicas")
        assert any(cluster.stored(newcomer, ref) for info in infos for ref in client.reader(info).refs())
        # Once all nodes are complete, the old layout is forgotten, and the move is over.
        eventually(lambda: client.admin("GET", "/v1/admin/layout")["older"] == [], what="the first layout is retired")
        eventually(
            lambda: [job["state"] for job in client.admin("GET", "/v1/admin/jobs")["jobs"]] == ["done"], what="its job ended"
        )
