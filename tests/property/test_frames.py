"""Batches of chunks and of objects: what was encoded is decoded, and nothing else is believed."""

from __future__ import annotations

import json
import struct
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from client.errors import InvalidRequest, ProtocolMismatch
from client.frames import (
    CHUNK,
    INFO,
    MAX_BATCH_BYTES,
    MAX_ITEMS,
    MAX_SMALL_BYTES,
    OBJECTS_MAGIC,
    PROBLEM,
    chunk_head,
    decode_chunks,
    decode_refs,
    document_frame,
    encode_chunks,
    encode_refs,
    frames,
    table_bytes,
)
from client.manifest import REF_BYTES, Ref, make_ref

payloads = st.binary(min_size=1, max_size=300)
documents = st.dictionaries(st.text(), st.text())


def ref_of(payload: bytes) -> Ref:
    return make_ref(payload, partitions=64)


def chunks_of(bodies: list[bytes]) -> bytes:
    return encode_chunks([(ref_of(body), body) for body in bodies])


def objects_of(parts: list[bytes | dict[str, str]]) -> bytes:
    made = [chunk_head(ref_of(part)) + part if isinstance(part, bytes) else document_frame(INFO, part) for part in parts]
    return OBJECTS_MAGIC + b"".join(made)


@given(st.lists(payloads, min_size=1, max_size=5))
def test_chunks_come_out_as_they_went_in(bodies: list[bytes]) -> None:
    found = decode_chunks(chunks_of(bodies))
    assert [(partition, chunk_id, bytes(payload)) for partition, chunk_id, payload in found] == [
        (ref_of(body).partition, ref_of(body).id, body) for body in bodies
    ]


@given(st.lists(payloads, min_size=1, max_size=3), st.data())
def test_chunks_of_another_length_are_refused(bodies: list[bytes], data: st.DataObject) -> None:
    whole = chunks_of(bodies)
    with pytest.raises(InvalidRequest):
        decode_chunks(whole[: data.draw(st.integers(0, len(whole) - 1))])
    with pytest.raises(InvalidRequest):
        decode_chunks(whole + b"\0")


@given(st.binary(max_size=200), st.lists(payloads, min_size=1, max_size=3), st.data())
def test_no_body_of_chunks_is_more_than_refused(noise: bytes, bodies: list[bytes], data: st.DataObject) -> None:
    changed = bytearray(chunks_of(bodies))
    place = data.draw(st.integers(0, table_bytes(len(bodies)) - 1))
    changed[place : place + len(noise)] = noise
    with suppress(InvalidRequest):
        assert sum(len(payload) for _, _, payload in decode_chunks(changed)) <= len(changed)


@pytest.mark.parametrize("count", [0, MAX_ITEMS + 1, 2**32 - 1])
def test_a_hostile_number_of_chunks_is_refused(count: int) -> None:
    with pytest.raises(InvalidRequest, match=f"1 to {MAX_ITEMS} chunks"):
        decode_chunks(struct.pack("<8sI", b"FBCHBAT1", count) + bytes(100))


@pytest.mark.parametrize("size", [0, MAX_SMALL_BYTES + 1, 2**32 - 1])
def test_a_hostile_size_of_a_chunk_is_refused(size: int) -> None:
    with pytest.raises(InvalidRequest, match=f"1 to {MAX_SMALL_BYTES}"):
        decode_chunks(struct.pack("<8sIII32s", b"FBCHBAT1", 1, 0, size, bytes(32)) + bytes(MAX_SMALL_BYTES + 1))


def test_chunks_of_another_version_are_refused() -> None:
    with pytest.raises(InvalidRequest, match="FBCHBAT2"):
        decode_chunks(b"FBCHBAT2" + chunks_of([b"x"])[8:])


def ref(size: int) -> Ref:
    return Ref(partition=3, id=bytes(32), size=size, check=2**64 - 1)


@given(st.lists(payloads, min_size=1, max_size=5))
def test_references_come_out_as_they_went_in(bodies: list[bytes]) -> None:
    refs = [ref_of(body) for body in bodies]
    assert decode_refs(encode_refs(refs)) == refs


@given(st.lists(payloads, min_size=1, max_size=2), st.data())
def test_references_of_another_length_are_refused(bodies: list[bytes], data: st.DataObject) -> None:
    whole = encode_refs([ref_of(body) for body in bodies])
    cut = data.draw(st.integers(0, len(whole) - 1).filter(lambda length: length != 8 + REF_BYTES))
    for body in (whole[:cut], whole + b"\0", b"FBCHREF2" + whole[8:]):
        with pytest.raises(InvalidRequest, match=f"1 to {MAX_ITEMS} references"):
            decode_refs(body)


@pytest.mark.parametrize("sizes", [[0], [1, MAX_SMALL_BYTES + 1], [MAX_SMALL_BYTES] * (MAX_BATCH_BYTES // MAX_SMALL_BYTES + 1)])
def test_references_to_more_than_a_batch_holds_are_refused(sizes: list[int]) -> None:
    with pytest.raises(InvalidRequest, match=f"{MAX_BATCH_BYTES} together"):
        decode_refs(encode_refs([ref(size) for size in sizes]))
    with pytest.raises(InvalidRequest, match="references"):
        decode_refs(encode_refs([ref(1)] * (MAX_ITEMS + 1)))
    assert len(decode_refs(encode_refs([ref(1)] * MAX_ITEMS))) == MAX_ITEMS


@given(st.lists(payloads | documents, max_size=5))
def test_objects_come_out_as_they_went_in(parts: list[bytes | dict[str, str]]) -> None:
    found = list(frames(objects_of(parts), count=len(parts)))
    for (kind, content), part in zip(found, parts, strict=True):
        if isinstance(part, bytes):
            assert (kind, Ref.unpack(content[:REF_BYTES]), bytes(content[REF_BYTES:])) == (CHUNK, ref_of(part), part)
        else:
            assert (kind, json.loads(bytes(content))) == (INFO, part)


@given(st.lists(payloads | documents, min_size=1, max_size=3), st.data())
def test_objects_of_another_length_or_number_are_refused(parts: list[bytes | dict[str, str]], data: st.DataObject) -> None:
    whole, count = objects_of(parts), len(parts)
    cut = whole[: data.draw(st.integers(0, len(whole) - 1))]
    for body, expected in ((cut, count), (whole + b"\0", count), (whole, count + 1), (whole, count - 1)):
        with pytest.raises(ProtocolMismatch):
            list(frames(body, count=expected))


@pytest.mark.parametrize(
    "head",
    [
        struct.pack("<II", 0, 0),
        struct.pack("<II", PROBLEM + 1, 0),
        struct.pack("<II", INFO, 2**32 - 1),
        struct.pack("<II", CHUNK, REF_BYTES - 1) + bytes(REF_BYTES - 1),
    ],
)
def test_a_hostile_frame_is_refused(head: bytes) -> None:
    with pytest.raises(ProtocolMismatch, match="a frame of kind"):
        list(frames(OBJECTS_MAGIC + head, count=1))
