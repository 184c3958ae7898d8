"""Every route asks for a token: those of the description, those that the framework never sees, and those of tomorrow."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import pytest
from fastapi import FastAPI

from client.frames import PROBLEM, encode_chunks, encode_refs, frames
from client.manifest import make_ref
from client.record import BucketPolicy, Content, ObjectRecord
from client.wire import PROTOCOL, PROTOCOL_HEADER, decode_json, encode_json
from storenode.app import App
from storenode.grants import VERBS, Verb
from tests.support.asgi import Answer, call
from tests.support.nodes import PARTITIONS, TestBed, open_node
from tests.support.tokens import NOW_S, OTHER, bearer, make_token, make_tokens

PAYLOAD = b"payload"
REF = make_ref(PAYLOAD, partitions=PARTITIONS)
CHUNK = f"/v1/chunks/{REF.partition}/{REF.hex}"
NAMES = encode_json({"chunks": [[REF.partition, REF.hex]]})
RECORD = ObjectRecord(
    write_id="w2", content=Content(size=len(PAYLOAD), digest="0" * 64, refs=(REF,)), replicas=1, ack="one", created_s=1.0
).to_json()
WRITE = {"record": RECORD, "anchor": {"layout": 1, "epoch": 0}}

# Whatever the token says, these answer, though perhaps with nothing.
FOR_EVERY_TOKEN = {
    "GET /openapi.json",
    "GET /v1/cluster",
    "GET /v1/layout",
    "GET /v1/admin/layout",
    "GET /v1/admin/status",
    "GET /v1/buckets",
}
ITEM_BY_ITEM = {"POST /v1/records:batchGet", "POST /v1/records:batchPut", "POST /v1/objects:batchGet"}
OPEN = {"GET /healthz", "GET /readyz"}
BODIES = {
    "PUT /v1/chunks/{partition}/{id}": PAYLOAD,
    "POST /v1/chunks:batchGet": encode_refs([REF]),
    "POST /v1/chunks:batchPut": encode_chunks([(REF, PAYLOAD)]),
    "POST /v1/chunks:have": NAMES,
    "POST /v1/chunks:touch": NAMES,
    "POST /v1/chunks:verify": NAMES,
    "PUT /v1/records/{bucket}/{key}": encode_json(WRITE),
    "POST /v1/records:batchGet": encode_json([{"bucket": "data", "key": "in/k"}]),
    "POST /v1/records:batchPut": encode_json([{"bucket": "data", "key": "in/k", **WRITE}]),
    "POST /v1/objects:batchGet": encode_json({"items": [["data", "in/k"], ["data", "in/k", 1]]}),
}
# The verb that each route wants, on the bucket, its key, or anywhere.
VERB_OF: dict[str, Verb] = {
    "GET /v1/objects/{bucket}": "read",
    "GET /v1/watch/{bucket}": "read",
    "GET /v1/objects/{bucket}/{key}": "read",
    "HEAD /v1/objects/{bucket}/{key}": "read",
    "PUT /v1/objects/{bucket}/{key}": "write",
    "DELETE /v1/objects/{bucket}/{key}": "delete",
    "GET /v1/records/{bucket}/{key}": "read",
    "PUT /v1/records/{bucket}/{key}": "write",
    "GET /v1/chunks/{partition}/{id}": "read",
    "HEAD /v1/chunks/{partition}/{id}": "read",
    "PUT /v1/chunks/{partition}/{id}": "write",
    "POST /v1/chunks:batchGet": "read",
    "POST /v1/chunks:batchPut": "write",
    "POST /v1/chunks:have": "read",
    "POST /v1/chunks:verify": "read",
    "POST /v1/chunks:touch": "write",
    "PUT /v1/buckets/{bucket}": "admin",
    "DELETE /v1/buckets/{bucket}": "admin",
    "GET /v1/snapshots/{bucket}": "read",
    "PUT /v1/snapshots/{bucket}/{snapshot}": "admin",
    "DELETE /v1/snapshots/{bucket}/{snapshot}": "admin",
    "POST /v1/prune/{bucket}": "admin",
}


@pytest.fixture
def bed() -> Iterator[TestBed]:
    """A node that wants tokens, and knows an object data/in/k and a bucket called other."""
    with open_node(tokens=make_tokens(max_known=100)) as bed:
        for bucket in ("data", "other"):
            bed.node.catalog.create_bucket(bucket, BucketPolicy())
        bed.node.objects.put("data", "in/k", PAYLOAD)
        bed.node.catalog.create_snapshot("data", "made", snapshot_id="1")
        bed.node.store.put(REF.partition, REF.id, PAYLOAD)
        yield bed


def registered_in(routes: Iterable[Any]) -> Iterator[str]:
    """Those of the framework, hidden ones too."""
    for route in routes:
        included = getattr(route, "original_router", None)
        if included is not None:
            yield from registered_in(included.routes)
        else:
            yield from (f"{method} {route.path.replace(':path', '')}" for method in route.methods)


def routes() -> list[str]:
    """METHOD and template of every route that is described or registered, those outside the framework included."""
    with open_node() as bed:
        app = bed.app
        assert isinstance(app, App)
        api = app._api
        assert isinstance(api, FastAPI)
        described = {f"{method.upper()} {path}" for path, methods in api.openapi()["paths"].items() for method in methods}
        registered = set(registered_in(api.routes))
    # The framework adds HEAD to what it serves itself.
    return sorted(described | registered - {"HEAD /openapi.json"})


ROUTES = routes()
GUARDED = [route for route in ROUTES if route not in OPEN]


def ask(bed: TestBed, route: str, *, token: str | None = None, key: str = "in%2Fk") -> Answer:
    method, _, path = route.partition(" ")
    path = path.replace("{partition}/{id}", CHUNK.removeprefix("/v1/chunks/"))
    path = path.replace("{bucket}", "data").replace("{key}", key).replace("{job_id}", "job0")
    path = path.replace("{snapshot}", "made" if method == "DELETE" else "new")
    if path.startswith("/v1/watch"):
        path += "?after=0&timeout_s=0"
    headers = {} if token is None else bearer(token)
    return call(bed.app, method, path, headers=headers, body=BODIES.get(route, b""))


def without(*verbs: Verb) -> Sequence[Verb]:
    return [verb for verb in VERBS if verb not in verbs]


def test_the_routes_are_those_that_this_test_knows() -> None:
    known = {*OPEN, *FOR_EVERY_TOKEN, *ITEM_BY_ITEM, *VERB_OF, "GET /v1/buckets/{bucket}", "GET /metrics"}
    undeclared = [route for route in GUARDED if route not in known and "/v1/admin/" not in route]
    assert not undeclared, "say in storenode/permissions.py and here who may use these"
    assert known <= set(ROUTES)


@pytest.mark.parametrize("route", GUARDED)
def test_every_route_wants_a_token_that_is_good(bed: TestBed, route: str) -> None:
    expired = make_token(*VERBS, bucket="*", expires_s=NOW_S - 100)
    foreign = make_token(*VERBS, bucket="*", secret=OTHER)
    for token in (None, expired, foreign):
        answer = ask(bed, route, token=token)
        assert answer.status == 401, route
        assert answer.headers["www-authenticate"].startswith("Bearer")
        if not route.startswith("HEAD"):
            assert answer.error == "unauthenticated"
            assert "forebay token create" in answer.json()["detail"]


@pytest.mark.parametrize("route", sorted(OPEN))
def test_health_needs_no_token(bed: TestBed, route: str) -> None:
    assert ask(bed, route).status == ask(bed, route, token="nonsense").status == 200


@pytest.mark.parametrize("route", [route for route in GUARDED if route not in FOR_EVERY_TOKEN | ITEM_BY_ITEM])
def test_a_token_without_the_verb_is_told_so(bed: TestBed, route: str) -> None:
    verb = VERB_OF.get(route, "admin")
    wrong = ["other", *(["*"] if route != "GET /v1/buckets/{bucket}" else [])]
    for bucket in wrong:
        # For chunks any bucket is as good as another.
        verbs = VERBS if bucket == "other" and "chunks" not in route and verb in ("read", "write", "delete") else without(verb)
        token = make_token(*verbs, bucket=bucket)
        answer = ask(bed, route, token=token)
        assert answer.status == 403, (route, bucket)
        if not route.startswith("HEAD"):
            assert answer.error == "forbidden"
            assert "this needs" in answer.json()["detail"] and "of tester allows" in answer.json()["detail"]
            assert token not in answer.body.decode()


@pytest.mark.parametrize("route", sorted(VERB_OF))
def test_the_verb_alone_is_enough(bed: TestBed, route: str) -> None:
    answer = ask(bed, route, token=make_token(VERB_OF[route]))
    assert answer.status < 300 or (route, answer.status) == ("DELETE /v1/buckets/{bucket}", 409), answer


@pytest.mark.parametrize("route", [route for route in ROUTES if "{key}" in route])
def test_a_prefix_is_compared_with_the_decoded_key(bed: TestBed, route: str) -> None:
    token = make_token(VERB_OF[route], prefix="in/")
    for key in ("in/k", "in%2Fk", "%69n/k"):
        assert ask(bed, route, token=token, key=key).status in (200, 201, 204, 404), key
    for key in ("inn/k", "in", "In/k", "other", "in%252Fk"):
        assert ask(bed, route, token=token, key=key).status == 403, key
    for key in ("in/../k", "in/%2e%2e/k", "", "%ff"):
        assert ask(bed, route, token=token, key=key).status in (400, 404), key


@pytest.mark.parametrize("route", ["GET /v1/objects/data", "GET /v1/watch/data"])
@pytest.mark.parametrize(
    ("query", "status"),
    [("", 403), ("?prefix=", 403), ("?prefix=i", 403), ("?prefix=in", 403), ("?prefix=in/", 200), ("?prefix=in/k", 200)],
)
def test_a_token_for_a_prefix_lists_only_below_it(bed: TestBed, route: str, query: str, status: int) -> None:
    # Of two values the last one is what is listed, and so it is what must be allowed.
    for given in {query, query.replace("?", "?prefix=in/&") if query else query}:
        answer = ask(bed, route + given, token=make_token("read", prefix="in/"))
        assert answer.status == status, given


def test_buckets_are_shown_to_those_who_may_do_something_in_them(bed: TestBed) -> None:
    for verb in VERBS:
        assert set(ask(bed, "GET /v1/buckets", token=make_token(verb)).json()) == {"data"}
        assert ask(bed, "GET /v1/buckets/data", token=make_token(verb)).status == 200
    assert set(ask(bed, "GET /v1/buckets", token=make_token("read", bucket="*")).json()) == {"data", "other"}
    assert ask(bed, "GET /v1/buckets", token=make_token()).json() == {}
    assert ask(bed, "GET /v1/buckets/data", token=make_token("write", prefix="in/")).status == 200


def test_a_bucket_is_not_changed_by_who_may_do_so_only_elsewhere(bed: TestBed) -> None:
    for route in ("PUT /v1/buckets/data", "DELETE /v1/buckets/data"):
        assert ask(bed, route, token=make_token("admin", bucket="other")).status == 403
    assert ask(bed, "PUT /v1/buckets/other", token=make_token("admin", bucket="other")).status < 300


def test_each_item_of_a_batch_is_judged_by_itself(bed: TestBed) -> None:
    names = [("other", "k"), ("data", "in/k"), ("data", "out"), ("*", "in/k"), ("Data", "k")]
    read, write = (bearer(make_token(verb, prefix="in/")) for verb in ("read", "write"))
    gets = encode_json([{"bucket": bucket, "key": key} for bucket, key in names])
    puts = encode_json([{"bucket": bucket, "key": key, **WRITE} for bucket, key in names])

    def outcomes(path: str, body: bytes, headers: dict[str, str]) -> list[str]:
        answers = call(bed.app, "POST", path, headers=headers, body=body).json()
        return [answer["problem"]["title"] if "problem" in answer else "info" for answer in answers]

    refused = "The token does not allow this"
    assert outcomes("/v1/records:batchGet", gets, read) == [refused, "info", refused, refused, refused]
    assert outcomes("/v1/records:batchPut", puts, write) == [refused, "info", refused, refused, refused]
    assert outcomes("/v1/records:batchGet", gets, write) == outcomes("/v1/records:batchPut", puts, read) == [refused] * 5


def test_each_object_of_a_batch_is_judged_by_itself(bed: TestBed) -> None:
    items = [["other", "k"], ["data", "in/k"], ["data", "in/k", 1], ["data", "out"], ["data", "out", 1]]
    body = encode_json({"items": items})
    answer = call(bed.app, "POST", "/v1/objects:batchGet", headers=bearer(make_token("read", prefix="in/")), body=body)
    found = list(frames(answer.body, count=len(items)))
    codes = [decode_json(bytes(content))["status"] if kind == PROBLEM else 200 for kind, content in found]
    assert codes == [403, 200, 404, 403, 403]


@pytest.mark.parametrize("path", ["/v1/tomorrow", "/v1/objects", "/v1/objects/data/k/", "/v1//objects/data/k", "/v2/cluster"])
def test_a_route_that_nobody_has_declared_is_for_who_administers_the_cluster(bed: TestBed, path: str) -> None:
    app = bed.app
    assert isinstance(app, App) and isinstance(app._api, FastAPI)
    app._api.add_api_route("/v1/tomorrow", lambda: "done", methods=["POST"])
    all_but_admin = make_token(*without("admin"), bucket="*")
    assert call(app, "POST", path).status == 401
    assert call(app, "POST", path, headers=bearer(all_but_admin)).status == 403
    assert call(app, "POST", path, headers=bearer(make_token("admin", bucket="data"))).status == 403
    assert call(app, "POST", path, headers=bearer(make_token("admin", bucket="*"))).status in (200, 404, 405)


@pytest.mark.parametrize("value", ["", "Basic eDp5", "Bearer", "Token x", "bearer"])
def test_another_authorization_is_none(bed: TestBed, value: str) -> None:
    answer = call(bed.app, "GET", "/v1/cluster", headers={"authorization": value})
    assert (answer.status, answer.error) == (401, "unauthenticated")


def test_the_scheme_is_known_in_any_case(bed: TestBed) -> None:
    for scheme in ("bearer", "BEARER", "Bearer"):
        assert call(bed.app, "GET", "/v1/cluster", headers={"authorization": f"{scheme} {make_token()}"}).status == 200


def test_without_a_secret_nobody_is_asked() -> None:
    with open_node() as bed:
        bed.node.catalog.create_bucket("data", BucketPolicy())
        for headers in ({}, bearer("nonsense")):
            assert call(bed.app, "GET", "/v1/buckets", headers=headers).json().keys() == {"data"}
            assert call(bed.app, "GET", "/metrics", headers=headers).status == 200


# The way past the web server


def plain_read(path: str, token: str | None) -> bytes:
    authorization = "" if token is None else f"authorization: Bearer {token}\r\n"
    return f"GET {path} HTTP/1.1\r\nhost: a:1\r\n{PROTOCOL_HEADER}: {PROTOCOL}\r\n{authorization}\r\n".encode()


@pytest.mark.parametrize("path", ["/v1/records/data/in/k", "/v1/records/data/in/k?start=0", "/v1/buckets/data"])
def test_a_read_is_answered_at_once_to_tokens_that_are_known(bed: TestBed, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "RWF_NOWAIT", 0)  # The file system of tests may not be able to tell what is in memory.
    app = bed.app
    assert isinstance(app, App)
    good = make_token("read")
    for _ in range(2):
        assert app.answer_now(plain_read(path, None)) is None
        assert app.answer_now(plain_read(path, "nonsense")) is None
        assert app.answer_now(plain_read(path, good)) is None  # Nobody has looked at its signature.
    assert call(app, "GET", path, headers=bearer(good)).status == 200
    assert app.answer_now(plain_read(path, good)) is not None
    assert app.answer_now(plain_read(path, None)) is None
    wrong = [make_token("read", bucket="other"), make_token(*VERBS, bucket="other")]
    if "buckets" not in path:
        wrong += [make_token("read", prefix="out/"), make_token(*without("read"), bucket="*")]
    for token in wrong:
        assert call(app, "GET", "/v1/cluster", headers=bearer(token)).status == 200
        assert app.answer_now(plain_read(path, token)) is None


def test_content_is_taken_only_from_what_may_be_read(bed: TestBed) -> None:
    info = bed.node.catalog.lookup("data", "in/k")
    source = {"bucket": "data", "key": "in/k", "version": info.version}
    body = encode_json({"record": {**info.record.to_json(), "write_id": "copy"}, "source": source})
    path = "/v1/records/data/in/copy"
    refused = call(bed.app, "PUT", path, headers=bearer(make_token("write")), body=body)
    assert (refused.status, refused.error) == (403, "forbidden")
    assert call(bed.app, "PUT", path, headers=bearer(make_token("read", "write")), body=body).status == 201
