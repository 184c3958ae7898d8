"""What a node says of itself, and the long work that it starts."""

from __future__ import annotations

from client.cluster import ClusterView
from client.errors import DiskFailed, MetadataUnavailable
from storenode.filesystem import FileSystem
from tests.support.asgi import call
from tests.support.nodes import OWN, PARTITIONS, PEERS, TestBed, open_node


def test_health_says_only_that_the_process_answers() -> None:
    with open_node(lease=False) as bed:
        assert call(bed.app, "GET", "/healthz").json() == {"status": "ok", "node_id": OWN}


def test_ready_needs_a_lease() -> None:
    with open_node() as bed:
        assert call(bed.app, "GET", "/readyz").json()["status"] == "ready"
    with open_node(lease=False) as bed:
        answer = call(bed.app, "GET", "/readyz")
        assert (answer.status, answer.error) == (503, "metadata-unavailable")


def test_ready_needs_the_metadata_and_the_disk() -> None:
    with open_node() as bed:
        bed.meta.close()
        assert call(bed.app, "GET", "/readyz").status == 503
    with open_node() as bed:
        break_disk(bed)
        assert call(bed.app, "GET", "/readyz").error == "disk-failed"


def break_disk(bed: TestBed) -> None:
    class Broken:
        def usage(self) -> None:
            raise DiskFailed("i/o error")

    object.__setattr__(bed.node, "store", Broken())


def test_full_node_is_ready_to_be_read() -> None:
    with open_node(reserve_bytes=1 << 60) as bed:
        assert call(bed.app, "GET", "/readyz").json()["read_only"] is True


def test_metrics_of_a_node_whose_disk_fails_are_still_there() -> None:
    with open_node() as bed:
        break_disk(bed)
        text = call(bed.app, "GET", "/metrics").body.decode()
    assert 'forebay_chunk_errors_total{error="disk-failed"} 1.0' in text
    assert 'forebay_disk_bytes{kind="free"}' not in text


def test_cluster_tells_a_client_all_that_it_needs() -> None:
    with open_node() as bed:
        bed.peers.down.add("n3")
        told = call(bed.app, "GET", "/v1/cluster").json()
        assert (told["node_id"], told["protocol"], told["cluster_id"]) == (OWN, 1, "c1")
        assert told["limits"]["max_chunk_bytes"] == bed.node.config.max_chunk_bytes
        view = ClusterView.from_json(told)
        assert set(view.endpoints) == {OWN, "n2"}
        assert {node.id for node in view.layout.nodes} == {OWN, *PEERS}
        assert call(bed.app, "GET", "/v1/layout").json() == {"layouts": view.layouts.to_json(), "epoch": 0}
        assert view.layout.partitions == PARTITIONS


def test_status_tells_disk_and_repair() -> None:
    with open_node(fs=FileSystem()) as bed:
        bed.repairs.num_pending = 3
        told = call(bed.app, "GET", "/v1/admin/status").json()
    nothing = {"layout": 0, "fetched_chunks": 0, "fetched_bytes": 0, "rehashed_bytes": 0}
    assert told["follower"] == {"revision": 7, "pending": 3, **nothing}
    assert told["chunks"] == {"num_chunks": 0, "size_bytes": 0}
    assert 0 < told["disk"]["free_bytes"] <= told["disk"]["total_bytes"]


def test_scrub_is_a_job_that_can_be_listed_and_cancelled() -> None:
    with open_node() as bed:
        started = call(bed.app, "POST", "/v1/admin/scrub")
        assert (started.status, started.json()["kind"]) == (202, "scrub")
        assert call(bed.app, "GET", "/v1/admin/jobs").json() == {"jobs": [started.json()]}
        cancelled = call(bed.app, "DELETE", "/v1/admin/jobs/job0")
        assert (cancelled.status, cancelled.json()["cancelling"]) == (202, True)
        assert call(bed.app, "DELETE", "/v1/admin/jobs/none").error == "job-not-found"
        assert call(bed.app, "DELETE", "/v1/admin/jobs/a%2Fb").error == "invalid-request"


def test_metadata_that_is_down_is_said() -> None:
    with open_node() as bed:
        bed.meta.close()
        error = MetadataUnavailable.code
        assert call(bed.app, "GET", "/v1/buckets").error == error
        assert call(bed.app, "PUT", "/v1/objects/data/k", body=b"x").error == error
        # What needs no metadata goes on.
        assert call(bed.app, "GET", "/v1/chunks/1/" + "0" * 64).error == "chunk-not-found"
