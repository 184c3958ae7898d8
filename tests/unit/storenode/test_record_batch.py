"""Many records in one request: each item is answered as if it were alone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from client.catalog import MAX_BATCH_BYTES, MAX_BATCH_ITEMS, Commit
from client.errors import MetadataUnavailable
from client.record import BucketPolicy, Condition, ObjectInfo
from client.wire import encode_json
from tests.support.asgi import Answer, call
from tests.support.catalogs import record, write
from tests.support.nodes import OWN, TestBed, open_node


@pytest.fixture
def bed() -> Iterator[TestBed]:
    with open_node() as opened:
        opened.node.catalog.create_bucket("data", BucketPolicy())
        yield opened


def ask(bed: TestBed, route: str, items: Any) -> Answer:
    return call(bed.app, "POST", f"/v1/records:{route}", body=items if isinstance(items, bytes) else encode_json(items))


def infos(answer: Answer) -> list[ObjectInfo]:
    assert answer.status == 200
    return [ObjectInfo.from_json(item["info"]) for item in answer.json()]


def codes(answer: Answer) -> list[str]:
    assert answer.status == 200
    return [item["problem"]["type"].rpartition(":")[2] if "problem" in item else "" for item in answer.json()]


def test_committed_records_are_read_back_in_order(bed: TestBed) -> None:
    writes = [write(key) for key in ("b", "a/é", "c")]
    made = infos(ask(bed, "batchPut", [item.to_json() for item in writes]))
    assert [(info.key, info.record) for info in made] == [(item.key, item.record) for item in writes]
    assert infos(ask(bed, "batchGet", [{"bucket": "data", "key": info.key} for info in made])) == made
    assert [bed.node.catalog.lookup("data", info.key) for info in made] == made
    assert bed.meta.calls["txn_many"] == 3  # The layout, the bucket, and all records together.


def test_conditions_are_each_items_own(bed: TestBed) -> None:
    first = bed.node.catalog.commit(Commit(bucket="data", key="k", record=record()))
    writes = [
        write("k", condition=Condition(if_none_match="*")),
        write("new", condition=Condition(if_none_match="*")),
        write("k", write_id="mine", condition=Condition(if_match=first.etag)),
        write("k", condition=Condition(if_match=first.etag)),
    ]
    answer = ask(bed, "batchPut", [item.to_json() for item in writes])
    assert codes(answer) == ["precondition-failed", "", "", "precondition-failed"]
    assert bed.node.catalog.lookup("data", "k").etag == "mine"


def test_items_that_are_refused_hurt_no_others(bed: TestBed) -> None:
    good = write("good").to_json()
    bad: list[tuple[Any, str]] = [
        (7, "invalid-request"),
        ({}, "invalid-request"),
        ({**good, "colour": 1}, "invalid-request"),
        ({**good, "key": 7}, "invalid-request"),
        ({**good, "record": 7}, "invalid-request"),
        ({**good, "record": {**good["record"], "write_id": "../x"}}, "invalid-request"),
        ({**good, "record": {**good["record"], "tombstone": True}}, "invalid-request"),
        ({**good, "record": {**good["record"], "content_type": "x" * bed.node.config.max_record_bytes}}, "body-too-large"),
        ({**good, "if_match": 7}, "invalid-request"),
        ({**good, "if_match": None}, "invalid-request"),
        ({**good, "if_none_match": "a b"}, "invalid-request"),
        ({**good, "bucket": "NO"}, "invalid-name"),
        ({**good, "bucket": "none"}, "bucket-not-found"),
        ({**good, "key": "a/../b"}, "invalid-name"),
        ({**good, "key": "\ud800"}, "invalid-name"),
    ]
    for item, code in bad:
        answer = ask(bed, "batchPut", [write("k1").to_json(), item, write("k2").to_json()])
        assert codes(answer) == ["", code, ""], item
        assert answer.json()[1]["problem"]["node_id"] == OWN


def test_names_that_are_not_found_hurt_no_others(bed: TestBed) -> None:
    bed.node.catalog.commit(Commit(bucket="data", key="k", record=record()))
    items = [{"bucket": "data", "key": key} for key in ("absent", "k", "..")]
    answer = ask(bed, "batchGet", [*items, {"bucket": "none", "key": "k"}, {"bucket": "data"}, {**items[0], "version": 1}])
    assert codes(answer) == ["object-not-found", "", "invalid-name", "bucket-not-found", "invalid-request", "invalid-request"]


@pytest.mark.parametrize("route", ["batchPut", "batchGet"])
def test_what_is_no_list_of_items_is_refused_as_a_whole(bed: TestBed, route: str) -> None:
    for body in (b"", b"{", b"{}", b"null", b"[" * 100_000, encode_json([{}] * (MAX_BATCH_ITEMS + 1))):
        answer = ask(bed, route, body)
        assert (answer.status, answer.error) == (400, "invalid-request")
    assert ask(bed, route, b" " * (MAX_BATCH_BYTES + 1)).error == "body-too-large"
    assert ask(bed, route, []).json() == []


def test_the_most_items_are_accepted(bed: TestBed) -> None:
    made = infos(ask(bed, "batchPut", [write(f"k{n}").to_json() for n in range(MAX_BATCH_ITEMS)]))
    assert len(made) == MAX_BATCH_ITEMS


def test_an_engine_that_does_not_answer_is_the_whole_requests_error(bed: TestBed, monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(keys: object) -> None:
        raise MetadataUnavailable("gone")

    monkeypatch.setattr(bed.meta, "get_many", gone)
    for route, items in (("batchPut", [write("k").to_json()]), ("batchGet", [{"bucket": "data", "key": "k"}])):
        assert ask(bed, route, items).error == "metadata-unavailable"
