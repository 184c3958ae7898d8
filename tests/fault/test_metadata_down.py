"""The metadata engine is away: no commits and a clear error, while chunks are served to whoever knows their references."""

from __future__ import annotations

import random
import time

import pytest

from client.errors import MetadataUnavailable, ObjectNotFound, StoreError
from tests.support.cluster import CHUNK_BYTES, QUICK, LiveCluster, eventually

PAYLOAD = random.Random(8).randbytes(3 * CHUNK_BYTES)
DEADLINE_S = "4"


def test_with_the_metadata_locked_names_fail_and_references_go_on(
    cluster: LiveCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FOREBAY_DEADLINE_S", DEADLINE_S)
    # A node waits for its turn with the metadata, and then for the metadata: longer than clients of tests wait for it.
    monkeypatch.setenv("FOREBAY_READ_TIMEOUT_S", str(4 * float(QUICK["FOREBAY_METADATA_TIMEOUT_S"])))
    with cluster.client() as client:
        info = client.put("data", "key", PAYLOAD)
        eventually(lambda: cluster.is_whole(client, info), what="all replicas")
        with cluster.metadata_locked():
            with pytest.raises(MetadataUnavailable) as refused:
                cluster.ask(cluster.node_ids[0], "GET", "/v1/records/data/key")
            assert refused.value.status == 503
            # A client asks the other nodes until its deadline, which may fall into the middle of a node's wait.
            with pytest.raises(StoreError) as given_up:
                client.put("data", "refused", PAYLOAD)
            assert given_up.value.retryable
            assert client.reader(info).read_into(bytearray(info.size)) == info.size
            for node_id in cluster.node_ids:
                assert cluster.ask(node_id, "GET", "/healthz")["status"] == "ok"
                ref = info.record.content.refs[0]
                client.chunks.fetch_into(node_id, ref, memoryview(bytearray(ref.size)))
        with pytest.raises(ObjectNotFound):
            client.stat("data", "refused")
        _write_again(cluster, monkeypatch)


def test_a_metadata_file_that_was_moved_away_takes_no_commit_and_works_again_when_it_is_back(
    cluster: LiveCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FOREBAY_DEADLINE_S", DEADLINE_S)
    elsewhere = cluster.directory / "moved.sqlite"
    with cluster.client() as client:
        client.put("data", "key", PAYLOAD)
        cluster.meta_path.rename(elsewhere)
        with pytest.raises(StoreError) as given_up:
            client.put("data", "refused", PAYLOAD)
        assert given_up.value.retryable
        assert not cluster.meta_path.exists(), "an empty engine must not take the place of the lost one"
        elsewhere.rename(cluster.meta_path)
        assert client.get("data", "key") == PAYLOAD
        _write_again(cluster, monkeypatch)
    for node_id in cluster.node_ids:
        assert cluster.running(node_id)


def test_leases_that_ran_out_during_an_outage_are_taken_again(cluster: LiveCluster) -> None:
    first = cluster.node_ids[0]
    with cluster.metadata_locked():
        end_s = time.monotonic() + 2 * float(QUICK["FOREBAY_LEASE_TTL_S"])
        eventually(lambda: time.monotonic() > end_s, what="the leases have run out")
    eventually(lambda: cluster.up_nodes(first) == set(cluster.node_ids), what="all nodes are known again")


def _write_again(cluster: LiveCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """Leases that ran out in the outage are taken again first, which may last longer than the short deadline above."""
    everyone = set(cluster.node_ids)
    eventually(lambda: all(cluster.up_nodes(node_id) == everyone for node_id in everyone), what="all leases are held again")
    monkeypatch.setenv("FOREBAY_DEADLINE_S", "20")
    with cluster.client() as client:
        client.put("data", "accepted", PAYLOAD)
        assert client.get("data", "accepted") == PAYLOAD
