"""The record with the first bytes: what is taken of an answer, and what is not believed."""

from __future__ import annotations

import os
import struct
from typing import Any

import pytest

from client.checksum import SEGMENT_BYTES, content_digest, segment_checks
from client.errors import ProtocolMismatch
from client.manifest import Ref, make_ref
from client.opening import Opening
from client.record import Content, ObjectInfo, ObjectRecord
from client.wire import CHECK_HEADER, RECORD_HEADER, SEGMENTS_HEADER, encode_header

FIRST, SECOND = os.urandom(3 * SEGMENT_BYTES + 10), os.urandom(500)
WHOLE = FIRST + SECOND


def refs() -> tuple[Ref, Ref]:
    first, second = (make_ref(payload, partitions=64) for payload in (FIRST, SECOND))
    return first, second


def info_of(*refs: Ref) -> ObjectInfo:
    content = Content(size=sum(ref.size for ref in refs), digest=content_digest([ref.id for ref in refs]), refs=refs)
    return ObjectInfo(bucket="data", key="k", version=3, record=ObjectRecord(write_id="w", content=content))


INFO = info_of(*refs())


def headers(payload: bytes = b"", *, start: int = 0, end: int = 0, **changed: str) -> dict[str, str]:
    sent = {RECORD_HEADER: encode_header(INFO.to_json()).decode()}
    if payload:
        checks = struct.unpack(f"<{-(-(end - start) // SEGMENT_BYTES)}Q", segment_checks(payload[start:end]))
        sent[CHECK_HEADER] = f"{make_ref(payload, partitions=64).check:016x}"
        sent[SEGMENTS_HEADER] = ",".join(f"{check:016x}" for check in checks)
    return {**sent, **{name.replace("_", "-"): value for name, value in changed.items()}}


def read(start: int, end: int, body: bytes, sent: dict[str, str]) -> tuple[Opening, int]:
    opening = Opening(start=start, place=lambda info: memoryview(bytearray(end - start)))
    view = opening(sent, len(body))
    assert view is not None
    view[:] = body
    for at in range(0, len(body), 1000):
        opening.seen(view[at : at + 1000])
    return opening, opening.opened().filled


def test_a_whole_chunk_is_taken_and_the_rest_is_left_to_the_reader() -> None:
    opening, filled = read(0, len(WHOLE), FIRST, headers())
    assert (opening.info, filled, bytes(opening.buffer[:filled])) == (INFO, len(FIRST), FIRST)


@pytest.mark.parametrize(
    ("start", "end", "wide"),
    [
        (10, 20, (0, SEGMENT_BYTES)),
        (SEGMENT_BYTES, 2 * SEGMENT_BYTES, (SEGMENT_BYTES, 2 * SEGMENT_BYTES)),
        (SEGMENT_BYTES + 5, len(WHOLE), (SEGMENT_BYTES, len(FIRST))),
        (1, len(FIRST) - 1, (0, len(FIRST))),
    ],
)
def test_a_range_is_cut_out_of_the_segments_that_came(start: int, end: int, wide: tuple[int, int]) -> None:
    sent = headers(FIRST, start=wide[0], end=wide[1])
    opening, filled = read(start, end, FIRST[wide[0] : wide[1]], sent)
    assert opening.buffer[:filled] == WHOLE[start : min(end, len(FIRST))]
    assert filled == min(end, len(FIRST)) - start


def test_a_small_chunk_comes_whole_whatever_is_read_of_it() -> None:
    start = len(FIRST) + 100
    opening, filled = read(start, start + 50, SECOND, headers())
    assert (filled, bytes(opening.buffer)) == (50, SECOND[100:150])


@pytest.mark.parametrize("kind", ["whole", "range", "small", "announced", "segments"])
def test_bytes_that_are_not_right_do_not_count(kind: str) -> None:
    damaged = bytearray(FIRST)
    damaged[5] ^= 1
    cases: dict[str, Any] = {
        "whole": (0, len(WHOLE), bytes(damaged), headers()),
        "range": (10, 20, bytes(damaged[:SEGMENT_BYTES]), headers(FIRST, end=SEGMENT_BYTES)),
        "small": (len(FIRST), len(WHOLE), bytes(500), headers()),
        "announced": (10, 20, FIRST[:SEGMENT_BYTES], headers(FIRST, end=SEGMENT_BYTES, x_forebay_check="1")),
        "segments": (10, 20, FIRST[:SEGMENT_BYTES], headers(x_forebay_check=f"{refs()[0].check:016x}")),
    }
    opening, filled = read(*cases[kind])
    assert filled == 0
    assert opening.opened().corrupt == (refs()[1] if kind == "small" else refs()[0])


def test_a_record_alone_is_a_record() -> None:
    opening, filled = read(0, len(WHOLE), b"", headers())
    assert (opening.info, filled, len(opening.buffer)) == (INFO, 0, len(WHOLE))
    opening = Opening(start=0, place=lambda info: memoryview(bytearray(info.size)))
    assert opening({}, 1234) is None
    opening.take_record(encode_header(INFO.to_json()))
    assert (opening.info, opening.opened().filled) == (INFO, 0)


def test_a_repeat_begins_anew() -> None:
    opening = Opening(start=0, place=lambda info: memoryview(bytearray(info.size)))
    first = opening(headers(), len(FIRST))
    assert first is not None
    opening.seen(first[:1000])  # Then the connection broke.
    assert opening({}, 10) is None
    opening.take_record(encode_header(INFO.to_json()))
    assert opening.opened().filled == 0


def test_an_answer_of_another_length_is_refused() -> None:
    opening = Opening(start=10, place=lambda info: memoryview(bytearray(10)))
    with pytest.raises(ProtocolMismatch, match="expected"):
        opening(headers(), SEGMENT_BYTES - 1)
