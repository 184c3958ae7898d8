"""Records, policies and conditions: their JSON, their bounds, and what is refused."""

from __future__ import annotations

import json
from typing import Any

import pytest

from client.errors import InvalidRequest, MetadataCorrupt
from client.record import (
    MAX_METADATA_BYTES,
    Ack,
    BucketPolicy,
    Condition,
    Content,
    ObjectInfo,
    ObjectRecord,
    acks_needed,
)
from client.write_id import new_write_id
from tests.golden.contract import FOLDER, RECORDS, record_vectors

RECORD = RECORDS[0]


def test_records_are_what_they_were_when_they_were_committed() -> None:
    golden = json.loads((FOLDER / "record.json").read_text())
    assert record_vectors() == golden
    assert tuple(map(ObjectRecord.from_json, golden)) == RECORDS


def test_infos_come_back_from_json() -> None:
    info = ObjectInfo(bucket="data", key="a/ключ", version=7, record=RECORD)
    again = ObjectInfo.from_json(json.loads(json.dumps(info.to_json())))
    assert again == info
    assert (again.etag, again.size, again.digest, again.metadata) == (
        RECORD.write_id,
        RECORD.content.size,
        RECORD.content.digest,
        RECORD.metadata,
    )


@pytest.mark.parametrize(
    ("replicas", "expected"),
    [(1, (1, 1, 1)), (2, (1, 2, 2)), (3, (1, 2, 3)), (4, (1, 3, 4)), (5, (1, 3, 5))],
)
def test_acks_needed_is_one_a_majority_or_all(replicas: int, expected: tuple[int, int, int]) -> None:
    levels: tuple[Ack, ...] = ("one", "quorum", "all")
    assert tuple(acks_needed(replicas, ack=ack) for ack in levels) == expected


def test_an_unknown_ack_level_names_those_there_are() -> None:
    with pytest.raises(InvalidRequest, match="one, quorum, all"):
        acks_needed(3, ack="most")


@pytest.mark.parametrize(
    "settings",
    [
        {"replicas": 0},
        {"replicas": 17},
        {"replicas": "many"},
        {"replicas": None},
        {"replicas": float("inf")},
        {"versions": -1},
        {"versions": 10_001},
        {"ack": "most"},
        {"ack": []},
        {"color": "red"},
        ["replicas"],
        5,
    ],
)
def test_bad_bucket_settings_are_one_typed_error(settings: Any) -> None:
    with pytest.raises(InvalidRequest):
        BucketPolicy.from_json(settings)


def test_bucket_settings_left_out_have_defaults() -> None:
    assert BucketPolicy.from_json({}) == BucketPolicy()
    policy = BucketPolicy(replicas=2, ack="all", versions=5)
    assert BucketPolicy.from_json(policy.to_json()) == policy


@pytest.mark.parametrize(
    "damage",
    [
        {"write_id": ...},
        {"content": None},
        {"content": {"size": 5, "digest": "", "refs": []}},
        {"content": {"size": "x", "digest": "", "refs": []}},
        {"content": {"size": 5, "digest": "", "refs": ["zz"]}},
        {"content": {"size": 5, "digest": "", "refs": 7}},
        {"content": {"size": 5, "digest": "", "manifest": "00"}},
        {"content": {"size": float("inf"), "digest": "", "manifest": "00" * 48}},
        {"metadata": ["a"]},
        {"replicas": "x"},
        {"created_s": None},
    ],
)
def test_a_damaged_record_is_metadata_corrupt(damage: dict[str, Any]) -> None:
    value = {**RECORD.to_json(), **damage}
    with pytest.raises(MetadataCorrupt):
        ObjectRecord.from_json({name: part for name, part in value.items() if part is not ...})


@pytest.mark.parametrize("value", [[], 5, "record", None, {"content": {}}])
def test_what_is_no_record_is_metadata_corrupt(value: Any) -> None:
    with pytest.raises(MetadataCorrupt):
        ObjectRecord.from_json(value)


def test_metadata_is_bounded_in_bytes_of_utf8() -> None:
    content = Content(size=0, digest="")
    ObjectRecord(write_id="w", content=content, metadata={"k": "é" * ((MAX_METADATA_BYTES - 1) // 2)})
    with pytest.raises(InvalidRequest, match="8192 bytes"):
        ObjectRecord(write_id="w", content=content, metadata={"k": "é" * (MAX_METADATA_BYTES // 2)})


@pytest.mark.parametrize("metadata", [{"k": 1}, {2: "v"}, {"k": "\ud800"}, {"k": b"v"}])
def test_metadata_that_is_not_text_is_refused(metadata: Any) -> None:
    with pytest.raises(InvalidRequest, match="text to text"):
        ObjectRecord(write_id="w", content=Content(size=0, digest=""), metadata=metadata)


def test_write_ids_are_fresh_and_fit_for_an_etag() -> None:
    ids = {new_write_id() for _ in range(100)}
    assert len(ids) == 100
    for write_id in ids:
        Condition(if_match=write_id)


@pytest.mark.parametrize(
    ("condition", "etag", "expected"),
    [
        (Condition(), None, True),
        (Condition(), "e", True),
        (Condition(if_match="e"), "e", True),
        (Condition(if_match="e"), "f", False),
        (Condition(if_match="e"), None, False),
        (Condition(if_match="*"), "e", True),
        (Condition(if_match="*"), None, False),
        (Condition(if_none_match="*"), None, True),
        (Condition(if_none_match="*"), "e", False),
        (Condition(if_none_match="e"), "e", False),
        (Condition(if_none_match="e"), "f", True),
        (Condition(if_none_match="e"), None, True),
        (Condition(if_match="*", if_none_match="e"), "f", True),
        (Condition(if_match="*", if_none_match="e"), "e", False),
    ],
)
def test_conditions_hold_as_http_says(condition: Condition, etag: str | None, expected: bool) -> None:
    assert condition.holds(etag) is expected


@pytest.mark.parametrize("tag", ['"quoted"', "two words", "a,b", "line\nbreak", "é", "", "x" * 65])
def test_a_condition_that_no_etag_can_meet_is_refused_before_it_reaches_a_header(tag: str) -> None:
    for given in ({"if_match": tag}, {"if_none_match": tag}):
        with pytest.raises(InvalidRequest, match="ETag"):
            Condition(**given)
