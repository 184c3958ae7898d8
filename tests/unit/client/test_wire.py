"""Paths, headers, ranges and problem documents, as both sides read them."""

from __future__ import annotations

import json
from urllib.parse import unquote, urlsplit

import pytest

from client.checksum import SEGMENT_BYTES
from client.errors import (
    Busy,
    InvalidRange,
    InvalidRequest,
    Misconfigured,
    ObjectNotFound,
    ProtocolMismatch,
    StoreError,
    to_problem,
)
from client.wire import (
    check_protocol,
    decode_json,
    encode_json,
    error_of,
    format_range,
    object_path,
    parse_endpoint,
    parse_range,
    record_path,
    widen,
)
from tests.unit.client.test_names import AWKWARD_KEYS


@pytest.mark.parametrize("key", AWKWARD_KEYS)
def test_keys_survive_the_path(key: str) -> None:
    for path in (object_path("abc", key), record_path("abc", key)):
        parts = urlsplit(path)
        assert path.isascii()
        assert not parts.query
        assert unquote(parts.path.split("/", 4)[4], errors="strict") == key


def test_json_is_compact_and_holds_any_text() -> None:
    assert encode_json({"a": [1, "é"]}) == '{"a":[1,"é"]}'.encode()
    assert decode_json(encode_json({"half": "\ud800"})) == {"half": "\ud800"}


@pytest.mark.parametrize("body", [b"", b"{", b"\xff", b"nul"])
def test_what_is_no_json_is_refused(body: bytes) -> None:
    with pytest.raises(InvalidRequest, match="JSON"):
        decode_json(body)


@pytest.mark.parametrize("version", [None, "0", "1"])
def test_this_and_the_last_protocol_are_served(version: str | None) -> None:
    check_protocol(version)


@pytest.mark.parametrize("version", ["2", "", "one"])
def test_other_protocols_are_refused(version: str) -> None:
    with pytest.raises(ProtocolMismatch, match=repr(version)):
        check_protocol(version)


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://127.0.0.1:7070", ("127.0.0.1", 7070)),
        ("http://node-1:80/", ("node-1", 80)),
        ("http://node-1", ("node-1", 80)),
        ("http://[::1]:7070", ("::1", 7070)),
        ("http://[fe80::1]", ("fe80::1", 80)),
    ],
)
def test_endpoints_are_host_and_port(url: str, expected: tuple[str, int]) -> None:
    assert parse_endpoint(url) == expected


@pytest.mark.parametrize(
    "url",
    ["", "127.0.0.1:7070", "https://n:1", "http://", "http://:7070", "http://n:port", "http://n:99999", "http://[::1", "http://n/x",
     "http://n?x", "http://n#x", "http://user:secret@n:1", "forebay://abc/k"],
)  # fmt: skip
def test_what_is_no_endpoint_says_how_one_looks_and_no_password(url: str) -> None:
    with pytest.raises(Misconfigured, match="http://HOST:PORT") as caught:
        parse_endpoint(url)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (None, None),
        ("bytes=0-0", (0, 1)),
        ("bytes=0-99", (0, 100)),
        ("bytes=0-1000", (0, 100)),
        ("bytes=99-", (99, 100)),
        ("bytes=-1", (99, 100)),
        ("bytes=-1000", (0, 100)),
        (" bytes=5-9 ", (5, 10)),
    ],
)
def test_ranges(header: str | None, expected: tuple[int, int] | None) -> None:
    assert parse_range(header, size_bytes=100) == expected


@pytest.mark.parametrize(
    "header",
    ["", "bytes=", "bytes=-", "bytes=100-", "bytes=5-4", "bytes=0-1,3-4", "items=0-1", "bytes=a-b", "bytes=-0", "bytes=٣-٤",
     "bytes=" + "9" * 30 + "-"],
)  # fmt: skip
def test_bad_ranges_are_refused(header: str) -> None:
    with pytest.raises(InvalidRange):
        parse_range(header, size_bytes=100)


def test_no_range_fits_an_empty_body() -> None:
    for header in ("bytes=0-", "bytes=0-0", "bytes=-5"):
        with pytest.raises(InvalidRange):
            parse_range(header, size_bytes=0)


def test_a_formatted_range_is_read_as_it_was_meant() -> None:
    assert parse_range(format_range(7, 12), size_bytes=100) == (7, 12)


@pytest.mark.parametrize(
    ("start", "end", "size", "expected"),
    [
        (0, 1, 10, (0, 10)),
        (0, SEGMENT_BYTES, 3 * SEGMENT_BYTES, (0, SEGMENT_BYTES)),
        (SEGMENT_BYTES - 1, SEGMENT_BYTES + 1, 3 * SEGMENT_BYTES, (0, 2 * SEGMENT_BYTES)),
        (2 * SEGMENT_BYTES, 2 * SEGMENT_BYTES + 1, 2 * SEGMENT_BYTES + 5, (2 * SEGMENT_BYTES, 2 * SEGMENT_BYTES + 5)),
    ],
)
def test_widening_reaches_whole_segments_or_the_end(start: int, end: int, size: int, expected: tuple[int, int]) -> None:
    assert widen(start, end, size_bytes=size) == expected


def test_a_problem_document_becomes_the_error_it_was() -> None:
    sent = ObjectNotFound("there is no abc/k", key="abc/k", node_id="n1")
    error = error_of(404, {}, json.dumps(to_problem(sent)).encode(), node_id="n2")
    assert (type(error), error.message, error.key, error.node_id) == (ObjectNotFound, sent.message, "abc/k", "n1")


@pytest.mark.parametrize("body", [b"", b"Service Unavailable", b"[]", b'"x"', b"\xff\xfe", b'{"detail": "cut', b"{}"])
@pytest.mark.parametrize(
    ("status", "kind", "retryable"),
    [
        (503, Busy, True),
        (429, Busy, True),
        (502, Busy, True),
        (504, Busy, True),
        (404, InvalidRequest, False),
        (413, InvalidRequest, False),
        (307, StoreError, False),
        (500, StoreError, False),
    ],
)
def test_answers_without_a_problem_document_are_told_by_their_status(
    status: int, kind: type[StoreError], retryable: bool, body: bytes
) -> None:
    error = error_of(status, {}, body, node_id="proxy")
    assert type(error) is kind
    assert error.retryable is retryable
    assert str(status) in error.message
    assert error.node_id == "proxy"


def test_an_unknown_problem_is_a_plain_error() -> None:
    error = error_of(418, {}, b'{"type": "urn:forebay:error:new-one", "detail": "teapot"}', node_id="n")
    assert type(error) is StoreError
    assert error.message == "teapot"


@pytest.mark.parametrize(
    ("header", "expected"), [("3", 3.0), ("", None), ("soon", None), ("-1", None), ("\xb2", None), ("1.5", None)]
)
def test_retry_after_counts_in_whole_seconds(header: str, expected: float | None) -> None:
    body = json.dumps(to_problem(Busy("full"))).encode()
    assert error_of(503, {"retry-after": header}, body, node_id="n").retry_after_s == expected


@pytest.mark.parametrize(
    ("until", "now", "expected"),
    [
        ("Fri, 31 Dec 1999 23:59:59 GMT", "Fri, 31 Dec 1999 23:59:29 GMT", 30.0),
        ("Fri, 31 Dec 1999 23:59:59 GMT", "Sat, 01 Jan 2000 08:00:00 GMT", 0.0),
        ("Fri, 31 Dec 1999 23:59:59 GMT", "", None),
        ("Fri, 31 Dec 1999 23:59:59 GMT", "Fri, 31 Dec 1999 23:59:29 -0000", None),
        ("Fri, 99 Dec 1999", "Fri, 31 Dec 1999 23:59:29 GMT", None),
    ],
)
def test_a_moment_counts_from_the_time_of_who_names_it(until: str, now: str, expected: float | None) -> None:
    headers = {"retry-after": until, "date": now}
    assert error_of(503, headers, b"overloaded", node_id="proxy").retry_after_s == expected
