"""The catalog over HTTP: which node is asked, what is repeated and for how long, and that a repeat is the same write."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import suppress
from functools import partial

import pytest

from client.catalog import Commit, Watched
from client.cluster import ClusterView
from client.errors import (
    BucketExists,
    BucketNotEmpty,
    BucketNotFound,
    Busy,
    Conflict,
    DeadlineExceeded,
    EndpointUnreachable,
    InvalidName,
    MetadataCorrupt,
    MetadataUnavailable,
    ObjectNotFound,
    PreconditionFailed,
    StoreError,
)
from client.http_catalog import HttpCatalog
from client.record import BucketPolicy, Condition, Content, ObjectInfo, ObjectRecord
from client.retry import Backoff, Deadline
from client.transport import Response
from client.wire import encode_json
from tests.support.fake_cluster import FakeCluster, Fault
from tests.unit.client.test_names import AWKWARD_KEYS

ANY = Condition()


def record(write_id: str = "w1") -> ObjectRecord:
    return ObjectRecord(write_id=write_id, content=Content(size=0, digest=""))


@pytest.fixture
def fake() -> Iterator[FakeCluster]:
    made = FakeCluster()
    made.catalog.create_bucket("data", BucketPolicy())
    yield made


@pytest.fixture
def catalog(fake: FakeCluster) -> HttpCatalog:
    """A catalog that has reached the cluster before, so that it repeats calls."""
    made = fake.http_catalog()
    made.buckets()
    for node in fake.nodes.values():
        node.requests.clear()
    return made


def asked(fake: FakeCluster) -> list[str]:
    return [node_id for node_id, node in fake.nodes.items() for _ in node.requests]


# --- the calls


def test_buckets(catalog: HttpCatalog) -> None:
    policy = BucketPolicy(replicas=2, ack="all", versions=3)
    catalog.create_bucket("more", policy)
    catalog.create_bucket("more", policy)
    with pytest.raises(BucketExists):
        catalog.create_bucket("more", BucketPolicy())
    assert catalog.bucket("more") == policy
    assert catalog.buckets() == {"data": BucketPolicy(), "more": policy}
    catalog.set_bucket("more", BucketPolicy())
    assert catalog.bucket("more") == BucketPolicy()
    with pytest.raises(BucketNotFound):
        catalog.set_bucket("none", policy)
    catalog.delete_bucket("more")
    with pytest.raises(BucketNotFound, match="forebay bucket create more"):
        catalog.bucket("more")
    catalog.commit(Commit(bucket="data", key="k", record=record()))
    with pytest.raises(BucketNotEmpty):
        catalog.delete_bucket("data")


@pytest.mark.parametrize("key", AWKWARD_KEYS)
def test_any_key_is_committed_found_and_deleted_as_itself(catalog: HttpCatalog, key: str) -> None:
    info = catalog.commit(Commit(bucket="data", key=key, record=record()))
    assert (info.bucket, info.key, info.etag) == ("data", key, "w1")
    assert catalog.lookup("data", key) == info
    page = catalog.list("data", prefix=key[:1], delimiter="", cursor=None, limit=10, versions=False)
    assert page.objects == (info,)
    catalog.delete("data", key, write_id="w2", condition=Condition(if_match="w1"))
    with pytest.raises(ObjectNotFound):
        catalog.lookup("data", key)


def test_versions_and_pages(fake: FakeCluster, catalog: HttpCatalog) -> None:
    catalog.set_bucket("data", BucketPolicy(versions=5))
    first = catalog.commit(Commit(bucket="data", key="a/k", record=record("w1")))
    second = catalog.commit(Commit(bucket="data", key="a/k", record=record("w2")))
    catalog.commit(Commit(bucket="data", key="b", record=record("w3")))
    assert catalog.lookup("data", "a/k", version=first.version) == first
    everything = catalog.list("data", prefix="a/", delimiter="", cursor=None, limit=10, versions=True)
    assert everything.objects == (second, first)
    page = catalog.list("data", prefix="", delimiter="/", cursor=None, limit=1, versions=False)
    assert (page.objects, page.prefixes) == ((), ("a/",))
    page = catalog.list("data", prefix="", delimiter="/", cursor=page.cursor, limit=1, versions=False)
    assert ([info.key for info in page.objects], page.cursor) == (["b"], None)


@pytest.mark.parametrize(
    ("condition", "holds"),
    [
        (Condition(if_match="w1"), True),
        (Condition(if_match="*"), True),
        (Condition(if_match="other"), False),
        (Condition(if_none_match="*"), False),
        (Condition(if_none_match="other"), True),
        (Condition(if_none_match="w1"), False),
    ],
)
def test_conditions_travel_quoted(catalog: HttpCatalog, condition: Condition, holds: bool) -> None:
    catalog.commit(Commit(bucket="data", key="k", record=record("w1")))
    if holds:
        assert catalog.commit(Commit(bucket="data", key="k", record=record("w2"), condition=condition)).etag == "w2"
    else:
        with pytest.raises(PreconditionFailed):
            catalog.commit(Commit(bucket="data", key="k", record=record("w2"), condition=condition))


@pytest.mark.parametrize("consistency", ["session", "eventual"])
def test_a_weaker_consistency_is_asked_for_by_name(fake: FakeCluster, catalog: HttpCatalog, consistency: str) -> None:
    info = catalog.commit(Commit(bucket="data", key="k", record=record()))
    catalog.lookup("data", "k")
    assert fake.nodes["node-0"].requests[-1] == "GET /v1/records/data/k"
    seen = f"&seen={info.version}" if consistency == "session" else ""
    catalog.lookup("data", "k", version=1, consistency=consistency)  # type: ignore[arg-type]
    assert fake.nodes["node-0"].requests[-1] == f"GET /v1/records/data/k?version=1&consistency={consistency}{seen}"


def test_a_session_read_names_the_highest_revision_that_was_seen(fake: FakeCluster, catalog: HttpCatalog) -> None:
    def named() -> int:
        with suppress(ObjectNotFound):
            catalog.lookup("data", "none", consistency="session")
        request = next(request for node in fake.nodes.values() for request in reversed(node.requests) if "seen=" in request)
        for node in fake.nodes.values():
            node.requests.clear()
        return int(re.findall(r"seen=(\d+)", request)[0])

    catalog.set_bucket("data", BucketPolicy(versions=5))
    assert named() == 0
    first = catalog.commit(Commit(bucket="data", key="k", record=record("w1")))
    assert named() == first.version
    reader = fake.http_catalog()
    reader._session = catalog._session
    second = reader.commit_many([write("k", "w2")])[0]
    assert isinstance(second, ObjectInfo) and named() == second.version
    stranger = fake.http_catalog().commit(Commit(bucket="data", key="k", record=record("w3")))
    assert named() == second.version
    catalog.lookup("data", "k", version=first.version)
    assert named() == second.version, "an older one changes nothing"
    catalog.lookup("data", "k")
    assert named() == stranger.version
    assert named() <= catalog.delete("data", "k", write_id="d", condition=ANY) == named()
    listed = catalog.list("data", prefix="", delimiter="", cursor=None, limit=1, versions=False)
    assert named() == max(listed.revision, stranger.version)


def test_bad_names_are_refused_before_anybody_is_asked(fake: FakeCluster, catalog: HttpCatalog) -> None:
    for call in (
        lambda: catalog.lookup("data", "a/../b"),
        lambda: catalog.commit(Commit(bucket="NO", key="k", record=record())),
        lambda: catalog.delete("data", "\ud800", write_id="w", condition=ANY),
        lambda: catalog.list("data", prefix="\0", delimiter="", cursor=None, limit=1, versions=False),
        lambda: catalog.watch("data", prefix="\0", after=None, timeout_s=1.0),
        lambda: catalog.bucket("a/b"),
    ):
        with pytest.raises(InvalidName):
            call()
    assert asked(fake) == []


# --- many in one call


def write(key: str, write_id: str, condition: Condition = ANY) -> Commit:
    return Commit(bucket="data", key=key, record=record(write_id), condition=condition)


def test_many_are_committed_and_looked_up_with_errors_in_their_places(fake: FakeCluster, catalog: HttpCatalog) -> None:
    new = Condition(if_none_match="*")
    first, refused, second = catalog.commit_many([write("a", "w1", new), write("a", "w2", new), write("é/é", "w3")])
    assert isinstance(refused, PreconditionFailed)
    assert [first, second] == [fake.catalog.lookup("data", "a"), fake.catalog.lookup("data", "é/é")]
    found = catalog.lookup_many([("data", "a"), ("data", "none"), ("none", "a")])
    assert found[0] == first
    assert [type(error) for error in found[1:]] == [ObjectNotFound, BucketNotFound]
    assert asked(fake) == ["node-0", "node-0"]
    assert catalog.commit_many([]) == catalog.lookup_many([]) == []


def test_more_than_a_request_takes_is_sent_in_several(
    fake: FakeCluster, catalog: HttpCatalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("client.http_catalog.MAX_BATCH_ITEMS", 3)
    writes = [write(f"k{n}", f"w{n}") for n in range(7)]
    assert [info.etag for info in catalog.commit_many(writes) if isinstance(info, ObjectInfo)] == [f"w{n}" for n in range(7)]
    assert [len(batch) for batch in fake.batches] == [3, 3, 1]
    fake.batches.clear()
    one = len(encode_json(writes[0].to_json()))
    monkeypatch.setattr("client.http_catalog.MAX_BATCH_BYTES", 2 * one + 3)  # Two brackets and a comma.
    catalog.commit_many(writes)
    assert [len(batch) for batch in fake.batches] == [2, 2, 2, 1]
    fake.batches.clear()
    monkeypatch.setattr("client.http_catalog.MAX_BATCH_BYTES", 10)
    catalog.commit_many(writes[:2])
    assert [len(batch) for batch in fake.batches] == [1, 1]


def test_many_commits_whose_reply_was_dropped_return_their_first_results(fake: FakeCluster, catalog: HttpCatalog) -> None:
    fake.fail("node-0", fault="drops replies")
    new = Condition(if_none_match="*")
    infos = catalog.commit_many([write(f"k{n}", f"w{n}", new) for n in range(3)])
    assert asked(fake) == ["node-0", "node-1"]
    assert infos == [fake.catalog.lookup("data", f"k{n}") for n in range(3)]


def test_only_items_whose_error_may_pass_are_sent_again(fake: FakeCluster, catalog: HttpCatalog) -> None:
    fake.conflicts["w1"] = True
    outcomes = catalog.commit_many([write("a", "w0"), write("b", "w1"), write("a", "w2", Condition(if_none_match="*"))])
    assert [type(outcome) for outcome in outcomes] == [ObjectInfo, ObjectInfo, PreconditionFailed]
    assert fake.batches == [["w0", "w1", "w2"], ["w1"]]


def test_an_item_that_never_succeeds_has_its_last_error(fake: FakeCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    catalog = fake.http_catalog(deadline_s=0.05)
    catalog.buckets()
    monkeypatch.setattr(fake, "conflicts", {f"w{n}": True for n in range(2)})
    fake.nodes["node-0"].before = lambda request: fake.conflicts.update(w1=True)
    outcomes = catalog.commit_many([write("a", "w0"), write("b", "w1")])
    assert [type(outcome) for outcome in outcomes] == [ObjectInfo, Conflict]
    assert len(fake.batches) >= 2


def test_an_answer_for_another_number_of_items_is_no_answer(
    fake: FakeCluster, catalog: HttpCatalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fake.transport, "request", lambda *_, **__: Response(status=200, headers={}, body=b"[]", size=2))
    with pytest.raises(MetadataCorrupt, match="1 items were asked"):
        catalog.lookup_many([("data", "a")])


# --- who is asked


def test_the_first_endpoint_is_asked_while_it_answers(fake: FakeCluster, catalog: HttpCatalog) -> None:
    for _ in range(5):
        catalog.buckets()
    assert set(asked(fake)) == {"node-0"}


@pytest.mark.parametrize("fault", ["down", "silent", "busy", "no metadata"])
def test_another_node_answers_for_one_that_does_not(fake: FakeCluster, catalog: HttpCatalog, fault: Fault) -> None:
    fake.fail("node-0", fault=fault)
    assert catalog.bucket("data") == BucketPolicy()
    assert catalog.bucket("data") == BucketPolicy()
    assert asked(fake) == ["node-0", "node-1", "node-1"]  # And is asked first from then on.


def test_nodes_found_through_others_are_asked_when_the_configured_ones_fail(fake: FakeCluster) -> None:
    catalog = fake.http_catalog()
    catalog._configured = (fake.nodes["node-2"].url,)
    catalog.cluster_view()
    fake.fail("node-2", fault="down")
    assert catalog.bucket("data") == BucketPolicy()


def test_what_every_node_would_answer_is_not_asked_twice(fake: FakeCluster, catalog: HttpCatalog) -> None:
    with pytest.raises(ObjectNotFound):
        catalog.lookup("data", "none")
    assert asked(fake) == ["node-0"]


def test_a_call_is_repeated_until_a_node_is_back(fake: FakeCluster, catalog: HttpCatalog) -> None:
    fake.fail(*fake.nodes, fault="down")
    rounds = []

    def count(request: str) -> None:
        rounds.append(request)
        if len(rounds) == 4:
            fake.heal()

    fake.nodes["node-1"].before = count
    assert catalog.bucket("data") == BucketPolicy()
    assert len(rounds) == 4


def test_a_silent_cluster_is_an_error_that_says_how_it_was_configured(fake: FakeCluster) -> None:
    catalog = fake.http_catalog(deadline_s=0.02)
    catalog.buckets()
    fake.fail(*fake.nodes, fault="down")
    with pytest.raises(EndpointUnreachable) as caught:
        catalog.buckets()
    message = caught.value.message
    assert all(node.url in message for node in fake.nodes.values())
    assert "from the test" in message
    assert "forebay up" in message
    assert isinstance(caught.value.__cause__, EndpointUnreachable)


def test_an_address_that_never_answered_is_given_up_after_one_round(fake: FakeCluster) -> None:
    fake.fail(*fake.nodes, fault="down")
    with pytest.raises(EndpointUnreachable, match="from the test"):
        fake.http_catalog(deadline_s=1000.0, retry_base_s=100.0, retry_max_s=100.0).buckets()
    assert asked(fake) == ["node-0", "node-1", "node-2"]


def test_a_first_call_that_was_answered_busy_is_repeated(fake: FakeCluster) -> None:
    fake.fail(*fake.nodes, fault="busy")
    fake.nodes["node-2"].before = lambda request: fake.heal() if len(asked(fake)) > 4 else None
    assert fake.http_catalog().buckets() == {"data": BucketPolicy()}


def test_what_a_node_said_is_worth_more_than_that_others_are_silent(fake: FakeCluster) -> None:
    catalog = fake.http_catalog(deadline_s=0.02)
    catalog.buckets()
    fake.fail("node-0", "node-2", fault="down")
    fake.fail("node-1", fault="no metadata")
    with pytest.raises(MetadataUnavailable):
        catalog.buckets()


def test_a_round_in_which_all_are_busy_waits_for_the_first_that_may_be_asked_again(
    fake: FakeCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    catalog = fake.http_catalog()
    catalog.buckets()
    monkeypatch.setattr(catalog, "_backoff", Backoff(base_s=0.0, max_s=0.0, sleep=fake.clock.sleep))

    def turn_away(request: str, *, seconds: float) -> None:
        if not fake.clock.slept_s:
            raise Busy("full", retry_after_s=seconds)

    for node, seconds in zip(fake.nodes.values(), (5.0, 2.0, 3.0), strict=True):
        node.before = partial(turn_away, seconds=seconds)
    catalog.buckets()
    assert fake.clock.slept_s == [2.0]


def test_a_round_ends_with_the_deadline(fake: FakeCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    # Each dead endpoint takes its ten seconds, and there are fifteen.
    monkeypatch.setattr("client.http_catalog.Deadline", lambda timeout_s: Deadline(timeout_s, clock=fake.clock))
    monkeypatch.setattr("client.retry.time.sleep", fake.clock.sleep)
    catalog = fake.http_catalog(deadline_s=15.0)
    catalog.buckets()
    for node in fake.nodes.values():
        node.faults.add("silent")
        node.requests.clear()
        node.before = lambda request: fake.clock.sleep(10.0)
    began = fake.clock()
    with pytest.raises(StoreError):
        catalog.buckets()
    assert asked(fake) == ["node-0", "node-1"]
    assert fake.clock() - began == 20.0  # The transport would have cut the second one to what was left.


def test_the_deadline_reaches_the_transport(fake: FakeCluster, catalog: HttpCatalog, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[tuple[float | None, float]] = []

    def request(method: str, url: str, path: str, *, timeout_s: float | None, deadline: Deadline, **_: object) -> Response:
        given.append((timeout_s, deadline.remaining_s()))
        body = encode_json(Watched(changes=(), revision=5).to_json())
        return Response(status=200, headers={}, body=body, size=len(body))

    monkeypatch.setattr(fake.transport, "request", request)
    catalog.watch("data", prefix="", after=None, timeout_s=100.0)
    ((timeout_s, remaining_s),) = given
    assert timeout_s == 100.0 + 15.0  # A watch may be silent for as long as it waits, and then for as long as any call.
    assert 115.0 < remaining_s <= 115.0 + 10.0


def test_a_look_at_the_metadata_waits_long_only_where_nobody_else_can_be_asked(
    fake: FakeCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    catalog, patience_s = fake.http_catalog(connect_timeout_s=2.0), []

    def request(method: str, url: str, path: str, *, timeout_s: float | None, **_: object) -> Response:
        patience_s.append(timeout_s)
        if len(patience_s) < 6:
            raise DeadlineExceeded(f"{url} was silent")
        body = encode_json(BucketPolicy().to_json())
        return Response(status=200, headers={}, body=body, size=len(body))

    monkeypatch.setattr(fake.transport, "request", request)
    assert catalog.bucket("data") == BucketPolicy()
    assert patience_s == [2.0, 2.0, None, None, None, None]
    patience_s.clear()
    catalog.delete_bucket("data")
    assert patience_s == 6 * [None]


def test_once_a_view_is_known_a_refresh_makes_one_round(fake: FakeCluster, catalog: HttpCatalog) -> None:
    assert isinstance(catalog.cluster_view(), ClusterView)
    fake.fail(*fake.nodes, fault="busy")
    for node in fake.nodes.values():
        node.requests.clear()
    with pytest.raises(StoreError):
        catalog.cluster_view()
    assert sorted(asked(fake)) == ["node-0", "node-1", "node-2"]


# --- repeats are the same write


@pytest.mark.parametrize("condition", [ANY, Condition(if_none_match="*")])
def test_a_commit_whose_reply_was_dropped_returns_its_first_result(
    fake: FakeCluster, catalog: HttpCatalog, condition: Condition
) -> None:
    fake.fail("node-0", fault="drops replies")
    info = catalog.commit(Commit(bucket="data", key="k", record=record("w1"), condition=condition))
    assert asked(fake) == ["node-0", "node-1"]
    assert (info.etag, info.version) == ("w1", 1)
    assert fake.catalog.lookup("data", "k") == info


def test_a_commit_that_lost_while_its_own_reply_was_dropped_knows_that_it_won(fake: FakeCluster, catalog: HttpCatalog) -> None:
    fake.fail("node-0", fault="drops replies")

    def somebody_else_writes(request: str) -> None:
        fake.nodes["node-1"].before = lambda request: None
        fake.http_catalog().commit(Commit(bucket="data", key="k", record=record("theirs"), condition=Condition(if_match="w1")))

    fake.nodes["node-1"].before = somebody_else_writes
    info = catalog.commit(Commit(bucket="data", key="k", record=record("w1"), condition=Condition(if_none_match="*")))
    assert info.etag == "w1"
    assert fake.catalog.lookup("data", "k").etag == "theirs"


def test_a_delete_whose_reply_was_dropped_is_no_error(fake: FakeCluster, catalog: HttpCatalog) -> None:
    catalog.commit(Commit(bucket="data", key="k", record=record("w1")))
    fake.fail("node-0", fault="drops replies")
    catalog.delete("data", "k", write_id="w2", condition=Condition(if_match="w1"))
    with pytest.raises(ObjectNotFound):
        fake.catalog.lookup("data", "k")


def test_creating_a_bucket_again_after_a_dropped_reply_is_no_error(fake: FakeCluster, catalog: HttpCatalog) -> None:
    fake.fail("node-0", fault="drops replies")
    catalog.create_bucket("more", BucketPolicy(replicas=1))
    assert fake.catalog.bucket("more") == BucketPolicy(replicas=1)


def test_administrative_calls_pass_their_json(fake: FakeCluster, catalog: HttpCatalog) -> None:
    chunks = {"chunks": [[1, "00" * 32]]}
    assert catalog.admin("POST", "/v1/chunks:verify", json=chunks) == {"status": ["missing"]}
    assert re.fullmatch(r"POST /v1/chunks:verify", fake.nodes["node-0"].requests[-1])
