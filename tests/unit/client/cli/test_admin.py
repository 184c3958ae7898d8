"""replicate, verify, scrub, cluster and job: what they count, print and exit with."""

from __future__ import annotations

from typing import Any

import pytest

from client import replication
from client.cli import jobs
from client.cli.jobs import changes
from tests.support.fake_store import FakeStore
from tests.unit.client.cli.conftest import Forebay


@pytest.fixture(autouse=True)
def bucket(store: FakeStore) -> None:
    store.buckets.create("demo")


def _lose(store: FakeStore, key: str, *, chunk: int = 0) -> str:
    """Take one node's copy of a chunk away; which node's."""
    ref = list(store.reader(store.stat("demo", key)).refs())[chunk]
    node_id = store.cluster.layout.replicas(ref.partition, count=3)[0]
    del store.fake_chunks.nodes[node_id][ref.partition, ref.id]
    return node_id


# verify


def test_verify_counts_replicas(forebay: Forebay, store: FakeStore) -> None:
    store.put("demo", "key", bytes(range(256)) * 256 * 5)  # the same chunk five times
    store.put("demo", "other", b"x")
    assert forebay("verify").out == "2 objects, 2 chunks: 3 of 3 copies each, re-hashed\n"
    assert forebay("verify", "demo/other").out == "1 object, 1 chunk: 3 of 3 copies each, re-hashed\n"
    store.buckets.create("single", replicas=1, ack="one")
    store.put("single", "key", b"y")
    assert forebay("verify").out == "3 objects, 3 chunks: all 7 copies, 1 to 3 each, re-hashed\n"


def test_verify_exits_with_3_for_one_missing_copy(forebay: Forebay, store: FakeStore) -> None:
    store.put("demo", "good", b"good")
    info = store.put("demo", "key", b"abc")
    _lose(store, "key")
    ran = forebay("verify", code=3)
    assert ran.out == "2 objects, 2 chunks: 5 of 6 copies, re-hashed; 1 missing; 1 object short\n"
    assert f"demo/key (version {info.version}): 1 of 1 chunk short, the worst has 2 of 3 copies" in ran.err
    assert "hint: the nodes repair what they know of; `forebay scrub` has them look for copies that were lost" in ran.err
    health = forebay("verify", "--json", code=3).document
    assert (health["clean"], health["copies_missing"], health["shortfalls"][0]["key"]) == (False, 1, "key")
    assert forebay("verify", "demo/good").code == 0


def test_verify_names_nodes_that_are_down(forebay: Forebay, store: FakeStore) -> None:
    store.put("demo", "key", b"abc")
    store.fake_chunks.down.add("node-2")
    ran = forebay("verify", code=3)
    assert "2 of 3 copies, re-hashed; 1 on nodes that did not answer" in ran.out
    assert "node node-2 did not answer: node node-2 is down" in ran.err


def test_verify_looks_at_kept_versions_too(forebay: Forebay, store: FakeStore) -> None:
    store.buckets.set("demo", versions=3)
    store.put("demo", "key", b"old")
    _lose(store, "key")
    store.put("demo", "key", b"new")
    store.delete("demo", "key")
    assert "2 objects, 2 chunks: 5 of 6 copies" in forebay("verify", code=3).out


def test_verify_of_nothing_proves_nothing(forebay: Forebay, store: FakeStore) -> None:
    assert forebay("verify").out == "0 objects: nothing to count\n"
    assert "nothing at or below demo/typo" in forebay("verify", "demo/typo", code=1).err
    assert "no bucket 'typo'" in forebay("verify", "typo", code=1).err


def test_verify_shows_only_so_many_objects(forebay: Forebay, store: FakeStore) -> None:
    for number in range(30):
        store.put("demo", f"{number:02}", bytes([number]))
        _lose(store, f"{number:02}")
    ran = forebay("verify", code=3)
    assert "demo/19" in ran.err
    assert "demo/20" not in ran.err
    assert "... and 10 more" in ran.err
    assert len(forebay("verify", "--json", code=3).document["shortfalls"]) == 30


# replicate


def test_replicate_waits_until_the_copies_are_counted(
    forebay: Forebay, store: FakeStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replication, "FIRST_PAUSE_S", 0.0)
    store.buckets.set("demo", replicas=2)
    for key in ("a", "a/b", "ab"):
        store.put("demo", key, key.encode())
    asked = 0

    def repair_late() -> None:
        nonlocal asked
        asked += 1
        if asked > 6:
            store.repair()

    store.fake_chunks.before_verify = repair_late
    ran = forebay("replicate", "demo/a", "--replicas", "3", "--timeout", "30")
    assert ran.out == "2 objects, 2 changed: 3 of 3 copies each, re-hashed\n"
    assert [info.record.replicas for info in store.walk("demo")] == [3, 3, 2]
    assert forebay("replicate", "demo/a", "--replicas", "3", "--json").document["changed"] == 0


def test_replicate_gives_up_with_3(forebay: Forebay, store: FakeStore) -> None:
    store.buckets.set("demo", replicas=2)
    store.put("demo", "a", b"a")
    ran = forebay("replicate", "demo/a", "--replicas", "3", "--timeout", "0", code=3)
    assert ran.out == "1 object, 1 changed: after 0 s 1 object still without 3 copies\n"
    assert "demo/a (version" in ran.err
    assert forebay("replicate", "demo/a", "--replicas", "3", "--timeout", "0", "--json", code=3).document["complete"] is False


def test_replicate_refuses_more_than_there_are_nodes_and_changes_nothing(forebay: Forebay, store: FakeStore) -> None:
    info = store.put("demo", "a", b"a")
    for number in ("4", "0"):
        assert "the cluster has 3 nodes" in forebay("replicate", "demo", "--replicas", number, code=1).err
    assert store.stat("demo", "a") == info
    assert "nothing at or below demo/b" in forebay("replicate", "demo/b", "--replicas", "2", code=1).err
    store.buckets.set("demo", replicas=4)
    store.put("demo", "c", b"c")  # asks for four already, so that there is nothing to change
    assert "the cluster has 3 nodes" in forebay("replicate", "demo/c", "--replicas", "4", code=1).err


# cluster


def test_cluster_status_shows_each_node(forebay: Forebay, store: FakeStore) -> None:
    store.fake_chunks.down.add("node-3")
    store.node_ids.append("node-4")  # up, and not in the layout
    assert forebay("cluster", "status").lines == [
        "node-1\tup\tzone-1\thost-node-1\thttp://node-1:7070\t600\t400\t0\t0",
        "node-2\tup\tzone-1\thost-node-2\thttp://node-2:7070\t600\t400\t0\t0",
        "node-3\tdown\tzone-1\thost-node-3\t-\t-\t-\t-\t-",
        "node-4\tspare\t-\t-\thttp://node-4:7070\t600\t400\t0\t0",
    ]
    status = forebay("cluster", "status", "--json").document
    assert status["nodes"][0]["disk"] == {"total_bytes": 1000, "free_bytes": 400, "reserve_bytes": 100}
    assert status["nodes"][2]["detail"] == "node node-3 is down"


def test_cluster_status_tells_of_nodes_that_come_and_go_and_of_what_moves(
    forebay: Forebay, store: FakeStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    states = {"node-1": "up", "node-2": "draining", "node-3": "draining", "node-4": "spare"}
    nodes = [{"node_id": node_id, "state": state, "zone": "z", "host": "h"} for node_id, state in states.items()]
    told = {"version": 3, "older": [2, 1], "move": "layout 3: 1 of 2 nodes complete", "nodes": nodes}
    ask = store.admin
    monkeypatch.setattr(
        store, "admin", lambda method, path, **given: told if path == "/v1/admin/layout" else ask(method, path, **given)
    )
    store.fake_chunks.down.add("node-3")
    ran = forebay("cluster", "status")
    assert [line.split("\t")[:2] for line in ran.lines] == [[node_id, state] for node_id, state in states.items()]
    assert ran.err == "layouts that are not retired: 3, 2, 1; layout 3: 1 of 2 nodes complete\n"
    document = forebay("cluster", "status", "--json").document
    assert (document["layout_version"], document["older_layouts"]) == (3, [2, 1])
    assert [node["up"] for node in document["nodes"]] == [True, True, False, True]


def test_cluster_status_says_why_nothing_is_committed(forebay: Forebay, store: FakeStore) -> None:
    store.metadata = {"incarnation": "i1", "went_back": False, "frozen": "commits are frozen by me"}
    assert forebay("cluster", "status").err.splitlines() == ["no commits: commits are frozen by me"]
    store.metadata = {"incarnation": "i1", "went_back": True, "frozen": None}
    assert "node node-1 finds metadata that is not its cluster's" in forebay("cluster", "status").err


def test_cluster_layout(forebay: Forebay, store: FakeStore) -> None:
    assert forebay("cluster", "layout").lines[0] == "node-1\t1.0\tzone-1\thost-node-1"
    assert forebay("cluster", "layout", "--json").document == store.cluster.layout.to_json()


# scrub and job


def _job(number: int, **changed: Any) -> dict[str, Any]:
    return {
        "id": f"job{number}",
        "kind": "scrub",
        "node_id": f"node-{number}",
        "state": "running",
        "cancelling": False,
        "cursor": "",
        "num_chunks": 0,
        "total_chunks": None,
        "size_bytes": 0,
        "detail": "",
        "started_s": 0.0,
        "updated_s": 0.0,
        **changed,
    }


def test_scrub_starts_on_every_node_and_names_those_that_miss_it(forebay: Forebay, store: FakeStore) -> None:
    store.jobs.states = [[_job(1), _job(2), _job(3)]]
    assert [line.split("\t")[2] for line in forebay("scrub").lines] == ["node-1", "node-2", "node-3"]
    store.fake_chunks.down.add("node-2")
    ran = forebay("scrub", "--json", code=1)
    assert [job["id"] for job in ran.documents] == ["job1", "job3"]
    assert ran.err == "error: node node-2 was not told to scrub: node node-2 is down\n"


@pytest.mark.parametrize(("end", "code"), [("done", 0), ("failed", 1)])
def test_scrub_wait_follows_the_jobs_to_their_end(
    forebay: Forebay, store: FakeStore, monkeypatch: pytest.MonkeyPatch, end: str, code: int
) -> None:
    monkeypatch.setattr(jobs, "POLL_S", 0.0)
    running = [_job(number) for number in (1, 2, 3)]
    half = [_job(1, state="done"), _job(2, num_chunks=5, total_chunks=9), _job(3, state="done")]
    ended = [_job(1, state="done"), _job(2, state=end, num_chunks=9, total_chunks=9, detail="1 corrupt"), _job(3, state="done")]
    store.jobs.states = [running, half, ended]
    ran = forebay("scrub", "--wait", code=code)
    assert ran.lines[-1] == f"scrub job2 on node-2 {end}, 9 of 9 chunks, 0 bytes: 1 corrupt"


def test_job_ls_and_cancel(forebay: Forebay, store: FakeStore) -> None:
    store.jobs.states = [[_job(1, cancelling=True), _job(2, state="done", detail="fine", size_bytes=7)]]
    assert [line.split("\t")[3] for line in forebay("job", "ls").lines] == ["cancelling", "done"]
    assert forebay("job", "ls", "--json").documents == store.jobs.states[0]
    assert forebay("job", "cancel", "a/b").out == "job a/b: cancelling\n"
    assert store.jobs.cancelled == ["a%2Fb"]


def test_job_watch(forebay: Forebay, store: FakeStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "POLL_S", 0.0)
    assert forebay("job", "watch").err == "no job is running\n"
    store.jobs.states = [[_job(1), _job(2, state="done")]] * 2 + [[_job(1, state="cancelled"), _job(2, state="done")]]
    assert [job["state"] for job in forebay("job", "watch", "--json").documents] == ["running", "cancelled"]
    assert "`forebay job ls`" in forebay("job", "watch", "none", code=1).err


def test_changes_ends_when_a_job_is_forgotten() -> None:
    reads = iter([[_job(1)], [_job(1)], [_job(1, num_chunks=1)], []])
    slept: list[float] = []
    seen = list(changes(lambda: next(reads), {"job1"}, sleep=slept.append))
    assert [job["num_chunks"] for job in seen] == [0, 1]
    assert len(slept) == 3
