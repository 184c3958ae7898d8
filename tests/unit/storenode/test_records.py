"""Names over HTTP: what the client's catalog asks, and what a node refuses to commit."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import pytest

from client.catalog import Listing, Watched
from client.manifest import Ref
from client.record import BucketPolicy, ObjectInfo, ObjectRecord
from client.wire import encode_json, record_path
from storenode import records
from tests.support.asgi import Answer, ask, call
from tests.support.catalogs import record
from tests.support.nodes import PARTITIONS, TestBed, open_node

PATH = record_path("data", "a/b")


@pytest.fixture
def bed() -> Iterator[TestBed]:
    with open_node() as opened:
        opened.node.catalog.create_bucket("data", BucketPolicy())
        yield opened


def body_of(value: Any) -> dict[str, Any]:
    """A record, or what stands for one, anchored to the first layout."""
    return {"record": value.to_json() if isinstance(value, ObjectRecord) else value, "anchor": {"layout": 1, "epoch": 0}}


def commit(bed: TestBed, value: Any, path: str = PATH, **headers: str) -> Answer:
    sent = {name.replace("_", "-"): text for name, text in headers.items()}
    body = value if isinstance(value, bytes) else encode_json(body_of(value))
    return call(bed.app, "PUT", path, body=body, headers=sent)


def changed(**fields: Any) -> dict[str, Any]:
    return {**record(write_id="w").to_json(), **fields}


def with_content(**fields: Any) -> dict[str, Any]:
    return changed(content={**record().content.to_json(), **fields})


# Buckets


def test_bucket_is_created_changed_listed_and_deleted(bed: TestBed) -> None:
    path = "/v1/buckets/more"
    made = call(bed.app, "PUT", path, body=b'{"replicas": 2}', headers={"if-none-match": "*"})
    assert (made.status, made.json()) == (201, {"replicas": 2, "ack": "quorum", "versions": 0})
    other = call(bed.app, "PUT", path, body=b'{"replicas": 1}', headers={"if-none-match": "*"})
    assert (other.status, other.error) == (409, "bucket-exists")
    changed = call(bed.app, "PUT", path, body=b'{"replicas": 1}', headers={"if-match": "*"})
    assert (changed.status, changed.json()["replicas"]) == (200, 1)
    assert call(bed.app, "GET", path).json() == changed.json()
    assert set(call(bed.app, "GET", "/v1/buckets").json()) == {"data", "more"}
    assert call(bed.app, "DELETE", path).status == 204
    assert call(bed.app, "GET", path).error == "bucket-not-found"


def test_bucket_without_a_body_has_the_defaults_and_never_replaces_a_policy(bed: TestBed) -> None:
    assert call(bed.app, "PUT", "/v1/buckets/more").json() == BucketPolicy().to_json()
    call(bed.app, "PUT", "/v1/buckets/more", body=b'{"versions": 3}', headers={"if-match": "*"})
    assert call(bed.app, "PUT", "/v1/buckets/more").error == "bucket-exists"


@pytest.mark.parametrize(
    ("body", "headers"),
    [
        (b"[]", {}),
        (b"7", {}),
        (b"{", {}),
        (b'{"replicas": 0}', {}),
        (b'{"replicas": 1e999}', {}),
        (b'{"ack": "most"}', {}),
        (b'{"colour": 1}', {}),
        (b"{}", {"if-match": '"x"'}),
        (b"{}", {"if-none-match": '"x"'}),
        (b"{}", {"if-match": "*", "if-none-match": "*"}),
    ],
)
def test_malformed_policies_are_refused(bed: TestBed, body: bytes, headers: dict[str, str]) -> None:
    answer = call(bed.app, "PUT", "/v1/buckets/more", body=body, headers=headers)
    assert (answer.status, answer.error) == (400, "invalid-request")


@pytest.mark.parametrize("name", ["ab", "Data", "a_b", "-ab", "a..b", "%2e%2e%2e", "a%20b", "x" * 64, "%ff%ff%ff"])
def test_bad_bucket_names_are_refused(bed: TestBed, name: str) -> None:
    for method in ("GET", "PUT", "DELETE"):
        assert call(bed.app, method, f"/v1/buckets/{name}").error == "invalid-name"
    assert call(bed.app, "GET", f"/v1/objects/{name}").error == "invalid-name"
    assert call(bed.app, "GET", f"/v1/watch/{name}").error == "invalid-name"


def test_bucket_with_objects_is_not_deleted(bed: TestBed) -> None:
    commit(bed, record())
    assert call(bed.app, "DELETE", "/v1/buckets/data").error == "bucket-not-empty"


# Records


def test_committed_record_is_read_back(bed: TestBed) -> None:
    wanted = record(write_id="w")
    answer = commit(bed, wanted, if_none_match="*")
    assert answer.status == 201
    info = ObjectInfo.from_json(answer.json())
    assert (info.bucket, info.key, info.record) == ("data", "a/b", wanted)
    assert ObjectInfo.from_json(call(bed.app, "GET", PATH).json()) == info
    assert ObjectInfo.from_json(call(bed.app, "GET", f"{PATH}?version={info.version}&consistency=session").json()) == info


def test_repeat_gets_the_first_answer_and_a_racer_does_not(bed: TestBed) -> None:
    first = commit(bed, record(write_id="w"), if_none_match="*")
    assert commit(bed, record(write_id="w"), if_none_match="*").json() == first.json()
    assert commit(bed, record(write_id="v"), if_none_match="*").error == "precondition-failed"
    assert commit(bed, record(write_id="u"), if_match='"w"').status == 201


def manifest(partition: int, size: int) -> str:
    return Ref(partition=partition, id=bytes(32), size=size, check=1).pack().hex()


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"[" * 10_000,
        {},
        changed(write_id=""),
        changed(write_id="a/b"),
        changed(write_id="x" * 65),
        changed(write_id=None, content=None),
        changed(content=[]),
        changed(content_type="text/html\r\nset-cookie: x"),
        changed(content_type=""),
        changed(metadata={"a b": "c"}),
        changed(metadata={"a": "\ud800"}),
        changed(metadata=[]),
        changed(metadata={"a": "x" * 9000}),
        changed(ack="most"),
        changed(replicas=0),
        changed(replicas=17),
        changed(replicas=1e400),
        changed(created_s="nan"),
        changed(created_s="inf"),
        changed(tombstone=True),
        with_content(size=4),
        with_content(size=-3),
        with_content(digest="x" * 64),
        with_content(digest=""),
        with_content(refs=["00"]),
        with_content(refs=["zz" * 48]),
        with_content(size=3, refs=[manifest(PARTITIONS, 3)]),
        with_content(size=0, refs=[manifest(1, 0)]),
        with_content(size=1 << 20, refs=[manifest(1, 1 << 20)]),
        with_content(size=9, refs=[], manifest=manifest(PARTITIONS, 100)),
        with_content(size=0, refs=[], manifest=manifest(1, 100)),
        with_content(size=3, manifest=manifest(1, 100)),
        with_content(size=9, refs=[], manifest=manifest(1, 0)),
    ],
)
def test_records_that_no_upload_makes_are_refused(bed: TestBed, value: Any) -> None:
    body = value if isinstance(value, bytes) else json.dumps(value).encode()
    answer = commit(bed, body)
    assert (answer.status, answer.error) == (400, "invalid-request")
    assert call(bed.app, "GET", PATH).error == "object-not-found"


def test_record_with_a_manifest_is_committed(bed: TestBed) -> None:
    assert commit(bed, with_content(size=1 << 40, refs=[], manifest=manifest(1, 100))).status == 201


def test_record_is_bounded(bed: TestBed) -> None:
    limit = bed.node.config.max_record_bytes
    answer = commit(bed, b" " * (limit + 1))
    assert (answer.status, answer.error) == (413, "body-too-large")


# Listings and watches


def test_listing_takes_its_arguments_from_the_query(bed: TestBed) -> None:
    for key in ("a/1", "a/2", "b", "ü"):
        commit(bed, record(), record_path("data", key))
    page = Listing.from_json(call(bed.app, "GET", "/v1/objects/data?delimiter=/&limit=2").json())
    assert ([info.key for info in page.objects], page.prefixes) == (["b"], ("a/",))
    rest = Listing.from_json(call(bed.app, "GET", f"/v1/objects/data?delimiter=/&limit=2&cursor={page.cursor}").json())
    assert ([info.key for info in rest.objects], rest.cursor) == (["ü"], None)
    found = Listing.from_json(call(bed.app, "GET", "/v1/objects/data?prefix=%C3%BC&versions=true").json())
    assert [info.key for info in found.objects] == ["ü"]


@pytest.mark.parametrize(
    "query", ["limit=0", "limit=1001", "limit=x", "cursor=zz", "cursor=" + "a" * 9000, "versions=2", "prefix=a%00"]
)
def test_malformed_listings_are_refused(bed: TestBed, query: str) -> None:
    assert call(bed.app, "GET", f"/v1/objects/data?{query}").status == 400


def test_watch_tells_what_changed(bed: TestBed) -> None:
    begin = Watched.from_json(call(bed.app, "GET", "/v1/watch/data").json())
    info = ObjectInfo.from_json(commit(bed, record()).json())
    watched = Watched.from_json(call(bed.app, "GET", f"/v1/watch/data?after={begin.revision}&timeout_s=5").json())
    assert watched.changes == (("a/b", info),)
    assert call(bed.app, "GET", f"/v1/watch/data?after={begin.revision}&prefix=x&timeout_s=0").json()["changes"] == []


def test_watch_goes_on_until_something_changes(bed: TestBed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "WATCH_SLICE_S", 0.01)
    committed: list[Answer] = []

    async def scenario() -> Answer:
        begin = (await ask(bed.app, "GET", "/v1/watch/data")).json()["revision"]
        watching = asyncio.create_task(ask(bed.app, "GET", f"/v1/watch/data?after={begin}&timeout_s=20"))
        while bed.meta.calls["watch"] < 3:  # noqa: ASYNC110 - what is waited for happens in another thread
            await asyncio.sleep(0.001)
        body = encode_json(body_of(record()))
        committed.append(await ask(bed.app, "PUT", PATH, body=body))
        return await watching

    watched = Watched.from_json(asyncio.run(scenario()).json())
    assert watched.changes == (("a/b", ObjectInfo.from_json(committed[0].json())),)


def test_watch_without_changes_ends_in_time_and_tells_how_far_it_goes(bed: TestBed) -> None:
    begin = call(bed.app, "GET", "/v1/watch/data").json()
    watched = call(bed.app, "GET", f"/v1/watch/data?after={begin['revision']}&timeout_s=0.05").json()
    assert (watched["changes"], watched["revision"] >= begin["revision"]) == ([], True)


@pytest.mark.parametrize("query", ["after=x", "after=-1", "after=1&timeout_s=-1", "after=1&timeout_s=nan", "after=99999999"])
def test_malformed_watches_are_refused(bed: TestBed, query: str) -> None:
    assert call(bed.app, "GET", f"/v1/watch/data?{query}").error == "invalid-request"
