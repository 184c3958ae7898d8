"""Many small chunks in one answer: a frame for each, whatever is wrong with the others."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from client.errors import DiskFailed
from client.frames import CHUNK, MAX_REFS_BYTES, MAX_SMALL_BYTES, PROBLEM, encode_refs, frames
from client.manifest import REF_BYTES, Ref, make_ref
from client.wire import CHUNKS_GET_PATH
from tests.support.asgi import Answer, call
from tests.support.nodes import PARTITIONS, TestBed, open_node

PAYLOADS = [b"small %d" % number for number in range(6)]
REFS = [make_ref(payload, partitions=PARTITIONS) for payload in PAYLOADS]


@pytest.fixture
def bed() -> Iterator[TestBed]:
    with open_node() as opened:
        for ref, payload in zip(REFS, PAYLOADS, strict=True):
            opened.node.store.put(ref.partition, ref.id, payload)
        yield opened


def get(bed: TestBed, refs: list[Ref]) -> Answer:
    return call(bed.app, "POST", CHUNKS_GET_PATH, body=encode_refs(refs))


def told(answer: Answer, refs: list[Ref]) -> list[bytes | str]:
    """Of each chunk its payload, or the code of a problem."""
    assert (answer.status, answer.complete) == (200, True)
    found: list[bytes | str] = []
    for ref, (kind, content) in zip(refs, frames(answer.body, count=len(refs)), strict=True):
        assert kind in (CHUNK, PROBLEM)
        assert kind == PROBLEM or Ref.unpack(content[:REF_BYTES]) == ref
        problem: Any = json.loads(bytes(content)) if kind == PROBLEM else None
        found.append(bytes(content[REF_BYTES:]) if kind == CHUNK else problem["type"].rpartition(":")[2])
    return found


def test_chunks_come_in_the_order_in_which_they_were_asked_for(bed: TestBed) -> None:
    refs = [REFS[4], REFS[0], REFS[4]]
    assert told(get(bed, refs), refs) == [PAYLOADS[4], PAYLOADS[0], PAYLOADS[4]]


def test_a_chunk_that_is_not_here_or_damaged_costs_no_other_and_the_damaged_one_is_mended(bed: TestBed) -> None:
    (path,) = Path(bed.root).glob(f"**/*-{REFS[1].hex}")
    path.write_bytes(path.read_bytes()[:-1])
    refs = [make_ref(b"elsewhere", partitions=PARTITIONS), REFS[1], REFS[2]]
    assert told(get(bed, refs), refs) == ["chunk-not-found", "chunk-corrupt", PAYLOADS[2]]
    assert bed.repairs.asked == [(REFS[1].partition, REFS[1].id)]


def test_an_answer_is_made_in_parts_of_bounded_size(bed: TestBed, monkeypatch: pytest.MonkeyPatch) -> None:
    payloads = [bytes([number]) * MAX_SMALL_BYTES for number in range(40)]
    refs = [make_ref(payload, partitions=PARTITIONS) for payload in payloads]
    for ref, payload in zip(refs, payloads, strict=True):
        bed.node.store.put(ref.partition, ref.id, payload)
    assert told(get(bed, refs), refs) == payloads
    calls, small_chunks = 0, type(bed.node.store).small_chunks

    def twice(store: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls > 2:
            raise DiskFailed("gone")
        return small_chunks(store)

    monkeypatch.setattr(type(bed.node.store), "small_chunks", twice)
    answer = get(bed, refs)
    # Of 2.5 MiB, so that there is a third part: the answer breaks off in front of it.
    assert (answer.status, answer.complete, calls) == (200, False, 3)
    assert len(answer.body) > 2 * 1024 * 1024
    assert get(bed, refs).error == "disk-failed"


def test_what_is_no_request_for_small_chunks_is_refused(bed: TestBed) -> None:
    beyond = Ref(partition=PARTITIONS, id=REFS[0].id, size=7, check=0)
    for body in (b"", b"{}", encode_refs([REFS[0]])[:-1], encode_refs([beyond])):
        answer = call(bed.app, "POST", CHUNKS_GET_PATH, body=body)
        assert (answer.status, answer.error) == (400, "invalid-request")
    assert call(bed.app, "POST", CHUNKS_GET_PATH, body=bytes(MAX_REFS_BYTES + 1)).status == 413


def test_more_batches_than_the_node_sends_at_once_are_refused() -> None:
    with open_node(max_batch_reads=1) as bed:
        room = bed.app._api.state.batch_reads  # type: ignore[attr-defined]
        with room.take():
            answer = get(bed, REFS[:1])
        assert (answer.status, answer.error) == (503, "busy")
        assert get(bed, REFS[:1]).status == 200 and room.taken == 0


def test_it_is_described(bed: TestBed) -> None:
    operation = call(bed.app, "GET", "/openapi.json").json()["paths"][CHUNKS_GET_PATH]["post"]
    assert operation["requestBody"]["required"]
